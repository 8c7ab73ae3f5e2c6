// Tiles of the weight gradient: acc (kOut x kIn) += dy^T x over a stage of kRows rows, which lie in
// shared memory as they lie in dy and x, channels together: both operands are read across.
#pragma once
#include "cuda/mma.h"

namespace ds::gpu {

// kRows rows of kOut channels of dy and of kIn channels of x. The padding puts 8 rows of 16 bytes
// (load_matrices), and 4 rows of 8 floats (tf32), in different banks.
template <class T, int kOut, int kIn, int kRows>
struct alignas(16) GradStage {
  static constexpr int kPad = sizeof(T) == 8 ? 2 : 8;
  T dy[kRows][kOut + kPad];
  T x[kRows][kIn + kPad];
};

// CUDA cores: a thread has kPerOut x kPerIn sums, in packs of 16 bytes that lie apart, so that the
// threads of a warp read packs side by side.
template <class T_, int kOut_, int kIn_, int kPerOut, int kPerIn>
struct ThreadTile {
  using T = T_;
  static constexpr int kOut = kOut_, kIn = kIn_, kRows = 16, kPack = 16 / sizeof(T);
  static constexpr int kAlongIn = kIn / kPerIn, kThreads = kOut / kPerOut * kAlongIn;
  using Stage = GradStage<T, kOut, kIn, kRows>;
  static_assert(kThreads % kWarp == 0 && kPerOut % kPack == 0 && kPerIn % kPack == 0);

  T acc[kPerOut][kPerIn] = {};

  template <int kPer, int kWidth>
  DS_DEVICE static int channel(int part, int i) {
    return i / kPack * (kWidth / kPer * kPack) + part * kPack + i % kPack;
  }
  DS_DEVICE static int out_of(int i) {
    return channel<kPerOut, kOut>(static_cast<int>(threadIdx.x) / kAlongIn, i);
  }
  DS_DEVICE static int in_of(int i) {
    return channel<kPerIn, kIn>(static_cast<int>(threadIdx.x) % kAlongIn, i);
  }

  DS_DEVICE void multiply(const Stage& stage) {
#pragma unroll 4
    for (int r = 0; r < kRows; ++r) {
      Pack<T, kPack> a[kPerOut / kPack], b[kPerIn / kPack];
#pragma unroll
      for (int i = 0; i < kPerOut / kPack; ++i)
        a[i] = load_pack<kPack>(&stage.dy[r][out_of(i * kPack)]);
#pragma unroll
      for (int i = 0; i < kPerIn / kPack; ++i)
        b[i] = load_pack<kPack>(&stage.x[r][in_of(i * kPack)]);
#pragma unroll
      for (int i = 0; i < kPerOut; ++i)
#pragma unroll
        for (int j = 0; j < kPerIn; ++j)
          acc[i][j] = fused(a[i / kPack].v[i % kPack], b[j / kPack].v[j % kPack], acc[i][j]);
    }
  }

  template <class Store>
  DS_DEVICE void each(const Store& store) const {  // store(output channel, input channel, sum)
#pragma unroll
    for (int i = 0; i < kPerOut; ++i)
#pragma unroll
      for (int j = 0; j < kPerIn; ++j) store(out_of(i), in_of(j), acc[i][j]);
  }
};

// Where a warp's matrices of 16 x 8 sums lie in the tile, shared by the two kinds below.
template <int kOut, int kIn, int kWarpsOut, int kWarpsIn>
struct WarpSums {
  static constexpr int kThreads = kWarp * kWarpsOut * kWarpsIn;
  static constexpr int kMatOut = kOut / kWarpsOut / 16, kMatIn = kIn / kWarpsIn / 8;
  static_assert(kMatOut >= 1 && kMatIn >= 2 && kMatIn % 2 == 0);

  float acc[kMatOut][kMatIn][4] = {};

  DS_DEVICE static int first_out() { return warp_index() / kWarpsIn * (kOut / kWarpsOut); }
  DS_DEVICE static int first_in() { return warp_index() % kWarpsIn * (kIn / kWarpsIn); }

  template <class Store>
  DS_DEVICE void each(const Store& store) const {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < kMatOut; ++i)
#pragma unroll
      for (int j = 0; j < kMatIn; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          store(first_out() + i * 16 + g + e / 2 * 8, first_in() + j * 8 + 2 * t + e % 2,
                acc[i][j][e]);
  }
};

// Matrix units on 16-bit values: both operands by transposing loads, as rows are what is summed.
template <class T_, int kOut_, int kIn_, int kWarpsOut, int kWarpsIn>
struct HalfTile : WarpSums<kOut_, kIn_, kWarpsOut, kWarpsIn> {
  using T = T_;
  using Sums = WarpSums<kOut_, kIn_, kWarpsOut, kWarpsIn>;
  static constexpr int kOut = kOut_, kIn = kIn_, kRows = 32;
  using Stage = GradStage<T, kOut, kIn, kRows>;

  DS_DEVICE void multiply(const Stage& stage) {
    const int eighth = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (int r = 0; r < kRows; r += 16) {
      uint32_t a[Sums::kMatOut][4], b[Sums::kMatIn / 2][4];
#pragma unroll
      for (int i = 0; i < Sums::kMatOut; ++i)  // channels + 8 in the odd registers, rows + 8 from 2
        load_matrices<true>(
            a[i], &stage.dy[r + row + eighth / 2 * 8][Sums::first_out() + i * 16 + eighth % 2 * 8]);
#pragma unroll
      for (int j = 0; j < Sums::kMatIn / 2; ++j)  // rows + 8 in the odd ones, channels + 8 from 2
        load_matrices<true>(
            b[j], &stage.x[r + row + eighth % 2 * 8][Sums::first_in() + j * 16 + eighth / 2 * 8]);
#pragma unroll
      for (int i = 0; i < Sums::kMatOut; ++i)
#pragma unroll
        for (int j = 0; j < Sums::kMatIn; ++j)
          mma<T>(this->acc[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
    }
  }
};

// Matrix units on float32, its last 13 bits left out.
template <int kOut_, int kIn_, int kWarpsOut, int kWarpsIn>
struct Tf32Tile : WarpSums<kOut_, kIn_, kWarpsOut, kWarpsIn> {
  using T = float;
  using Sums = WarpSums<kOut_, kIn_, kWarpsOut, kWarpsIn>;
  static constexpr int kOut = kOut_, kIn = kIn_, kRows = 16;
  using Stage = GradStage<T, kOut, kIn, kRows>;

  DS_DEVICE void multiply(const Stage& stage) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kRows; r += 8) {
      uint32_t a[Sums::kMatOut][4], b[Sums::kMatIn][2];
#pragma unroll
      for (int i = 0; i < Sums::kMatOut; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          a[i][e] =
              tf32_bits(stage.dy[r + t + e / 2 * 4][Sums::first_out() + i * 16 + g + e % 2 * 8]);
#pragma unroll
      for (int j = 0; j < Sums::kMatIn; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          b[j][e] = tf32_bits(stage.x[r + t + e * 4][Sums::first_in() + j * 8 + g]);
#pragma unroll
      for (int i = 0; i < Sums::kMatOut; ++i)
#pragma unroll
        for (int j = 0; j < Sums::kMatIn; ++j) mma<tf32>(this->acc[i][j], a[i], b[j]);
    }
  }
};

}  // namespace ds::gpu
