#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/rows/join_rows.h"
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

// keys, from_a, from_b: (n_a + n_b) each. Returns the number of keys.
int64_t join_rows_checked(const Arg& a, const Arg& b, const Arg& keys, const Arg& from_a,
                          const Arg& from_b) {
  const Check check{"join_rows"};
  check.tensor("a", a.view, DType::kInt64, {-1});
  check.tensor("b", b.view, DType::kInt64, {-1});
  const int64_t n = a.view.shape[0] + b.view.shape[0];
  if (n > INT32_MAX)
    throw py::value_error("join_rows: a and b must have fewer than 2^31 rows together, got " +
                          std::to_string(n));
  check.tensor("keys", keys.view, DType::kInt64, {n});
  check.tensor("from_a", from_a.view, DType::kInt32, {n});
  check.tensor("from_b", from_b.view, DType::kInt32, {n});
  check.apart({{"keys", keys.view}, {"from_a", from_a.view}, {"from_b", from_b.view}},
              {{"a", a.view}, {"b", b.view}});
  const py::gil_scoped_release release;
  return join_rows({a.view.as<int64_t>(), b.view.as<int64_t>(), a.view.shape[0], b.view.shape[0],
                    keys.view.as<int64_t>(), from_a.view.as<int32_t>(), from_b.view.as<int32_t>()});
}

void check_operand(const Check& check, DType dtype, int64_t n_channels, const Arg& rows,
                   const OptionalArg& ground, const Arg& from) {
  check.tensor("rows", rows.view, dtype, {-1, n_channels});
  int64_t n_ground = 0;
  if (ground.given) {
    check.tensor("ground", ground.view, dtype, {-1, n_channels});
    n_ground = ground.view.shape[0];
  }
  check.tensor("from", from.view, DType::kInt32, {-1});
  check.rows("from", from.view, -1 - n_ground, rows.view.shape[0]);
}

void add_rows_checked(const Arg& a, const OptionalArg& ground_a, const Arg& from_a, const Arg& b,
                      const OptionalArg& ground_b, const Arg& from_b, double scale, const Arg& y,
                      int n_threads) {
  const Check check{"add_rows"};
  const DType dtype = check.floating("y", y.view);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::type_error("add_rows: y must be float32 or float64");
  check.tensor("y", y.view, dtype, {-1, -1});
  const int64_t n_out = y.view.shape[0], n_channels = y.view.shape[1];
  check_operand(check, dtype, n_channels, a, ground_a, from_a);
  check_operand(check, dtype, n_channels, b, ground_b, from_b);
  check.tensor("from_a", from_a.view, DType::kInt32, {n_out});
  check.tensor("from_b", from_b.view, DType::kInt32, {n_out});
  check.apart({{"y", y.view}}, {{"a", a.view},
                                {"ground_a", ground_a.view},
                                {"from_a", from_a.view},
                                {"b", b.view},
                                {"ground_b", ground_b.view},
                                {"from_b", from_b.view}});
  const py::gil_scoped_release release;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    add_rows<T>({{a.view.as<T>(), ground_a.view.as<T>(), from_a.view.as<int32_t>()},
                 {b.view.as<T>(), ground_b.view.as<T>(), from_b.view.as<int32_t>()},
                 static_cast<T>(scale),
                 n_out,
                 n_channels,
                 y.view.as<T>()},
                n_threads);
  };
  if (dtype == DType::kFloat64)
    run(double{});
  else
    run(float{});
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
  m.def("join_rows", &join_rows_checked);
  m.def("add_rows", &add_rows_checked);
  m.def("scatter_rows", &scatter_rows_checked);
  m.def("segment_sum", &segment_sum_checked);
  m.def("segment_sum_sq", &segment_sum_sq_checked);
}

}  // namespace ds
