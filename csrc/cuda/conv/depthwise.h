// Convolution with a weight per channel (groups = c_in = c_out) over a neighbour table.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// y[d] = bias + sum of u[u_rows[j]] over j in [u_start[d], u_start[d + 1])
//             + sum over offsets k of x[table[k][d]] * weight[k], channel by channel.
// An input gradient is the same over the table of the other direction.
template <class T>
struct DepthwiseArgs {
  const T* x;              // (n_src, channels)
  const T* weight;         // (n_offsets, channels)
  const int32_t* table;    // (n_offsets, n_dst), what is no row of x is left out
  const Acc<T>* bias;      // (channels) or null
  const Acc<T>* u;         // (n_u, channels) or null, with the next two
  const int64_t* u_start;  // (n_dst + 1)
  const int32_t* u_rows;   // (n_u_rows)
  T* y;                    // (n_dst, channels)
  int64_t n_src, n_dst, channels, n_offsets, n_u, n_u_rows;
};
template <class T>  // float, double, bf16, f16
Status depthwise(const Stream& stream, const DepthwiseArgs<T>& args);

// dw (channels, 1, n_offsets) = sum over d of dy[d] * x[table[k][d]].
template <class T>
struct DepthwiseGradArgs {
  const T* x;            // (n_src, channels)
  const T* dy;           // (n_dst, channels)
  const int32_t* table;  // (n_offsets, n_dst)
  Acc<T>* partial;       // (n_chunks, n_offsets, channels)
  T* dw;
  int64_t n_src, n_dst, channels, n_offsets, n_chunks;
};
// As weight_grad_chunks(), of blocks of 8 bytes to 16 for each of 32 lanes.
int64_t depthwise_grad_chunks(int64_t n_dst, int64_t channels, int64_t n_offsets);
template <class T>
Status depthwise_weight_grad(const Stream& stream, const DepthwiseGradArgs<T>& args);

}  // namespace ds::gpu
