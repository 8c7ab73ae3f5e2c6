// Sparse convolution on CUDA cores: float32 and float64, each product and sum in that type.
#pragma once
#include "cuda/conv/conv.h"

namespace ds::gpu {

template <class T>  // float, double
Status conv_plain(const Stream& stream, const ConvArgs<T>& args);

}  // namespace ds::gpu
