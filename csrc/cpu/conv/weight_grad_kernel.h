// Weight gradient of one offset over a run of pairs: dw (c_in, c_out) = sum_p x[src[p]]^T dy[dst[p]].
//
// Tile     kRows input channels x 2 vectors of output channels in registers, while the pairs stream by: kRows
//          broadcasts + 2 loads per pair feed 2 kRows multiply-adds.
// Blocks   kBlockPairs pairs stay in L1 (64 rows of 64 floats = 16 KiB of x and as much of dy) while every tile of
//          dw, loaded and stored once per block, passes over them.
// Order    for every element the sum runs over the pairs ascending, in one chain: fixed bits.
#pragma once
#include "cpu/conv/gemm_kernel.h"

namespace ds {
namespace {

constexpr int kBlockPairs = 128;

template <class T, int R>
[[gnu::always_inline]] inline void accumulate_rows(const T* const* x, int64_t channel, const T* const* dy,
                                                   int64_t column, int n, T* dw, int64_t ldw) {
  Vec<T> acc[R][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(dw + r * ldw + v * kLanes<T>);
  for (int p = 0; p < n; ++p) {
    const T* xp = x[p] + channel;
    const T* dyp = dy[p] + column;
    Vec<T> b[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) b[v] = load(dyp + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a = splat(xp[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(dw + r * ldw + v * kLanes<T>, acc[r][v]);
}

template <class T>
void accumulate_group(int rows, const T* const* x, int64_t channel, const T* const* dy, int64_t column,
                      int n, T* dw, int64_t ldw) {
  switch (rows) {
    case 1: accumulate_rows<T, 1>(x, channel, dy, column, n, dw, ldw); break;
    case 2: accumulate_rows<T, 2>(x, channel, dy, column, n, dw, ldw); break;
    case 3: accumulate_rows<T, 3>(x, channel, dy, column, n, dw, ldw); break;
    case 4: accumulate_rows<T, 4>(x, channel, dy, column, n, dw, ldw); break;
    case 5: accumulate_rows<T, 5>(x, channel, dy, column, n, dw, ldw); break;
    case 6: accumulate_rows<T, 6>(x, channel, dy, column, n, dw, ldw); break;
#if DS_VEC_BYTES == 64
    case 7: accumulate_rows<T, 7>(x, channel, dy, column, n, dw, ldw); break;
    case 8: accumulate_rows<T, 8>(x, channel, dy, column, n, dw, ldw); break;
    case 9: accumulate_rows<T, 9>(x, channel, dy, column, n, dw, ldw); break;
    case 10: accumulate_rows<T, 10>(x, channel, dy, column, n, dw, ldw); break;
    case 11: accumulate_rows<T, 11>(x, channel, dy, column, n, dw, ldw); break;
    case 12: accumulate_rows<T, 12>(x, channel, dy, column, n, dw, ldw); break;
#endif
  }
}

template <class T>
[[gnu::always_inline]] inline void prefetch_row(const T* row, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / sizeof(T)) __builtin_prefetch(row + c, 0, 2);
}

// Rows of the next block, a few at each of the `n_steps` steps of the present one: their lists are long strides through
// memory (every offset reads nearly all of x and dy again), and asked for at once they would fill the miss buffers.
template <class T>
[[gnu::always_inline]] inline void prefetch_share(const WeightGradBlock<T>& t, int64_t first, int64_t step,
                                                  int64_t n_steps) {
  const int64_t left = t.n_pairs - first, n = left < kBlockPairs ? left : kBlockPairs;
  for (int64_t p = step * n / n_steps; p < (step + 1) * n / n_steps; ++p) {
    prefetch_row(t.x + t.src[first + p] * t.ldx, t.c_in);
    prefetch_row(t.dy + t.dst[first + p] * t.ldy, t.c_out);
  }
}

template <class T>
void weight_grad_block(const WeightGradBlock<T>& t) {
  for (int64_t i = 0; i < t.c_in * t.ldw; ++i) t.dw[i] = T(0);
  const int64_t n_groups = (t.c_in + kRows - 1) / kRows;
  const int64_t n_steps = n_groups * ((t.c_out + kPanel<T> - 1) / kPanel<T>);
  const T* x[kBlockPairs];
  const T* dy[kBlockPairs];
  const T* dy_edge[kBlockPairs];
  T edge[kBlockPairs][kPanel<T>];              // the last panel of dy, where c_out is not a multiple
  for (int p = 0; p < kBlockPairs; ++p) dy_edge[p] = edge[p];
  for (int64_t first = 0; first < t.n_pairs; first += kBlockPairs) {
    const int n = static_cast<int>(t.n_pairs - first < kBlockPairs ? t.n_pairs - first : kBlockPairs);
    for (int p = 0; p < n; ++p) {
      x[p] = t.x + t.src[first + p] * t.ldx;
      dy[p] = t.dy + t.dst[first + p] * t.ldy;
    }
    int64_t step = 0;
    for (int64_t column = 0; column < t.c_out; column += kPanel<T>) {
      const bool partial = t.c_out - column < kPanel<T>;
      for (int p = 0; partial && p < n; ++p)
        for (int c = 0; c < kPanel<T>; ++c) edge[p][c] = c < t.c_out - column ? dy[p][column + c] : T(0);
      for (int64_t g = 0; g < n_groups; ++g, ++step) {
        prefetch_share(t, first + kBlockPairs, step, n_steps);
        const int64_t c0 = g * t.c_in / n_groups, c1 = (g + 1) * t.c_in / n_groups;
        accumulate_group(static_cast<int>(c1 - c0), x, c0, partial ? dy_edge : dy, partial ? 0 : column, n,
                         t.dw + c0 * t.ldw + column, t.ldw);
      }
    }
  }
}

}  // namespace
}  // namespace ds
