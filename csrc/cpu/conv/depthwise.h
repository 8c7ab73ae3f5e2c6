// Depthwise convolution (one input and one output channel a group) over pair lists: conv.cpp and
// weight_grad.cpp hand it over, with their arguments. The weight is (c, 1, n_offsets) in either
// orientation, so `transposed` makes no difference here.
#pragma once
#include <cstdint>

#include "cpu/conv/conv.h"

namespace ds {

inline bool is_depthwise(int64_t c_in, int64_t c_out, int64_t groups) {
  return groups > 1 && c_in == groups && c_out == groups;
}

// The weight into the workspace, as (n_offsets, c).
template <class T>
void depthwise_pack(const ConvArgs<T>& args);
template <class T>
void depthwise_conv(const ConvArgs<T>& args, int n_threads);

// In elements, as conv_workspace().
int64_t depthwise_grad_workspace(int64_t n_channels, const PairList& pairs);
template <class T>
void depthwise_weight_grad(const WeightGradArgs<T>& args, int n_threads);

// The sums of one chunk of output rows: dw[k][c] += sum over pairs of x[src][c] dy[dst][c].
template <class T>
struct DepthwiseGradChunk {
  const T* x;   // (n_src, n_channels)
  const T* dy;  // (n_dst, n_channels)
  PairList pairs;
  int64_t n_channels, row_begin, row_end;
  T* dw;  // (n_offsets, n_channels)
};

}  // namespace ds
