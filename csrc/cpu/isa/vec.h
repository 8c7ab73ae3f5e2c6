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

namespace ds {
namespace {

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
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = DS_VEC_BYTES / sizeof(T);

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
[[gnu::always_inline]] inline Vec<T> splat(T s) {
  return s - Vec<T>{};
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

}  // namespace
}  // namespace ds
