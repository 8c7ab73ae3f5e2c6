// A stored weight as what it is multiplied in: T, float or double.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

template <class T, class V>
DS_DEVICE T weight_of(V v) {
  if constexpr (sizeof(V) == 1)
    return static_cast<T>(v);
  else
    return widened(v);
}

}  // namespace ds::gpu
