#include <string>

#include "bind/gpu/gpu.h"
#include "cuda/conv/conv.h"
#include "cuda/conv/conv_plain.h"
#include "cuda/conv/conv_tensor.h"
#include "cuda/conv/pack.h"
#include "cuda/conv/row_plan.h"

namespace ds {
namespace {

namespace py = pybind11;

int step_of(DType dtype) {
  return dtype == DType::kFloat64   ? gpu::kDepthStep<double>
         : dtype == DType::kFloat32 ? gpu::kDepthStep<float>
                                    : gpu::kDepthStep<bf16>;
}

gpu::ConvShape checked_shape(const Check& check, DType dtype, int64_t n_src, int64_t n_dst,
                             int64_t n_offsets, int64_t groups, int64_t c_in, int64_t c_out) {
  check.groups(groups, c_in, c_out, n_offsets);
  return gpu::conv_shape(n_src, n_dst, n_offsets, groups, c_in, c_out, step_of(dtype));
}

// Elements of a packed weight: the values and 16 bytes for the flag.
int64_t packed_size(const gpu::ConvShape& shape, DType dtype) {
  return gpu::packed_values(shape) + step_of(dtype) / 4;
}

struct PackShape {
  DType dtype;
  gpu::ConvShape shape;
};

PackShape pack_shape(const Check& check, const Arg& weight, int64_t groups, bool transposed) {
  const DType dtype = check.floating("weight", weight.view);
  TensorView w = weight.view;  // any strides will do
  if (w.n_dims == 3) {
    w.strides[2] = 1;
    w.strides[1] = w.shape[2];
    w.strides[0] = w.shape[1] * w.shape[2];
  }
  check.tensor("weight", w, dtype, {-1, -1, -1});
  const int64_t inner = w.shape[1] * groups;
  const int64_t c_in = transposed ? w.shape[0] : inner, c_out = transposed ? inner : w.shape[0];
  return {dtype, checked_shape(check, dtype, 0, 0, w.shape[2], groups, c_in, c_out)};
}

int64_t packed_size_checked(const Arg& weight, int64_t groups, bool transposed) {
  const PackShape p = pack_shape(gpu_check("conv_pack", weight), weight, groups, transposed);
  return packed_size(p.shape, p.dtype);
}

void conv_pack(const Arg& weight, int64_t groups, bool transposed, const Arg& packed) {
  const Check check = gpu_check("conv_pack", weight);
  const auto [dtype, shape] = pack_shape(check, weight, groups, transposed);
  check.tensor("packed", packed.view, dtype, {packed_size(shape, dtype)});
  check.apart({{"packed", packed.view}}, {{"weight", weight.view}});
  for_dtype(dtype, [&, shape = shape](auto zero) {
    using T = decltype(zero);
    gpu::PackArgs<T> args{};
    args.weight = weight.view.as<T>();
    for (int i = 0; i < 3; ++i) args.strides[i] = weight.view.strides[i];
    args.transposed = transposed;
    args.shape = shape;
    args.packed = packed.view.as<T>();
    args.not_finite = reinterpret_cast<uint32_t*>(args.packed + gpu::packed_values(shape));
    on_device(check.operation, weight.view,
              [&](const gpu::Stream& stream) { return gpu::pack_weight(stream, args); });
  });
}

void plan_rows(const Arg& table, const Arg& keys, const Arg& rows, const Arg& workspace,
               const Arg& order, const Arg& masks) {
  const Check check = gpu_check("conv_plan", table);
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  const int64_t n_offsets = table.view.shape[0], n_dst = table.view.shape[1];
  check.at_least("n_offsets", n_offsets, 1);
  check.tensor("keys", keys.view, DType::kInt64, {2, n_dst});
  check.tensor("rows", rows.view, DType::kInt32, {n_dst});
  check.tensor("workspace", workspace.view, DType::kInt64, {-1});
  check.at_least("bytes of workspace", 8 * workspace.view.shape[0],
                 gpu::algorithm_workspace(stream_of(workspace), n_dst));
  check.tensor("order", order.view, DType::kInt32, {n_dst});
  check.tensor("masks", masks.view, DType::kInt32,
               {gpu::plan_groups(n_dst), gpu::mask_words(n_offsets)});
  check.apart({{"keys", keys.view},
               {"rows", rows.view},
               {"workspace", workspace.view},
               {"order", order.view},
               {"masks", masks.view}},
              {{"table", table.view}});
  const gpu::RowPlanArgs args{table.view.as<int32_t>(),
                              n_offsets,
                              n_dst,
                              keys.view.as<uint64_t>(),
                              rows.view.as<int32_t>(),
                              order.view.as<int32_t>(),
                              masks.view.as<uint32_t>()};
  const gpu::Workspace space{workspace.view.data, 8 * workspace.view.shape[0]};
  on_device(check.operation, table.view,
            [&](const gpu::Stream& stream) { return gpu::plan_rows(stream, space, args); });
}

struct ConvTensors {
  const Arg &x, &packed;
  const OptionalArg &bias, &u, &u_start, &u_rows;
  const Arg &table, &order, &masks, &y;
};

void check_sums(const Check& check, const ConvTensors& t, DType acc, int64_t n_dst, int64_t c_out) {
  if (t.bias.given) check.tensor("bias", t.bias.view, acc, {c_out});
  if (!t.u.given) return;
  if (!t.u_start.given || !t.u_rows.given)
    throw py::value_error("conv: u needs u_start and u_rows");
  check.tensor("u", t.u.view, acc, {-1, c_out});
  check.tensor("u_start", t.u_start.view, DType::kInt64, {n_dst + 1});
  check.tensor("u_rows", t.u_rows.view, DType::kInt32, {-1});
}

template <class T>
gpu::ConvArgs<T> conv_args(const ConvTensors& t, const gpu::ConvShape& shape) {
  gpu::ConvArgs<T> a{};
  a.x = t.x.view.as<T>();
  a.packed = t.packed.view.as<T>();
  if (t.bias.given) a.bias = t.bias.view.as<Acc<T>>();
  if (t.u.given) {
    a.u = t.u.view.as<Acc<T>>();
    a.u_start = t.u_start.view.as<int64_t>();
    a.u_rows = t.u_rows.view.as<int32_t>();
    a.n_u = t.u.view.shape[0];
    a.n_u_rows = t.u_rows.view.shape[0];
  }
  a.table = t.table.view.as<int32_t>();
  a.order = t.order.view.as<int32_t>();
  a.masks = t.masks.view.as<uint32_t>();
  a.y = t.y.view.as<T>();
  a.shape = shape;
  return a;
}

template <class T>
gpu::Status run_conv(const gpu::Stream& stream, const gpu::ConvArgs<T>& args,
                     [[maybe_unused]] bool allow_tf32) {
  if constexpr (kIsHalf<T>)
    return gpu::conv_tensor(stream, args);
  else if constexpr (sizeof(T) == 4)
    return allow_tf32 ? gpu::conv_tensor(stream, args) : gpu::conv_plain(stream, args);
  else
    return gpu::conv_plain(stream, args);
}

void conv(const Arg& x, const Arg& packed, const OptionalArg& bias, const OptionalArg& u,
          const OptionalArg& u_start, const OptionalArg& u_rows, const Arg& table, const Arg& order,
          const Arg& masks, int64_t groups, bool allow_tf32, const Arg& y) {
  const Check check = gpu_check("conv", x);
  const ConvTensors t{x, packed, bias, u, u_start, u_rows, table, order, masks, y};
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("y", y.view, dtype, {-1, -1});
  check.tensor("table", table.view, DType::kInt32, {-1, y.view.shape[0]});
  const int64_t n_dst = y.view.shape[0], c_out = y.view.shape[1], n_offsets = table.view.shape[0];
  const gpu::ConvShape shape = checked_shape(check, dtype, x.view.shape[0], n_dst, n_offsets,
                                             groups, x.view.shape[1], c_out);
  check.tensor("packed", packed.view, dtype, {packed_size(shape, dtype)});
  check.tensor("order", order.view, DType::kInt32, {n_dst});
  check.tensor("masks", masks.view, DType::kInt32,
               {gpu::plan_groups(n_dst), gpu::mask_words(n_offsets)});
  check_sums(check, t, acc_of(dtype), n_dst, c_out);
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"packed", packed.view},
                                {"bias", bias.view},
                                {"u", u.view},
                                {"u_start", u_start.view},
                                {"u_rows", u_rows.view},
                                {"table", table.view},
                                {"order", order.view},
                                {"masks", masks.view}});
  if (reinterpret_cast<uintptr_t>(packed.view.data) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(y.view.data) % 16 != 0)
    throw py::value_error("conv: packed and y must be aligned to 16 bytes; use clone()");
  for_dtype(dtype, [&](auto zero) {
    const auto args = conv_args<decltype(zero)>(t, shape);
    on_device(check.operation, x.view,
              [&](const gpu::Stream& stream) { return run_conv(stream, args, allow_tf32); });
  });
}

}  // namespace

void bind_gpu_conv(py::module_& m) {
  m.def("conv_packed_size", &packed_size_checked, py::arg("weight"), py::arg("groups"),
        py::arg("transposed"));
  m.def("conv_pack", &conv_pack, py::arg("weight"), py::arg("groups"), py::arg("transposed"),
        py::arg("packed"));
  m.def("conv_plan", &plan_rows, py::arg("table"), py::arg("keys"), py::arg("rows"),
        py::arg("workspace"), py::arg("order"), py::arg("masks"));
  m.def("conv", &conv, py::arg("x"), py::arg("packed"), py::arg("bias"), py::arg("u"),
        py::arg("u_start"), py::arg("u_rows"), py::arg("table"), py::arg("order"), py::arg("masks"),
        py::arg("groups"), py::arg("allow_tf32"), py::arg("y"));
}

}  // namespace ds
