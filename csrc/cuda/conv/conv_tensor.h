// Sparse convolution on matrix units: bfloat16 and float16, and float32 rounded to tf32. Sums are
// float32.
#pragma once
#include "cuda/conv/conv.h"

namespace ds::gpu {

template <class T>  // bf16, f16; float: as tf32
Status conv_tensor(const Stream& stream, const ConvArgs<T>& args);

}  // namespace ds::gpu
