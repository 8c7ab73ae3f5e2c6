#include "bind/gpu/gpu.h"
#include "cuda/conv/depthwise.h"
#include "cuda/conv/weight_grad.h"

namespace ds {
namespace {

namespace py = pybind11;

void fewer_than_2_31(const Check& check, const char* what, int64_t n) {
  if (n >= int64_t{1} << 31)
    throw py::value_error(std::string(check.operation) + ": " + what +
                          " must be less than 2^31, got " + std::to_string(n));
}

bool is_depthwise(int64_t c_in, int64_t c_out, int64_t groups) {
  return groups == c_in && groups == c_out;
}

int64_t n_chunks_of(int64_t n_dst, int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups) {
  return is_depthwise(c_in, c_out, groups)
             ? gpu::depthwise_grad_chunks(n_dst, c_in, n_offsets)
             : gpu::weight_grad_chunks(n_dst, c_in, c_out, n_offsets, groups);
}

// Elements of what the values are summed in.
int64_t weight_grad_workspace(int64_t n_dst, int64_t c_in, int64_t c_out, int64_t n_offsets,
                              int64_t groups) {
  const Check check{"conv_weight_grad"};
  check.groups(groups, c_in, c_out, n_offsets);
  check.at_least("n_dst", n_dst, 0);
  return n_chunks_of(n_dst, c_in, c_out, n_offsets, groups) * n_offsets * c_out * (c_in / groups);
}

void weight_grad(const Arg& x, const Arg& dy, const Arg& table, int64_t groups, bool tf32,
                 const Arg& workspace, const Arg& dw) {
  const Check check = gpu_check("conv_weight_grad", x);
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("dy", dy.view, dtype, {-1, -1});
  const int64_t n_src = x.view.shape[0], c_in = x.view.shape[1];
  const int64_t n_dst = dy.view.shape[0], c_out = dy.view.shape[1];
  check.tensor("table", table.view, DType::kInt32, {-1, n_dst});
  const int64_t n_offsets = table.view.shape[0];
  const int64_t size = weight_grad_workspace(n_dst, c_in, c_out, n_offsets, groups);
  check.tensor("workspace", workspace.view, acc_of(dtype), {size});
  check.tensor("dw", dw.view, dtype, {c_out, c_in / groups, n_offsets});
  check.apart({{"dw", dw.view}, {"workspace", workspace.view}},
              {{"x", x.view}, {"dy", dy.view}, {"table", table.view}});
  fewer_than_2_31(check, "rows", n_src > n_dst ? n_src : n_dst);
  const int64_t n_chunks = n_chunks_of(n_dst, c_in, c_out, n_offsets, groups);
  fewer_than_2_31(check, "tiles of the weight",
                  gpu::weight_grad_blocks(c_in, c_out, n_offsets, groups, n_chunks));
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
      if (is_depthwise(c_in, c_out, groups))
        return gpu::depthwise_weight_grad<T>(
            stream,
            {x.view.as<T>(), dy.view.as<T>(), table.view.as<int32_t>(), workspace.view.as<Acc<T>>(),
             dw.view.as<T>(), n_src, n_dst, c_in, n_offsets, n_chunks});
      return gpu::weight_grad<T>(stream, {x.view.as<T>(), dy.view.as<T>(), table.view.as<int32_t>(),
                                          workspace.view.as<Acc<T>>(), dw.view.as<T>(), n_src,
                                          n_dst, c_in, c_out, groups, n_offsets, n_chunks, tf32});
    });
  });
}

void depthwise(const Arg& x, const Arg& weight, const Arg& table, const OptionalArg& bias,
               const OptionalArg& u, const OptionalArg& u_start, const OptionalArg& u_rows,
               const Arg& y) {
  const Check check = gpu_check("conv", x);
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  const int64_t n_src = x.view.shape[0], channels = x.view.shape[1];
  check.tensor("weight", weight.view, dtype, {-1, channels});
  const int64_t n_offsets = weight.view.shape[0];
  check.tensor("table", table.view, DType::kInt32, {n_offsets, -1});
  const int64_t n_dst = table.view.shape[1];
  check.tensor("y", y.view, dtype, {n_dst, channels});
  check.groups(channels, channels, channels, n_offsets);
  if (bias.given) check.tensor("bias", bias.view, acc_of(dtype), {channels});
  if (u.given) {
    if (!u_start.given || !u_rows.given) throw py::value_error("conv: u needs u_start and u_rows");
    check.tensor("u", u.view, acc_of(dtype), {-1, channels});
    check.tensor("u_start", u_start.view, DType::kInt64, {n_dst + 1});
    check.tensor("u_rows", u_rows.view, DType::kInt32, {-1});
  }
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"weight", weight.view},
                                {"table", table.view},
                                {"bias", bias.view},
                                {"u", u.view},
                                {"u_start", u_start.view},
                                {"u_rows", u_rows.view}});
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    gpu::DepthwiseArgs<T> args{};
    args.x = x.view.as<T>();
    args.weight = weight.view.as<T>();
    args.table = table.view.as<int32_t>();
    if (bias.given) args.bias = bias.view.as<Acc<T>>();
    if (u.given) {
      args.u = u.view.as<Acc<T>>();
      args.u_start = u_start.view.as<int64_t>();
      args.u_rows = u_rows.view.as<int32_t>();
      args.n_u = u.view.shape[0];
      args.n_u_rows = u_rows.view.shape[0];
    }
    args.y = y.view.as<T>();
    args.n_src = n_src;
    args.n_dst = n_dst;
    args.channels = channels;
    args.n_offsets = n_offsets;
    on_device(check.operation, x.view,
              [&](const gpu::Stream& stream) { return gpu::depthwise<T>(stream, args); });
  });
}

}  // namespace

void bind_gpu_conv_grad(py::module_& m) {
  m.def("conv_weight_grad_workspace", &weight_grad_workspace, py::arg("n_dst"), py::arg("c_in"),
        py::arg("c_out"), py::arg("n_offsets"), py::arg("groups"));
  m.def("conv_weight_grad", &weight_grad, py::arg("x"), py::arg("dy"), py::arg("table"),
        py::arg("groups"), py::arg("tf32"), py::arg("workspace"), py::arg("dw"));
  m.def("depthwise", &depthwise, py::arg("x"), py::arg("weight"), py::arg("table"),
        py::arg("bias").none(true), py::arg("u").none(true), py::arg("u_start").none(true),
        py::arg("u_rows").none(true), py::arg("y"));
}

}  // namespace ds
