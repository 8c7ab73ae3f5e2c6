// Products of a block of points with a panel of centres, and the best centre so far of each point.
//
// Layout   a panel has 3 vectors of centres side by side, one row per feature: 37 KiB for 392
//          features on AVX2. Points come as lists of their non-zero values, or dense.
// Tile     4 points x 3 vectors: 12 of 16 registers on AVX2, and enough independent chains to hide
//          the latency of a multiply-add (4 cycles, two a cycle).
// Bound    lists: loads, 15 of them for 12 multiply-adds, part of them from L2. The values of a
//          group come in one load and are spread by shuffles, its offsets in two. The dense form
//          shares a panel row between the points: 7 loads, and arithmetic is the bound.
// Order    one chain per (point, centre), features ascending. Lanes are then compared at once: a
//          panel improves on a point's best so rarely (5 of 100 panels) that a branch is cheapest.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int kNearestVectors = 3;
constexpr int kNearestLanes = kNearestVectors * kLanes<float>;

[[gnu::always_inline]] inline bool any_above(VecF32 v, float limit) {
#if defined(__AVX512F__) && DS_VEC_BYTES == 64
  return _mm512_cmp_ps_mask(v, splat(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__) && DS_VEC_BYTES == 32
  return _mm256_movemask_ps(_mm256_cmp_ps(v, splat(limit), _CMP_GT_OQ)) != 0;
#else
  const auto above = v > splat(limit);
  int any = 0;
  for (int i = 0; i < kLanes<float>; ++i) any |= above[i];
  return any != 0;
#endif
}

void pack_centers(const float* centers, int64_t n, int64_t d_sub, float* panel, float* half_norm) {
  for (int64_t j = 0; j < d_sub; ++j) {
    float* row = panel + j * kNearestLanes;
    for (int64_t i = 0; i < n; ++i) row[i] = centers[i * d_sub + j];
    for (int64_t i = n; i < kNearestLanes; ++i) row[i] = 0;
  }
  for (int v = 0; v < kNearestVectors; ++v) {
    VecF32 sum{};
    for (int64_t j = 0; j < d_sub; ++j) {
      const VecF32 row = load(panel + j * kNearestLanes + v * kLanes<float>);
      sum = fma(row, row, sum);
    }
    store(half_norm + v * kLanes<float>, sum * 0.5f);
  }
  for (int64_t i = n; i < kNearestLanes; ++i) half_norm[i] = __builtin_inff();
}

// The lowest lane of the largest value, if that beats the best so far.
[[gnu::noinline]] void keep_best(const float* values, int32_t first, float* best,
                                 int32_t* nearest) {
  for (int i = 0; i < kNearestLanes; ++i) {
    if (values[i] > *best) {
      *best = values[i];
      *nearest = first + i;
    }
  }
}

// The values of a group's points, and of one of them in all lanes: one load a group, not a point.
#if defined(__AVX512F__) && DS_VEC_BYTES == 64
// With a mask of ones, as in vec.h.
using GroupValues = VecF32;
[[gnu::always_inline]] inline GroupValues load_group(const float* values) {
  return _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(values));
}
template <int P>
[[gnu::always_inline]] inline VecF32 splat_value(GroupValues values) {
  return _mm512_maskz_permute_ps(0xffff, values, 0x55 * P);
}
#elif defined(__AVX2__) && DS_VEC_BYTES == 32
using GroupValues = VecF32;
[[gnu::always_inline]] inline GroupValues load_group(const float* values) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values));
}
template <int P>
[[gnu::always_inline]] inline VecF32 splat_value(GroupValues values) {
  return _mm256_permute_ps(values, 0x55 * P);
}
#else
using GroupValues = const float*;
[[gnu::always_inline]] inline GroupValues load_group(const float* values) {
  return values;
}
template <int P>
[[gnu::always_inline]] inline VecF32 splat_value(GroupValues values) {
  return splat(values[P]);
}
#endif

template <int P>
[[gnu::always_inline]] inline void add_row(const char* row, GroupValues values,
                                           VecF32 (&sum)[kNearestPoints][kNearestVectors]) {
  const VecF32 value = splat_value<P>(values);
#pragma GCC unroll 4
  for (int v = 0; v < kNearestVectors; ++v)
    sum[P][v] =
        fma(value, load(reinterpret_cast<const float*>(row) + v * kLanes<float>), sum[P][v]);
}

[[gnu::always_inline]] inline void add_step(const float* const* rows, const float* values,
                                            VecF32 (&sum)[kNearestPoints][kNearestVectors]) {
#pragma GCC unroll 4
  for (int p = 0; p < kNearestPoints; ++p) {
    const VecF32 value = splat(values[p]);
#pragma GCC unroll 3
    for (int v = 0; v < kNearestVectors; ++v)
      sum[p][v] = fma(value, load(rows[p] + v * kLanes<float>), sum[p][v]);
  }
}

template <bool kLists>
[[gnu::always_inline]] inline void nearest_groups(const NearestTile& t) {
  const uint32_t* entry = t.entries;
  const char* const panel = reinterpret_cast<const char*>(t.panel);
  for (int64_t g = 0; g < t.n_groups; ++g) {
    VecF32 sum[kNearestPoints][kNearestVectors] = {};
    if (kLists) {
      const uint32_t* const end = entry + int64_t{t.steps[g]} * 2 * kNearestPoints;
      for (; entry != end; entry += 2 * kNearestPoints) {
        const GroupValues values =
            load_group(reinterpret_cast<const float*>(entry + kNearestPoints));
        uint64_t low, high;
        __builtin_memcpy(&low, entry, 8);
        __builtin_memcpy(&high, entry + 2, 8);
        add_row<0>(panel + (low & 0xffffffff), values, sum);
        add_row<1>(panel + (low >> 32), values, sum);
        add_row<2>(panel + (high & 0xffffffff), values, sum);
        add_row<3>(panel + (high >> 32), values, sum);
      }
    } else {
      const float* row = t.panel;
      for (int64_t j = 0; j < t.d_sub; ++j, row += kNearestLanes, entry += kNearestPoints) {
        const float* const rows[kNearestPoints] = {row, row, row, row};
        add_step(rows, reinterpret_cast<const float*>(entry), sum);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kNearestPoints; ++p) {
      VecF32 largest;
#pragma GCC unroll 3
      for (int v = 0; v < kNearestVectors; ++v) {
        sum[p][v] -= load(t.half_norm + v * kLanes<float>);
        largest = v == 0 ? sum[p][0] : largest > sum[p][v] ? largest : sum[p][v];
      }
      const int64_t point = g * kNearestPoints + p;
      if (__builtin_expect(any_above(largest, t.best[point]), false)) {
        float values[kNearestLanes];
        for (int v = 0; v < kNearestVectors; ++v) store(values + v * kLanes<float>, sum[p][v]);
        keep_best(values, t.first_center, t.best + point, t.nearest + point);
      }
    }
  }
}

void nearest_tile(const NearestTile& t) {
  if (t.steps)
    nearest_groups<true>(t);
  else
    nearest_groups<false>(t);
}

}  // namespace
}  // namespace ds
