// Weight gradient of one offset over a run of pairs: dw (c_in, c_out) += sum_p x[src[p]]^T
// dy[dst[p]].
//
// Tile     kRows input channels x 2 vectors of output channels in registers, while the pairs stream
// by: kRows
//          broadcasts + 2 loads per pair feed 2 kRows multiply-adds.
// Blocks   kBlockPairs pairs, kSlabIn input channels and a panel of output channels at a time are
// copied together: x as
//          [group of kRows channels][pair][kRowsPadded], dy as [panel][pair][kPanel]. Read in place
//          they would be rows a power of two apart, which share so few sets of the L1 that half of
//          the time goes into conflict misses (57 of 92 GFLOP/s at c = 64 on Zen 3); a copied value
//          is used kPanel or kSlabIn times.
// Order    for every element the sum runs over the pairs ascending, in one chain: fixed bits.
#pragma once
#include "cpu/conv/gemm_kernel.h"

namespace ds {
namespace {

constexpr int kBlockPairs = 128;
constexpr int64_t kSlabIn = 96;  // copies: 64 KiB of x, 8 KiB of dy in float32 on AVX2

// A pair's kRows values of x sit in whole vectors: copied with one load and store each.
template <class T>
constexpr int kRowsPadded = (kRows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;

// From one group to the next: a line more than a power of two, or a row's groups would all fall on
// one set of the L1.
template <class T>
constexpr int64_t kGroupStride = kBlockPairs * kRowsPadded<T> + 64 / sizeof(T);

template <class T, int R>
[[gnu::always_inline]] inline void accumulate_rows(const T* x, const T* dy, int n, T* dw,
                                                   int64_t ldw) {
  Vec<T> acc[R][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) acc[r][v] = load(dw + r * ldw + v * kLanes<T>);
  for (int p = 0; p < n; ++p, x += kRowsPadded<T>, dy += kPanel<T>) {
    Vec<T> b[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) b[v] = load(dy + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a = splat(x[r]);
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
void accumulate_group(int rows, const T* x, const T* dy, int n, T* dw, int64_t ldw) {
  switch (rows) {
    case 1:
      return accumulate_rows<T, 1>(x, dy, n, dw, ldw);
    case 2:
      return accumulate_rows<T, 2>(x, dy, n, dw, ldw);
    case 3:
      return accumulate_rows<T, 3>(x, dy, n, dw, ldw);
    case 4:
      return accumulate_rows<T, 4>(x, dy, n, dw, ldw);
    case 5:
      return accumulate_rows<T, 5>(x, dy, n, dw, ldw);
    case 6:
      return accumulate_rows<T, 6>(x, dy, n, dw, ldw);
#if DS_VEC_BYTES == 64
    case 7:
      return accumulate_rows<T, 7>(x, dy, n, dw, ldw);
    case 8:
      return accumulate_rows<T, 8>(x, dy, n, dw, ldw);
    case 9:
      return accumulate_rows<T, 9>(x, dy, n, dw, ldw);
    case 10:
      return accumulate_rows<T, 10>(x, dy, n, dw, ldw);
    case 11:
      return accumulate_rows<T, 11>(x, dy, n, dw, ldw);
    case 12:
      return accumulate_rows<T, 12>(x, dy, n, dw, ldw);
#endif
  }
}

// Width values of one row; what lies past the `left` that exist is zero.
template <class T, int Width>
[[gnu::always_inline]] inline void copy_values(const T* from, int64_t left, T* out) {
  if (left >= Width) {
    for (int i = 0; i < Width; i += kLanes<T>) store(out + i, load(from + i));
  } else {
    for (int i = 0; i < Width; ++i) out[i] = i < left ? from[i] : T(0);
  }
}

// One block of pairs, one slab of input channels (copied already), all panels.
template <class T>
void weight_grad_slab(const WeightGradBlock<T>& t, int64_t first, int n, int64_t in_begin,
                      int64_t in_end, const T* x) {
  alignas(DS_VEC_BYTES) T dy[kBlockPairs * kPanel<T>];
  const int n_groups = static_cast<int>((in_end - in_begin + kRows - 1) / kRows);
  const int base = static_cast<int>(in_end - in_begin) / n_groups,
            larger = static_cast<int>(in_end - in_begin) % n_groups;
  for (int64_t column = 0; column < t.c_out; column += kPanel<T>) {
    for (int p = 0; p < n; ++p)
      copy_values<T, static_cast<int>(kPanel<T>)>(t.dy + t.dst[first + p] * t.ldy + column,
                                                  t.c_out - column, dy + p * kPanel<T>);
    int64_t c = in_begin;
    for (int g = 0; g < n_groups; ++g) {
      const int rows = base + (g < larger);
      const T* xg = x + g * kGroupStride<T>;
      if (rows == kRows)
        accumulate_rows<T, kRows>(xg, dy, n, t.dw + c * t.ldw + column, t.ldw);
      else
        accumulate_group(rows, xg, dy, n, t.dw + c * t.ldw + column, t.ldw);
      c += rows;
    }
  }
}

template <class T>
void weight_grad_block(const WeightGradBlock<T>& t) {
  alignas(DS_VEC_BYTES) T x[(kSlabIn / kRows) * kGroupStride<T>];
  const int64_t n_blocks = (t.n_pairs + kBlockPairs - 1) / kBlockPairs;  // of nearly equal size
  for (int64_t block = 0; block < n_blocks; ++block) {
    const int64_t first = block * t.n_pairs / n_blocks;
    const int n = static_cast<int>((block + 1) * t.n_pairs / n_blocks - first);
    for (int64_t in_begin = 0; in_begin < t.c_in; in_begin += kSlabIn) {
      const int64_t in_end = t.c_in - in_begin < kSlabIn ? t.c_in : in_begin + kSlabIn;
      // Groups of nearly equal size, as in gemm_kernel.h.
      const int n_groups = static_cast<int>((in_end - in_begin + kRows - 1) / kRows);
      const int base = static_cast<int>(in_end - in_begin) / n_groups;
      const int larger = static_cast<int>(in_end - in_begin) % n_groups;
      for (int p = 0; p < n; ++p) {  // a row at a time: its lines come from memory together
        const T* row = t.x + t.src[first + p] * t.ldx;
        int64_t c = in_begin;
        for (int g = 0; g < n_groups; ++g) {
          copy_values<T, kRowsPadded<T>>(row + c, t.c_in - c,
                                         x + g * kGroupStride<T> + p * kRowsPadded<T>);
          c += base + (g < larger);
        }
      }
      weight_grad_slab(t, first, n, in_begin, in_end, x);
    }
  }
}

}  // namespace
}  // namespace ds
