#include <cmath>

#include "cpu/reference.h"

namespace ds {

void pack_centers_ref(const float* centers, int64_t n, int64_t d_sub, float* panel,
                      float* half_norm) {
  for (int64_t i = 0; i < kRefLanes; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < d_sub; ++j) {
      const float value = i < n ? centers[i * d_sub + j] : 0.0f;
      panel[j * kRefLanes + i] = value;
      sum = std::fma(value, value, sum);
    }
    half_norm[i] = i < n ? 0.5f * sum : INFINITY;
  }
}

void nearest_tile_ref(const NearestTile& t) {
  const uint32_t* group = t.entries;
  for (int64_t g = 0; g < t.n_groups; ++g) {
    const int64_t n_steps = t.steps ? t.steps[g] : t.d_sub;
    const int64_t width = t.steps ? 2 * kNearestPoints : kNearestPoints;
    for (int64_t p = 0; p < kNearestPoints; ++p) {
      const int64_t point = g * kNearestPoints + p;
      for (int64_t i = 0; i < kRefLanes; ++i) {
        float sum = 0;
        for (int64_t s = 0; s < n_steps; ++s) {
          const uint32_t* entry = group + s * width;
          const int64_t row = t.steps ? entry[p] / sizeof(float) : s * kRefLanes;
          const float* values = reinterpret_cast<const float*>(entry + width - kNearestPoints);
          sum = std::fma(values[p], t.panel[row + i], sum);
        }
        sum -= t.half_norm[i];
        if (sum > t.best[point]) {
          t.best[point] = sum;
          t.nearest[point] = t.first_center + static_cast<int32_t>(i);
        }
      }
    }
    group += n_steps * width;
  }
}

}  // namespace ds
