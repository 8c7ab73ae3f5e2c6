// bfloat16 and float16 as storage: values widen to float32 to be computed with, and a result is
// rounded once, to nearest even. Kernel bodies include this, so everything is inlined always: an
// inline function with a body of its own would be shared between instruction sets by the linker.
#pragma once
#include <cstdint>

// What kernels of every kind call: always inlined on a CPU, of both sides where nvcc compiles.
#ifdef __CUDACC__
  #define DS_INLINE __host__ __device__ inline
#else
  #define DS_INLINE [[gnu::always_inline]] inline
#endif

namespace ds {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// What values of type T are summed in.
template <class T>
struct AccOf {
  using type = T;
};
template <>
struct AccOf<bf16> {
  using type = float;
};
template <>
struct AccOf<f16> {
  using type = float;
};
template <class T>
using Acc = typename AccOf<T>::type;
template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;
template <class T>
constexpr bool kIsBfloat = false;
template <>
constexpr bool kIsBfloat<bf16> = true;

DS_INLINE uint32_t float_bits(float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits;
}
DS_INLINE float float_of_bits(uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

DS_INLINE float widened(float v) {
  return v;
}
DS_INLINE double widened(double v) {
  return v;
}
DS_INLINE float widened(bf16 v) {
  return float_of_bits(static_cast<uint32_t>(v.bits) << 16);
}
DS_INLINE float widened(f16 v) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  if (rest < 0x0400)  // zero and subnormals: a multiple of 2^-24
    return float_of_bits(sign | float_bits(static_cast<float>(rest) * 0x1p-24f));
  const uint32_t quiet = rest > 0x7c00 ? 0x400000 : 0;  // as vcvtph2ps: a NaN becomes quiet
  const uint32_t bias = rest >= 0x7c00 ? (255 - 31) << 23 : (127 - 15) << 23;
  return float_of_bits((sign | ((rest << 13) + bias)) | quiet);
#endif
}

template <class T>
struct Rounding {
  DS_INLINE static T of(T v) { return v; }
};
template <>
struct Rounding<bf16> {
  DS_INLINE static bf16 of(float v) {
#ifdef __CUDA_ARCH__
    uint16_t narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
    return {narrow};
#else
    const uint32_t bits = float_bits(v);
    // A NaN must not become an infinity by losing its last bits.
    const uint32_t rounded = v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    return {static_cast<uint16_t>(rounded >> 16)};
#endif
  }
};
template <>
struct Rounding<f16> {
  DS_INLINE static f16 of(float v) {
#ifdef __CUDA_ARCH__
    uint16_t narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(v));
    return {narrow};
#else
    const uint32_t sign = float_bits(v) >> 16 & 0x8000, rest = float_bits(v) & 0x7fffffff;
    uint32_t bits;
    if (rest > 0x7f800000)
      bits = 0x7e00 | (rest >> 13 & 0x3ff);
    else if (rest >= 0x477ff000)  // 65520 and more: infinity
      bits = 0x7c00;
    else if (rest >= 0x38800000)  // 2^-14 and more: normal
      bits = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
    else  // 1/2 has a last bit of 2^-24, a subnormal's: the addition rounds
      bits = float_bits(float_of_bits(rest) + 0.5f) - 0x3f000000;
    return {static_cast<uint16_t>(sign | bits)};
#endif
  }
};
template <class T>
DS_INLINE T rounded(Acc<T> v) {
  return Rounding<T>::of(v);
}

}  // namespace ds
