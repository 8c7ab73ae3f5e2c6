#include <pybind11/stl.h>

#include <array>

#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/rulebook/rulebook.h"

namespace ds {
namespace {

namespace py = pybind11;
using Ints = std::vector<int64_t>;

void copy_axes(const Check& check, const char* name, const Ints& values, int n_axes, int64_t least, int64_t* out) {
  if (static_cast<int>(values.size()) != n_axes)
    throw py::value_error(std::string(check.operation) + ": " + name + " must have " + std::to_string(n_axes) +
                          " values, got " + std::to_string(values.size()));
  for (int a = 0; a < n_axes; ++a) {
    check.at_least(name, values[a], least);
    out[a] = values[a];
  }
}

int axes_of(const Check& check, const char* name, const TensorView& coords) {
  check.tensor(name, coords, DType::kInt32, {-1, -1});
  if (coords.shape[1] < 2 || coords.shape[1] > 1 + kMaxAxes)
    throw py::value_error(std::string(check.operation) + ": " + name + " must have 2 to 5 columns, got " +
                          std::to_string(coords.shape[1]));
  if (coords.shape[0] >= INT32_MAX)
    throw py::value_error(std::string(check.operation) + ": " + name + " must have fewer than 2^31 - 1 rows");
  return static_cast<int>(coords.shape[1]) - 1;
}

// Built once per rulebook: holds the problem between count and fill; the workspace tensors stay with the caller.
PairProblem problem_of(const Check& check, const TensorView& query, const TensorView& query_work,
                       const TensorView& target, const TensorView& target_work, const Ints& target_shape,
                       const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                       bool symmetric) {
  const int n_axes = axes_of(check, "query_coords", query);
  check.tensor("target_coords", target, DType::kInt32, {-1, 1 + n_axes});
  axes_of(check, "target_coords", target);
  PairProblem p{};
  p.window.n_axes = n_axes;
  p.symmetric = symmetric;
  copy_axes(check, "target_shape", target_shape, n_axes, 0, p.target_shape);
  copy_axes(check, "kernel", kernel, n_axes, 1, p.window.kernel);
  copy_axes(check, "stride", stride, n_axes, 1, p.window.stride);
  copy_axes(check, "padding", padding, n_axes, -(int64_t{1} << 40), p.window.padding);
  copy_axes(check, "dilation", dilation, n_axes, 1, p.window.dilation);
  if (symmetric && (query.data != target.data || query.shape[0] != target.shape[0]))
    throw py::value_error(std::string(check.operation) + ": symmetric needs query_coords to be target_coords");
  for (int a = 0; symmetric && a < n_axes; ++a) {
    if (kernel[a] % 2 == 0 || stride[a] != 1 || padding[a] != (kernel[a] - 1) / 2 * dilation[a])
      throw py::value_error(std::string(check.operation) + ": symmetric needs odd kernels, stride 1 and centred padding");
  }
  const auto lines = [&](const char* name, const TensorView& coords, const TensorView& work) {
    const int64_t n = coords.shape[0];
    check.tensor(name, work, DType::kInt64, {2 * n + 1});
    int64_t* keys = work.as<int64_t>();
    int32_t* rest = reinterpret_cast<int32_t*>(keys + n);        // n last coordinates, n + 1 line starts
    return SiteLines{coords.as<int32_t>(), n, n_axes, rest, rest + n, keys, 0};
  };
  p.query = lines("query_work", query, query_work);
  p.target = symmetric ? p.query : lines("target_work", target, target_work);
  return p;
}

// work tensors: int64 (2 n + 1). counts: int64 (n_pair_chunks(n_query) * n_offsets). Returns the number of pairs.
int64_t plan_pairs(const Arg& query, const Arg& query_work, const Arg& target, const Arg& target_work,
                   const Ints& target_shape, const Ints& kernel, const Ints& stride, const Ints& padding,
                   const Ints& dilation, bool symmetric, const Arg& counts, const Arg& offset_start, int n_threads) {
  const Check check{"build_pairs"};
  PairProblem p = problem_of(check, query.view, query_work.view, target.view, target_work.view, target_shape, kernel,
                             stride, padding, dilation, symmetric);
  const int64_t n_offsets = p.window.n_offsets();
  check.tensor("counts", counts.view, DType::kInt64, {n_pair_chunks(p.query.n_sites) * n_offsets});
  check.tensor("offset_start", offset_start.view, DType::kInt64, {n_offsets + 1});
  const py::gil_scoped_release release;
  find_lines(&p.query, p.target_shape);
  if (symmetric) p.target = p.query;
  else find_lines(&p.target, p.target_shape);
  count_pairs(p, counts.view.as<int64_t>(), n_threads);
  place_pairs(p, counts.view.as<int64_t>(), offset_start.view.as<int64_t>());
  return offset_start.view.as<int64_t>()[n_offsets];
}

// The same arguments after plan_pairs, whose workspaces it reads and uses up.
void fill_pairs_checked(const Arg& query, const Arg& query_work, const Arg& target, const Arg& target_work,
                        const Ints& target_shape, const Ints& kernel, const Ints& stride, const Ints& padding,
                        const Ints& dilation, bool symmetric, const Arg& positions, const Arg& offset_start,
                        const Arg& query_rows, const Arg& target_rows, int n_threads) {
  const Check check{"build_pairs"};
  PairProblem p = problem_of(check, query.view, query_work.view, target.view, target_work.view, target_shape, kernel,
                             stride, padding, dilation, symmetric);
  const int64_t n_offsets = p.window.n_offsets();
  check.tensor("counts", positions.view, DType::kInt64, {n_pair_chunks(p.query.n_sites) * n_offsets});
  check.tensor("offset_start", offset_start.view, DType::kInt64, {n_offsets + 1});
  const int64_t n_pairs = offset_start.view.as<int64_t>()[n_offsets];
  check.tensor("query_rows", query_rows.view, DType::kInt32, {n_pairs});
  check.tensor("target_rows", target_rows.view, DType::kInt32, {n_pairs});
  const py::gil_scoped_release release;
  // Finding the lines again is a cheap pass, and makes the call safe whatever the workspace held.
  find_lines(&p.query, p.target_shape);
  if (symmetric) p.target = p.query;
  else find_lines(&p.target, p.target_shape);
  fill_pairs(p, positions.view.as<int64_t>(), offset_start.view.as<int64_t>(), query_rows.view.as<int32_t>(),
             target_rows.view.as<int32_t>(), n_threads);
}

int64_t dilate(const Arg& keys, int64_t extent_in, int64_t extent_out, int64_t inner, int64_t kernel, int64_t stride,
               int64_t padding, int64_t dilation, bool transposed, const Arg& workspace, const Arg& out) {
  const Check check{"output_coords"};
  check.at_least("kernel", kernel, 1);
  check.at_least("stride", stride, 1);
  check.at_least("dilation", dilation, 1);
  check.at_least("extent_in", extent_in, 1);
  check.at_least("extent_out", extent_out, 1);
  check.at_least("inner", inner, 1);
  const AxisWindow axis{extent_in, extent_out, inner, kernel, stride, padding, dilation, transposed};
  check.tensor("keys", keys.view, DType::kInt64, {-1});
  const int64_t n = keys.view.shape[0];
  check.tensor("workspace", workspace.view, DType::kInt64, {2 * (n + kernel)});
  check.tensor("out", out.view, DType::kInt64, {n * axis_fan_out(axis)});
  const py::gil_scoped_release release;
  return dilate_axis(keys.view.as<int64_t>(), n, axis, workspace.view.as<int64_t>(), out.view.as<int64_t>());
}

}  // namespace

void bind_rulebook(py::module_& m) {
  m.def("pair_chunks", &n_pair_chunks, py::arg("n_query"));
  m.def("plan_pairs", &plan_pairs);
  m.def("fill_pairs", &fill_pairs_checked);
  m.def("axis_fan_out", [](int64_t kernel, int64_t stride, int64_t dilation, bool transposed) {
    return axis_fan_out({1, 1, 1, kernel, stride, 0, dilation, transposed});
  });
  m.def("dilate_axis", &dilate);
  m.def("coords_to_keys", [](const Arg& coords, const Ints& shape, const Arg& keys, int n_threads) {
    const Check check{"linear_keys"};
    const int n_axes = axes_of(check, "coords", coords.view);
    int64_t extents[kMaxAxes];
    copy_axes(check, "shape", shape, n_axes, 0, extents);
    check.tensor("keys", keys.view, DType::kInt64, {coords.view.shape[0]});
    const py::gil_scoped_release release;
    coords_to_keys(coords.view.as<int32_t>(), coords.view.shape[0], n_axes, extents, keys.view.as<int64_t>(), n_threads);
  });
  m.def("keys_to_coords", [](const Arg& keys, const Ints& shape, const Arg& coords, int n_threads) {
    const Check check{"keys_to_coords"};
    const int n_axes = axes_of(check, "coords", coords.view);
    int64_t extents[kMaxAxes];
    copy_axes(check, "shape", shape, n_axes, 1, extents);
    check.tensor("keys", keys.view, DType::kInt64, {coords.view.shape[0]});
    const py::gil_scoped_release release;
    keys_to_coords(keys.view.as<int64_t>(), keys.view.shape[0], n_axes, extents, coords.view.as<int32_t>(), n_threads);
  });
}

}  // namespace ds
