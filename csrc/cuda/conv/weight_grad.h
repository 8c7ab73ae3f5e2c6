// Weight gradient of a convolution over a neighbour table.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// dw (c_out, c_in / groups, n_offsets) = sum of dy[d]^T x[table[k][d]] over the rows d that have
// offset k: the table holds a row of x, or what is none (-1). Sums in Acc<T>, rounded once.
template <class T>
struct WeightGradArgs {
  const T* x;            // (n_src, c_in)
  const T* dy;           // (n_dst, c_out)
  const int32_t* table;  // (n_offsets, n_dst)
  Acc<T>* partial;       // (n_chunks, n_offsets, c_out, c_in / groups)
  T* dw;
  int64_t n_src, n_dst, c_in, c_out, groups, n_offsets;
  int64_t n_chunks;  // weight_grad_chunks()
  bool tf32;         // float32 may be multiplied by the matrix units
};

// Parts of the destination rows that are summed apart: enough to fill a GPU, a function of the
// sizes alone, so that results are those of any other GPU.
int64_t weight_grad_chunks(int64_t n_dst, int64_t c_in, int64_t c_out, int64_t n_offsets,
                           int64_t groups);
// The most blocks of the first kernel, which must be less than 2^31.
int64_t weight_grad_blocks(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups,
                           int64_t n_chunks);
template <class T>  // float, double, bf16, f16
Status weight_grad(const Stream& stream, const WeightGradArgs<T>& args);

// dw (c_out, width, n_offsets) = the sum, in their order, of n_chunks of (n_offsets, c_out, width).
template <class T>
Status add_partials(const Stream& stream, const Acc<T>* partial, int64_t n_chunks,
                    int64_t n_offsets, int64_t c_out, int64_t width, T* dw);

}  // namespace ds::gpu
