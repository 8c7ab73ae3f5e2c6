#include "cuda/device.h"

#ifdef DS_EMULATED
  #include <cstring>
#endif

namespace ds::gpu {

#ifdef DS_EMULATED

const char* status_text(Status status) {
  return status == kInvalidConfiguration ? "invalid configuration" : emulation::error_text();
}
Status fill_bytes(const Stream&, void* at, int byte, int64_t n_bytes) {
  if (n_bytes > 0) std::memset(at, byte, static_cast<size_t>(n_bytes));
  return 0;
}
Status copy_to_host(const Stream&, void* host, const void* device, int64_t n_bytes) {
  if (n_bytes > 0) std::memcpy(host, device, static_cast<size_t>(n_bytes));
  return 0;
}
int n_multiprocessors(const Stream&) {
  return 4;
}
size_t most_shared_bytes(const Stream&) {
  return emulation::most_shared_bytes();
}
DeviceGuard::DeviceGuard(const Stream&) {}
DeviceGuard::~DeviceGuard() = default;

#else

const char* status_text(Status status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}
Status fill_bytes(const Stream& stream, void* at, int byte, int64_t n_bytes) {
  if (n_bytes <= 0) return 0;
  return told(cudaMemsetAsync(at, byte, static_cast<size_t>(n_bytes),
                              static_cast<cudaStream_t>(stream.handle)));
}
Status copy_to_host(const Stream& stream, void* host, const void* device, int64_t n_bytes) {
  if (n_bytes <= 0) return 0;
  const cudaStream_t handle = static_cast<cudaStream_t>(stream.handle);
  const cudaError_t status =
      cudaMemcpyAsync(host, device, static_cast<size_t>(n_bytes), cudaMemcpyDeviceToHost, handle);
  return told(status != cudaSuccess ? status : cudaStreamSynchronize(handle));
}
int n_multiprocessors(const Stream& stream) {
  int n = 0;
  if (told(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, stream.device)) != 0)
    return 1;
  return n;
}
size_t most_shared_bytes(const Stream& stream) {
  int n = 0;
  if (told(cudaDeviceGetAttribute(&n, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device)) != 0)
    return 48 * 1024;
  return static_cast<size_t>(n);
}
// Going back makes a context on the device before. Where it has none, torch has left the tensors'
// device current when it made them, and nothing is switched.
DeviceGuard::DeviceGuard(const Stream& stream) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current != stream.device &&
      cudaSetDevice(stream.device) == cudaSuccess)
    previous_ = current;
}
DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

#endif

}  // namespace ds::gpu
