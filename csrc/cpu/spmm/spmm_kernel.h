// A pruned weight times a panel of activations: SIMD bodies over vec.h. Contract: spmm.h.
//
// Unit of 1 row    a kept weight is broadcast and multiplies `vectors` vectors of lanes straight
//          from memory: one load per multiply-add and one for the weight, so 4 vectors allow 4/5 of
//          what the two load ports allow, that is 0.8 of the peak, if the panel's block is in L1.
//          A row has 8 / vectors chains of accumulators: 8 independent multiply-adds in flight
//          cover their latency of 4 cycles on two ports also where a batch is narrow.
// Unit of 4..16    a kept column meets several rows at once: 3 of them and 4 vectors (4 and 4 with
//          32 registers) are 12 multiply-adds for 7 loads, so the multiply-adds are the bound.
// Bound    2 * kept * lanes flops; bytes of W: 6 a kept weight (2 + 4 unit_rows an entry).
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/spmm/spmm.h"

namespace ds {
namespace {

constexpr int kChains = 8;
// Where a column's lanes begin.
template <bool kPlaces, class Tile>
[[gnu::always_inline]] inline int64_t place(const Tile& t, int64_t entry) {
  if constexpr (kPlaces)
    return t.places[entry];
  else
    return t.columns[entry] * t.ldx;
}

template <class T, int R>
[[gnu::always_inline]] inline void start_lanes(Vec<T> (&acc)[R], const T* y, const T* bias,
                                               bool first) {
  if (first) {
    const Vec<T> value = bias ? splat(*bias) : Vec<T>{};
#pragma GCC unroll 16
    for (int v = 0; v < R; ++v) acc[v] = value;
  } else {
#pragma GCC unroll 16
    for (int v = 0; v < R; ++v) acc[v] = load(y + v * kLanes<T>);
  }
}

// One row's segment [j, end) against R vectors of lanes, in U chains.
template <class T, int R, int U, bool kPlaces>
[[gnu::always_inline]] inline void multiply_segment(const SpmmTile<T>& t, int64_t row, int64_t j,
                                                    int64_t end) {
  T* y = t.y + row * t.ldy;
  Vec<T> acc[U][R];
  start_lanes<T, R>(acc[0], y, t.bias ? t.bias + row : nullptr, t.first);
#pragma GCC unroll 8
  for (int u = 1; u < U; ++u)
#pragma GCC unroll 4
    for (int v = 0; v < R; ++v) acc[u][v] = Vec<T>{};
  for (; j + U <= end; j += U) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const Vec<T> w = splat(t.values[j + u]);
      const T* x = t.x + place<kPlaces>(t, j + u);
#pragma GCC unroll 4
      for (int v = 0; v < R; ++v) acc[u][v] = fma(w, load(x + v * kLanes<T>), acc[u][v]);
    }
  }
  for (; j < end; ++j) {
    const Vec<T> w = splat(t.values[j]);
    const T* x = t.x + place<kPlaces>(t, j);
#pragma GCC unroll 4
    for (int v = 0; v < R; ++v) acc[0][v] = fma(w, load(x + v * kLanes<T>), acc[0][v]);
  }
#pragma GCC unroll 4
  for (int half = U / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int u = 0; u < half; ++u)
#pragma GCC unroll 4
      for (int v = 0; v < R; ++v) acc[u][v] += acc[u + half][v];
#pragma GCC unroll 4
  for (int v = 0; v < R; ++v) store(y + v * kLanes<T>, acc[0][v]);
}

template <class T, int R, int U, bool kPlaces>
void multiply_segments(const SpmmTile<T>& t) {
  for (int64_t row = t.unit_begin; row < t.unit_end; ++row) {
    const int64_t begin = t.starts[row], end = t.starts[row + 1];
    if (begin < end || t.first) multiply_segment<T, R, U, kPlaces>(t, row, begin, end);
  }
}

template <class T, int R, int U>
void multiply_rows_of(const SpmmTile<T>& t) {
  if (t.places)
    multiply_segments<T, R, U, true>(t);
  else
    multiply_segments<T, R, U, false>(t);
}

// Rows [row, row + R) of a unit, V vectors of lanes; `values` points at the first of the R weights
// of entry 0.
template <class T, int R, int V>
[[gnu::always_inline]] inline void multiply_together(const SpmmTile<T>& t, const T* values,
                                                     int64_t row, int64_t begin, int64_t end) {
  Vec<T> acc[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    start_lanes<T, V>(acc[r], t.y + (row + r) * t.ldy, t.bias ? t.bias + row + r : nullptr,
                      t.first);
  for (int64_t j = begin; j < end; ++j) {
    const T* x = t.x + (t.places ? t.places[j] : t.columns[j] * t.ldx);
    const T* w = values + j * t.unit_rows;
    Vec<T> a[R];  // R of them and one vector of lanes at a time: 12 + 3 + 1 registers
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a[r] = splat(w[r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<T> b = load(x + v * kLanes<T>);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][v] = fma(a[r], b, acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(t.y + (row + r) * t.ldy + v * kLanes<T>, acc[r][v]);
}

// A unit of 4, 8 or 16 rows, all of which exist (n_rows is a multiple of unit_rows).
template <class T, int V>
void multiply_units_of(const SpmmTile<T>& t) {
  // 16 registers hold 3 x 4 sums, and 16 and 8 rows are 3 s and one or two 2 s
  constexpr bool kThrees = V == 4 && DS_VEC_BYTES < 64;
  for (int64_t unit = t.unit_begin; unit < t.unit_end; ++unit) {
    const int64_t begin = t.starts[unit], end = t.starts[unit + 1], row = unit * t.unit_rows;
    if (begin == end && !t.first) continue;
    int64_t r = 0;
    if constexpr (kThrees) {
      for (; t.unit_rows - r > 4; r += 3)
        multiply_together<T, 3, V>(t, t.values + r, row + r, begin, end);
      for (; r < t.unit_rows; r += 2)
        multiply_together<T, 2, V>(t, t.values + r, row + r, begin, end);
    } else {
      for (; r < t.unit_rows; r += 4)
        multiply_together<T, 4, V>(t, t.values + r, row + r, begin, end);
    }
  }
}

template <class T>
void multiply_units(const SpmmTile<T>& t) {
  switch (t.vectors) {
    case 1:
      return multiply_units_of<T, 1>(t);
    case 2:
      return multiply_units_of<T, 2>(t);
    case 3:
      return multiply_units_of<T, 3>(t);
    default:
      return multiply_units_of<T, 4>(t);
  }
}

template <class T>
void spmm_tile(const SpmmTile<T>& t) {
  if (t.unit_rows > 1) return multiply_units(t);
  switch (t.vectors) {
    case 1:
      return multiply_rows_of<T, 1, kChains>(t);
    case 2:
      return multiply_rows_of<T, 2, kChains / 2>(t);
    case 3:
      return multiply_rows_of<T, 3, kChains / 4>(t);
    default:
      return multiply_rows_of<T, 4, kChains / 4>(t);
  }
}

// A single row of activations: four of them are put together from scalar loads, which costs less
// than a gather (0.4 ns an entry against 0.7 on Zen 3), and multiplied by four weights at once, in
// two chains; then by memory: 6 bytes an entry.
template <class T>
using Quad __attribute__((vector_size(4 * sizeof(T)))) = T;

template <class T>
[[gnu::always_inline]] inline Quad<T> quad_fma(Quad<T> a, Quad<T> b, Quad<T> c) {
#if defined(__FMA__)
  if constexpr (sizeof(T) == 4)
    return _mm_fmadd_ps(a, b, c);
  else
    return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
[[gnu::always_inline]] inline Quad<T> four_of(const T* x, const uint16_t* columns) {
  uint64_t packed;
  __builtin_memcpy(&packed, columns, sizeof packed);
  return Quad<T>{x[packed & 0xffff], x[packed >> 16 & 0xffff], x[packed >> 32 & 0xffff],
                 x[packed >> 48]};
}

template <class T>
[[gnu::always_inline]] inline Quad<T> four_weights(const T* w, int64_t step) {
  if (step > 1) return Quad<T>{w[0], w[step], w[2 * step], w[3 * step]};
  Quad<T> v;
  __builtin_memcpy(&v, w, sizeof v);
  return v;
}

template <class T>
[[gnu::always_inline]] inline T dot_entries(const SpmvTile<T>& t, const T* w, int64_t step,
                                            int64_t j, int64_t end, T sum) {
  Quad<T> a{}, b{};
  for (; j + 8 <= end; j += 8) {
    a = quad_fma<T>(four_weights(w + j * step, step), four_of(t.x, t.columns + j), a);
    b = quad_fma<T>(four_weights(w + (j + 4) * step, step), four_of(t.x, t.columns + j + 4), b);
  }
  for (; j < end; ++j) sum = fma(w[j * step], t.x[t.columns[j]], sum);
  a += b;
  return sum + ((a[0] + a[2]) + (a[1] + a[3]));
}

// kUnitRows: known (1), or 0 for what the tile says. A function of its own for each, since what a
// unit of several rows prepares costs as much as a short segment.
template <class T, int kUnitRows>
[[gnu::noinline]] void dot_units(const SpmvTile<T>& t) {
  const int64_t unit_rows = kUnitRows ? kUnitRows : t.unit_rows;
  for (int64_t unit = t.unit_begin; unit < t.unit_end; ++unit) {
    const int64_t begin = t.starts[unit], end = t.starts[unit + 1];
    if (begin == end && !t.first) continue;
    for (int64_t r = 0; r < unit_rows; ++r) {
      const int64_t row = unit * unit_rows + r;
      const T before = !t.first ? t.y[row] : t.bias ? t.bias[row] : T(0);
      t.y[row] = dot_entries(t, t.values + r, unit_rows, begin, end, before);
    }
  }
}

template <class T>
void spmv_tile(const SpmvTile<T>& t) {
  if (t.unit_rows == 1)
    dot_units<T, 1>(t);
  else
    dot_units<T, 0>(t);
}

template <class T>
void scale_values(const int8_t* from, int64_t n, T scale, T* into) {
  for (int64_t i = 0; i < n; ++i) into[i] = static_cast<T>(from[i]) * scale;
}

}  // namespace
}  // namespace ds
