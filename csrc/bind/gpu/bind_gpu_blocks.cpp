#include "bind/gpu/gpu.h"
#include "cuda/spmm/block_spmm.h"

namespace ds {
namespace {

namespace py = pybind11;

void block_spmm(const Arg& x, const Arg& blocks, const Arg& starts, const Arg& inner,
                const Arg& order, const OptionalArg& bias, bool transposed, const Arg& y) {
  const Check check = gpu_check("block_spmm", x);
  const DType dtype = x.view.dtype;
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    throw py::type_error("block_spmm: x must be bfloat16 or float16; convert it");
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("y", y.view, dtype, {x.view.shape[0], -1});
  const int64_t n_inner = x.view.shape[1], n_outer = y.view.shape[1];
  if (n_inner % gpu::kBlockUnit != 0 || reinterpret_cast<uintptr_t>(x.view.data) % 16 != 0)
    throw py::value_error("block_spmm: x must have rows of 16 bytes each, aligned, got " +
                          std::to_string(n_inner) + " columns; pad it");
  check.tensor("blocks", blocks.view, dtype, {-1, -1, -1});
  const int64_t n_blocks = blocks.view.shape[0], size = blocks.view.shape[1];
  check.tensor("blocks", blocks.view, dtype, {n_blocks, size, size});
  if (!gpu::is_block_size(size) || reinterpret_cast<uintptr_t>(blocks.view.data) % 16 != 0)
    throw py::value_error("block_spmm: blocks must be of 32, 64 or 128, aligned, got " +
                          std::to_string(size) + "; use another form");
  check.tensor("starts", starts.view, DType::kInt32, {gpu::ceil_div(n_outer, size) + 1});
  check.tensor("inner", inner.view, DType::kInt32, {n_blocks});
  check.tensor("order", order.view, DType::kInt32, {n_blocks});
  if (bias.given) check.tensor("bias", bias.view, DType::kFloat32, {n_outer});
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"blocks", blocks.view},
                                {"starts", starts.view},
                                {"inner", inner.view},
                                {"order", order.view},
                                {"bias", bias.view}});
  gpu::BlockProduct p{};
  p.x = x.view.data;
  p.blocks = blocks.view.data;
  p.starts = starts.view.as<int32_t>();
  p.inner = inner.view.as<int32_t>();
  p.order = order.view.as<int32_t>();
  p.bias = bias.given ? bias.view.as<float>() : nullptr;
  p.y = y.view.data;
  p.m = x.view.shape[0];
  p.n_outer = n_outer;
  p.n_inner = n_inner;
  p.n_blocks = n_blocks;
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    const int edge = static_cast<int>(size);
    return dtype == DType::kBFloat16 ? gpu::block_spmm<bf16>(stream, p, edge, transposed)
                                     : gpu::block_spmm<f16>(stream, p, edge, transposed);
  });
}

}  // namespace

void bind_gpu_blocks(py::module_& m) {
  m.def("block_spmm", &block_spmm, py::arg("x"), py::arg("blocks"), py::arg("starts"),
        py::arg("inner"), py::arg("order"), py::arg("bias"), py::arg("transposed"), py::arg("y"));
}

}  // namespace ds
