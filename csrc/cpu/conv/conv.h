// Sparse convolution over pair lists: forward and input gradient (one routine, two orientations of
// the weight) and weight gradient. Torch-free; the caller allocates everything.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace ds {

// Pairs of one rulebook, offset-major: list k is [offset_start[k], offset_start[k + 1]), strictly
// ascending in both src and dst (for a fixed offset the geometry is strictly increasing along every
// axis).
struct PairList {
  const int32_t* src;
  const int32_t* dst;
  const int64_t* offset_start;  // (n_offsets + 1)
  int64_t n_offsets;
};

// y (n_dst, c_out) = bias + u rows + sum over pairs of x[src] . W_k.
// weight: (c_out, c_in / groups, n_offsets), or (c_in, c_out / groups, n_offsets) where
// `transposed` (an input gradient, or a transposed convolution in torch's layout); its last two
// dimensions in this order in memory, or swapped where `channels_last`. c_in and c_out count all
// groups.
template <class T>
struct ConvArgs {
  const T* x;
  const T* weight;     // null: the workspace is what conv_pack() made of it
  const Acc<T>* bias;  // (c_out) or null
  const Acc<T>* u;     // (n_u, c_out) or null, with u_start (n_dst + 1) and u_rows
  const int64_t* u_start;
  const int32_t* u_rows;
  T* y;
  Acc<T>* workspace;  // conv_workspace() elements; of 16-bit values half_conv_workspace()
  PairList pairs;
  int64_t n_dst, c_in, c_out, groups;
  bool transposed, channels_last;
  int64_t n_src;
};

template <class T>
int64_t conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups);
// The weight into the workspace, in the kernels' order: conv() does it unless `weight` is null.
template <class T>
void conv_pack(const ConvArgs<T>& args, int n_threads);
template <class T>
void conv(const ConvArgs<T>& args, int n_threads);
// bfloat16 and float16, on the float32 kernels; see also group_conv.h.
int64_t half_conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups,
                            int64_t n_src, int64_t n_dst);
template <class T>
void half_conv(const ConvArgs<T>& args, int n_threads);

// dw (c_out, c_in / groups, n_offsets) = sum over pairs of dy[dst]^T x[src].
template <class T>
struct WeightGradArgs {
  const T* x;   // (n_src, c_in)
  const T* dy;  // (n_dst, c_out)
  T* dw;
  Acc<T>* workspace;  // weight_grad_workspace() elements, or half_weight_grad_workspace()
  PairList pairs;
  int64_t n_dst, c_in, c_out, groups;
  int64_t n_src;
};

template <class T>
int64_t weight_grad_workspace(int64_t c_in, int64_t c_out, const PairList& pairs, int64_t n_dst,
                              int64_t groups);
template <class T>
void weight_grad(const WeightGradArgs<T>& args, int n_threads);
int64_t half_weight_grad_workspace(int64_t c_in, int64_t c_out, const PairList& pairs,
                                   int64_t n_src, int64_t n_dst, int64_t groups);
template <class T>
void half_weight_grad(const WeightGradArgs<T>& args, int n_threads);

}  // namespace ds
