#include "bind/gpu/gpu.h"
#include "cuda/rows/rows.h"

namespace ds {
namespace {

namespace py = pybind11;

int64_t segment_slots(int64_t n_positions) {
  const Check check{"segment_sum"};
  check.at_least("n_positions", n_positions, 0);
  return gpu::segment_slots_of(n_positions);
}

// rows, bias, mean: see gpu::SegmentSum; a null bias or mean is None.
void segment_sum_of(const Check& check, const Arg& values, const OptionalArg& rows,
                    const Arg& start, const OptionalArg& bias, const OptionalArg& mean,
                    const Arg& slots, const Arg& out) {
  const DType dtype = check.floating("values", values.view);
  check.tensor("values", values.view, dtype, {-1, -1});
  const int64_t n_values = values.view.shape[0], n_channels = values.view.shape[1];
  int64_t n_positions = n_values;
  const bool is_wide = rows.view.dtype == DType::kInt64;
  if (rows.given) {
    check.tensor("rows", rows.view, is_wide ? DType::kInt64 : DType::kInt32, {-1});
    n_positions = rows.view.shape[0];
  }
  check.tensor("start", start.view, DType::kInt64, {-1});
  check.at_least("number of starts", start.view.shape[0], 1);
  const int64_t n_segments = start.view.shape[0] - 1;
  check.tensor("out", out.view, dtype, {n_segments, n_channels});
  if (bias.given) check.tensor("bias", bias.view, dtype, {n_channels});
  if (mean.given) check.tensor("mean", mean.view, dtype, {n_segments, n_channels});
  check.tensor("slots", slots.view, acc_of(dtype),
               {gpu::segment_slots_of(n_positions), n_channels});
  check.apart({{"out", out.view}, {"slots", slots.view}}, {{"values", values.view},
                                                           {"rows", rows.view},
                                                           {"start", start.view},
                                                           {"bias", bias.view},
                                                           {"mean", mean.view}});
  on_device(check.operation, values.view, [&](const gpu::Stream& stream) {
    gpu::Status status = 0;
    for_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      status = gpu::segment_sum<T>(
          stream, {values.view.as<T>(), n_values, is_wide ? nullptr : rows.view.as<int32_t>(),
                   is_wide ? rows.view.as<int64_t>() : nullptr, n_positions,
                   start.view.as<int64_t>(), n_segments, n_channels, bias.view.as<T>(),
                   mean.view.as<T>(), out.view.as<T>(), slots.view.as<Acc<T>>()});
    });
    return status;
  });
}

void segment_sum(const Arg& values, const OptionalArg& rows, const Arg& start,
                 const OptionalArg& bias, const Arg& slots, const Arg& out) {
  segment_sum_of(gpu_check("segment_sum", values), values, rows, start, bias, {}, slots, out);
}

void segment_sum_sq(const Arg& values, const Arg& start, const Arg& mean, const Arg& slots,
                    const Arg& out) {
  segment_sum_of(gpu_check("segment_sum_sq", values), values, {}, start, {}, {mean.view, true},
                 slots, out);
}

// before[n_a] tells the number of keys: n_a + n_b - before[n_a].
void join_rows(const Arg& a, const Arg& b, const Arg& workspace, const Arg& rank, const Arg& shared,
               const Arg& before, const Arg& keys, const Arg& from_a, const Arg& from_b) {
  const Check check = gpu_check("join_rows", a);
  check.tensor("a", a.view, DType::kInt64, {-1});
  check.tensor("b", b.view, DType::kInt64, {-1});
  const int64_t n_a = a.view.shape[0], n_b = b.view.shape[0], n = n_a + n_b;
  if (n > INT32_MAX)
    throw py::value_error("join_rows: a and b must have fewer than 2^31 rows together, got " +
                          std::to_string(n));
  check.tensor("workspace", workspace.view, DType::kInt8, {-1});
  check.at_least("bytes of workspace", workspace.view.shape[0],
                 gpu::algorithm_workspace(stream_of(workspace), n_a + 1));
  check.tensor("rank", rank.view, DType::kInt32, {n_a});
  check.tensor("shared", shared.view, DType::kInt32, {n_a + 1});
  check.tensor("before", before.view, DType::kInt32, {n_a + 1});
  check.tensor("keys", keys.view, DType::kInt64, {n});
  check.tensor("from_a", from_a.view, DType::kInt32, {n});
  check.tensor("from_b", from_b.view, DType::kInt32, {n});
  check.apart({{"workspace", workspace.view},
               {"rank", rank.view},
               {"shared", shared.view},
               {"before", before.view},
               {"keys", keys.view},
               {"from_a", from_a.view},
               {"from_b", from_b.view}},
              {{"a", a.view}, {"b", b.view}});
  on_device(check.operation, a.view, [&](const gpu::Stream& stream) {
    return gpu::join_rows(
        stream, {workspace.view.data, workspace.view.shape[0]},
        {a.view.as<int64_t>(), b.view.as<int64_t>(), n_a, n_b, rank.view.as<int32_t>(),
         shared.view.as<int32_t>(), before.view.as<int32_t>(), keys.view.as<int64_t>(),
         from_a.view.as<int32_t>(), from_b.view.as<int32_t>()});
  });
}

template <class T>
typename gpu::AddRows<T>::Operand operand(const Arg& rows, const OptionalArg& ground,
                                          const Arg& from) {
  return {rows.view.as<T>(), ground.view.as<T>(), rows.view.shape[0],
          ground.given ? ground.view.shape[0] : 0, from.view.as<int32_t>()};
}

void add_rows(const Arg& a, const OptionalArg& ground_a, const Arg& from_a, const Arg& b,
              const OptionalArg& ground_b, const Arg& from_b, double scale, const Arg& y) {
  const Check check = gpu_check("add_rows", y);
  const DType dtype = check.floating("y", y.view);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::type_error("add_rows: y must be float32 or float64");
  check.tensor("y", y.view, dtype, {-1, -1});
  const int64_t n_out = y.view.shape[0], n_channels = y.view.shape[1];
  check.tensor("a", a.view, dtype, {-1, n_channels});
  check.tensor("b", b.view, dtype, {-1, n_channels});
  if (ground_a.given) check.tensor("ground_a", ground_a.view, dtype, {-1, n_channels});
  if (ground_b.given) check.tensor("ground_b", ground_b.view, dtype, {-1, n_channels});
  check.tensor("from_a", from_a.view, DType::kInt32, {n_out});
  check.tensor("from_b", from_b.view, DType::kInt32, {n_out});
  check.apart({{"y", y.view}}, {{"a", a.view},
                                {"ground_a", ground_a.view},
                                {"from_a", from_a.view},
                                {"b", b.view},
                                {"ground_b", ground_b.view},
                                {"from_b", from_b.view}});
  const auto run = [&](const gpu::Stream& stream, auto zero) {
    using T = decltype(zero);
    return gpu::add_rows<T>(stream,
                            {operand<T>(a, ground_a, from_a), operand<T>(b, ground_b, from_b),
                             static_cast<T>(scale), n_out, n_channels, y.view.as<T>()});
  };
  on_device(check.operation, y.view, [&](const gpu::Stream& stream) {
    return dtype == DType::kFloat64 ? run(stream, double{}) : run(stream, float{});
  });
}

void scatter_rows(const Arg& rows, const Arg& place, const Arg& out) {
  const Check check = gpu_check("scatter_rows", rows);
  const DType dtype = check.floating("rows", rows.view);
  check.tensor("rows", rows.view, dtype, {-1, -1});
  const int64_t n_rows = rows.view.shape[0], n_channels = rows.view.shape[1];
  check.tensor("place", place.view, DType::kInt64, {n_rows});
  check.tensor("out", out.view, dtype, {-1, n_channels});
  check.apart({{"out", out.view}}, {{"rows", rows.view}, {"place", place.view}});
  on_device(check.operation, rows.view, [&](const gpu::Stream& stream) {
    return gpu::scatter_rows(
        stream, {rows.view.as<char>(), place.view.as<int64_t>(), n_rows, out.view.shape[0],
                 n_channels * bytes_of(dtype), out.view.as<char>()});
  });
}

}  // namespace

void bind_gpu_rows(py::module_& m) {
  m.def("segment_slots", &segment_slots, py::arg("n_positions"));
  m.def("segment_sum", &segment_sum, py::arg("values"), py::arg("rows"), py::arg("start"),
        py::arg("bias"), py::arg("slots"), py::arg("out"));
  m.def("segment_sum_sq", &segment_sum_sq, py::arg("values"), py::arg("start"), py::arg("mean"),
        py::arg("slots"), py::arg("out"));
  m.def("join_rows", &join_rows, py::arg("a"), py::arg("b"), py::arg("workspace"), py::arg("rank"),
        py::arg("shared"), py::arg("before"), py::arg("keys"), py::arg("from_a"),
        py::arg("from_b"));
  m.def("add_rows", &add_rows, py::arg("a"), py::arg("ground_a"), py::arg("from_a"), py::arg("b"),
        py::arg("ground_b"), py::arg("from_b"), py::arg("scale"), py::arg("y"));
  m.def("scatter_rows", &scatter_rows, py::arg("rows"), py::arg("place"), py::arg("out"));
}

}  // namespace ds
