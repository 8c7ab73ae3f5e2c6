// Sums of feature rows, segment by segment: out[s] = bias + sum of values[rows[j]], or of
// (values[rows[j]] - mean)^2.
//
// Layout   values and out row-major, rows gathered in place.
// Tile     8 vectors of channels (8 of 16 registers on AVX2), then 4, 2, 1 and single channels, in
//          registers while kBlockSegmentRows rows pass by. At 8 independent chains the adds
//          (latency 3 to 4, two a cycle) keep up with L1; one vector alone keeps up with memory.
// Bound    bytes: n_positions rows read once. A block of wide rows is visited once per tile, but
//          soon enough to be found in L2; a whole segment would not be.
// Order    one chain per channel, j ascending, starting from bias.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int kBlockSegmentRows = 32;
constexpr int64_t kStripChannels = 512;  // of a 16-bit result: its float32 sums wait on the stack

// n rows' columns from c on, added to what `from` holds (null: zero). `from` and `out` hold the
// columns from `base` on.
template <class T, int V, bool kSquared>
[[gnu::always_inline]] inline void add_rows(const T* const* rows, int n, int64_t base, int64_t c,
                                            const T* mean, const Acc<T>* from, Acc<T>* out) {
  Vec<T> sum[V], centre[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    sum[v] = from ? load(from + c - base + v * kLanes<T>) : Vec<T>{};
    if (kSquared) centre[v] = load(mean + c + v * kLanes<T>);
  }
  for (int i = 0; i < n; ++i) {
    const T* row = rows[i] + c;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vec<T> x = load(row + v * kLanes<T>);
      if (kSquared)
        sum[v] = fma(x - centre[v], x - centre[v], sum[v]);
      else
        sum[v] += x;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(out + c - base + v * kLanes<T>, sum[v]);
}

template <class T, bool kSquared>
void add_block(const T* const* rows, int n, int64_t begin, int64_t end, const T* mean,
               const Acc<T>* from, Acc<T>* out) {
  constexpr int64_t kLane = kLanes<T>;
  int64_t c = begin;
  for (; c + 8 * kLane <= end; c += 8 * kLane)
    add_rows<T, 8, kSquared>(rows, n, begin, c, mean, from, out);
  if (c + 4 * kLane <= end) {
    add_rows<T, 4, kSquared>(rows, n, begin, c, mean, from, out);
    c += 4 * kLane;
  }
  if (c + 2 * kLane <= end) {
    add_rows<T, 2, kSquared>(rows, n, begin, c, mean, from, out);
    c += 2 * kLane;
  }
  if (c + kLane <= end) {
    add_rows<T, 1, kSquared>(rows, n, begin, c, mean, from, out);
    c += kLane;
  }
  for (; c < end; ++c) {
    Acc<T> sum = from ? from[c - begin] : Acc<T>(0);
    for (int i = 0; i < n; ++i) {
      const Acc<T> x = widened(rows[i][c]);
      const Acc<T> deviation = kSquared ? x - widened(mean[c]) : x;
      sum += kSquared ? deviation * deviation : x;
    }
    out[c - begin] = sum;
  }
}

// Columns [begin, end) of segment s.
template <class T, bool kSquared, class Index>
[[gnu::always_inline]] inline void sum_segment(const SegmentSumArgs<T>& a, const Index* index,
                                               int64_t s, int64_t begin, int64_t end,
                                               const Acc<T>* from, Acc<T>* out) {
  const T* mean = kSquared ? a.mean + s * a.n_channels : nullptr;
  const int64_t last = a.start[s + 1];
  int64_t j = a.start[s];
  do {  // once for an empty segment
    const T* rows[kBlockSegmentRows];
    const int n = static_cast<int>(last - j < kBlockSegmentRows ? last - j : kBlockSegmentRows);
    for (int i = 0; i < n; ++i) rows[i] = a.values + (index ? index[j + i] : j + i) * a.n_channels;
    add_block<T, kSquared>(rows, n, begin, end, mean, from, out);
    from = out;
    j += n;
  } while (j < last);
}

template <class T, bool kSquared, class Index>
[[gnu::always_inline]] inline void sum_segments(const SegmentSumArgs<T>& a, const Index* index) {
  for (int64_t s = 0; s < a.n_segments; ++s) {
    if (a.start[s + 1] - a.start[s] > kSegmentChunk) continue;
    const int64_t at = s * a.n_channels;
    if constexpr (kIsHalf<T>) {
      if (a.partial) {  // a chunk of a long segment: the bias is added with the chunks
        sum_segment<T, kSquared>(a, index, s, 0, a.n_channels, nullptr, a.partial + at);
        continue;
      }
      float sums[kStripChannels];
      for (int64_t c = 0; c < a.n_channels; c += kStripChannels) {
        const int64_t end = a.n_channels - c < kStripChannels ? a.n_channels : c + kStripChannels;
        if (a.bias) widen_row(a.bias + c, end - c, sums);
        sum_segment<T, kSquared>(a, index, s, c, end, a.bias ? sums : nullptr, sums);
        round_row(sums, end - c, a.out + at + c);
      }
    } else {
      T* out = (a.partial ? a.partial : a.out) + at;
      sum_segment<T, kSquared>(a, index, s, 0, a.n_channels, a.bias, out);
    }
  }
}

template <class T>
void segment_sum_kernel(const SegmentSumArgs<T>& a) {
  if (a.mean) {
    if (a.rows32)
      sum_segments<T, true>(a, a.rows32);
    else
      sum_segments<T, true>(a, a.rows64);
  } else if (a.rows32) {
    sum_segments<T, false>(a, a.rows32);
  } else {
    sum_segments<T, false>(a, a.rows64);
  }
}

}  // namespace
}  // namespace ds
