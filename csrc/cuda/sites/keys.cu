#include "cuda/sites/keys.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

// Loops over axes run to kMostAxes and are unrolled: arguments that are indexed by a variable would
// be copied to local memory.
__global__ void keys_kernel(const int32_t* coords, int64_t n, GridShape shape, int64_t* keys) {
  for (int64_t i = thread_index(); i < n; i += n_threads()) {
    const int32_t* site = coords + i * (1 + shape.n_axes);
    int64_t key = site[0];
#pragma unroll
    for (int a = 0; a < kMostAxes; ++a)
      if (a < shape.n_axes) key = key * shape.extent[a] + site[1 + a];
    keys[i] = key;
  }
}

__global__ void coords_kernel(const int64_t* keys, int64_t n, GridShape shape, int32_t* coords) {
  for (int64_t i = thread_index(); i < n; i += n_threads()) {
    int32_t* site = coords + i * (1 + shape.n_axes);
    int64_t key = keys[i];
#pragma unroll
    for (int a = kMostAxes - 1; a >= 0; --a) {
      if (a >= shape.n_axes) continue;
      site[1 + a] = static_cast<int32_t>(key % shape.extent[a]);
      key /= shape.extent[a];
    }
    site[0] = static_cast<int32_t>(key);
  }
}

}  // namespace

Status coords_to_keys(const Stream& stream, const int32_t* coords, int64_t n,
                      const GridShape& shape, int64_t* keys) {
  return launch(stream, {blocks_for(n, kThreads)}, kThreads, 0, keys_kernel, coords, n, shape,
                keys);
}

Status keys_to_coords(const Stream& stream, const int64_t* keys, int64_t n, const GridShape& shape,
                      int32_t* coords) {
  return launch(stream, {blocks_for(n, kThreads)}, kThreads, 0, coords_kernel, keys, n, shape,
                coords);
}

}  // namespace ds::gpu
