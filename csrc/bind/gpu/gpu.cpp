#include "bind/gpu/gpu.h"

#include "bind/bindings.h"
#include "cuda/algorithms.h"

namespace ds {

#ifdef DS_EMULATED
constexpr int32_t kDevice = dlpack::kCpu;
#else
constexpr int32_t kDevice = dlpack::kCuda;
#endif

Check gpu_check(const char* operation, const TensorView& like) {
  return {operation, kDevice, like.device_id};
}

gpu::Stream stream_of(const TensorView& like) {
  if (like.device_type != dlpack::kCuda) return {};
  return {like.device_id, current_stream(like.device_id)};
}

void throw_if(const char* operation, gpu::Status status) {
  if (status != 0)
    throw std::runtime_error(std::string(operation) + ": " + gpu::status_text(status));
}

void bind_gpu(pybind11::module_& m) {
  m.def(
      "algorithm_workspace",
      [](const Arg& like, int64_t n) { return gpu::algorithm_workspace(stream_of(like), n); },
      pybind11::arg("like"), pybind11::arg("n"));
  bind_gpu_bitmap(m);
  bind_gpu_blocks(m);
  bind_gpu_delta(m);
  bind_gpu_sites(m);
  bind_gpu_conv(m);
  bind_gpu_rulebook(m);
  bind_gpu_conv_grad(m);
  bind_gpu_rows(m);
  bind_gpu_windows(m);
  bind_gpu_spmm(m);
}

}  // namespace ds

#ifdef DS_EMULATED
PYBIND11_MODULE(_emulated, m) {
  m.doc() = "The CUDA kernels, run thread by thread on the CPU: for tests.";
  ds::bind_gpu(m);
}
#endif
