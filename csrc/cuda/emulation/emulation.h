// CUDA's execution model in plain C++, for tests: every thread of a block is a fiber, blocks run
// one after the other, and a barrier or a warp's exchange gives way to the next fiber. What a GPU
// would hide for a while shows at once: shared memory starts out as NaN, a copy that nobody waited
// for has not happened, writing past the shared memory, a barrier that not all threads reach, and a
// warp operation that not all lanes reach are errors, and
// DOUBLESPARSE_EMULATION_ORDER=forward|reverse|N (N a seed) changes the order of threads, so that a
// missing barrier changes results. DOUBLESPARSE_EMULATION_SHARED=N: a GPU whose blocks have less.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define threadIdx (::ds::emulation::where.thread)
#define blockIdx (::ds::emulation::where.block)
#define blockDim (::ds::emulation::where.block_extent)
#define gridDim (::ds::emulation::where.grid_extent)

namespace ds::emulation {

struct Place {
  unsigned x, y, z;
};
struct Where {
  Place thread, block, block_extent, grid_extent;
};
extern __thread Where where;  // of the running fiber; no constructor, so reading it is one load

void* shared_memory();
// DOUBLESPARSE_EMULATION_SHARED, or what sm_90 has: what a block may have.
size_t most_shared_bytes();
void sync_block();
void sync_warp();

constexpr size_t kExchangeBytes = 64;
// Each lane shows its bytes to the warp; returns those of all 32 lanes, kExchangeBytes apart, valid
// until the lane's next warp operation but one.
const unsigned char* exchange(const void* bytes, size_t n_bytes);

inline uint32_t ballot(bool predicate) {
  const unsigned char* all = exchange(&predicate, sizeof predicate);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(all[i * kExchangeBytes] != 0) << i;
  return bits;
}
template <class T>
T shuffle(T value, int lane) {
  static_assert(sizeof(T) <= kExchangeBytes);
  T result;
  std::memcpy(&result, exchange(&value, sizeof value) + lane * kExchangeBytes, sizeof value);
  return result;
}

// A copy that happens when its thread waits for the group it belongs to (async_copy.h).
void copy_later(void* to, const void* from, size_t n_bytes, size_t n_valid);
void commit_copies();
void wait_copies(int n_groups_left);

// Runs body() for every thread of every block. Returns 0, or 1 with error_text().
int run_blocks(const Place& grid, unsigned threads, size_t shared_bytes, void (*body)(void*),
               void* context);
const char* error_text();

template <class Body>
int run(const Place& grid, unsigned threads, size_t shared_bytes, const Body& body) {
  return run_blocks(
      grid, threads, shared_bytes, [](void* context) { (*static_cast<const Body*>(context))(); },
      const_cast<Body*>(&body));
}

}  // namespace ds::emulation
