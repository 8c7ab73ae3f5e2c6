#include <pybind11/stl.h>

#include "bind/bindings.h"
#include "bind/pairs.h"
#include "bind/tensor_arg.h"
#include "cpu/rulebook/rulebook.h"

namespace ds {
namespace {

namespace py = pybind11;
using Ints = std::vector<int64_t>;

void copy_axes(const Check& check, const char* name, const Ints& values, int n_axes, int64_t least,
               int64_t* out) {
  if (static_cast<int>(values.size()) != n_axes)
    throw py::value_error(std::string(check.operation) + ": " + name + " must have " +
                          std::to_string(n_axes) + " values, got " + std::to_string(values.size()));
  for (int a = 0; a < n_axes; ++a) {
    check.at_least(name, values[a], least);
    out[a] = values[a];
  }
}

int axes_of(const Check& check, const char* name, const TensorView& coords) {
  check.tensor(name, coords, DType::kInt32, {-1, -1});
  if (coords.shape[1] < 2 || coords.shape[1] > 1 + kMaxAxes)
    throw py::value_error(std::string(check.operation) + ": " + name +
                          " must have 2 to 5 columns, got " + std::to_string(coords.shape[1]));
  if (coords.shape[0] >= INT32_MAX)
    throw py::value_error(std::string(check.operation) + ": " + name +
                          " must have fewer than 2^31 - 1 rows");
  return static_cast<int>(coords.shape[1]) - 1;
}

// Two steps, because the number of pairs is known only after the merge: make the plan (n_pairs),
// then fill().
class Plan {
 public:
  Plan(py::object query, py::object target, const Ints& target_shape, const Ints& kernel,
       const Ints& stride, const Ints& padding, const Ints& dilation, bool symmetric)
      : query_(std::move(query)), target_(std::move(target)) {
    TensorView q, t;
    view_of(query_, &q);
    view_of(target_, &t);
    const int n_axes = axes_of(check_, "query_coords", q);
    axes_of(check_, "target_coords", t);
    check_.tensor("target_coords", t, DType::kInt32, {-1, 1 + n_axes});
    PairProblem& p = plan_.problem;
    p.window.n_axes = n_axes;
    p.symmetric = symmetric;
    copy_axes(check_, "target_shape", target_shape, n_axes, 0, p.target_shape);
    copy_axes(check_, "kernel", kernel, n_axes, 1, p.window.kernel);
    copy_axes(check_, "stride", stride, n_axes, 1, p.window.stride);
    copy_axes(check_, "padding", padding, n_axes, -(int64_t{1} << 31), p.window.padding);
    copy_axes(check_, "dilation", dilation, n_axes, 1, p.window.dilation);
    bool centred = q.data == t.data && q.shape[0] == t.shape[0];
    for (int a = 0; a < n_axes; ++a)
      centred &=
          kernel[a] % 2 == 1 && stride[a] == 1 && padding[a] == (kernel[a] - 1) / 2 * dilation[a];
    if (symmetric && !centred)
      throw py::value_error(
          "build_pairs: symmetric needs one site list, odd kernels, stride 1 and centred padding");
    p.query = {q.as<int32_t>(), q.shape[0], nullptr, nullptr, nullptr, 0};
    p.target = {t.as<int32_t>(), t.shape[0], nullptr, nullptr, nullptr, 0};
  }

  // int64 elements that count() needs.
  int64_t workspace() const {
    const PairProblem& p = plan_.problem;
    const int64_t n = p.query.n_sites, streams = n_streams(p.window, p.symmetric);
    return 2 * n + 2 + (p.symmetric ? 0 : 2 * p.target.n_sites + 2) +
           n_chunks(n) * p.window.n_offsets() + (streams * n * 5 + 7) / 8;
  }

  int64_t count(py::object workspace, py::object offset_start, int n_threads) {
    TensorView work, start;
    view_of(workspace, &work);
    view_of(offset_start, &start);
    PairProblem& p = plan_.problem;
    check_.tensor("workspace", work, DType::kInt64, {this->workspace()});
    check_.tensor("offset_start", start, DType::kInt64, {p.window.n_offsets() + 1});
    check_.disjoint("workspace", work, "offset_start", start);
    workspace_ = std::move(workspace);
    work_ = work;
    offset_start_ = std::move(offset_start);
    int64_t* next = work.as<int64_t>();
    place_lines(&p.query, &next);
    if (!p.symmetric) place_lines(&p.target, &next);
    plan_.positions = next;
    next += n_chunks(p.query.n_sites) * p.window.n_offsets();
    plan_.cursors = reinterpret_cast<int32_t*>(next);
    plan_.hits = reinterpret_cast<uint8_t*>(plan_.cursors +
                                            n_streams(p.window, p.symmetric) * p.query.n_sites);
    plan_.offset_start = start.as<int64_t>();
    const py::gil_scoped_release release;
    find_lines(&p.query, p.window.n_axes, p.target_shape);
    if (p.symmetric)
      p.target = p.query;
    else
      find_lines(&p.target, p.window.n_axes, p.target_shape);
    count_pairs(plan_, n_threads);
    return n_pairs_ = plan_.offset_start[p.window.n_offsets()];
  }

  // src = query rows, dst = target rows.
  Pairs fill(py::object query_rows, py::object target_rows, int n_threads) {
    if (n_pairs_ < 0) throw std::runtime_error("build_pairs: count() comes before fill()");
    TensorView q, t;
    view_of(query_rows, &q);
    view_of(target_rows, &t);
    check_.tensor("query_rows", q, DType::kInt32, {n_pairs_});
    check_.tensor("target_rows", t, DType::kInt32, {n_pairs_});
    check_.disjoint("query_rows", q, "target_rows", t);
    check_.disjoint("query_rows", q, "workspace", work_);
    check_.disjoint("target_rows", t, "workspace", work_);
    {
      const py::gil_scoped_release release;
      fill_pairs(plan_, q.as<int32_t>(), t.as<int32_t>(), n_threads);
    }
    const PairProblem& p = plan_.problem;
    return {std::move(query_rows),
            std::move(target_rows),
            offset_start_,
            {q.as<int32_t>(), t.as<int32_t>(), plan_.offset_start, p.window.n_offsets()},
            p.query.n_sites,
            p.target.n_sites};
  }

 private:
  static void place_lines(SiteLines* s, int64_t** next) {
    s->line_key = *next;
    s->last = reinterpret_cast<int32_t*>(*next + s->n_sites);
    s->line_start = s->last + s->n_sites + 1;
    *next += 2 * s->n_sites + 2;
  }

  Check check_{"build_pairs"};
  py::object query_, target_, workspace_, offset_start_;
  TensorView work_;
  PairPlan plan_{};
  int64_t n_pairs_ = -1;
};

int64_t dilate(const Arg& keys, int64_t extent_in, int64_t extent_out, int64_t inner,
               int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool transposed,
               const Arg& workspace, const Arg& out) {
  const Check check{"output_coords"};
  check.at_least("kernel", kernel, 1);
  check.at_least("stride", stride, 1);
  check.at_least("dilation", dilation, 1);
  check.at_least("extent_in", extent_in, 1);
  check.at_least("extent_out", extent_out, 1);
  check.at_least("inner", inner, 1);
  const AxisWindow axis{extent_in, extent_out, inner,    kernel,
                        stride,    padding,    dilation, transposed};
  check.tensor("keys", keys.view, DType::kInt64, {-1});
  const int64_t n = keys.view.shape[0];
  check.tensor("workspace", workspace.view, DType::kInt64, {axis_workspace(n, kernel)});
  check.tensor("out", out.view, DType::kInt64, {n * axis_fan_out(axis)});
  check.disjoint("out", out.view, "keys", keys.view);
  check.disjoint("out", out.view, "workspace", workspace.view);
  check.disjoint("workspace", workspace.view, "keys", keys.view);
  const py::gil_scoped_release release;
  return dilate_axis(keys.view.as<int64_t>(), n, axis, workspace.view.as<int64_t>(),
                     out.view.as<int64_t>());
}

}  // namespace

void bind_rulebook(py::module_& m) {
  py::class_<Plan>(m, "PairPlan")
      .def(py::init<py::object, py::object, const Ints&, const Ints&, const Ints&, const Ints&,
                    const Ints&, bool>())
      .def("workspace", &Plan::workspace)
      .def("count", &Plan::count)
      .def("fill", &Plan::fill);
  m.def("axis_fan_out", [](int64_t kernel, int64_t stride, int64_t dilation, bool transposed) {
    const Check check{"output_coords"};
    check.at_least("kernel", kernel, 1);
    check.at_least("stride", stride, 1);
    check.at_least("dilation", dilation, 1);
    return axis_fan_out({1, 1, 1, kernel, stride, 0, dilation, transposed});
  });
  m.def("axis_workspace", [](int64_t n_keys, int64_t kernel) {
    const Check check{"output_coords"};
    check.at_least("n_keys", n_keys, 0);
    check.at_least("kernel", kernel, 1);
    return axis_workspace(n_keys, kernel);
  });
  m.def("dilate_axis", &dilate);
  m.def("coords_to_keys", [](const Arg& coords, const Ints& shape, const Arg& keys, int n_threads) {
    const Check check{"linear_keys"};
    const int n_axes = axes_of(check, "coords", coords.view);
    int64_t extents[kMaxAxes];
    copy_axes(check, "shape", shape, n_axes, 0, extents);
    check.tensor("keys", keys.view, DType::kInt64, {coords.view.shape[0]});
    check.disjoint("keys", keys.view, "coords", coords.view);
    const py::gil_scoped_release release;
    coords_to_keys(coords.view.as<int32_t>(), coords.view.shape[0], n_axes, extents,
                   keys.view.as<int64_t>(), n_threads);
  });
  m.def("keys_to_coords", [](const Arg& keys, const Ints& shape, const Arg& coords, int n_threads) {
    const Check check{"keys_to_coords"};
    const int n_axes = axes_of(check, "coords", coords.view);
    int64_t extents[kMaxAxes];
    copy_axes(check, "shape", shape, n_axes, 1, extents);
    check.tensor("keys", keys.view, DType::kInt64, {coords.view.shape[0]});
    check.disjoint("coords", coords.view, "keys", keys.view);
    const py::gil_scoped_release release;
    keys_to_coords(keys.view.as<int64_t>(), keys.view.shape[0], n_axes, extents,
                   coords.view.as<int32_t>(), n_threads);
  });
}

}  // namespace ds
