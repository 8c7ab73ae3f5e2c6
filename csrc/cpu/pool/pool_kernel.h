// Maximum and sum over windows, vectorised across channels; rows of x and of the ground are read in
// place.
//
// Layout   x, ground, y (.., n_channels) row-major; arg int32 like y. For float64 the winners are
//          int64 lanes in registers and are narrowed when stored.
// Tile     4 vectors of channels: 4 maxima + 4 winners + value and mask fit 16 registers. A row's
//          taps are first listed as pointers without a branch (whether a tap exists is a coin
//          toss), kMaxTaps at a time; larger windows keep their state in y and arg between lists.
// Bound    bytes: n_out * taps rows read, one row (two for the maximum) written; 4 vector
//          operations a tap.
// Order    taps ascending; a later tap wins only if not (value <= best) and best is a number: so
//          the first of equals stays, the first NaN stays, and any NaN beats a number.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int kMaxTaps = 64;
constexpr int64_t kStripColumns = 512;  // of a 16-bit result: its float32 sums wait on the stack

template <class T>
using IntVec = decltype(Vec<T>{} < Vec<T>{});  // lanes as wide as T
typedef int32_t HalfIntVec __attribute__((vector_size(DS_VEC_BYTES / 2)));

[[gnu::always_inline]] inline IntVec<float> load_ints(const int32_t* p, float) {
  IntVec<float> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
[[gnu::always_inline]] inline IntVec<double> load_ints(const int32_t* p, double) {
  HalfIntVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, IntVec<double>);
}
[[gnu::always_inline]] inline void store_ints(int32_t* p, IntVec<float> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
[[gnu::always_inline]] inline void store_ints(int32_t* p, IntVec<double> v) {
  const HalfIntVec half = __builtin_convertvector(v, HalfIntVec);
  __builtin_memcpy(p, &half, sizeof half);
}

// The taps of one window that read something.
template <class T>
struct TapList {
  const T* row[kMaxTaps];
  int32_t offset[kMaxTaps];
  int n;

  void collect(const WindowArgs<T>& a, const int32_t* entry, int64_t first, int64_t last) {
    n = 0;
    for (int64_t k = first; k < last; ++k) {
      const bool active = entry[k] >= 0;
      const int64_t at = active ? entry[k] : INT64_C(-2) - entry[k];
      row[n] = (active ? a.x : a.ground) + (entry[k] == -1 ? 0 : at * a.n_channels);
      offset[n] = static_cast<int32_t>(k);
      n += entry[k] != -1;
    }
  }
};

template <class T, int V>
[[gnu::always_inline]] inline void max_columns(const TapList<T>& taps, bool first, int64_t c, T* y,
                                               int32_t* arg) {
  Vec<T> best[V];
  IntVec<T> winner[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t at = c + v * kLanes<T>;
    best[v] = load((first ? taps.row[0] : y) + at);
    winner[v] = first ? IntVec<T>{} + taps.offset[0] : load_ints(arg + at, Acc<T>{});
  }
  for (int i = first; i < taps.n; ++i) {
    const T* row = taps.row[i] + c;
    const IntVec<T> offset = IntVec<T>{} + taps.offset[i];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> value = load(row + v * kLanes<T>);
      const IntVec<T> wins = ~(value <= best[v]) & (best[v] == best[v]);
      best[v] = wins ? value : best[v];
      winner[v] = wins ? offset : winner[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    store(y + c + v * kLanes<T>, best[v]);
    store_ints(arg + c + v * kLanes<T>, winner[v]);
  }
}

template <class T>
void max_list(const TapList<T>& taps, bool first, int64_t n_channels, T* y, int32_t* arg) {
  constexpr int64_t kLane = kLanes<T>;
  int64_t c = 0;
  for (; c + 4 * kLane <= n_channels; c += 4 * kLane) max_columns<T, 4>(taps, first, c, y, arg);
  for (; c + kLane <= n_channels; c += kLane) max_columns<T, 1>(taps, first, c, y, arg);
  for (; c < n_channels; ++c) {
    Acc<T> best = widened(first ? taps.row[0][c] : y[c]);
    int32_t winner = first ? taps.offset[0] : arg[c];
    for (int i = first; i < taps.n; ++i) {
      const Acc<T> value = widened(taps.row[i][c]);
      const bool wins = !(value <= best) & (best == best);
      best = wins ? value : best;
      winner = wins ? taps.offset[i] : winner;
    }
    y[c] = rounded<T>(best);
    arg[c] = winner;
  }
}

template <class T>
void window_max_kernel(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end) {
  TapList<T> taps;
  for (int64_t i = row_begin; i < row_end; ++i) {
    T* y = a.y + i * a.n_channels;
    int32_t* arg = a.arg + i * a.n_channels;
    bool empty = true;
    for (int64_t k = 0; k < a.n_offsets; k += kMaxTaps) {
      taps.collect(a, a.table + i * a.n_offsets, k,
                   a.n_offsets - k < kMaxTaps ? a.n_offsets : k + kMaxTaps);
      if (taps.n == 0) continue;
      max_list(taps, empty, a.n_channels, y, arg);
      empty = false;
    }
    for (int64_t c = 0; empty && c < a.n_channels; ++c) {
      y[c] = rounded<T>(-static_cast<Acc<T>>(__builtin_inf()));
      arg[c] = -1;
    }
  }
}

// The taps' columns from c on are added to `sum`, which holds those from `base` on.
template <class T, int V>
[[gnu::always_inline]] inline void sum_columns(const TapList<T>& taps, bool first, int64_t base,
                                               int64_t c, Acc<T>* sums) {
  Vec<T> sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = first ? Vec<T>{} : load(sums + c - base + v * kLanes<T>);
  for (int i = 0; i < taps.n; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] += load(taps.row[i] + c + v * kLanes<T>);
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(sums + c - base + v * kLanes<T>, sum[v]);
}

// Columns [begin, end) of one row.
template <class T>
void sum_window(const WindowArgs<T>& a, int64_t row, int64_t begin, int64_t end, Acc<T>* sums) {
  constexpr int64_t kLane = kLanes<T>;
  TapList<T> taps;
  int64_t k = 0;
  do {  // once even where the kernel has no offset: zeros
    taps.collect(a, a.table + row * a.n_offsets, k,
                 a.n_offsets - k < kMaxTaps ? a.n_offsets : k + kMaxTaps);
    const bool first = k == 0;
    int64_t c = begin;
    for (; c + 8 * kLane <= end; c += 8 * kLane) sum_columns<T, 8>(taps, first, begin, c, sums);
    for (; c + 2 * kLane <= end; c += 2 * kLane) sum_columns<T, 2>(taps, first, begin, c, sums);
    for (; c + kLane <= end; c += kLane) sum_columns<T, 1>(taps, first, begin, c, sums);
    for (; c < end; ++c) {
      Acc<T> sum = first ? Acc<T>(0) : sums[c - begin];
      for (int j = 0; j < taps.n; ++j) sum += widened(taps.row[j][c]);
      sums[c - begin] = sum;
    }
    k += kMaxTaps;
  } while (k < a.n_offsets);
}

template <class T>
void window_sum_kernel(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    T* y = a.y + i * a.n_channels;
    if constexpr (kIsHalf<T>) {
      float sums[kStripColumns];
      for (int64_t c = 0; c < a.n_channels; c += kStripColumns) {
        const int64_t end = a.n_channels - c < kStripColumns ? a.n_channels : c + kStripColumns;
        sum_window(a, i, c, end, sums);
        round_row(sums, end - c, y + c);
      }
    } else {
      sum_window(a, i, 0, a.n_channels, y);
    }
  }
}

}  // namespace
}  // namespace ds
