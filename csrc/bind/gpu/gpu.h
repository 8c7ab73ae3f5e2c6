// What bindings of CUDA kernels share. They are thin like those of the CPU: check, then launch on
// torch's current stream. Contents of device memory are not read here, so a kernel that follows an
// index compares it with its bound first: wrong numbers give wrong sums, never a crash.
//
// The same files make up `_C.gpu` of a CUDA build and, on emulated kernels, the module of the
// tests, whose "device" is the CPU.
#pragma once
#include "bind/tensor_arg.h"
#include "cuda/device.h"

namespace ds {

// Every operand must be on the device of `like`.
Check gpu_check(const char* operation, const TensorView& like);
inline Check gpu_check(const char* operation, const Arg& like) {
  return gpu_check(operation, like.view);
}

gpu::Stream stream_of(const TensorView& like);
inline gpu::Stream stream_of(const Arg& like) {
  return stream_of(like.view);
}

// RuntimeError where a launch or a copy failed.
void throw_if(const char* operation, gpu::Status status);

// run(stream), without the GIL and with the device current; throws what it returns.
template <class Run>
void on_device(const char* operation, const TensorView& like, const Run& run) {
  const gpu::Stream stream = stream_of(like);
  gpu::Status status;
  {
    const pybind11::gil_scoped_release release;
    const gpu::DeviceGuard guard(stream);
    status = run(stream);
  }
  throw_if(operation, status);
}

// The families.
void bind_gpu_bitmap(pybind11::module_& m);
void bind_gpu_blocks(pybind11::module_& m);
void bind_gpu_delta(pybind11::module_& m);
void bind_gpu_sites(pybind11::module_& m);
void bind_gpu_conv(pybind11::module_& m);
void bind_gpu_rulebook(pybind11::module_& m);
void bind_gpu_conv_grad(pybind11::module_& m);
void bind_gpu_rows(pybind11::module_& m);
void bind_gpu_windows(pybind11::module_& m);
void bind_gpu_spmm(pybind11::module_& m);

}  // namespace ds
