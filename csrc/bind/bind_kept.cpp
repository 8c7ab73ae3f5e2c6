#include "bind/bindings.h"
#include "bind/pairs.h"
#include "bind/tensor_arg.h"
#include "cpu/conv/kept.h"

namespace ds {
namespace {

namespace py = pybind11;

// Made by one pass over the mask and never changed: later calls have nothing in it to check.
KeptLists make_checked(const Arg& mask, int64_t groups, bool transposed, bool is_double) {
  const Check check{"KeptLists"};
  check.tensor("mask", mask.view, DType::kInt32, {-1, -1, -1});
  const int64_t d0 = mask.view.shape[0], d1 = mask.view.shape[1], n_offsets = mask.view.shape[2];
  check.at_least("groups", groups, 1);
  for (const int64_t extent : {d0, d1, n_offsets}) check.at_least("mask extents", extent, 1);
  constexpr int64_t kMost = int64_t{1} << 20;
  if (d0 > kMost || d1 > kMost / groups || n_offsets > kMost || d0 % groups != 0)
    throw py::value_error(
        "KeptLists: channels and kernel volume must be at most 2^20 and groups "
        "divide them, got mask " +
        shape_text(mask.view.shape, 3) + " and groups " + std::to_string(groups));
  const int64_t c_in = transposed ? d0 : d1 * groups, c_out = transposed ? d1 * groups : d0;
  const py::gil_scoped_release release;
  return make_kept_lists(mask.view.as<int32_t>(), c_in, c_out, n_offsets, groups, transposed,
                         is_double);
}

int64_t n_bytes(const KeptLists& lists) {
  return static_cast<int64_t>(lists.start.size() * sizeof(int64_t) +
                              lists.channels.size() * sizeof(int32_t) +
                              lists.columns.size() * sizeof(uint32_t));
}

DType dtype_of(const KeptLists& lists) {
  return lists.is_double ? DType::kFloat64 : DType::kFloat32;
}

template <class F>
void for_lists(const KeptLists& lists, const F& f) {
  if (lists.is_double)
    f(double{});
  else
    f(float{});
}

void kept_pack_checked(const KeptLists& lists, const Arg& weight, const Arg& values,
                       int n_threads) {
  const Check check{"kept_pack"};
  const int64_t d0 = lists.transposed ? lists.c_in : lists.c_out;
  const int64_t d1 = (lists.transposed ? lists.c_out : lists.c_in) / lists.groups;
  TensorView w = weight.view;
  const bool last = w.n_dims == 3 && !w.is_contiguous() && w.strides[1] == 1 &&
                    w.strides[2] == w.shape[1] &&
                    (w.shape[0] == 1 || w.strides[0] == w.shape[1] * w.shape[2]);
  if (last) {
    w.strides[1] = w.shape[2];
    w.strides[2] = 1;
  }
  check.tensor("weight", w, dtype_of(lists), {d0, d1, lists.n_offsets});
  check.tensor("values", values.view, dtype_of(lists), {lists.n_values()});
  check.disjoint("values", values.view, "weight", weight.view);
  const py::gil_scoped_release release;
  for_lists(lists, [&](auto zero) {
    using T = decltype(zero);
    kept_pack(lists, weight.view.as<T>(), last, values.view.as<T>(), n_threads);
  });
}

void kept_conv_checked(const Arg& x, const KeptLists& lists, const Arg& values,
                       const OptionalArg& bias, const OptionalArg& u, const OptionalArg& u_start,
                       const OptionalArg& u_rows, const Pairs& pairs, const Arg& y, int n_threads) {
  const Check check{"masked_conv"};
  const DType dtype = dtype_of(lists);
  check.tensor("x", x.view, dtype, {-1, lists.c_in});
  check.tensor("y", y.view, dtype, {-1, lists.c_out});
  check.tensor("values", values.view, dtype, {lists.n_values()});
  const int64_t n_dst = y.view.shape[0];
  if (bias.given) check.tensor("bias", bias.view, dtype, {lists.c_out});
  if (u.given) {
    if (!u_start.given || !u_rows.given)
      throw py::value_error("masked_conv: u needs u_start and u_rows");
    check.tensor("u", u.view, dtype, {-1, lists.c_out});
    check.tensor("u_start", u_start.view, DType::kInt64, {n_dst + 1});
    check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
    check.starts("u_start", u_start.view, u_rows.view.shape[0]);
    check.rows("u_rows", u_rows.view, 0, u.view.shape[0]);
  }
  pairs.check_fits(check, lists.n_offsets, x.view.shape[0], n_dst);
  pairs.check_disjoint(check, "y", y.view);
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"values", values.view},
                                {"bias", bias.view},
                                {"u", u.view},
                                {"u_start", u_start.view},
                                {"u_rows", u_rows.view}});
  const py::gil_scoped_release release;
  for_lists(lists, [&](auto zero) {
    using T = decltype(zero);
    ConvArgs<T> a{};
    a.x = x.view.as<T>();
    a.bias = bias.given ? bias.view.as<T>() : nullptr;
    a.u = u.given ? u.view.as<T>() : nullptr;
    a.u_start = u_start.view.as<int64_t>();
    a.u_rows = u_rows.view.as<int32_t>();
    a.y = y.view.as<T>();
    a.workspace = values.view.as<T>();
    a.pairs = pairs.list();
    a.n_dst = n_dst;
    a.c_in = lists.c_in;
    a.c_out = lists.c_out;
    a.groups = lists.groups;
    a.n_src = x.view.shape[0];
    kept_conv(a, lists, n_threads);
  });
}

int64_t kept_grad_workspace_of(const KeptLists& lists, const Pairs& pairs, int64_t n_dst) {
  const Check check{"masked_conv_weight_grad"};
  check.at_least("n_dst", n_dst, 0);
  pairs.check_fits(check, lists.n_offsets, INT64_C(1) << 31, n_dst);
  return lists.is_double ? kept_grad_workspace<double>(lists, pairs.list(), n_dst)
                         : kept_grad_workspace<float>(lists, pairs.list(), n_dst);
}

void kept_weight_grad_checked(const Arg& x, const Arg& dy, const Pairs& pairs,
                              const KeptLists& lists, const Arg& workspace, const Arg& dw,
                              int n_threads) {
  const Check check{"masked_conv_weight_grad"};
  const DType dtype = dtype_of(lists);
  if (lists.transposed)
    throw py::value_error(
        "masked_conv_weight_grad: lists must be of a weight as it lies there, "
        "got transposed ones");
  check.tensor("x", x.view, dtype, {-1, lists.c_in});
  check.tensor("dy", dy.view, dtype, {-1, lists.c_out});
  check.tensor("dw", dw.view, dtype, {lists.c_out, lists.c_in / lists.groups, lists.n_offsets});
  pairs.check_fits(check, lists.n_offsets, x.view.shape[0], dy.view.shape[0]);
  pairs.check_disjoint(check, "dw", dw.view);
  pairs.check_disjoint(check, "workspace", workspace.view);
  check.apart({{"dw", dw.view}, {"workspace", workspace.view}}, {{"x", x.view}, {"dy", dy.view}});
  check.tensor("workspace", workspace.view, dtype,
               {kept_grad_workspace_of(lists, pairs, dy.view.shape[0])});
  const py::gil_scoped_release release;
  for_lists(lists, [&](auto zero) {
    using T = decltype(zero);
    const WeightGradArgs<T> a{
        x.view.as<T>(), dy.view.as<T>(),  dw.view.as<T>(), workspace.view.as<T>(),
        pairs.list(),   dy.view.shape[0], lists.c_in,      lists.c_out,
        lists.groups,   x.view.shape[0]};
    kept_weight_grad(a, lists, n_threads);
  });
}

}  // namespace

void bind_kept(py::module_& m) {
  py::class_<KeptLists>(m, "KeptLists",
                        "The input channels that a mask keeps, per kernel offset and panel.")
      .def(py::init(&make_checked))
      .def_property_readonly("n_values", &KeptLists::n_values)
      .def_property_readonly("n_bytes", &n_bytes)
      .def_readonly("width", &KeptLists::width)
      .def_readonly("share", &KeptLists::share);
  m.def("kept_pack", &kept_pack_checked);
  m.def("kept_conv", &kept_conv_checked);
  m.def("kept_weight_grad_workspace", &kept_grad_workspace_of);
  m.def("kept_weight_grad", &kept_weight_grad_checked);
}

}  // namespace ds
