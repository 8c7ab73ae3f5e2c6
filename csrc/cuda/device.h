// What every CUDA source includes: the language of kernels, and how one is launched. A kernel is
// written once. nvcc compiles it for the GPU; with DS_EMULATED, a C++ compiler makes of it a
// program that runs every block and thread on the CPU (cuda/emulation/), which is how tests run all
// kernels on machines without a GPU. So kernels use the names below instead of CUDA's own where the
// two must differ: shared<T>(), sync_block(), sync_warp(), ballot(), shuffle(), atomic_*(), and
// what mma.h and async_copy.h define.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/half.h"

// DS_KERNELS: in what compiles kernels. Bindings, plain C++, see the rest of this file only.
#ifdef DS_EMULATED
  #define DS_KERNELS
  #include "cuda/emulation/emulation.h"
#else
  #ifdef __CUDACC__
    #define DS_KERNELS
  #endif
  #include <cuda_runtime.h>
#endif

#define DS_HOST_DEVICE __host__ __device__ inline
#define DS_DEVICE __device__ __forceinline__

namespace ds::gpu {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffff;

// Where work is put: a device, and a cudaStream_t of it.
struct Stream {
  int device = 0;
  void* handle = nullptr;
};

// 0, or what went wrong: a cudaError_t.
using Status = int;
const char* status_text(Status status);

constexpr Status kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};
constexpr int64_t kMostBlocks = INT32_MAX, kMostBlocksAcross = 65535;  // x; y and z

DS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ------------------------------------------------------------------ inside kernels
#ifdef DS_EMULATED

template <class T>
T& shared() {
  return *static_cast<T*>(emulation::shared_memory());
}
inline void sync_block() {
  emulation::sync_block();
}
inline void sync_warp() {
  emulation::sync_warp();
}
inline uint32_t ballot(bool predicate) {
  return emulation::ballot(predicate);
}
template <class T>
T shuffle(T value, int lane) {
  return emulation::shuffle(value, lane & (kWarp - 1));
}
template <class T>
T shuffle_xor(T value, int mask) {
  return emulation::shuffle(value, (static_cast<int>(threadIdx.x) ^ mask) & (kWarp - 1));
}
template <class T>
T shuffle_up(T value, int delta) {  // lanes below delta keep their own
  const int lane = static_cast<int>(threadIdx.x) & (kWarp - 1);
  return emulation::shuffle(value, lane < delta ? lane : lane - delta);
}
template <class T>
T shuffle_down(T value, int delta) {
  const int lane = static_cast<int>(threadIdx.x) & (kWarp - 1);
  return emulation::shuffle(value, lane + delta >= kWarp ? lane : lane + delta);
}
// Integers only: sums of floats would depend on the order of threads.
inline uint32_t atomic_or(uint32_t* at, uint32_t bits) {
  const uint32_t old = *at;
  *at = old | bits;
  return old;
}
inline int32_t atomic_add(int32_t* at, int32_t n) {
  const int32_t old = *at;
  *at = old + n;
  return old;
}
inline int32_t atomic_max(int32_t* at, int32_t n) {
  const int32_t old = *at;
  *at = old > n ? old : n;
  return old;
}
inline int count_bits(uint32_t v) {
  return __builtin_popcount(v);
}
inline int count_bits(uint64_t v) {
  return __builtin_popcountll(v);
}
inline int first_bit(uint32_t v) {  // of v != 0
  return __builtin_ctz(v);
}
inline float fused(float a, float b, float c) {  // a * b + c, rounded once
  return __builtin_fmaf(a, b, c);
}
inline double fused(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
template <class T>
T read_only(const T* at) {
  return *at;
}

#elif defined(DS_KERNELS)

// The block's shared memory as one struct of arrays; its size is given to launch().
template <class T>
DS_DEVICE T& shared() {
  extern __shared__ __align__(128) unsigned char ds_shared_bytes[];
  return *reinterpret_cast<T*>(ds_shared_bytes);
}
DS_DEVICE void sync_block() {
  __syncthreads();
}
DS_DEVICE void sync_warp() {
  __syncwarp();
}
// These need all 32 lanes of a warp at the same place.
DS_DEVICE uint32_t ballot(bool predicate) {
  return __ballot_sync(kAllLanes, predicate);
}
template <class T>
DS_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
DS_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <class T>
DS_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(kAllLanes, value, delta);
}
template <class T>
DS_DEVICE T shuffle_down(T value, int delta) {
  return __shfl_down_sync(kAllLanes, value, delta);
}
DS_DEVICE uint32_t atomic_or(uint32_t* at, uint32_t bits) {
  return atomicOr(at, bits);
}
DS_DEVICE int32_t atomic_add(int32_t* at, int32_t n) {
  return atomicAdd(at, n);
}
DS_DEVICE int32_t atomic_max(int32_t* at, int32_t n) {
  return atomicMax(at, n);
}
DS_DEVICE int count_bits(uint32_t v) {
  return __popc(v);
}
DS_DEVICE int count_bits(uint64_t v) {
  return __popcll(v);
}
DS_DEVICE int first_bit(uint32_t v) {
  return __ffs(static_cast<int>(v)) - 1;
}
DS_DEVICE float fused(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
DS_DEVICE double fused(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
template <class T>
DS_DEVICE T read_only(const T* at) {  // through the read-only path; T a type that __ldg knows
  return __ldg(at);
}

#endif

#ifdef DS_KERNELS
// N values that are loaded and stored together, at most 16 bytes, aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <int N, class T>
DS_DEVICE Pack<T, N> load_pack(const T* at) {
  return *reinterpret_cast<const Pack<T, N>*>(at);
}
template <int N, class T>
DS_DEVICE void store_pack(T* at, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(at) = pack;
}

DS_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x) & (kWarp - 1);
}
DS_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
// For one-dimensional grids.
DS_DEVICE int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
DS_DEVICE int64_t n_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// ------------------------------------------------------------------ launching
  #ifndef DS_EMULATED
// The status of a call, which CUDA forgets here: the next launch would be told of it again.
inline Status told(cudaError_t status) {
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status;
}
  #endif

// kernel(args...) on grid blocks of `threads` threads (a multiple of 32) with that much shared
// memory; nothing at all where the grid is empty. Arguments are passed by value.
template <class... Params, class... Args>
Status launch(const Stream& stream, const Grid& grid, int threads, size_t shared_bytes,
              void (*kernel)(Params...), const Args&... args) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return 0;
  if (grid.x > kMostBlocks || grid.y > kMostBlocksAcross || grid.z > kMostBlocksAcross)
    return kInvalidConfiguration;
  #ifdef DS_EMULATED
  (void)stream;
  return emulation::run(
      {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)},
      static_cast<unsigned>(threads), shared_bytes, [&] { kernel(args...); });
  #else
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return told(status);
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream.handle)>>>(args...);
  return cudaGetLastError();
  #endif
}

#endif

// Blocks of a grid-stride loop over n items: enough to fill any GPU, few enough to launch quickly.
DS_HOST_DEVICE int64_t blocks_for(int64_t n, int threads) {
  const int64_t blocks = ceil_div(n, threads);
  return blocks < 65536 ? blocks : 65536;
}

// Memory that the caller's stream owns, and copies on it. `n_bytes` may be 0.
Status fill_bytes(const Stream& stream, void* at, int byte, int64_t n_bytes);
Status copy_to_host(const Stream& stream, void* host, const void* device,
                    int64_t n_bytes);  // waits
int n_multiprocessors(const Stream& stream);
// Bytes that a block may have: 99 KB on 8.6, 8.9 and 12.0, 163 KB on 8.0, 227 KB on 9.0.
size_t most_shared_bytes(const Stream& stream);

// Makes stream.device current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Stream& stream);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
};

}  // namespace ds::gpu
