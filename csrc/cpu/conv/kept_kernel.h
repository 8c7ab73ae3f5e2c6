// Pruned weights, both directions: lists of kept input channels in the place of all of them
// (kept.h).
//
// Forward  the register tile of gemm_kernel.h walks a panel's list: per entry one load of the
//          channel's number, then kRows broadcasts + 2 loads feed 2 kRows multiply-adds. Panels one
//          vector wide: 8 rows, as many chains as two FMA ports need to hide a latency of four
//          cycles, at 9 loads for 8 multiply-adds.
// Gradient of one offset: kKeptPairs pairs and kKeptSlab input channels at a time are copied to
//          [pair][kKeptStride], and the panel's dy to [pair][width]; then groups of entries stay in
//          registers while the pairs stream by. Pairs ascending in one chain for every element.
// Bound    2 * n_pairs * n_entries / n_offsets * width flops; beside them y is loaded and stored
//          once per (pair, panel with a list).
#pragma once
#include "cpu/conv/gemm_kernel.h"
#include "cpu/conv/weight_grad_kernel.h"

namespace ds {
namespace {

template <int V>
constexpr int kKeptRows = V == 2 ? kRows : 8;

// One block of at most kBlockRows pairs of one offset, all panels; `start` is the offset's.
template <class T, int V>
void multiply_kept(const KeptTile<T>& t, const int64_t* start, int64_t pair, int n) {
  constexpr int kMost = kKeptRows<V>;
  constexpr int64_t kWidth = V * kLanes<T>;
  const T* x[kBlockRows];
  T* y[kBlockRows];
  for (int r = 0; r < n; ++r) {
    x[r] = t.x + t.src[pair + r] * t.ldx;
    y[r] = t.y + t.dst[pair + r] * t.ldy;
  }
  const int n_groups = (n + kMost - 1) / kMost, base = n / n_groups, larger = n % n_groups;
  for (int64_t panel = 0; panel < t.n_panels; ++panel) {
    const int64_t column = panel * kWidth, columns = t.c_out - column;
    for (int64_t entry = start[panel]; entry < start[panel + 1]; entry += kDepth) {
      const int64_t depth = least(kDepth, start[panel + 1] - entry);
      const ChannelList channels{t.channels + entry};
      const T* w = t.w + entry * kWidth;
      for (int g = 0, r = 0; g < n_groups; ++g) {
        const int rows = base + (g < larger);
        if (columns < kWidth)
          multiply_edge<T, kMost, V, kWidth>(rows, x + r, channels, depth, w, y + r, column,
                                             columns);
        else if (rows == kMost)
          multiply_rows<T, kMost, V, kWidth>(x + r, channels, depth, w, y + r, column);
        else
          multiply_group<T, kMost, V, kWidth>(rows, x + r, channels, depth, w, y + r, column);
        r += rows;
      }
    }
  }
}

template <class T>
void kept_tile(const KeptTile<T>& t) {
  init_rows(t);
  for (int64_t k = 0; k < t.n_offsets; ++k) {
    const int64_t* start = t.start + k * t.n_panels;
    if (start[0] == start[t.n_panels]) continue;
    const int64_t list_end = t.offset_start[k + 1];
    const int64_t begin = first_pair(t.dst, t.offset_start[k], list_end, t.row_begin);
    const int64_t end = first_pair(t.dst, begin, list_end, t.row_end);
    for (int64_t p = begin; p < end; p += kBlockRows) {
      const int n = static_cast<int>(least(end - p, kBlockRows));
      if (t.width == kPanel<T>)
        multiply_kept<T, 2>(t, start, p, n);
      else
        multiply_kept<T, 1>(t, start, p, n);
    }
  }
}

// ------------------------------------------------------------------ weight gradient
constexpr int kKeptPairs = 64;
constexpr int64_t kKeptSlab = 96;  // copies in float32: 28 KiB of x, 4 KiB of dy

// From one pair to the next: an odd number of lines, or their channels would share few sets of L1.
template <class T>
constexpr int64_t kKeptStride = kKeptSlab + (kKeptSlab * sizeof(T) / 64 % 2 ? 0 : 64 / sizeof(T));

template <class T, int R, int V>
[[gnu::always_inline]] inline void accumulate_kept(const T* const* x, const T* dy, int n, T* dw) {
  constexpr int64_t kWidth = V * kLanes<T>;
  Vec<T> acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = load(dw + r * kWidth + v * kLanes<T>);
  const T* xr[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) xr[r] = x[r];
  for (int64_t at = 0; at < n * kKeptStride<T>; at += kKeptStride<T>, dy += kWidth) {
    Vec<T> b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b[v] = load(dy + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a = splat(xr[r][at]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(dw + r * kWidth + v * kLanes<T>, acc[r][v]);
}

// First entry in [begin, end) whose channel is >= channel.
[[gnu::always_inline]] inline int64_t first_entry(const int32_t* channels, int64_t begin,
                                                  int64_t end, int64_t channel) {
  return first_pair(channels, begin, end, channel);
}

// One block of pairs, one slab of input channels (copied already), all panels.
template <class T, int V>
void kept_grad_slab(const KeptGradBlock<T>& t, int64_t first, int n, int64_t in_begin,
                    int64_t in_end, const T* x) {
  constexpr int kMost = kKeptRows<V>;
  constexpr int64_t kWidth = V * kLanes<T>;
  alignas(DS_VEC_BYTES) T dy[kKeptPairs * kWidth];
  for (int64_t panel = 0; panel < t.n_panels; ++panel) {
    const int64_t begin = first_entry(t.channels, t.start[panel], t.start[panel + 1], in_begin);
    const int64_t end = first_entry(t.channels, begin, t.start[panel + 1], in_end);
    if (begin == end) continue;
    const int64_t column = panel * kWidth;
    for (int p = 0; p < n; ++p)
      copy_values<T, static_cast<int>(kWidth)>(t.dy + t.dst[first + p] * t.ldy + column,
                                               t.c_out - column, dy + p * kWidth);
    const int64_t n_groups = (end - begin + kMost - 1) / kMost;  // of nearly equal size
    for (int64_t g = 0; g < n_groups; ++g) {
      const int64_t entry = begin + g * (end - begin) / n_groups;
      const int rows = static_cast<int>(begin + (g + 1) * (end - begin) / n_groups - entry);
      const T* xr[kMost];
      for (int r = 0; r < rows; ++r) xr[r] = x + (t.channels[entry + r] - in_begin);
      for_rows<kMost>(rows, [&](auto r) __attribute__((always_inline)) {
        accumulate_kept<T, decltype(r)::value, V>(xr, dy, n, t.dw + entry * kWidth);
      });
    }
  }
}

template <class T>
void kept_grad(const KeptGradBlock<T>& t) {
  alignas(64) T x[kKeptPairs * kKeptStride<T>];
  if (t.start[0] == t.start[t.n_panels]) return;
  for (int64_t first = 0; first < t.n_pairs; first += kKeptPairs) {
    const int n = static_cast<int>(least(t.n_pairs - first, kKeptPairs));
    for (int64_t in_begin = 0; in_begin < t.c_in; in_begin += kKeptSlab) {
      const int64_t in_end = least(t.c_in, in_begin + kKeptSlab);
      for (int p = 0; p < n; ++p) {
        const T* row = t.x + t.src[first + p] * t.ldx;
        for (int64_t c = in_begin; c < in_end; c += kLanes<T>)
          copy_values<T, kLanes<T>>(row + c, in_end - c, x + p * kKeptStride<T> + c - in_begin);
      }
      if (t.width == kPanel<T>)
        kept_grad_slab<T, 2>(t, first, n, in_begin, in_end, x);
      else
        kept_grad_slab<T, 1>(t, first, n, in_begin, in_end, x);
    }
  }
}

}  // namespace
}  // namespace ds
