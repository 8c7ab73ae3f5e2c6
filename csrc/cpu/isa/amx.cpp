// Matrix tiles of AMX, 64-byte vectors around them. The other kernels of this instruction set are
// those of avx512.
#define DS_VEC_BYTES 64
#include <immintrin.h>

#include "cpu/conv/group_conv_kernel.h"
#include "cpu/conv/tile_weight_grad_kernel.h"
#include "cpu/spmm/tile_spmm_kernel.h"

namespace ds {
namespace {

// Eight registers of 16 rows x 64 bytes; in memory their rows are `stride` bytes apart.
struct AmxTiles {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  void configure() const {
    Config config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = 16;
    }
    // GCC 12 takes the instruction to read 8 of the 64 bytes: the others must be stored by now.
    asm volatile("" : : "m"(config));
    _tile_loadconfig(&config);
  }
  void release() const { _tile_release(); }
  // The compiler does not know that loads read memory.
  void order_memory() const { asm volatile("" ::: "memory"); }

  // Register numbers are part of the instruction: the intrinsics take literals only.
  template <int R>
  [[gnu::always_inline]] void load(const void* p, int64_t stride = 64) const {
    if constexpr (R == 0) _tile_loadd(0, p, stride);
    if constexpr (R == 1) _tile_loadd(1, p, stride);
    if constexpr (R == 2) _tile_loadd(2, p, stride);
    if constexpr (R == 3) _tile_loadd(3, p, stride);
    if constexpr (R == 4) _tile_loadd(4, p, stride);
    if constexpr (R == 5) _tile_loadd(5, p, stride);
    if constexpr (R == 6) _tile_loadd(6, p, stride);
    if constexpr (R == 7) _tile_loadd(7, p, stride);
  }
  template <int R>
  [[gnu::always_inline]] void store(void* p, int64_t stride = 64) const {
    if constexpr (R == 0) _tile_stored(0, p, stride);
    if constexpr (R == 1) _tile_stored(1, p, stride);
    if constexpr (R == 2) _tile_stored(2, p, stride);
    if constexpr (R == 3) _tile_stored(3, p, stride);
  }
  template <int Sum, int A, int B>
  [[gnu::always_inline]] void multiply() const {
    if constexpr (Sum == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (Sum == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Sum == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Sum == 3) _tile_dpbf16ps(3, 5, 7);
    static_assert(A == 4 + Sum / 2 && B == 6 + Sum % 2, "the 2 x 2 scheme of registers");
  }

  // The values of kUnitWords mask words to their places, zeros elsewhere; returns what follows
  // them.
  static const bf16* spread(const bf16* values, const uint32_t* masks, bf16* into) {
    for (int64_t word = 0; word < kUnitWords; ++word, into += kTileDepth) {
      const __m512i row = _mm512_loadu_si512(values);
      _mm512_storeu_si512(into, _mm512_maskz_expand_epi16(masks[word], row));
      values += __builtin_popcount(masks[word]);
    }
    return values;
  }
  // To nearest even; denormals become zero, as they do in products.
  static void round(const float* low, const float* high, bf16* to) {
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
    __builtin_memcpy(to, &both, sizeof both);
  }
};

}  // namespace

void amx_group_conv(const GroupConvTile& t);
void amx_group_conv(const GroupConvTile& t) {
  group_conv_tile<AmxTiles>(t);
}
void amx_weight_grad(const WeightGradBlock<bf16>& t);
void amx_weight_grad(const WeightGradBlock<bf16>& t) {
  tile_weight_grad_block<AmxTiles>(t);
}
void amx_tile_spmm(const TileSpmmPart& part);
void amx_tile_spmm(const TileSpmmPart& part) {
  tile_spmm_part<AmxTiles>(part);
}

}  // namespace ds
