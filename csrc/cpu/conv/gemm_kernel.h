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

// Which input channels a product reads: a range, or a list of those that a pruned weight keeps.
struct ChannelRange {
  int64_t first;
  [[gnu::always_inline]] int64_t operator[](int64_t j) const { return first + j; }
};
struct ChannelList {
  const int32_t* first;
  [[gnu::always_inline]] int64_t operator[](int64_t j) const { return first[j]; }
};

// y[0..R) += x[0..R) . w over `depth` channels and one panel, whose rows of w are Width apart.
template <class T, int R, int V, int64_t Width, class Channels>
[[gnu::always_inline]] inline void multiply_rows(const T* const* x, Channels channels,
                                                 int64_t depth, const T* w, T* const* y,
                                                 int64_t column) {
  Vec<T> acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[r][v] = load(y[r] + column + v * kLanes<T>);
  const T* xr[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) xr[r] = x[r];
  for (int64_t j = 0; j < depth; ++j) {
    const int64_t c = channels[j];
    Vec<T> b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b[v] = load(w + j * Width + v * kLanes<T>);
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

template <int R>
struct Rows {
  static constexpr int value = R;
};

// f(Rows<rows>{}) for a row count known only at run time, at most Most.
template <int Most, class F>
[[gnu::always_inline]] inline void for_rows(int rows, const F& f) {
  static_assert(Most == 6 || Most == 8 || Most == 12, "the cases below");
  switch (rows) {
    case 1:
      return f(Rows<1>{});
    case 2:
      return f(Rows<2>{});
    case 3:
      return f(Rows<3>{});
    case 4:
      return f(Rows<4>{});
    case 5:
      return f(Rows<5>{});
    case 6:
      return f(Rows<6>{});
  }
  if constexpr (Most >= 8) {
    if (rows == 7) return f(Rows<7>{});
    if (rows == 8) return f(Rows<8>{});
  }
  if constexpr (Most >= 12) {
    if (rows == 9) return f(Rows<9>{});
    if (rows == 10) return f(Rows<10>{});
    if (rows == 11) return f(Rows<11>{});
    if (rows == 12) return f(Rows<12>{});
  }
}

// The same for at most Most rows.
template <class T, int Most, int V, int64_t Width, class Channels>
void multiply_group(int rows, const T* const* x, Channels channels, int64_t depth, const T* w,
                    T* const* y, int64_t column) {
  for_rows<Most>(rows, [&](auto r) __attribute__((always_inline)) {
    multiply_rows<T, decltype(r)::value, V, Width>(x, channels, depth, w, y, column);
  });
}

// A last panel of which only `columns` exist in y: through a buffer as wide as the panel.
template <class T, int Most, int V, int64_t Width, class Channels>
void multiply_edge(int rows, const T* const* x, Channels channels, int64_t depth, const T* w,
                   T* const* y, int64_t column, int64_t columns) {
  T buffer[Most][Width];
  T* target[Most];
  for (int r = 0; r < rows; ++r) {
    target[r] = buffer[r];
    for (int64_t c = 0; c < Width; ++c) buffer[r][c] = c < columns ? y[r][column + c] : T(0);
  }
  if (columns > kLanes<T> || V == 1)
    multiply_group<T, Most, V, Width>(rows, x, channels, depth, w, target, 0);
  else
    multiply_group<T, Most, 1, Width>(rows, x, channels, depth, w, target, 0);
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
    const ChannelRange channels{depth0};
    for (int64_t column = 0; column < t.c_out; column += kPanel<T>) {
      const T* panel = w + column * t.c_in + depth0 * kPanel<T>;
      const int64_t columns = t.c_out - column;
      for (int g = 0, r = 0; g < n_groups; ++g) {
        const int rows = base + (g < larger);
        if (columns < kPanel<T> && columns != kLanes<T>)
          multiply_edge<T, kRows, 2, kPanel<T>>(rows, x + r, channels, depth, panel, y + r, column,
                                                columns);
        else if (columns < kPanel<T>)
          multiply_group<T, kRows, 1, kPanel<T>>(rows, x + r, channels, depth, panel, y + r,
                                                 column);
        else if (rows == kRows)
          multiply_rows<T, kRows, 2, kPanel<T>>(x + r, channels, depth, panel, y + r, column);
        else
          multiply_group<T, kRows, 2, kPanel<T>>(rows, x + r, channels, depth, panel, y + r,
                                                 column);
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
