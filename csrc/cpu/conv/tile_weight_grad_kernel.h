// bfloat16 weight gradient of one offset with matrix tiles, over a run of pairs:
// dw (c_in, ldw) += sum_p x[src[p]]^T dy[dst[p]], in float32.
//
// Layout   A tile holds 16 input channels x 32 pairs, and one of the other operand 32 pairs x 16
//          output channels with two pairs interleaved. Both start as 16 rows of (pair, pair + 1)
//          couples; x's is transposed, couple by couple. c_in and ldw are padded to 32 in dw.
// Blocks   kTilePairs pairs and kSlabChannels input channels are copied into tiles together (32
//          KiB) and used by all output channels; those are copied 32 at a time (8 KiB).
// Tile     2 x 2 accumulators: 4 loads feed 4 products, 8 tiles of dw moved for 16 products.
// Bound    2 n_pairs c_in c_out flops at 16 cycles a product; 64 shuffles transpose a tile that
//          c_out / 16 products use, 32 interleave one that c_in / 16 do.
// Order    blocks of 32 pairs ascending; within one the instruction's own: even pairs, odd pairs,
//          their sum. A last block is filled up with zeros on both sides.
#pragma once
#include "cpu/conv/group_conv.h"
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int64_t kTilePairs = 128, kSlabChannels = 128;
constexpr int64_t kPairSteps = kTilePairs / kTileDepth;
alignas(64) const bf16 kNoRow[kTileColumns] = {};

// 16 channels of two rows as 16 couples.
#if defined(__AVX512BW__)
using Couples = __m512i;
[[gnu::always_inline]] inline Couples couples_of(const bf16* even, const bf16* odd, int64_t n) {
  const __mmask16 mask = static_cast<__mmask16>(n < kTileColumns ? (1u << n) - 1 : 0xffff);
  const __m512i low = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, even));
  const __m512i high = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, odd));
  return low | (Couples)((VecU32)high << 16);
}

// Four stages exchange blocks of 1, 2, 4 and 8 couples between rows as far apart.
[[gnu::always_inline]] inline void transpose(Couples* r) {
  Couples t[16];
  const __mmask16 all = 0xffff;
  #pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_maskz_unpacklo_epi32(all, r[i], r[i + 1]);
    t[i + 1] = _mm512_maskz_unpackhi_epi32(all, r[i], r[i + 1]);
  }
  #pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
  #pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_maskz_unpacklo_epi64(0xff, t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_maskz_unpackhi_epi64(0xff, t[i + j], t[i + j + 2]);
    }
  // r[i + j], i = 0, 4, 8, 12: column j of each 4 x 4 block, of rows i .. i + 3
  #pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_maskz_shuffle_i32x4(all, r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_maskz_shuffle_i32x4(all, r[j], r[j + 4], 0xdd);
    t[j + 8] = _mm512_maskz_shuffle_i32x4(all, r[j + 8], r[j + 12], 0x88);
    t[j + 12] = _mm512_maskz_shuffle_i32x4(all, r[j + 8], r[j + 12], 0xdd);
  }
  #pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_maskz_shuffle_i32x4(all, t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_maskz_shuffle_i32x4(all, t[j], t[j + 8], 0xdd);
    r[j + 4] = _mm512_maskz_shuffle_i32x4(all, t[j + 4], t[j + 12], 0x88);
    r[j + 12] = _mm512_maskz_shuffle_i32x4(all, t[j + 4], t[j + 12], 0xdd);
  }
}
#else
struct Couples {
  bf16 values[16][2];
};
inline Couples couples_of(const bf16* even, const bf16* odd, int64_t n) {
  Couples c{};
  for (int64_t i = 0; i < least(n, kTileColumns); ++i) {
    c.values[i][0] = even[i];
    c.values[i][1] = odd[i];
  }
  return c;
}
inline void transpose(Couples* r) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < i; ++j) {
      for (int side = 0; side < 2; ++side) {
        const bf16 value = r[i].values[j][side];
        r[i].values[j][side] = r[j].values[i][side];
        r[j].values[i][side] = value;
      }
    }
  }
}
#endif

// 16 of `n_channels` channels of 32 rows into one tile; rows past `n_rows` are zero.
template <bool kTransposed>
void copy_tile(const bf16* x, int64_t ld, const int32_t* rows, int64_t n_rows, int64_t n_channels,
               bf16* tile) {
  Couples couples[kTileColumns];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileColumns; ++i) {
    const bool even = 2 * i < n_rows, odd = 2 * i + 1 < n_rows;
    couples[i] = couples_of(even ? x + rows[2 * i] * ld : kNoRow,
                            odd ? x + rows[2 * i + 1] * ld : kNoRow, n_channels);
  }
  if constexpr (kTransposed) transpose(couples);
  __builtin_memcpy(tile, couples, sizeof couples);
}

// dw[32][32] += the products of two tiles of input channels and two of output channels.
template <class Tiles>
[[gnu::always_inline]] inline void multiply_pairs(Tiles& tiles, const bf16* x, const bf16* dy,
                                                  int64_t n_steps, float* dw, int64_t ldw) {
  float* below = dw + kTileColumns * ldw;
  const int64_t stride = ldw * static_cast<int64_t>(sizeof(float));
  tiles.template load<0>(dw, stride);
  tiles.template load<1>(dw + kTileColumns, stride);
  tiles.template load<2>(below, stride);
  tiles.template load<3>(below + kTileColumns, stride);
  for (int64_t step = 0; step < n_steps; ++step) {
    const int64_t at = step * kTileValues;
    tiles.template load<4>(x + at);
    tiles.template load<6>(dy + at);
    tiles.template load<5>(x + kPairSteps * kTileValues + at);
    tiles.template load<7>(dy + kPairSteps * kTileValues + at);
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<2, 5, 6>();
    tiles.template multiply<1, 4, 7>();
    tiles.template multiply<3, 5, 7>();
  }
  tiles.template store<0>(dw, stride);
  tiles.template store<1>(dw + kTileColumns, stride);
  tiles.template store<2>(below, stride);
  tiles.template store<3>(below + kTileColumns, stride);
}

// The channels [begin, end) of n pairs, and zeros up to whole blocks of 32: [16 channels][step].
template <bool kTransposed>
inline void copy_tiles(const bf16* x, int64_t ld, const int32_t* rows, int64_t n, int64_t begin,
                       int64_t end, bf16* tiles) {
  const int64_t n_blocks = (end - begin + kBlockColumns - 1) / kBlockColumns;
  for (int64_t c = begin; c < begin + n_blocks * kBlockColumns; c += kTileColumns) {
    for (int64_t p = 0; p < n; p += kTileDepth, tiles += kTileValues) {
      if (c < end)
        copy_tile<kTransposed>(x + c, ld, rows + p, n - p, end - c, tiles);
      else
        __builtin_memset(tiles, 0, kTileValues * sizeof(bf16));
    }
    tiles += (kPairSteps - (n + kTileDepth - 1) / kTileDepth) * kTileValues;
  }
}

template <class Tiles>
void tile_weight_grad_block(const WeightGradBlock<bf16>& t) {
  alignas(64) bf16 x[kSlabChannels / kTileColumns * kPairSteps * kTileValues];
  alignas(64) bf16 dy[2 * kPairSteps * kTileValues];
  Tiles tiles;
  tiles.configure();
  for (int64_t first = 0; first < t.n_pairs; first += kTilePairs) {
    const int64_t n = least(kTilePairs, t.n_pairs - first);
    const int64_t n_steps = (n + kTileDepth - 1) / kTileDepth;
    for (int64_t slab = 0; slab < t.c_in; slab += kSlabChannels) {
      const int64_t slab_end = least(t.c_in, slab + kSlabChannels);
      copy_tiles<true>(t.x, t.ldx, t.src + first, n, slab, slab_end, x);
      for (int64_t o = 0; o < t.c_out; o += kBlockColumns) {
        copy_tiles<false>(t.dy, t.ldy, t.dst + first, n, o, least(t.c_out, o + kBlockColumns), dy);
        tiles.order_memory();
        for (int64_t c = slab; c < slab_end; c += 2 * kTileColumns)
          multiply_pairs(tiles, x + (c - slab) / kTileColumns * kPairSteps * kTileValues, dy,
                         n_steps, t.dw + c * t.ldw + o, t.ldw);
        tiles.order_memory();
      }
    }
  }
  tiles.release();
}

}  // namespace
}  // namespace ds
