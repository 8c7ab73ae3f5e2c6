// The weight in the order that the kernels read it: [group][depth][output channel], see conv.h.
#pragma once
#include "cuda/conv/conv.h"

namespace ds::gpu {

// Of the weight's three dimensions: (c_out, c_in / groups, n_offsets), or where `transposed`
// (c_in, c_out / groups, n_offsets), with any strides.
template <class T>
struct PackArgs {
  const T* weight;
  int64_t strides[3];
  bool transposed;
  ConvShape shape;
  T* packed;             // packed_values(shape), and 16 bytes behind them
  uint32_t* not_finite;  // those bytes: whether any is infinite, NaN, or would be as tf32
};

template <class T>  // float, double, bf16, f16
Status pack_weight(const Stream& stream, const PackArgs<T>& args);

}  // namespace ds::gpu
