// One vector type and the few operations the kernels need, for the ISA whose .cpp file includes
// this. That file defines DS_VEC_BYTES and then this header picks the fused multiply-add: gcc emits
// none for vector extensions under -ffp-contract=off, hence the intrinsic. Everything is in an
// unnamed namespace: two ISAs in one binary must never share a function (the linker would keep one
// of them, compiled for the wrong machine).
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
  #include <immintrin.h>
#elif defined(__aarch64__)
  #include <arm_neon.h>
#endif

#include "core/half.h"

namespace ds {
namespace {

[[gnu::always_inline]] inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

typedef float VecF32 __attribute__((vector_size(DS_VEC_BYTES)));
typedef double VecF64 __attribute__((vector_size(DS_VEC_BYTES)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF32;
};
template <>
struct VecOf<double> {
  using type = VecF64;
};
// 16-bit values are float32 in registers: load() widens, store() rounds to nearest even.
template <class T>
using Vec = typename VecOf<Acc<T>>::type;
template <class T>
constexpr int kLanes = DS_VEC_BYTES / sizeof(Acc<T>);

typedef uint32_t VecU32 __attribute__((vector_size(DS_VEC_BYTES)));
typedef uint16_t VecU16 __attribute__((vector_size(DS_VEC_BYTES / 2)));

[[gnu::always_inline]] inline VecF32 widen(VecU16 v, bf16) {
  return (VecF32)(__builtin_convertvector(v, VecU32) << 16);
}
[[gnu::always_inline]] inline VecU16 narrow(VecF32 v, bf16) {
  const VecU32 bits = (VecU32)v;
  const VecU32 rounded = v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_convertvector(rounded >> 16, VecU16);
}
#if defined(__F16C__) && DS_VEC_BYTES == 32
[[gnu::always_inline]] inline VecF32 widen(VecU16 v, f16) {
  return _mm256_cvtph_ps((__m128i)v);
}
[[gnu::always_inline]] inline VecU16 narrow(VecF32 v, f16) {
  return (VecU16)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__AVX512F__) && DS_VEC_BYTES == 64
// With a mask of ones: gcc 12 warns about the undefined lanes of the forms without.
[[gnu::always_inline]] inline VecF32 widen(VecU16 v, f16) {
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)v);
}
[[gnu::always_inline]] inline VecU16 narrow(VecF32 v, f16) {
  return (VecU16)_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT);
}
#else
[[gnu::always_inline]] inline VecF32 widen(VecU16 v, f16) {
  VecF32 out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = widened(f16{v[i]});
  return out;
}
[[gnu::always_inline]] inline VecU16 narrow(VecF32 v, f16) {
  VecU16 out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = rounded<f16>(v[i]).bits;
  return out;
}
#endif

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  if constexpr (kIsHalf<T>) {
    VecU16 v;
    __builtin_memcpy(&v, p, sizeof v);
    return widen(v, T{});
  } else {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, Vec<T> v) {
  if constexpr (kIsHalf<T>) {
    const VecU16 half = narrow(v, T{});
    __builtin_memcpy(p, &half, sizeof half);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}
template <class T>
[[gnu::always_inline]] inline Vec<T> splat(T s) {
  return s - Vec<T>{};
}

// Whole rows: to the float32 that sums are kept in, and back.
template <class T>
[[gnu::always_inline]] inline void widen_row(const T* from, int64_t n, float* into) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(into + i, load(from + i));
  for (; i < n; ++i) into[i] = widened(from[i]);
}
template <class T>
[[gnu::always_inline]] inline void round_row(const float* from, int64_t n, T* into) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(into + i, load(from + i));
  for (; i < n; ++i) into[i] = rounded<T>(from[i]);
}

// a * b + c: one rounding where the machine has it, two on the x86 baseline (fixed per ISA either
// way).
#if defined(__AVX512F__) && DS_VEC_BYTES == 64
[[gnu::always_inline]] inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) {
  return _mm512_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline VecF64 fma(VecF64 a, VecF64 b, VecF64 c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__FMA__) && DS_VEC_BYTES == 32
[[gnu::always_inline]] inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) {
  return _mm256_fmadd_ps(a, b, c);
}
[[gnu::always_inline]] inline VecF64 fma(VecF64 a, VecF64 b, VecF64 c) {
  return _mm256_fmadd_pd(a, b, c);
}
#elif defined(__aarch64__) && DS_VEC_BYTES == 16
[[gnu::always_inline]] inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) {
  return (VecF32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
[[gnu::always_inline]] inline VecF64 fma(VecF64 a, VecF64 b, VecF64 c) {
  return (VecF64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
template <class V>
[[gnu::always_inline]] inline V fma(V a, V b, V c) {
  return a * b + c;
}
#endif

// The same for single values.
#if defined(__FMA__) || defined(__aarch64__)
[[gnu::always_inline]] inline float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
[[gnu::always_inline]] inline double fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
#else
[[gnu::always_inline]] inline float fma(float a, float b, float c) {
  return a * b + c;
}
[[gnu::always_inline]] inline double fma(double a, double b, double c) {
  return a * b + c;
}
#endif

}  // namespace
}  // namespace ds
