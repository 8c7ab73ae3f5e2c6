#include "bind/bindings.h"
#include "bind/pairs.h"
#include "bind/tensor_arg.h"
#include "cpu/pool/pool.h"
#include "cpu/rows/rows.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

namespace py = pybind11;

// ------------------------------------------------------------------ index work
void window_table_checked(const Pairs& pairs, const OptionalArg& out_class,
                          const OptionalArg& tap_class, int64_t rows_per_sample,
                          const OptionalArg& out_batch, const Arg& table, int n_threads) {
  const Check check{"window_table"};
  const int64_t n_offsets = pairs.list().n_offsets;
  check.tensor("table", table.view, DType::kInt32, {-1, n_offsets});
  const int64_t n_out = table.view.shape[0];
  pairs.check_fits(check, n_offsets, INT64_C(1) << 31, n_out);
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
    check.rows("out_class", out_class.view, 0, tap_class.view.shape[0]);
    check.rows("tap_class", tap_class.view, -1,
               rows_per_sample > 0 ? rows_per_sample : kMaxClassRow + 1);
  }
  if (out_batch.given) {
    check.tensor("out_batch", out_batch.view, DType::kInt32, {n_out});
    // class row = batch * rows_per_sample + class < (batch + 1) * rows_per_sample
    check.rows("out_batch", out_batch.view, 0, (kMaxClassRow + 1) / rows_per_sample);
  }
  pairs.check_disjoint(check, "table", table.view);
  check.apart({{"table", table.view}}, {{"out_class", out_class.view},
                                        {"tap_class", tap_class.view},
                                        {"out_batch", out_batch.view}});
  const py::gil_scoped_release release;
  window_table({pairs.list(), n_out, out_class.view.as<int32_t>(), tap_class.view.as<int32_t>(),
                out_batch.view.as<int32_t>(), rows_per_sample, table.view.as<int32_t>()},
               n_threads);
}

GroundTapsArgs ground_taps_args(const Check& check, const Arg& table, int64_t n_class_rows,
                                const Arg& flags, const Arg& start, const Arg& u_offset_start) {
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.at_least("n_class_rows", n_class_rows, 0);
  const int64_t n_out = table.view.shape[0], n_offsets = table.view.shape[1];
  int64_t n_flags;
  if (__builtin_mul_overflow(n_offsets, n_class_rows, &n_flags) || n_flags == INT64_MAX)
    throw py::value_error("ground_taps: n_class_rows = " + std::to_string(n_class_rows) +
                          " is too large");
  check.tensor("flags", flags.view, DType::kInt32, {1 + n_flags});
  check.tensor("start", start.view, DType::kInt64, {n_out + 1});
  check.tensor("u_offset_start", u_offset_start.view, DType::kInt64, {n_offsets + 1});
  check.apart(
      {{"flags", flags.view}, {"start", start.view}, {"u_offset_start", u_offset_start.view}},
      {{"table", table.view}});
  return {table.view.as<int32_t>(),
          n_out,
          n_offsets,
          n_class_rows,
          flags.view.as<int32_t>(),
          start.view.as<int64_t>(),
          u_offset_start.view.as<int64_t>()};
}

// flags: zeros. Returns (number of taps, number of u rows).
py::tuple plan_ground_taps_checked(const Arg& table, int64_t n_class_rows, const Arg& flags,
                                   const Arg& start, const Arg& u_offset_start, int n_threads) {
  const Check check{"ground_taps"};
  const GroundTapsArgs args =
      ground_taps_args(check, table, n_class_rows, flags, start, u_offset_start);
  bool good;
  {
    const py::gil_scoped_release release;
    good = plan_ground_taps(args, n_threads);
  }
  if (!good) check.rows("table", table.view, -1 - n_class_rows, INT64_C(1) << 31);
  const int64_t n_u = args.u_offset_start[args.n_offsets];
  if (n_u > INT32_MAX)
    throw py::value_error("ground_taps: " + std::to_string(n_u) +
                          " (offset, class row) products, at most 2^31 - 1 fit int32");
  return py::make_tuple(args.start[args.n_out], n_u);
}

void fill_ground_taps_checked(const Arg& table, int64_t n_class_rows, const Arg& flags,
                              const Arg& start, const Arg& u_offset_start, const Arg& u_rows,
                              const Arg& class_rows, int n_threads) {
  const Check check{"ground_taps"};
  const GroundTapsArgs args =
      ground_taps_args(check, table, n_class_rows, flags, start, u_offset_start);
  check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
  check.tensor("class_rows", class_rows.view, DType::kInt32, {-1});
  check.starts("start", start.view, u_rows.view.shape[0]);
  check.starts("u_offset_start", u_offset_start.view, class_rows.view.shape[0]);
  check.apart({{"u_rows", u_rows.view}, {"class_rows", class_rows.view}},
              {{"table", table.view},
               {"flags", flags.view},
               {"start", start.view},
               {"u_offset_start", u_offset_start.view}});
  bool good;
  {
    const py::gil_scoped_release release;
    good =
        fill_ground_taps(args, u_rows.view.as<int32_t>(), class_rows.view.as<int32_t>(), n_threads);
  }
  if (!good)
    throw py::value_error("ground_taps: the table or the workspace changed since it was planned");
}

EveryTapArgs every_tap_args(const Check& check, const Arg& table, int64_t n_class_rows,
                            const Arg& start) {
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.at_least("n_class_rows", n_class_rows, 0);
  const int64_t n_out = table.view.shape[0], n_offsets = table.view.shape[1];
  int64_t n_u;
  if (__builtin_mul_overflow(n_offsets, n_class_rows, &n_u) || n_u > INT32_MAX)
    throw py::value_error("every_tap: n_class_rows = " + std::to_string(n_class_rows) +
                          " times the offsets must fit int32");
  check.tensor("start", start.view, DType::kInt64, {n_out + 1});
  check.apart({{"start", start.view}}, {{"table", table.view}});
  return {table.view.as<int32_t>(), n_out, n_offsets, n_class_rows, start.view.as<int64_t>()};
}

// Returns the number of taps.
int64_t plan_every_tap_checked(const Arg& table, int64_t n_class_rows, const Arg& start,
                               int n_threads) {
  const EveryTapArgs args = every_tap_args({"every_tap"}, table, n_class_rows, start);
  const py::gil_scoped_release release;
  plan_every_tap(args, n_threads);
  return args.start[args.n_out];
}

void fill_every_tap_checked(const Arg& table, int64_t n_class_rows, const Arg& start,
                            const Arg& u_rows, int n_threads) {
  const Check check{"every_tap"};
  const EveryTapArgs args = every_tap_args(check, table, n_class_rows, start);
  check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
  check.starts("start", start.view, u_rows.view.shape[0]);
  check.apart({{"u_rows", u_rows.view}}, {{"table", table.view}, {"start", start.view}});
  bool good;
  {
    const py::gil_scoped_release release;
    good = fill_every_tap(args, u_rows.view.as<int32_t>(), n_threads);
  }
  if (good) return;
  check.rows("table", table.view, -1 - n_class_rows, INT64_C(1) << 31);
  throw py::value_error("every_tap: start is not the plan of this table");
}

int64_t invert_chunks_checked(int64_t n_rows, int64_t n_values, int n_threads) {
  const Check check{"invert_rows"};
  check.at_least("n_rows", n_rows, 0);
  check.at_least("n", n_values, 0);
  return invert_chunks(n_rows, n_values, n_threads);
}

// counts (chunks, n) and start (n + 1) are written; returns the number of positions.
int64_t plan_inverse_checked(const Arg& rows, const Arg& counts, const Arg& start, int n_threads) {
  const Check check{"invert_rows"};
  check.tensor("rows", rows.view, DType::kInt32, {-1});
  check.tensor("counts", counts.view, DType::kInt64, {-1, -1});
  const int64_t n_values = counts.view.shape[1];
  check.at_least("chunks", counts.view.shape[0], 1);
  check.tensor("start", start.view, DType::kInt64, {n_values + 1});
  check.apart({{"counts", counts.view}, {"start", start.view}}, {{"rows", rows.view}});
  bool good;
  {
    const py::gil_scoped_release release;
    good =
        plan_inverse({rows.view.as<int32_t>(), rows.view.shape[0], n_values, counts.view.shape[0]},
                     counts.view.as<int64_t>(), start.view.as<int64_t>(), n_threads);
  }
  if (!good) check.rows("rows", rows.view, INT32_MIN, n_values);
  return start.view.as<int64_t>()[n_values];
}

void fill_inverse_checked(const Arg& rows, const Arg& counts, const Arg& index, int n_threads) {
  const Check check{"invert_rows"};
  check.tensor("rows", rows.view, DType::kInt32, {-1});
  check.tensor("counts", counts.view, DType::kInt64, {-1, -1});
  check.at_least("chunks", counts.view.shape[0], 1);
  check.tensor("index", index.view, DType::kInt64, {-1});
  check.apart({{"index", index.view}, {"counts", counts.view}}, {{"rows", rows.view}});
  bool good;
  {
    const py::gil_scoped_release release;
    good = fill_inverse(
        {rows.view.as<int32_t>(), rows.view.shape[0], counts.view.shape[1], counts.view.shape[0]},
        counts.view.as<int64_t>(), index.view.shape[0], index.view.as<int64_t>(), n_threads);
  }
  if (!good)
    throw py::value_error("invert_rows: the rows or the workspace changed since they were planned");
}

// ------------------------------------------------------------------ pooling
template <class T>
WindowArgs<T> window_args(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y,
                          int32_t* arg) {
  return {x.view.as<T>(),      ground.view.as<T>(), table.view.as<int32_t>(), table.view.shape[0],
          table.view.shape[1], x.view.shape[1],     y.view.as<T>(),           arg};
}

DType check_windows(const Check& check, const Arg& x, const OptionalArg& ground, const Arg& table,
                    const Arg& y) {
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  const int64_t n_channels = x.view.shape[1];
  if (ground.given) check.tensor("ground_rows", ground.view, dtype, {-1, n_channels});
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.rows("table", table.view, -1 - (ground.given ? ground.view.shape[0] : 0), x.view.shape[0]);
  check.tensor("y", y.view, dtype, {table.view.shape[0], n_channels});
  check.apart({{"y", y.view}},
              {{"x", x.view}, {"table", table.view}, {"ground_rows", ground.view}});
  return dtype;
}

void window_max_checked(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y,
                        const Arg& arg, int n_threads) {
  const Check check{"window_max"};
  const DType dtype = check_windows(check, x, ground, table, y);
  check.tensor("arg", arg.view, DType::kInt32, {y.view.shape[0], y.view.shape[1]});
  check.apart({{"arg", arg.view}},
              {{"x", x.view}, {"y", y.view}, {"table", table.view}, {"ground_rows", ground.view}});
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    window_max(window_args<decltype(zero)>(x, ground, table, y, arg.view.as<int32_t>()), n_threads);
  });
}

void window_sum_checked(const Arg& x, const OptionalArg& ground, const Arg& table, const Arg& y,
                        int n_threads) {
  const DType dtype = check_windows({"window_sum"}, x, ground, table, y);
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    window_sum(window_args<decltype(zero)>(x, ground, table, y, nullptr), n_threads);
  });
}

void window_max_grad_checked(const Arg& dy, const Arg& arg, const Arg& start, const Arg& index,
                             int64_t n_offsets, const Arg& dx, const Arg& workspace,
                             int n_threads) {
  const Check check{"window_max_grad"};
  const DType dtype = check.floating("dy", dy.view);
  check.tensor("dy", dy.view, dtype, {-1, -1});
  const int64_t n_out = dy.view.shape[0], n_channels = dy.view.shape[1];
  check.tensor("arg", arg.view, DType::kInt32, {n_out, n_channels});
  check.tensor("dx", dx.view, dtype, {-1, n_channels});
  const int64_t n_rows = dx.view.shape[0];
  check.at_least("K", n_offsets, 0);
  check.tensor("start", start.view, DType::kInt64, {n_rows + 1});
  check.tensor("index", index.view, DType::kInt64, {-1});
  check.starts_within("start", start.view, index.view.shape[0]);
  int64_t n_entries;
  if (__builtin_mul_overflow(n_out, n_offsets, &n_entries))
    throw py::value_error("window_max_grad: K = " + std::to_string(n_offsets) +
                          " is too large for " + std::to_string(n_out) + " windows");
  check.rows("index", index.view, 0, n_entries);
  check.apart({{"dx", dx.view}, {"workspace", workspace.view}},
              {{"dy", dy.view}, {"arg", arg.view}, {"start", start.view}, {"index", index.view}});
  const bool is_double = dtype == DType::kFloat64;
  check.tensor("workspace", workspace.view, DType::kInt64,
               {is_double ? segment_workspace<double>(index.view.shape[0], n_channels)
                          : segment_workspace<float>(index.view.shape[0], n_channels)});
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    window_max_grad<T>(
        {dy.view.as<T>(), arg.view.as<int32_t>(), start.view.as<int64_t>(),
         index.view.as<int64_t>(), n_offsets, n_rows, n_channels, dx.view.as<T>(), nullptr},
        workspace.view.as<int64_t>(), n_threads);
  });
}

}  // namespace

void bind_windows(py::module_& m) {
  m.def("window_table", &window_table_checked);
  m.def("plan_ground_taps", &plan_ground_taps_checked);
  m.def("fill_ground_taps", &fill_ground_taps_checked);
  m.def("plan_every_tap", &plan_every_tap_checked);
  m.def("fill_every_tap", &fill_every_tap_checked);
  m.def("invert_chunks", &invert_chunks_checked);
  m.def("plan_inverse", &plan_inverse_checked);
  m.def("fill_inverse", &fill_inverse_checked);
  m.def("window_max", &window_max_checked);
  m.def("window_sum", &window_sum_checked);
  m.def("window_max_grad", &window_max_grad_checked);
}

}  // namespace ds
