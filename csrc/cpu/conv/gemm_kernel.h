// Sparse convolution of one tile of output rows: y[dst] += W_k x[src] along the pair lists of all
// offsets.
//
// Layout   x (n_src, ldx) and y (n_dst, ldy) row-major, rows gathered and accumulated in place; w
// packed by
//          conv.cpp as [offset][panel][c_in][kPanel], zero-padded to kPanel = 2 vectors of output
//          channels.
// Tile     kRows x 2 vectors of accumulators in registers (6 x 2 of 16 on AVX2, 12 x 2 of 32 on
// AVX-512): per
//          input channel kRows broadcasts + 2 loads feed 2 kRows multiply-adds, so the two FMA
//          ports are the bound and not the load ports. Accumulators are loaded from and stored to y
//          once per (offset, kDepth channels).
// Blocks   kBlockRows pairs at a time go through all panels, so their x rows stay in L1 and a panel
// of
//          kDepth x kPanel weights streams from L2.
// Bound    2 * n_pairs * c_in * c_out flops; bytes: n_pairs * (c_in read + 2 c_out through L2).
#pragma once
#include "cpu/conv/narrow_kernel.h"
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int kVecs = 2;
#if DS_VEC_BYTES == 64
constexpr int kRows = 12;  // 24 accumulators + 2 weights + 1 broadcast of 32 registers
#else
constexpr int kRows = 6;  // 12 accumulators + 2 weights + 1 broadcast of 16 registers
#endif
template <class T>
constexpr int kPanel = kVecs * kLanes<T>;
constexpr int64_t kDepth = 256;  // input channels per pass: 256 x 16 floats = 16 KiB of L1
constexpr int64_t kBlockRows = 8 * kRows;

// y[0..R) += x[0..R) . w over `depth` channels and one panel; x and y point at the rows' first
// channel.
template <class T, int R, int V>
[[gnu::always_inline]] inline void multiply_rows(const T* const* x, int64_t depth0, int64_t depth,
                                                 const T* w, T* const* y, int64_t column) {
  Vec<T> acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = load(y[r] + column + v * kLanes<T>);
  const T* xr[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) xr[r] = x[r] + depth0;
  for (int64_t c = 0; c < depth; ++c) {
    Vec<T> b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b[v] = load(w + c * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a = splat(xr[r][c]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(y[r] + column + v * kLanes<T>, acc[r][v]);
}

// The same for a row count known only at run time.
template <class T, int V>
void multiply_group(int rows, const T* const* x, int64_t depth0, int64_t depth, const T* w,
                    T* const* y, int64_t column) {
  switch (rows) {
    case 1:
      return multiply_rows<T, 1, V>(x, depth0, depth, w, y, column);
    case 2:
      return multiply_rows<T, 2, V>(x, depth0, depth, w, y, column);
    case 3:
      return multiply_rows<T, 3, V>(x, depth0, depth, w, y, column);
    case 4:
      return multiply_rows<T, 4, V>(x, depth0, depth, w, y, column);
    case 5:
      return multiply_rows<T, 5, V>(x, depth0, depth, w, y, column);
    case 6:
      return multiply_rows<T, 6, V>(x, depth0, depth, w, y, column);
#if DS_VEC_BYTES == 64
    case 7:
      return multiply_rows<T, 7, V>(x, depth0, depth, w, y, column);
    case 8:
      return multiply_rows<T, 8, V>(x, depth0, depth, w, y, column);
    case 9:
      return multiply_rows<T, 9, V>(x, depth0, depth, w, y, column);
    case 10:
      return multiply_rows<T, 10, V>(x, depth0, depth, w, y, column);
    case 11:
      return multiply_rows<T, 11, V>(x, depth0, depth, w, y, column);
    case 12:
      return multiply_rows<T, 12, V>(x, depth0, depth, w, y, column);
#endif
  }
}

// A last panel of which only `columns` exist in y: through a buffer as wide as the panel.
template <class T>
void multiply_edge(int rows, const T* const* x, int64_t depth0, int64_t depth, const T* w,
                   T* const* y, int64_t column, int64_t columns) {
  T buffer[kRows][kPanel<T>];
  T* target[kRows];
  for (int r = 0; r < rows; ++r) {
    target[r] = buffer[r];
    for (int64_t c = 0; c < kPanel<T>; ++c) buffer[r][c] = c < columns ? y[r][column + c] : T(0);
  }
  if (columns > kLanes<T>)
    multiply_group<T, 2>(rows, x, depth0, depth, w, target, 0);
  else
    multiply_group<T, 1>(rows, x, depth0, depth, w, target, 0);
  for (int r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) y[r][column + c] = buffer[r][c];
}

// y = bias + the u rows of each output row, offsets ascending.
template <class T>
void init_rows(const GemmTile<T>& t) {
  for (int64_t i = t.row_begin; i < t.row_end; ++i) {
    T* y = t.y + i * t.ldy;
    const int64_t u_begin = t.u ? t.u_start[i] : 0, u_end = t.u ? t.u_start[i + 1] : 0;
    const int64_t n_whole = t.c_out - t.c_out % kLanes<T>;
    int64_t c = 0;
    if (u_begin == u_end && t.bias) {
      for (; c < n_whole; c += kLanes<T>) store(y + c, load(t.bias + c));
    } else if (u_begin == u_end) {
      for (; c < n_whole; c += kLanes<T>) store(y + c, Vec<T>{});
    }
    for (; c < n_whole; c += kLanes<T>) {
      Vec<T> sum = t.bias ? load(t.bias + c) : Vec<T>{};
      for (int64_t j = u_begin; j < u_end; ++j) sum += load(t.u + t.u_rows[j] * t.ldy + c);
      store(y + c, sum);
    }
    for (; c < t.c_out; ++c) {
      T sum = t.bias ? t.bias[c] : T(0);
      for (int64_t j = u_begin; j < u_end; ++j) sum += t.u[t.u_rows[j] * t.ldy + c];
      y[c] = sum;
    }
  }
}

// Few input channels (the first layer of a network): a panel's weights of one offset fit the
// registers, pairs stream by.
template <class T, int C>
void multiply_thin(const T* const* x, const T* w, int64_t c_out, T* const* y, int n) {
  for (int64_t column = 0; column < c_out; column += kPanel<T>, w += C * kPanel<T>) {
    Vec<T> b[C][kVecs];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) b[c][v] = load(w + c * kPanel<T> + v * kLanes<T>);
    for (int r = 0; r < n; ++r) {
      Vec<T> acc[kVecs];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) acc[v] = load(y[r] + column + v * kLanes<T>);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const Vec<T> a = splat(x[r][c]);
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) acc[v] = fma(a, b[c][v], acc[v]);
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) store(y[r] + column + v * kLanes<T>, acc[v]);
    }
  }
}

// One block of at most kBlockRows pairs of one offset, all panels.
template <class T>
void multiply_block(const GemmTile<T>& t, const T* w, int64_t pair, int n) {
  const T* x[kBlockRows];
  T* y[kBlockRows];
  for (int r = 0; r < n; ++r) {
    x[r] = t.x + t.src[pair + r] * t.ldx;
    y[r] = t.y + t.dst[pair + r] * t.ldy;
  }
  if (t.c_in <= 4 && t.c_out % kPanel<T> == 0) {
    switch (t.c_in) {
      case 1:
        return multiply_thin<T, 1>(x, w, t.c_out, y, n);
      case 2:
        return multiply_thin<T, 2>(x, w, t.c_out, y, n);
      case 3:
        return multiply_thin<T, 3>(x, w, t.c_out, y, n);
      default:
        return multiply_thin<T, 4>(x, w, t.c_out, y, n);
    }
  }
  // Groups of nearly equal size: a lone last row would leave the FMA pipes waiting on their own
  // latency.
  const int n_groups = (n + kRows - 1) / kRows, base = n / n_groups, larger = n % n_groups;
  for (int64_t depth0 = 0; depth0 < t.c_in; depth0 += kDepth) {
    const int64_t depth = t.c_in - depth0 < kDepth ? t.c_in - depth0 : kDepth;
    for (int64_t column = 0; column < t.c_out; column += kPanel<T>) {
      const T* panel = w + column * t.c_in + depth0 * kPanel<T>;
      const int64_t columns = t.c_out - column;
      for (int g = 0, r = 0; g < n_groups; ++g) {
        const int rows = base + (g < larger);
        if (columns < kPanel<T> && columns != kLanes<T>)
          multiply_edge(rows, x + r, depth0, depth, panel, y + r, column, columns);
        else if (columns < kPanel<T>)
          multiply_group<T, 1>(rows, x + r, depth0, depth, panel, y + r, column);
        else if (rows == kRows)
          multiply_rows<T, kRows, 2>(x + r, depth0, depth, panel, y + r, column);
        else
          multiply_group<T, 2>(rows, x + r, depth0, depth, panel, y + r, column);
        r += rows;
      }
    }
  }
}

template <class T>
void gemm_tile(const GemmTile<T>& t) {
  init_rows(t);
  if (t.c_out <= kNarrowColumns) return narrow_tile(t);
  const int64_t offset_stride = t.c_in * ((t.c_out + kPanel<T> - 1) / kPanel<T>)*kPanel<T>;
  for (int64_t k = 0; k < t.n_offsets; ++k) {
    const int64_t list_end = t.offset_start[k + 1];
    const int64_t begin = first_pair(t.dst, t.offset_start[k], list_end, t.row_begin);
    const int64_t end = first_pair(t.dst, begin, list_end, t.row_end);
    for (int64_t p = begin; p < end; p += kBlockRows)
      multiply_block(t, t.w + k * offset_stride, p,
                     static_cast<int>(end - p < kBlockRows ? end - p : kBlockRows));
  }
}

}  // namespace
}  // namespace ds
