#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/rows/rows.h"
#include "cpu/rows/scatter_rows.h"

namespace ds {
namespace {

namespace py = pybind11;

int64_t workspace_of(bool is_double, int64_t n_positions, int64_t n_channels) {
  const Check check{"segment_sum"};
  check.at_least("n_positions", n_positions, 0);
  check.at_least("n_channels", n_channels, 0);
  return is_double ? segment_workspace<double>(n_positions, n_channels)
                   : segment_workspace<float>(n_positions, n_channels);
}

// rows, bias, mean: see SegmentSumArgs; a null bias or mean is None.
void segment_sum_of(const Check& check, const Arg& values, const OptionalArg& rows,
                    const Arg& start, const OptionalArg& bias, const OptionalArg& mean,
                    const Arg& workspace, const Arg& out, int n_threads) {
  const DType dtype = check.floating("values", values.view);
  check.tensor("values", values.view, dtype, {-1, -1});
  const int64_t n_values = values.view.shape[0], n_channels = values.view.shape[1];
  int64_t n_positions = n_values;
  if (rows.given) {
    const bool is_wide = rows.view.dtype == DType::kInt64;
    check.tensor("rows", rows.view, is_wide ? DType::kInt64 : DType::kInt32, {-1});
    check.rows("rows", rows.view, 0, n_values);
    n_positions = rows.view.shape[0];
  }
  check.tensor("start", start.view, DType::kInt64, {-1});
  check.starts_within("start", start.view, n_positions);
  const int64_t n_segments = start.view.shape[0] - 1;
  check.tensor("out", out.view, dtype, {n_segments, n_channels});
  if (bias.given) check.tensor("bias", bias.view, dtype, {n_channels});
  if (mean.given) check.tensor("mean", mean.view, dtype, {n_segments, n_channels});
  check.apart({{"out", out.view}, {"workspace", workspace.view}}, {{"values", values.view},
                                                                   {"rows", rows.view},
                                                                   {"start", start.view},
                                                                   {"bias", bias.view},
                                                                   {"mean", mean.view}});
  check.tensor("workspace", workspace.view, DType::kInt64,
               {workspace_of(dtype == DType::kFloat64, n_positions, n_channels)});
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool is_wide = rows.view.dtype == DType::kInt64;
    segment_sum<T>(
        {values.view.as<T>(), is_wide ? nullptr : rows.view.as<int32_t>(),
         is_wide ? rows.view.as<int64_t>() : nullptr, start.view.as<int64_t>(), n_segments,
         n_channels, bias.view.as<T>(), mean.view.as<T>(), out.view.as<T>(), nullptr},
        workspace.view.as<int64_t>(), n_threads);
  });
}

void segment_sum_checked(const Arg& values, const OptionalArg& rows, const Arg& start,
                         const OptionalArg& bias, const Arg& workspace, const Arg& out,
                         int n_threads) {
  segment_sum_of({"segment_sum"}, values, rows, start, bias, {}, workspace, out, n_threads);
}

void segment_sum_sq_checked(const Arg& values, const Arg& start, const Arg& mean,
                            const Arg& workspace, const Arg& out, int n_threads) {
  segment_sum_of({"segment_sum_sq"}, values, {}, start, {}, {mean.view, true}, workspace, out,
                 n_threads);
}

void scatter_rows_checked(const Arg& rows, const Arg& place, const Arg& out, int n_threads) {
  const Check check{"scatter_rows"};
  const DType dtype = check.floating("rows", rows.view);
  check.tensor("rows", rows.view, dtype, {-1, -1});
  const int64_t n_rows = rows.view.shape[0];
  check.tensor("place", place.view, DType::kInt64, {n_rows});
  check.tensor("out", out.view, dtype, {-1, rows.view.shape[1]});
  check.apart({{"out", out.view}}, {{"rows", rows.view}, {"place", place.view}});
  const int64_t n_out = out.view.shape[0];
  const int64_t* p = place.view.as<int64_t>();
  bool good = true;
  {
    const py::gil_scoped_release release;
    for (int64_t i = 0; i < n_rows; ++i) good &= p[i] < n_out && p[i] > (i ? p[i - 1] : -1);
    const int64_t bytes = rows.view.shape[1] * bytes_of(dtype);
    if (good)
      scatter_rows({rows.view.as<char>(), p, n_rows, n_out, bytes, out.view.as<char>()}, n_threads);
  }
  if (!good)
    throw py::value_error("scatter_rows: place must ascend strictly within [0, " +
                          std::to_string(n_out) + ")");
}

}  // namespace

void bind_rows(py::module_& m) {
  m.def("segment_workspace", &workspace_of);
  m.def("scatter_rows", &scatter_rows_checked);
  m.def("segment_sum", &segment_sum_checked);
  m.def("segment_sum_sq", &segment_sum_sq_checked);
}

}  // namespace ds
