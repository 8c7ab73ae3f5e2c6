// Gradient of the window maximum: every row of x gathers, from the windows that read it, dy where
// it won.
//
// Layout   dy, arg (n_out, n_channels); dx (n_rows, n_channels); the windows of a row as positions
//          o * n_offsets + k.
// Tile     4 vectors of channels in registers while a segment's positions pass by: per vector two
//          loads, a compare, a mask and an add. Masking, not multiplying: a NaN in dy stays with
//          its winner.
// Bound    bytes: positions * (dy row + arg row).
// Order    positions ascending, one chain.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"
#include "cpu/pool/pool_kernel.h"
#include "cpu/rows/rows.h"

namespace ds {
namespace {

struct WindowTap {
  int64_t row;  // first element of the window's row
  int32_t offset;
};

// Columns from c on; `sums` holds those from `base` on.
template <class T, int V>
[[gnu::always_inline]] inline void add_winners(const WindowMaxGradArgs<T>& a, const WindowTap* taps,
                                               int n, bool first, int64_t base, int64_t c,
                                               Acc<T>* sums) {
  Vec<T> sum[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sum[v] = first ? Vec<T>{} : load(sums + c - base + v * kLanes<T>);
  for (int i = 0; i < n; ++i) {
    const T* dy = a.dy + taps[i].row + c;
    const int32_t* arg = a.arg + taps[i].row + c;
    const IntVec<T> offset = IntVec<T>{} + taps[i].offset;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const IntVec<T> won = load_ints(arg + v * kLanes<T>, Acc<T>{}) == offset;
      sum[v] += (Vec<T>)((IntVec<T>)load(dy + v * kLanes<T>) & won);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(sums + c - base + v * kLanes<T>, sum[v]);
}

// Columns [begin, end) of row v.
template <class T>
void gather_winners(const WindowMaxGradArgs<T>& a, int64_t v, int64_t begin, int64_t end,
                    Acc<T>* sums) {
  constexpr int64_t kLane = kLanes<T>;
  WindowTap taps[kMaxTaps];
  const int64_t last = a.start[v + 1];
  int64_t j = a.start[v];
  bool first = true;
  do {  // once for a row that no window reads
    const int n = static_cast<int>(last - j < kMaxTaps ? last - j : kMaxTaps);
    for (int i = 0; i < n; ++i) {
      const int64_t out = a.index[j + i] / a.n_offsets;
      taps[i] = {out * a.n_channels, static_cast<int32_t>(a.index[j + i] - out * a.n_offsets)};
    }
    int64_t c = begin;
    for (; c + 4 * kLane <= end; c += 4 * kLane)
      add_winners<T, 4>(a, taps, n, first, begin, c, sums);
    for (; c + kLane <= end; c += kLane) add_winners<T, 1>(a, taps, n, first, begin, c, sums);
    for (; c < end; ++c) {
      Acc<T> sum = first ? Acc<T>(0) : sums[c - begin];
      for (int i = 0; i < n; ++i)
        sum +=
            a.arg[taps[i].row + c] == taps[i].offset ? widened(a.dy[taps[i].row + c]) : Acc<T>(0);
      sums[c - begin] = sum;
    }
    first = false;
    j += n;
  } while (j < last);
}

template <class T>
void window_max_grad_kernel(const WindowMaxGradArgs<T>& a) {
  for (int64_t v = 0; v < a.n_rows; ++v) {
    if (a.start[v + 1] - a.start[v] > kSegmentChunk) continue;
    const int64_t at = v * a.n_channels;
    if (a.partial) {
      gather_winners(a, v, 0, a.n_channels, a.partial + at);
    } else if constexpr (kIsHalf<T>) {
      float sums[kStripColumns];
      for (int64_t c = 0; c < a.n_channels; c += kStripColumns) {
        const int64_t end = a.n_channels - c < kStripColumns ? a.n_channels : c + kStripColumns;
        gather_winners(a, v, c, end, sums);
        round_row(sums, end - c, a.dx + at + c);
      }
    } else {
      gather_winners(a, v, 0, a.n_channels, a.dx + at);
    }
  }
}

}  // namespace
}  // namespace ds
