// Sparse convolution on the device, as an implicit matrix product over the neighbour table:
//
//   y[d] = bias + the row's u rows + sum over offsets k with s = table[k][d] >= 0 of x[s] . W_k
//
// The product's depth is (offset, input channel), padded so that a step of kDepthStep values is
// either a part of one offset's channels or all channels of several offsets; the weight is packed
// in that order (pack.h). Rows are taken in the order of a row plan (row_plan.h), whose masks say
// which steps a block of rows needs at all. Rows of a missing neighbour are zeros; where a weight
// is not finite, so that 0 times it is not 0, blocks compute their tile plainly.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// Values of one step: 64 bytes of a row.
template <class T>
constexpr int kDepthStep = 64 / static_cast<int>(sizeof(T));
// Values of 16 bytes.
template <class T>
constexpr int kPiece = 16 / static_cast<int>(sizeof(T));

// Channels of one group, and how the packed weight pads them.
struct ConvShape {
  int64_t n_src = 0, n_dst = 0;
  int n_offsets = 0, groups = 1;
  int c_in = 0, c_out = 0;
  int c_in_padded = 0;   // a power of two up to half a step, or a multiple of the step
  int c_out_padded = 0;  // 32, or a multiple of 64
  int64_t depth = 0;     // n_offsets * c_in_padded, up to a multiple of the step
};

// c_in and c_out count all groups; step is kDepthStep<T>.
inline ConvShape conv_shape(int64_t n_src, int64_t n_dst, int64_t n_offsets, int64_t groups,
                            int64_t c_in, int64_t c_out, int step) {
  ConvShape s;
  s.n_src = n_src;
  s.n_dst = n_dst;
  s.n_offsets = static_cast<int>(n_offsets);
  s.groups = static_cast<int>(groups);
  s.c_in = static_cast<int>(c_in / groups);
  s.c_out = static_cast<int>(c_out / groups);
  s.c_in_padded = 1;
  while (s.c_in_padded < s.c_in && s.c_in_padded < step) s.c_in_padded *= 2;
  if (s.c_in > step) s.c_in_padded = static_cast<int>(ceil_div(s.c_in, step)) * step;
  s.c_out_padded = s.c_out <= 32 ? 32 : static_cast<int>(ceil_div(s.c_out, 64)) * 64;
  s.depth = ceil_div(n_offsets * s.c_in_padded, step) * step;
  return s;
}

// Values of a packed weight, behind which 16 bytes hold a uint32: not 0 where one is not finite.
inline int64_t packed_values(const ConvShape& s) {
  return s.groups * s.depth * s.c_out_padded;
}

template <class T>
struct ConvArgs {
  const T* x;          // (n_src, groups * c_in)
  const T* packed;     // [groups][depth][c_out_padded], 16-byte aligned
  const Acc<T>* bias;  // (groups * c_out) or null
  const Acc<T>* u;     // (n_u, groups * c_out) or null, with u_start (n_dst + 1) and u_rows
  const int64_t* u_start;
  const int32_t* u_rows;
  int64_t n_u, n_u_rows;
  const int32_t* table;  // (n_offsets, n_dst)
  const int32_t* order;  // (n_dst) and masks: see row_plan.h
  const uint32_t* masks;
  T* y;  // (n_dst, groups * c_out), 16-byte aligned
  ConvShape shape;
};

}  // namespace ds::gpu
