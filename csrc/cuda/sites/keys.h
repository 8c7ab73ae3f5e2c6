// Row-major linear keys of sites, and back. int64 throughout.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

constexpr int kMostAxes = 4;

struct GridShape {
  int n_axes;
  int64_t extent[kMostAxes];
};

// coords (n, 1 + n_axes) = [batch, spatial...]
Status coords_to_keys(const Stream& stream, const int32_t* coords, int64_t n,
                      const GridShape& shape, int64_t* keys);
Status keys_to_coords(const Stream& stream, const int64_t* keys, int64_t n, const GridShape& shape,
                      int32_t* coords);

}  // namespace ds::gpu
