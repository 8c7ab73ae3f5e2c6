#include "bind/bindings.h"
#include "bind/pairs.h"
#include "bind/tensor_arg.h"
#include "cpu/conv/conv.h"
#include "cpu/conv/group_conv.h"

namespace ds {
namespace {

namespace py = pybind11;

// ------------------------------------------------------------------ row groups
bool on_tiles(DType dtype, int64_t c_in, int64_t c_out, int64_t groups) {
  return dtype == DType::kBFloat16 && takes_tiles(c_in, c_out, groups);
}

bool takes_row_groups_checked(const Arg& x, int64_t c_out, int64_t groups) {
  const Check check{"conv"};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.groups(groups, x.view.shape[1], c_out);
  return on_tiles(dtype, x.view.shape[1], c_out, groups);
}

bool has_row_groups(const Pairs& pairs, int64_t n_dst) {
  return pairs.groups().n_dst == n_dst;
}

// The window table of the pairs (no ground), with room for the plan.
void check_plan(const Check& check, const Pairs& pairs, const Arg& table, const Arg& order,
                const Arg& start) {
  check.tensor("table", table.view, DType::kInt32, {-1, pairs.list().n_offsets});
  check.rows("table", table.view, -1, pairs.src_bound());
  const int64_t n_dst = table.view.shape[0], n_groups = n_row_groups(n_dst);
  pairs.check_fits(check, pairs.list().n_offsets, INT64_C(1) << 31, n_dst);
  check.tensor("order", order.view, DType::kInt32, {n_groups * kGroupRows});
  check.tensor("start", start.view, DType::kInt64, {n_groups + 1});
}

int64_t plan_row_groups_checked(const Pairs& pairs, const Arg& table, const Arg& keys,
                                const Arg& order, const Arg& start, int n_threads) {
  const Check check{"plan_row_groups"};
  check_plan(check, pairs, table, order, start);
  check.tensor("keys", keys.view, DType::kInt64, {table.view.shape[0]});
  check.apart({{"keys", keys.view}, {"order", order.view}, {"start", start.view}},
              {{"table", table.view}});
  const py::gil_scoped_release release;
  return plan_row_groups(table.view.as<int32_t>(), table.view.shape[0], table.view.shape[1],
                         keys.view.as<uint64_t>(), order.view.as<int32_t>(),
                         start.view.as<int64_t>(), n_threads);
}

// Objects, not views: the tensors are kept.
void fill_row_groups_checked(const Pairs& pairs, const Arg& table, py::object order_tensor,
                             py::object start_tensor, py::object taps_tensor,
                             py::object rows_tensor, int n_threads) {
  const Check check{"fill_row_groups"};
  Arg order, start, taps, rows;
  view_of(order_tensor, &order.view);
  view_of(start_tensor, &start.view);
  view_of(taps_tensor, &taps.view);
  view_of(rows_tensor, &rows.view);
  check_plan(check, pairs, table, order, start);
  const int64_t n_dst = table.view.shape[0], n_entries = taps.view.n_elements();
  check.rows("order", order.view, -1, n_dst);
  check.starts("start", start.view, n_entries);
  check.tensor("taps", taps.view, DType::kInt32, {n_entries});
  check.tensor("rows", rows.view, DType::kInt32, {n_entries, kGroupRows});
  check.apart({{"taps", taps.view}, {"rows", rows.view}},
              {{"table", table.view}, {"order", order.view}, {"start", start.view}});
  const RowGroups groups{order.view.as<int32_t>(), start.view.as<int64_t>(),
                         taps.view.as<int32_t>(), rows.view.as<int32_t>(), n_row_groups(n_dst)};
  bool good;
  {
    const py::gil_scoped_release release;
    good = fill_row_groups(table.view.as<int32_t>(), table.view.shape[1], groups.n_groups,
                           groups.order, groups.start, taps.view.as<int32_t>(),
                           rows.view.as<int32_t>(), n_threads);
  }
  if (!good)
    throw py::value_error("fill_row_groups: the table or the plan changed since it was made");
  pairs.keep({std::move(order_tensor), std::move(start_tensor), std::move(taps_tensor),
              std::move(rows_tensor), groups, n_dst});
}

// ------------------------------------------------------------------ forward and input gradient
// Elements of what the values are summed in.
int64_t workspace_of(const Arg& x, int64_t c_out, int64_t n_offsets, int64_t groups,
                     int64_t n_dst) {
  const Check check{"conv"};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.at_least("n_dst", n_dst, 0);
  const int64_t c_in = x.view.shape[1];
  check.groups(groups, c_in, c_out, n_offsets);
  if (dtype == DType::kFloat64) return conv_workspace<double>(c_in, c_out, n_offsets, groups);
  if (dtype == DType::kFloat32) return conv_workspace<float>(c_in, c_out, n_offsets, groups);
  if (on_tiles(dtype, c_in, c_out, groups)) return group_conv_workspace(c_in, c_out, n_offsets) / 2;
  return half_conv_workspace(c_in, c_out, n_offsets, groups, x.view.shape[0], n_dst);
}

// (d0, d1, n_offsets), contiguous or with its last two dimensions swapped in memory.
bool is_channels_last(const TensorView& w) {
  const int64_t d1 = w.shape[1], n_offsets = w.shape[2];
  return !w.is_contiguous() && w.n_dims == 3 && w.strides[1] == 1 && w.strides[2] == d1 &&
         (w.shape[0] == 1 || w.strides[0] == d1 * n_offsets);
}

void weight_fits(const Check& check, const TensorView& weight, DType dtype, int64_t c_in,
                 int64_t c_out, int64_t groups, bool transposed) {
  TensorView w = weight;  // as if contiguous: what else is wrong shows first
  const bool wide = dtype == DType::kFloat32 || dtype == DType::kFloat64;
  if (wide && w.n_dims == 3 && is_channels_last(w)) {
    w.strides[1] = w.shape[2];
    w.strides[2] = 1;
  }
  const int64_t d0 = transposed ? c_in : c_out, d1 = (transposed ? c_out : c_in) / groups;
  check.tensor("weight", w, dtype, {d0, d1, -1});
  check.groups(groups, c_in, c_out, w.shape[2]);
}

template <class T>
ConvArgs<T> weight_args(const OptionalArg& weight, const Arg& workspace, const PairList& pairs,
                        int64_t c_in, int64_t c_out, int64_t groups, bool transposed) {
  ConvArgs<T> a{};
  a.weight = weight.given ? weight.view.as<T>() : nullptr;
  a.workspace = workspace.view.as<Acc<T>>();
  a.pairs = pairs;
  a.c_in = c_in;
  a.c_out = c_out;
  a.groups = groups;
  a.transposed = transposed;
  a.channels_last = weight.given && is_channels_last(weight.view);
  return a;
}

int64_t packed_size_of(bool is_double, int64_t c_in, int64_t c_out, int64_t n_offsets,
                       int64_t groups) {
  Check{"conv_pack"}.groups(groups, c_in, c_out, n_offsets);
  return is_double ? conv_workspace<double>(c_in, c_out, n_offsets, groups)
                   : conv_workspace<float>(c_in, c_out, n_offsets, groups);
}

void conv_pack_checked(const OptionalArg& weight, int64_t c_in, int64_t c_out, int64_t groups,
                       bool transposed, const Arg& workspace, int n_threads) {
  const Check check{"conv_pack"};
  if (!weight.given) throw py::type_error("conv_pack: weight must be a torch.Tensor, got None");
  const DType dtype = check.floating("weight", weight.view);
  check.groups(groups, c_in, c_out);
  weight_fits(check, weight.view, dtype, c_in, c_out, groups, transposed);
  const int64_t n_offsets = weight.view.shape[2];
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::type_error("conv_pack: weight must be float32 or float64; 16-bit ones are not kept");
  const bool is_double = dtype == DType::kFloat64;
  check.tensor("workspace", workspace.view, dtype,
               {packed_size_of(is_double, c_in, c_out, n_offsets, groups)});
  check.disjoint("workspace", workspace.view, "weight", weight.view);
  const py::gil_scoped_release release;
  const PairList pairs{nullptr, nullptr, nullptr, n_offsets};
  const auto pack = [&](auto zero) {
    conv_pack(
        weight_args<decltype(zero)>(weight, workspace, pairs, c_in, c_out, groups, transposed),
        n_threads);
  };
  if (is_double)
    pack(double{});
  else
    pack(float{});
}

void conv_checked(const Arg& x, const OptionalArg& weight, const OptionalArg& bias,
                  const OptionalArg& u, const OptionalArg& u_start, const OptionalArg& u_rows,
                  const Pairs& pairs, int64_t groups, bool transposed, const Arg& workspace,
                  const Arg& y, int n_threads) {
  const Check check{"conv"};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("y", y.view, dtype, {-1, -1});
  const int64_t c_in = x.view.shape[1], c_out = y.view.shape[1], n_dst = y.view.shape[0];
  check.groups(groups, c_in, c_out);
  int64_t n_offsets = pairs.list().n_offsets;
  if (weight.given) {
    weight_fits(check, weight.view, dtype, c_in, c_out, groups, transposed);
    n_offsets = weight.view.shape[2];
    check.disjoint("y", y.view, "weight", weight.view);
    check.disjoint("workspace", workspace.view, "weight", weight.view);
  } else if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
    throw py::type_error("conv: weight must be given where x is 16-bit, got None");
  }
  const DType acc = acc_of(dtype);
  if (bias.given) check.tensor("bias", bias.view, acc, {c_out});
  if (u.given) {
    if (!u_start.given || !u_rows.given) throw py::value_error("conv: u needs u_start and u_rows");
    check.tensor("u", u.view, acc, {-1, c_out});
    check.tensor("u_start", u_start.view, DType::kInt64, {n_dst + 1});
    check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
    check.starts("u_start", u_start.view, u_rows.view.shape[0]);
    check.rows("u_rows", u_rows.view, 0, u.view.shape[0]);
    check.disjoint("y", y.view, "u", u.view);
    check.disjoint("y", y.view, "u_start", u_start.view);
    check.disjoint("y", y.view, "u_rows", u_rows.view);
  }
  pairs.check_fits(check, n_offsets, x.view.shape[0], n_dst);
  pairs.check_disjoint(check, "y", y.view);
  pairs.check_disjoint(check, "workspace", workspace.view);
  check.disjoint("y", y.view, "x", x.view);
  check.disjoint("y", y.view, "workspace", workspace.view);
  check.disjoint("workspace", workspace.view, "x", x.view);
  if (bias.given) check.disjoint("y", y.view, "bias", bias.view);
  check.tensor("workspace", workspace.view, acc,
               {workspace_of(x, c_out, n_offsets, groups, n_dst)});
  const bool grouped = on_tiles(dtype, c_in, c_out, groups);
  const KeptGroups kept = grouped ? pairs.groups() : KeptGroups{};
  if (grouped && kept.n_dst != n_dst)
    throw py::value_error("conv: pairs must have row groups of " + std::to_string(n_dst) +
                          " rows, got " + std::to_string(kept.n_dst) + "; use ops.conv");
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto args = weight_args<T>(weight, workspace, pairs.list(), c_in, c_out, groups, transposed);
    args.x = x.view.as<T>();
    args.bias = bias.given ? bias.view.as<Acc<T>>() : nullptr;
    args.u = u.given ? u.view.as<Acc<T>>() : nullptr;
    args.u_start = u_start.view.as<int64_t>();
    args.u_rows = u_rows.view.as<int32_t>();
    args.y = y.view.as<T>();
    args.n_dst = n_dst;
    args.n_src = x.view.shape[0];
    if constexpr (kIsBfloat<T>) {
      if (grouped) return group_conv(args, kept.groups, n_threads);
    }
    if constexpr (kIsHalf<T>)
      half_conv(args, n_threads);
    else
      conv(args, n_threads);
  });
}

// ------------------------------------------------------------------ weight gradient
int64_t weight_grad_workspace_of(const Arg& x, const Arg& dy, const Pairs& pairs, int64_t groups) {
  const Check check{"conv_weight_grad"};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("dy", dy.view, dtype, {-1, -1});
  const int64_t c_in = x.view.shape[1], c_out = dy.view.shape[1], n_dst = dy.view.shape[0];
  const PairList& list = pairs.list();
  check.groups(groups, c_in, c_out, list.n_offsets);
  if (dtype == DType::kFloat64)
    return weight_grad_workspace<double>(c_in, c_out, list, n_dst, groups);
  if (dtype == DType::kFloat32)
    return weight_grad_workspace<float>(c_in, c_out, list, n_dst, groups);
  if (on_tiles(dtype, c_in, c_out, groups))
    return weight_grad_workspace<bf16>(c_in, c_out, list, n_dst, groups);
  return half_weight_grad_workspace(c_in, c_out, list, x.view.shape[0], n_dst, groups);
}

void weight_grad_checked(const Arg& x, const Arg& dy, const Pairs& pairs, int64_t groups,
                         const Arg& workspace, const Arg& dw, int n_threads) {
  const Check check{"conv_weight_grad"};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("dy", dy.view, dtype, {-1, -1});
  const int64_t c_in = x.view.shape[1], c_out = dy.view.shape[1];
  check.groups(groups, c_in, c_out);
  check.tensor("dw", dw.view, dtype, {c_out, c_in / groups, -1});
  check.groups(groups, c_in, c_out, dw.view.shape[2]);
  pairs.check_fits(check, dw.view.shape[2], x.view.shape[0], dy.view.shape[0]);
  pairs.check_disjoint(check, "dw", dw.view);
  pairs.check_disjoint(check, "workspace", workspace.view);
  check.disjoint("dw", dw.view, "x", x.view);
  check.disjoint("dw", dw.view, "dy", dy.view);
  check.disjoint("dw", dw.view, "workspace", workspace.view);
  check.disjoint("workspace", workspace.view, "x", x.view);
  check.disjoint("workspace", workspace.view, "dy", dy.view);
  check.tensor("workspace", workspace.view, acc_of(dtype),
               {weight_grad_workspace_of(x, dy, pairs, groups)});
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const WeightGradArgs<T> args{x.view.as<T>(),
                                 dy.view.as<T>(),
                                 dw.view.as<T>(),
                                 workspace.view.as<Acc<T>>(),
                                 pairs.list(),
                                 dy.view.shape[0],
                                 c_in,
                                 c_out,
                                 groups,
                                 x.view.shape[0]};
    if constexpr (kIsBfloat<T>) {
      if (on_tiles(dtype, c_in, c_out, groups)) return weight_grad(args, n_threads);
    }
    if constexpr (kIsHalf<T>)
      half_weight_grad(args, n_threads);
    else
      weight_grad(args, n_threads);
  });
}

}  // namespace

void bind_conv(py::module_& m) {
  py::class_<Pairs>(
      m, "Pairs",
      "Pair lists of a rulebook, checked once: src_rows, dst_rows (int32), offset_start (int64).")
      .def(py::init<py::object, py::object, py::object>())
      .def("reversed", &Pairs::reversed)
      .def_property_readonly("n_pairs", &Pairs::n_pairs)
      .def_property_readonly("n_offsets", [](const Pairs& p) { return p.list().n_offsets; })
      .def_property_readonly("src_rows", &Pairs::src_rows)
      .def_property_readonly("dst_rows", &Pairs::dst_rows)
      .def_property_readonly("offset_start", &Pairs::offset_start);
  m.def("takes_row_groups", &takes_row_groups_checked);
  m.def("has_row_groups", &has_row_groups);
  m.def("plan_row_groups", &plan_row_groups_checked);
  m.def("fill_row_groups", &fill_row_groups_checked);
  m.def("conv_workspace", &workspace_of);
  m.def("packed_size", &packed_size_of);
  m.def("conv_pack", &conv_pack_checked);
  m.def("conv", &conv_checked);
  m.def("conv_weight_grad_workspace", &weight_grad_workspace_of);
  m.def("conv_weight_grad", &weight_grad_checked);
}

}  // namespace ds
