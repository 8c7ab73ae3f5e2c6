#include "bind/gpu/gpu.h"
#include "cuda/pool/pool.h"
#include "cuda/rows/rows.h"
#include "cuda/windows/windows.h"

namespace ds {
namespace {

namespace py = pybind11;

gpu::Workspace workspace_for(const Check& check, const Arg& workspace, int64_t n) {
  check.tensor("workspace", workspace.view, DType::kInt8, {-1});
  check.at_least("bytes of workspace", workspace.view.shape[0],
                 gpu::algorithm_workspace(stream_of(workspace), n));
  return {workspace.view.data, workspace.view.shape[0]};
}

// ------------------------------------------------------------------ index work
void window_table(const Arg& neighbours, const OptionalArg& out_class, const OptionalArg& tap_class,
                  int64_t rows_per_sample, const OptionalArg& out_batch, const Arg& table) {
  const Check check = gpu_check("window_table", neighbours);
  check.tensor("neighbours", neighbours.view, DType::kInt32, {-1, -1});
  const int64_t n_offsets = neighbours.view.shape[0], n_out = neighbours.view.shape[1];
  check.tensor("table", table.view, DType::kInt32, {n_out, n_offsets});
  if (out_class.given != tap_class.given)
    throw py::value_error("window_table: out_class and tap_class come together, got one of them");
  check.at_least("rows_per_sample", rows_per_sample, 0);
  if (out_batch.given != (rows_per_sample > 0) || (out_batch.given && !out_class.given))
    throw py::value_error(
        "window_table: a ground per sample needs out_class, tap_class, rows_per_sample > 0 and "
        "out_batch");
  if (out_class.given) {
    check.tensor("out_class", out_class.view, DType::kInt32, {n_out});
    check.tensor("tap_class", tap_class.view, DType::kInt32, {-1, n_offsets});
  }
  if (out_batch.given) check.tensor("out_batch", out_batch.view, DType::kInt32, {n_out});
  check.apart({{"table", table.view}}, {{"neighbours", neighbours.view},
                                        {"out_class", out_class.view},
                                        {"tap_class", tap_class.view},
                                        {"out_batch", out_batch.view}});
  on_device(check.operation, neighbours.view, [&](const gpu::Stream& stream) {
    return gpu::window_table(
        stream, {neighbours.view.as<int32_t>(), n_out, n_offsets, out_class.view.as<int32_t>(),
                 tap_class.view.as<int32_t>(), tap_class.given ? tap_class.view.shape[0] : 0,
                 out_batch.view.as<int32_t>(), rows_per_sample, table.view.as<int32_t>()});
  });
}

gpu::Taps taps_of(const Check& check, const Arg& table, int64_t n_class_rows, const Arg& counts,
                  const Arg& start, const Arg& found) {
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.at_least("n_class_rows", n_class_rows, 0);
  const int64_t n_out = table.view.shape[0], n_offsets = table.view.shape[1];
  check.tensor("counts", counts.view, DType::kInt32, {n_out + 1});
  check.tensor("start", start.view, DType::kInt64, {n_out + 1});
  check.tensor("found", found.view, DType::kInt64, {3});
  check.apart({{"counts", counts.view}, {"start", start.view}, {"found", found.view}},
              {{"table", table.view}});
  return {table.view.as<int32_t>(),
          n_out,
          n_offsets,
          n_class_rows,
          counts.view.as<int32_t>(),
          start.view.as<int64_t>(),
          found.view.as<int64_t>()};
}

void plan_every_tap(const Arg& table, int64_t n_class_rows, const Arg& workspace, const Arg& counts,
                    const Arg& start, const Arg& found) {
  const Check check = gpu_check("every_tap", table);
  const gpu::Taps taps = taps_of(check, table, n_class_rows, counts, start, found);
  int64_t n_u;
  if (__builtin_mul_overflow(taps.n_offsets, n_class_rows, &n_u) || n_u > INT32_MAX)
    throw py::value_error("every_tap: n_class_rows = " + std::to_string(n_class_rows) +
                          " times the offsets must fit int32");
  const gpu::Workspace space = workspace_for(check, workspace, taps.n_out + 1);
  on_device(check.operation, table.view,
            [&](const gpu::Stream& stream) { return gpu::plan_every_tap(stream, space, taps); });
}

void fill_every_tap(const Arg& table, int64_t n_class_rows, const Arg& counts, const Arg& start,
                    const Arg& found, const Arg& u_rows) {
  const Check check = gpu_check("every_tap", table);
  const gpu::Taps taps = taps_of(check, table, n_class_rows, counts, start, found);
  check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
  check.apart({{"u_rows", u_rows.view}}, {{"table", table.view}, {"start", start.view}});
  on_device(check.operation, table.view, [&](const gpu::Stream& stream) {
    return gpu::fill_every_tap(stream, taps, u_rows.view.shape[0], u_rows.view.as<int32_t>());
  });
}

gpu::GroundTaps ground_taps_of(const Check& check, const gpu::Taps& taps, const Arg& table,
                               const Arg& flags, const Arg& numbers, const Arg& u_offset_start) {
  int64_t n_flags;
  if (__builtin_mul_overflow(taps.n_offsets, taps.n_class_rows, &n_flags) || n_flags == INT64_MAX)
    throw py::value_error("ground_taps: n_class_rows = " + std::to_string(taps.n_class_rows) +
                          " is too large");
  check.tensor("flags", flags.view, DType::kInt32, {1 + n_flags});
  check.tensor("numbers", numbers.view, DType::kInt64, {1 + n_flags});
  check.tensor("u_offset_start", u_offset_start.view, DType::kInt64, {taps.n_offsets + 1});
  check.apart(
      {{"flags", flags.view}, {"numbers", numbers.view}, {"u_offset_start", u_offset_start.view}},
      {{"table", table.view}});
  return {taps, flags.view.as<int32_t>(), numbers.view.as<int64_t>(),
          u_offset_start.view.as<int64_t>()};
}

void plan_ground_taps(const Arg& table, int64_t n_class_rows, const Arg& workspace,
                      const Arg& counts, const Arg& start, const Arg& found, const Arg& flags,
                      const Arg& numbers, const Arg& u_offset_start) {
  const Check check = gpu_check("ground_taps", table);
  const gpu::Taps taps = taps_of(check, table, n_class_rows, counts, start, found);
  const gpu::GroundTaps args = ground_taps_of(check, taps, table, flags, numbers, u_offset_start);
  const int64_t n_flags = flags.view.shape[0], n_rows = taps.n_out + 1;
  const gpu::Workspace space = workspace_for(check, workspace, n_flags > n_rows ? n_flags : n_rows);
  on_device(check.operation, table.view,
            [&](const gpu::Stream& stream) { return gpu::plan_ground_taps(stream, space, args); });
}

void fill_ground_taps(const Arg& table, int64_t n_class_rows, const Arg& counts, const Arg& start,
                      const Arg& found, const Arg& flags, const Arg& numbers,
                      const Arg& u_offset_start, const Arg& u_rows, const Arg& class_rows) {
  const Check check = gpu_check("ground_taps", table);
  const gpu::Taps taps = taps_of(check, table, n_class_rows, counts, start, found);
  const gpu::GroundTaps args = ground_taps_of(check, taps, table, flags, numbers, u_offset_start);
  check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
  check.tensor("class_rows", class_rows.view, DType::kInt32, {-1});
  check.apart({{"u_rows", u_rows.view}, {"class_rows", class_rows.view}},
              {{"table", table.view}, {"start", start.view}, {"numbers", numbers.view}});
  on_device(check.operation, table.view, [&](const gpu::Stream& stream) {
    return gpu::fill_ground_taps(stream, args, u_rows.view.shape[0], class_rows.view.shape[0],
                                 u_rows.view.as<int32_t>(), class_rows.view.as<int32_t>());
  });
}

void invert_rows(const Arg& rows, const Arg& workspace, const Arg& keys, const Arg& positions,
                 const Arg& start, const Arg& found) {
  const Check check = gpu_check("invert_rows", rows);
  check.tensor("rows", rows.view, DType::kInt32, {-1});
  const int64_t n_rows = rows.view.shape[0];
  if (n_rows > INT32_MAX)
    throw py::value_error("invert_rows: rows must have fewer than 2^31 elements on a GPU, got " +
                          std::to_string(n_rows));
  check.tensor("keys", keys.view, DType::kInt32, {2, n_rows});
  check.tensor("positions", positions.view, DType::kInt32, {2, n_rows});
  check.tensor("start", start.view, DType::kInt64, {-1});
  check.at_least("number of starts", start.view.shape[0], 1);
  check.tensor("found", found.view, DType::kInt64, {2});
  check.apart({{"workspace", workspace.view},
               {"keys", keys.view},
               {"positions", positions.view},
               {"start", start.view},
               {"found", found.view}},
              {{"rows", rows.view}});
  const gpu::Workspace space = workspace_for(check, workspace, n_rows);
  int32_t* const places = positions.view.as<int32_t>();
  on_device(check.operation, rows.view, [&](const gpu::Stream& stream) {
    return gpu::invert_rows(
        stream, space,
        {rows.view.as<int32_t>(), n_rows, start.view.shape[0] - 1, keys.view.as<uint32_t>(),
         places + n_rows, places, start.view.as<int64_t>(), found.view.as<int64_t>()});
  });
}

// ------------------------------------------------------------------ pooling
DType check_windows(const Check& check, const Arg& x, const OptionalArg& ground, const Arg& table,
                    const Arg& y) {
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  const int64_t n_channels = x.view.shape[1];
  if (ground.given) check.tensor("ground_rows", ground.view, dtype, {-1, n_channels});
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.tensor("y", y.view, dtype, {table.view.shape[0], n_channels});
  check.apart({{"y", y.view}},
              {{"x", x.view}, {"table", table.view}, {"ground_rows", ground.view}});
  return dtype;
}

template <class T>
gpu::Windows<T> windows_of(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y,
                           int32_t* arg) {
  return {x.view.as<T>(),           ground.view.as<T>(),
          x.view.shape[0],          ground.given ? ground.view.shape[0] : 0,
          table.view.as<int32_t>(), table.view.shape[0],
          table.view.shape[1],      x.view.shape[1],
          y.view.as<T>(),           arg};
}

void window_max(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y,
                const Arg& arg) {
  const Check check = gpu_check("window_max", x);
  const DType dtype = check_windows(check, x, ground, table, y);
  check.tensor("arg", arg.view, DType::kInt32, {y.view.shape[0], y.view.shape[1]});
  check.apart({{"arg", arg.view}},
              {{"x", x.view}, {"y", y.view}, {"table", table.view}, {"ground_rows", ground.view}});
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    gpu::Status status = 0;
    for_dtype(dtype, [&](auto zero) {
      status = gpu::window_max(
          stream, windows_of<decltype(zero)>(x, ground, table, y, arg.view.as<int32_t>()));
    });
    return status;
  });
}

void window_sum(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y) {
  const Check check = gpu_check("window_sum", x);
  const DType dtype = check_windows(check, x, ground, table, y);
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    gpu::Status status = 0;
    for_dtype(dtype, [&](auto zero) {
      status = gpu::window_sum(stream, windows_of<decltype(zero)>(x, ground, table, y, nullptr));
    });
    return status;
  });
}

void window_max_grad(const Arg& dy, const Arg& arg, const Arg& start, const Arg& index,
                     int64_t n_offsets, const Arg& slots, const Arg& dx) {
  const Check check = gpu_check("window_max_grad", dy);
  const DType dtype = check.floating("dy", dy.view);
  check.tensor("dy", dy.view, dtype, {-1, -1});
  const int64_t n_out = dy.view.shape[0], n_channels = dy.view.shape[1];
  check.tensor("arg", arg.view, DType::kInt32, {n_out, n_channels});
  check.tensor("dx", dx.view, dtype, {-1, n_channels});
  const int64_t n_rows = dx.view.shape[0];
  check.at_least("K", n_offsets, 0);
  check.tensor("start", start.view, DType::kInt64, {n_rows + 1});
  check.tensor("index", index.view, DType::kInt64, {-1});
  const int64_t n_positions = index.view.shape[0];
  int64_t n_entries;
  if (__builtin_mul_overflow(n_out, n_offsets, &n_entries) || n_offsets > INT32_MAX)
    throw py::value_error("window_max_grad: K = " + std::to_string(n_offsets) +
                          " is too large for " + std::to_string(n_out) + " windows");
  check.tensor("slots", slots.view, acc_of(dtype),
               {gpu::segment_slots_of(n_positions), n_channels});
  check.apart({{"dx", dx.view}, {"slots", slots.view}},
              {{"dy", dy.view}, {"arg", arg.view}, {"start", start.view}, {"index", index.view}});
  on_device(check.operation, dy.view, [&](const gpu::Stream& stream) {
    gpu::Status status = 0;
    for_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      status = gpu::window_max_grad<T>(
          stream, {dy.view.as<T>(), arg.view.as<int32_t>(), n_out, start.view.as<int64_t>(),
                   index.view.as<int64_t>(), n_offsets, n_positions, n_rows, n_channels,
                   dx.view.as<T>(), slots.view.as<Acc<T>>()});
    });
    return status;
  });
}

}  // namespace

void bind_gpu_windows(py::module_& m) {
  m.def("window_table", &window_table, py::arg("neighbours"), py::arg("out_class"),
        py::arg("tap_class"), py::arg("rows_per_sample"), py::arg("out_batch"), py::arg("table"));
  m.def("plan_every_tap", &plan_every_tap, py::arg("table"), py::arg("n_class_rows"),
        py::arg("workspace"), py::arg("counts"), py::arg("start"), py::arg("found"));
  m.def("fill_every_tap", &fill_every_tap, py::arg("table"), py::arg("n_class_rows"),
        py::arg("counts"), py::arg("start"), py::arg("found"), py::arg("u_rows"));
  m.def("plan_ground_taps", &plan_ground_taps, py::arg("table"), py::arg("n_class_rows"),
        py::arg("workspace"), py::arg("counts"), py::arg("start"), py::arg("found"),
        py::arg("flags"), py::arg("numbers"), py::arg("u_offset_start"));
  m.def("fill_ground_taps", &fill_ground_taps, py::arg("table"), py::arg("n_class_rows"),
        py::arg("counts"), py::arg("start"), py::arg("found"), py::arg("flags"), py::arg("numbers"),
        py::arg("u_offset_start"), py::arg("u_rows"), py::arg("class_rows"));
  m.def("invert_rows", &invert_rows, py::arg("rows"), py::arg("workspace"), py::arg("keys"),
        py::arg("positions"), py::arg("start"), py::arg("found"));
  m.def("window_max", &window_max, py::arg("x"), py::arg("ground_rows"), py::arg("table"),
        py::arg("y"), py::arg("arg"));
  m.def("window_sum", &window_sum, py::arg("x"), py::arg("ground_rows"), py::arg("table"),
        py::arg("y"));
  m.def("window_max_grad", &window_max_grad, py::arg("dy"), py::arg("arg"), py::arg("start"),
        py::arg("index"), py::arg("K"), py::arg("slots"), py::arg("dx"));
}

}  // namespace ds
