// Matrix instructions of one warp (sm_80), with float32 sums. Fragments are as PTX lays them out,
// with g = lane / 4 and t = lane % 4:
//
//   bf16, f16   m16 n8 k16   a[0] (g, 2t..)   a[1] (g + 8, 2t..)   a[2], a[3] the same, k + 8
//                            b[0] (k = 2t.., n = g)   b[1] the same, k + 8     two values a
//                            register
//   tf32        m16 n8 k8    a[0] (g, t)   a[1] (g + 8, t)   a[2], a[3] the same, k + 4
//                            b[0] (k = t, n = g)   b[1] the same, k + 4
//   sums                     d[0], d[1] (g, 2t and 2t + 1)   d[2], d[3] (g + 8, ...)
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// float32 whose last 13 bits the matrix units leave out.
struct tf32 {
  float value;
};

#ifdef DS_EMULATED

namespace emulated_mma {
struct Operands {
  uint32_t a[4], b[2];
};
template <class T>
float half_of(uint32_t pair, int i) {
  return widened(T{static_cast<uint16_t>(pair >> (16 * i))});
}
inline float tf32_of(uint32_t bits) {
  return float_of_bits(bits & 0xffffe000u);
}
}  // namespace emulated_mma

// d += a b
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using namespace emulated_mma;
  Operands mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const unsigned char* all = emulation::exchange(&mine, sizeof mine);
  const auto of = [&](int lane) {
    return reinterpret_cast<const Operands*>(all + lane * emulation::kExchangeBytes);
  };
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int i = 0; i < 4; ++i) {
    const int high = i / 2, column = 2 * t + i % 2;  // the row is g or g + 8
    if constexpr (kIsHalf<T>) {
      for (int k = 0; k < 16; ++k) {
        const int lane = k % 8 / 2, later = k / 8;
        d[i] = fused(half_of<T>(of(g * 4 + lane)->a[high + 2 * later], k % 2),
                     half_of<T>(of(column * 4 + lane)->b[later], k % 2), d[i]);
      }
    } else {
      for (int k = 0; k < 8; ++k)
        d[i] = fused(tf32_of(of(g * 4 + k % 4)->a[high + 2 * (k / 4)]),
                     tf32_of(of(column * 4 + k % 4)->b[k / 4]), d[i]);
    }
  }
}

// Four 8 x 8 matrices of 16-bit values: lane i points at row i % 8 of matrix i / 8, 16 bytes. r[m]
// is row g of matrix m, columns 2t and 2t + 1; transposed: rows 2t and 2t + 1 of column g.
template <bool kTransposed = false>
void load_matrices(uint32_t (&r)[4], const void* row) {
  const unsigned char* all = emulation::exchange(row, 16);
  const int g = lane_index() / 4, t = lane_index() % 4;
  const auto value = [&](int m, int i, int j) -> uint32_t {
    uint16_t v;
    std::memcpy(&v, all + (m * 8 + i) * emulation::kExchangeBytes + j * 2, 2);
    return v;
  };
  for (int m = 0; m < 4; ++m)
    r[m] = kTransposed ? value(m, 2 * t, g) | value(m, 2 * t + 1, g) << 16
                       : value(m, g, 2 * t) | value(m, g, 2 * t + 1) << 16;
}

template <class T>
uint32_t packed_pair(float low, float high) {
  return rounded<T>(low).bits | static_cast<uint32_t>(rounded<T>(high).bits) << 16;
}
inline uint32_t tf32_bits(float v) {  // to nearest, ties away from zero, as cvt.rna
  const uint32_t bits = float_bits(v);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

#else

template <class T>
DS_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kIsHalf<T> && kIsBfloat<T>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (kIsHalf<T>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <bool kTransposed = false>
DS_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// Two floats rounded to nearest even, the first in the low half.
template <class T>
DS_DEVICE uint32_t packed_pair(float low, float high) {
  uint32_t pair;
  if constexpr (kIsBfloat<T>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DS_DEVICE uint32_t tf32_bits(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

#endif

}  // namespace ds::gpu
