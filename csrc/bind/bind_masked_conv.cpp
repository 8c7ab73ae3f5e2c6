#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "bind/tiles.h"
#include "cpu/spmm/masked_conv.h"

namespace ds {
namespace {

namespace py = pybind11;

using Ints = std::vector<int64_t>;
constexpr int64_t kMost = int64_t{1} << 30;

// A LaneMap of 1 to 3 axes, checked once.
class ConvMap {
 public:
  ConvMap(const Ints& lanes, const Ints& step, const Ints& pad, const Ints& out_start,
          const Ints& out_step, const Ints& at)
      : axes_(static_cast<int>(lanes.size())) {
    if (axes_ < 1 || axes_ > kAxes)
      throw py::value_error("ConvMap: lanes must have 1 to 3 axes, got " + std::to_string(axes_));
    const int lead = kAxes - axes_;
    for (int a = 0; a < lead; ++a) {
      map_.lanes[a] = map_.step[a] = map_.out_step[a] = 1;
      map_.pad[a] = map_.out_start[a] = 0;
    }
    fill("lanes", lanes, 0, map_.lanes + lead);
    fill("step", step, 1, map_.step + lead);
    fill("pad", pad, -kMost, map_.pad + lead);
    fill("out_start", out_start, 0, map_.out_start + lead);
    fill("out_step", out_step, 1, map_.out_step + lead);
    if (at.empty() || at.size() % axes_ != 0)
      throw py::value_error("ConvMap: at must have a number per tap and axis, got " +
                            std::to_string(at.size()));
    map_.n_taps = static_cast<int64_t>(at.size()) / axes_;
    at_.assign(map_.n_taps * kAxes, 0);
    for (int64_t k = 0; k < map_.n_taps; ++k)
      for (int a = 0; a < axes_; ++a)
        at_[k * kAxes + lead + a] = within("at", at[k * axes_ + a], 0);
  }

  LaneMap map() const {
    LaneMap map = map_;
    map.at = at_.data();
    return map;
  }
  int axes() const { return axes_; }
  bool is_empty() const {
    return std::any_of(map_.lanes, map_.lanes + kAxes, [](int64_t n) { return n == 0; });
  }

 private:
  static int64_t within(const char* name, int64_t value, int64_t least) {
    if (value < least || value > kMost)
      throw py::value_error(std::string("ConvMap: ") + name + " must lie in [" +
                            std::to_string(least) + ", 2^30], got " + std::to_string(value));
    return value;
  }
  void fill(const char* name, const Ints& from, int64_t least, int64_t* into) const {
    if (static_cast<int>(from.size()) != axes_)
      throw py::value_error(std::string("ConvMap: ") + name + " must have " +
                            std::to_string(axes_) + " axes, got " + std::to_string(from.size()));
    for (int a = 0; a < axes_; ++a) into[a] = within(name, from[a], least);
  }

  int axes_;
  LaneMap map_{};
  Ints at_;
};

// (batch, channels, axes) of any strides, as three axes.
template <class T>
Image<T> image_of(const TensorView& t) {
  Image<T> image{};
  image.data = t.as<T>();
  image.batch = t.shape[0];
  image.channels = t.shape[1];
  image.batch_stride = t.strides[0];
  // of a single channel the stride says nothing
  image.channel_stride = t.shape[1] == 1 ? 0 : t.strides[1];
  const int lead = kAxes + 2 - t.n_dims;
  for (int a = 0; a < kAxes; ++a) {
    image.shape[a] = a < lead ? 1 : t.shape[a - lead + 2];
    image.stride[a] = a < lead ? 0 : t.strides[a - lead + 2];
  }
  return image;
}

// As memory from its first to its last element, for checks of overlap.
TensorView span_of(const TensorView& t) {
  TensorView span = t;
  span.n_dims = 1;
  span.shape[0] = t.n_elements() == 0 ? 0 : 1;
  for (int i = 0; i < t.n_dims && span.shape[0] > 0; ++i)
    span.shape[0] += (t.shape[i] - 1) * t.strides[i];
  return span;
}

void check_image(const Check& check, const char* name, const TensorView& t, DType dtype, int axes,
                 int64_t batch, int64_t channels, bool dense) {
  TensorView packed = t;  // what is wrong besides the strides shows first
  int64_t stride = 1;
  for (int i = t.n_dims - 1; i >= 0; --i) {
    packed.strides[i] = stride;
    stride *= t.shape[i];
  }
  const std::string where = std::string(check.operation) + ": " + name;
  if (t.n_dims != axes + 2)
    throw py::value_error(where + " must have " + std::to_string(axes + 2) + " dimensions, got " +
                          std::to_string(t.n_dims));
  if (axes == 1)
    check.tensor(name, packed, dtype, {batch, channels, -1});
  else if (axes == 2)
    check.tensor(name, packed, dtype, {batch, channels, -1, -1});
  else
    check.tensor(name, packed, dtype, {batch, channels, -1, -1, -1});
  if (!dense || t.is_contiguous()) return;
  TensorView last = t;  // channels last
  for (int i = 1; i + 1 < t.n_dims; ++i) {
    last.shape[i] = t.shape[i + 1];
    last.strides[i] = t.strides[i + 1];
  }
  last.shape[t.n_dims - 1] = t.shape[1];
  last.strides[t.n_dims - 1] = t.strides[1];
  if (!last.is_contiguous()) throw py::value_error(where + " must be contiguous or channels last");
}

// Everything that a call is made of, besides its own outputs.
struct Call {
  const Check& check;
  const TilesObject& tiles;
  const ConvMap& map;
  int64_t groups;
  int n_threads;
  DType dtype;

  Call(const Check& c, const TilesObject& t, const ConvMap& m, const Arg& x, const Arg& y,
       int64_t n_groups, int64_t threads, bool y_is_output)
      : check(c), tiles(t), map(m), groups(n_groups) {
    check.at_least("groups", groups, 1);
    check.at_least("n_threads", threads, 1);
    n_threads = static_cast<int>(std::min<int64_t>(threads, 1024));
    dtype = x.view.dtype;
    if (dtype != DType::kFloat64) dtype = DType::kFloat32;
    check_image(check, "x", x.view, dtype, map.axes(), -1, -1, false);
    const Tiles& w = tiles.tiles();
    check_image(check, y_is_output ? "y" : "dy", y.view, dtype, map.axes(), x.view.shape[0],
                w.n_rows, y_is_output);
    const int64_t c_in = x.view.shape[1];
    if (c_in % groups != 0 || w.n_rows % (groups * w.unit_rows) != 0)
      throw py::value_error(std::string(check.operation) +
                            ": groups must divide the channels of x and the units of rows");
    if (c_in / groups > kMost || w.n_columns != c_in / groups * map.map().n_taps)
      throw py::value_error(std::string(check.operation) + ": tiles must have " +
                            std::to_string(c_in / groups) + " x " +
                            std::to_string(map.map().n_taps) + " columns, got " +
                            std::to_string(w.n_columns));
    check_outputs(image_of<const float>(y.view));
  }

  // Every output of the map is a pixel of y, and panels fit any memory.
  void check_outputs(const Image<const float>& y) const {
    const LaneMap m = map.map();
    for (int a = 0; a < kAxes && !map.is_empty(); ++a)
      if (m.out_start[a] + (m.lanes[a] - 1) * m.out_step[a] >= y.shape[a])
        throw py::value_error(std::string(check.operation) +
                              ": the map's outputs must be pixels of an image of extent " +
                              std::to_string(y.shape[a]));
  }

  int64_t workspace(int64_t batch, int64_t c_in, bool gradient) const {
    const LaneMap m = map.map();
    const Phases phases = phases_of(m);
    double positions = static_cast<double>(phases.count()) * c_in;
    for (int a = 0; a < kAxes; ++a) positions *= static_cast<double>(m.lanes[a] + phases.reach[a]);
    const Tiles& w = tiles.tiles();
    int64_t size = -1;
    const int64_t n_entries = w.starts[w.n_blocks() * w.n_units()];
    if (positions < 0x1p45 && c_in * m.n_taps < INT64_C(1) << 31)
      size = dtype == DType::kFloat64
                 ? masked_conv_workspace<double>(m, batch, c_in, w.n_rows, groups, w.block_columns,
                                                 n_entries, gradient, n_threads)
                 : masked_conv_workspace<float>(m, batch, c_in, w.n_rows, groups, w.block_columns,
                                                n_entries, gradient, n_threads);
    if (size < 0)
      throw py::value_error(std::string(check.operation) +
                            ": images are too large for 32-bit offsets within a block of columns");
    return size;
  }
};

int64_t workspace_checked(const TilesObject& tiles, const ConvMap& map, const Arg& x, const Arg& y,
                          int64_t groups, bool gradient, int64_t n_threads) {
  const Check check{"masked_conv_workspace"};
  const Call call(check, tiles, map, x, y, groups, n_threads, false);
  return map.is_empty() ? 0 : call.workspace(x.view.shape[0], x.view.shape[1], gradient);
}

template <class F>
void for_wide(DType dtype, const F& f) {
  if (dtype == DType::kFloat64)
    f(double{});
  else
    f(float{});
}

void masked_conv_checked(const TilesObject& tiles, const Arg& values, const ConvMap& map,
                         const Arg& x, const OptionalArg& bias, int64_t groups,
                         const Arg& workspace, const Arg& y, int64_t n_threads) {
  const Check check{"masked_conv"};
  const Call call(check, tiles, map, x, y, groups, n_threads, true);
  const Tiles& w = tiles.tiles();
  if (tiles.n_values() >= 0) throw py::value_error("masked_conv: tiles must have no bits");
  check.tensor("values", values.view, call.dtype, {tiles.n_entries() * w.unit_rows});
  if (bias.given) check.tensor("bias", bias.view, call.dtype, {w.n_rows});
  if (map.is_empty() || x.view.shape[0] == 0) return;
  check.tensor("workspace", workspace.view, call.dtype,
               {call.workspace(x.view.shape[0], x.view.shape[1], false)});
  const TensorView x_span = span_of(x.view);
  check.apart({{"y", y.view}, {"workspace", workspace.view}},
              {{"x", x_span}, {"values", values.view}, {"bias", bias.view}});
  tiles.check_disjoint(check, "y", y.view);
  tiles.check_disjoint(check, "workspace", workspace.view);
  const py::gil_scoped_release release;
  for_wide(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    masked_conv<T>({image_of<const T>(x.view), map.map(), w, values.view.as<T>(),
                    bias.given ? bias.view.as<T>() : nullptr, groups, image_of<T>(y.view),
                    workspace.view.as<T>()},
                   call.n_threads);
  });
}

void weight_grad_checked(const TilesObject& tiles, const ConvMap& map, const Arg& x, const Arg& dy,
                         int64_t groups, const Arg& workspace, const Arg& values,
                         int64_t n_threads) {
  const Check check{"masked_conv_weight_grad"};
  const Call call(check, tiles, map, x, dy, groups, n_threads, false);
  const Tiles& w = tiles.tiles();
  if (w.unit_rows != 1)
    throw py::value_error("masked_conv_weight_grad: tiles must have unit_rows 1");
  check.tensor("values", values.view, call.dtype, {tiles.n_entries()});
  if (map.is_empty() || x.view.shape[0] == 0) {
    std::fill_n(values.view.as<char>(), values.view.n_elements() * bytes_of(call.dtype), 0);
    return;
  }
  check.tensor("workspace", workspace.view, call.dtype,
               {call.workspace(x.view.shape[0], x.view.shape[1], true)});
  const TensorView x_span = span_of(x.view), dy_span = span_of(dy.view);
  check.apart({{"values", values.view}, {"workspace", workspace.view}},
              {{"x", x_span}, {"dy", dy_span}});
  tiles.check_disjoint(check, "values", values.view);
  tiles.check_disjoint(check, "workspace", workspace.view);
  const py::gil_scoped_release release;
  for_wide(call.dtype, [&](auto zero) {
    using T = decltype(zero);
    masked_conv_weight_grad<T>(
        {image_of<const T>(x.view), map.map(), w, groups, image_of<const T>(dy.view),
         values.view.as<T>(), workspace.view.as<T>()},
        call.n_threads);
  });
}

}  // namespace

void bind_masked_conv(py::module_& m) {
  py::class_<ConvMap>(m, "ConvMap")
      .def(py::init<const Ints&, const Ints&, const Ints&, const Ints&, const Ints&, const Ints&>(),
           py::arg("lanes"), py::arg("step"), py::arg("pad"), py::arg("out_start"),
           py::arg("out_step"), py::arg("at"));
  m.def("masked_conv_workspace", &workspace_checked, py::arg("tiles"), py::arg("map"), py::arg("x"),
        py::arg("y"), py::arg("groups"), py::arg("gradient"), py::arg("n_threads"));
  m.def("masked_conv", &masked_conv_checked, py::arg("tiles"), py::arg("values"), py::arg("map"),
        py::arg("x"), py::arg("bias"), py::arg("groups"), py::arg("workspace"), py::arg("y"),
        py::arg("n_threads"));
  m.def("masked_conv_weight_grad", &weight_grad_checked, py::arg("tiles"), py::arg("map"),
        py::arg("x"), py::arg("dy"), py::arg("groups"), py::arg("workspace"), py::arg("values"),
        py::arg("n_threads"));
}

}  // namespace ds
