// dY^T X at the kept entries of a pruned weight: a dot product over the lanes of two panels for
// every entry. Contract: spmm.h.
//
// A row's dy stays in registers; an entry costs `vectors` multiply-adds straight from the panel of
// x (in L1: the same blocks as spmm). The sums of kLanes entries are then reduced together: kLanes
// - 1 pairs of shuffles and adds leave one vector with one sum per lane.
#pragma once
#include "cpu/spmm/spmm.h"
#include "cpu/spmm/spmm_kernel.h"
#include "cpu/spmm/transpose_kernel.h"

namespace ds {
namespace {

// From pairs of vectors kStep apart to one: lane j of pair (i, i + kStep) holds a part of the sum
// of vector i + (j & kStep).
template <class T, int kStep, int N>
[[gnu::always_inline]] inline void fold(Vec<T>* sums) {
  using Index = typename LaneIndex<T>::type;
  Index low, high;
#pragma GCC unroll 16
  for (int j = 0; j < kLanes<T>; ++j) {
    low[j] = j & kStep ? kLanes<T> + j - kStep : j;
    high[j] = j & kStep ? kLanes<T> + j : j + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; i += 2 * kStep)
    sums[i] = __builtin_shuffle(sums[i], sums[i + kStep], low) +
              __builtin_shuffle(sums[i], sums[i + kStep], high);
}

// Lane j: the sum of vector j's lanes.
template <class T>
[[gnu::always_inline]] inline Vec<T> sums_of(Vec<T>* vectors) {
  constexpr int N = kLanes<T>;
  fold<T, 1, N>(vectors);
  if constexpr (N > 2) fold<T, 2, N>(vectors);
  if constexpr (N > 4) fold<T, 4, N>(vectors);
  if constexpr (N > 8) fold<T, 8, N>(vectors);
  return vectors[0];
}

// The dot products of entries [j, j + count), of which the first kLanes (count clamped) are done.
template <class T, int R, bool kPlaces>
[[gnu::always_inline]] inline Vec<T> dots(const SddmmTile<T>& t, const Vec<T> (&dy)[R], int64_t j,
                                          int64_t last) {
  Vec<T> sums[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    const T* x = t.x + place<kPlaces>(t, least(j + i, last));
    sums[i] = Vec<T>{};
#pragma GCC unroll 4
    for (int v = 0; v < R; ++v) sums[i] = fma(dy[v], load(x + v * kLanes<T>), sums[i]);
  }
  return sums_of<T>(sums);
}

template <class T, int R, bool kPlaces>
void sample_segments(const SddmmTile<T>& t) {
  for (int64_t row = t.unit_begin; row < t.unit_end; ++row) {
    const int64_t end = t.starts[row + 1];
    Vec<T> dy[R];
#pragma GCC unroll 4
    for (int v = 0; v < R; ++v) dy[v] = load(t.dy + row * t.ldy + v * kLanes<T>);
    int64_t j = t.starts[row];
    for (; j + kLanes<T> <= end; j += kLanes<T>) {
      const Vec<T> sum = dots<T, R, kPlaces>(t, dy, j, end - 1);
      store(t.values + j, t.first ? sum : load(t.values + j) + sum);
    }
    if (j == end) continue;
    T rest[kLanes<T>];
    store(rest, dots<T, R, kPlaces>(t, dy, j, end - 1));
    for (int i = 0; j + i < end; ++i)
      t.values[j + i] = t.first ? rest[i] : t.values[j + i] + rest[i];
  }
}

template <class T, int R>
void sample_rows(const SddmmTile<T>& t) {
  if (t.places)
    sample_segments<T, R, true>(t);
  else
    sample_segments<T, R, false>(t);
}

template <class T>
void sddmm_tile(const SddmmTile<T>& t) {
  switch (t.vectors) {
    case 1:
      return sample_rows<T, 1>(t);
    case 2:
      return sample_rows<T, 2>(t);
    case 3:
      return sample_rows<T, 3>(t);
    default:
      return sample_rows<T, 4>(t);
  }
}

}  // namespace
}  // namespace ds
