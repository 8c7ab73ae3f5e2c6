// Stored weights as what they are multiplied in, by the GPU's own conversions.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

template <class T, class V>
DS_DEVICE T weight_of(V v) {
  if constexpr (sizeof(V) == 1) {
    return static_cast<T>(v);
#ifndef DS_EMULATED
  } else if constexpr (kIsHalf<V> && !kIsBfloat<V>) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
#endif
  } else {
    return widened(v);
  }
}

}  // namespace ds::gpu
