// Rows of channels as packs: one thread has N neighbouring channels of a row, at most 16 bytes of
// them, and consecutive threads have consecutive packs, across the ends of rows. So a warp reads
// whole lines whatever the number of channels: a quarter of a wide row, or several narrow rows.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "cuda/device.h"

namespace ds::gpu {

// ------------------------------------------------------------------ numbers
#ifdef DS_EMULATED

template <class T>
Acc<T> wide(T v) {
  return widened(v);
}
template <class T>
T narrow(Acc<T> v) {
  return rounded<T>(v);
}

#else

template <class T>
DS_DEVICE Acc<T> wide(T v) {
  if constexpr (kIsHalf<T> && !kIsBfloat<T>) {
    float wider;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wider) : "h"(v.bits));
    return wider;
  } else {
    return widened(v);
  }
}
template <class T>
DS_DEVICE T narrow(Acc<T> v) {
  if constexpr (kIsHalf<T>) {
    uint16_t bits;
    if constexpr (kIsBfloat<T>)
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return {bits};
  } else {
    return v;
  }
}

#endif

// ------------------------------------------------------------------ packs
// In pieces of 16 bytes: the int32 beside eight 16-bit channels are two of them.
template <int N, class T>
DS_DEVICE Pack<T, N> load_channels(const T* at) {
  constexpr int kPiece = sizeof(T) * N <= 16 ? N : 16 / static_cast<int>(sizeof(T));
  Pack<T, N> all;
#pragma unroll
  for (int i = 0; i < N; i += kPiece) {
    const Pack<T, kPiece> piece = load_pack<kPiece>(at + i);
#pragma unroll
    for (int e = 0; e < kPiece; ++e) all.v[i + e] = piece.v[e];
  }
  return all;
}
template <int N, class T>
DS_DEVICE void store_channels(T* at, const T (&values)[N]) {
  constexpr int kPiece = sizeof(T) * N <= 16 ? N : 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < N; i += kPiece) {
    Pack<T, kPiece> piece;
#pragma unroll
    for (int e = 0; e < kPiece; ++e) piece.v[e] = values[i + e];
    store_pack(at + i, piece);
  }
}
// Sums, rounded once.
template <int N, class T>
DS_DEVICE void store_sums(T* at, const Acc<T> (&sums)[N]) {
  T values[N];
#pragma unroll
  for (int e = 0; e < N; ++e) values[e] = narrow<T>(sums[e]);
  store_channels(at, values);
}

struct PackPlace {
  int64_t row, channel;
};
// Of pack i where a row has that many; 64-bit division only where 32 bits do not do.
DS_DEVICE PackPlace pack_place(int64_t i, int64_t packs_per_row, int n) {
  const int64_t row =
      i <= INT64_C(0xffffffff) && packs_per_row <= INT64_C(0xffffffff)
          ? static_cast<int64_t>(static_cast<uint32_t>(i) / static_cast<uint32_t>(packs_per_row))
          : i / packs_per_row;
  return {row, (i - row * packs_per_row) * n};
}

// Calls f(std::integral_constant<int, N>{}) with the widest packs of T that rows of n_channels at
// these places (null: none there) allow: 16 bytes, 8, or single channels.
template <class T, class F>
Status with_packs(int64_t n_channels, std::initializer_list<const void*> places, const F& f) {
  constexpr int kFull = 16 / static_cast<int>(sizeof(T)), kHalf = kFull / 2;
  uintptr_t bits = static_cast<uintptr_t>(n_channels) * sizeof(T);
  for (const void* at : places) bits |= reinterpret_cast<uintptr_t>(at);
  if (bits % 16 == 0) return f(std::integral_constant<int, kFull>{});
  if (kHalf > 1 && bits % 8 == 0) return f(std::integral_constant<int, kHalf>{});
  return f(std::integral_constant<int, 1>{});
}

// The place of int32 beside packs of another type: 16 bytes at once, so aligned to them or not at
// all (an odd place).
inline const void* beside_packs(const int32_t* at) {
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) % 16 != 0 ? uintptr_t{1}
                                                                                 : 0);
}

constexpr int kPackThreads = 256;

}  // namespace ds::gpu
