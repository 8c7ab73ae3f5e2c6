// Convolution to few output channels (the last layer of a segmentation network, the input gradient
// of a first layer).
//
// Channels of the output cannot fill a vector, so vectors run along the input channels: every (row,
// output channel) owns a vector of partial sums, added up once, after all offsets. Weights are
// packed as [offset][c_out][c_in] (panel width 1). Bound: one load of x and c_out of w per c_out
// multiply-adds; the load ports.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// First pair in [begin, end) whose output row is >= row.
[[gnu::always_inline]] inline int64_t first_pair(const int32_t* dst, int64_t begin, int64_t end,
                                                 int64_t row) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (dst[middle] < row)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

constexpr int64_t kNarrowRows = 128;  // partial sums: 128 x 4 vectors of 32 bytes = 16 KiB of L1

// The first `n` < kLanes values, then zeros.
template <class T>
[[gnu::always_inline]] inline Vec<T> load_part(const T* p, int64_t n) {
  Vec<T> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class T, int O>
[[gnu::always_inline]] inline void dot_row(const T* x, const T* w, int64_t c_in, Vec<T>* sums) {
  Vec<T> acc[O];
#pragma GCC unroll 4
  for (int o = 0; o < O; ++o) acc[o] = sums[o];
  int64_t c = 0;
  for (; c + kLanes<T> <= c_in; c += kLanes<T>) {
    const Vec<T> a = load(x + c);
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) acc[o] = fma(a, load(w + o * c_in + c), acc[o]);
  }
  if (c < c_in) {
    const Vec<T> a = load_part(x + c, c_in - c);
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) acc[o] = fma(a, load_part(w + o * c_in + c, c_in - c), acc[o]);
  }
#pragma GCC unroll 4
  for (int o = 0; o < O; ++o) sums[o] = acc[o];
}

template <class T, int O>
void narrow_rows(const GemmTile<T>& t, int64_t row_begin, int64_t row_end) {
  Vec<T> sums[kNarrowRows][O];
  for (int64_t r = 0; r < row_end - row_begin; ++r)
    for (int o = 0; o < O; ++o) sums[r][o] = Vec<T>{};
  for (int64_t k = 0; k < t.n_offsets; ++k) {
    const int64_t list_end = t.offset_start[k + 1];
    const T* w = t.w + k * O * t.c_in;
    for (int64_t p = first_pair(t.dst, t.offset_start[k], list_end, row_begin);
         p < list_end && t.dst[p] < row_end; ++p)
      dot_row<T, O>(t.x + t.src[p] * t.ldx, w, t.c_in, sums[t.dst[p] - row_begin]);
  }
  for (int64_t r = 0; r < row_end - row_begin; ++r) {
    T* y = t.y + (row_begin + r) * t.ldy;
    for (int o = 0; o < O; ++o) {
      T sum = T(0);
      for (int i = 0; i < kLanes<T>; ++i) sum += sums[r][o][i];
      y[o] += sum;
    }
  }
}

template <class T>
void narrow_tile(const GemmTile<T>& t) {
  for (int64_t row = t.row_begin; row < t.row_end; row += kNarrowRows) {
    const int64_t end = t.row_end - row < kNarrowRows ? t.row_end : row + kNarrowRows;
    switch (t.c_out) {
      case 1:
        narrow_rows<T, 1>(t, row, end);
        break;
      case 2:
        narrow_rows<T, 2>(t, row, end);
        break;
      case 3:
        narrow_rows<T, 3>(t, row, end);
        break;
      default:
        narrow_rows<T, 4>(t, row, end);
        break;
    }
  }
}

}  // namespace
}  // namespace ds
