// How a convolution is cut into tiles of output rows, and the operands of one.
#pragma once
#include <algorithm>

#include "cpu/conv/conv.h"
#include "cpu/kernels.h"

namespace ds {

// A tile of output rows: small enough to stay in L2 while all offsets pass over it, large enough
// that streaming all weights past it once (they are shared by its rows) is a small part of the
// work.
constexpr int64_t kConvTileBytes = 128 * 1024;
constexpr int64_t kMinConvTileRows = 64, kMaxConvTileRows = 4096;

template <class T>
int64_t conv_tile_rows(const ConvArgs<T>& a) {
  return std::clamp<int64_t>(kConvTileBytes / static_cast<int64_t>(a.c_out * sizeof(T)),
                             kMinConvTileRows, kMaxConvTileRows);
}

// The operands of output channels [column, column + c_out) of a group, packed at `w`, and all rows.
template <class T>
GemmTile<T> tile_of(const ConvArgs<T>& a, int64_t group, int64_t column, int64_t c_out,
                    const T* w) {
  const int64_t c_in = a.c_in / a.groups, first = group * (a.c_out / a.groups) + column;
  GemmTile<T> t;
  t.x = a.x + group * c_in;
  t.ldx = a.c_in;
  t.w = w;
  t.n_offsets = a.pairs.n_offsets;
  t.c_in = c_in;
  t.c_out = c_out;
  t.y = a.y + first;
  t.ldy = a.c_out;
  t.bias = a.bias ? a.bias + first : nullptr;
  t.u = a.u ? a.u + first : nullptr;
  t.u_start = a.u_start;
  t.u_rows = a.u_rows;
  t.src = a.pairs.src;
  t.dst = a.pairs.dst;
  t.offset_start = a.pairs.offset_start;
  t.row_begin = 0;
  t.row_end = a.n_dst;
  return t;
}

}  // namespace ds
