// AMX's matrix tiles in plain C++, bit for bit (Intel SDM, TDPBF16PS), so that everything around
// them is tested on machines without: DOUBLESPARSE_ISA=amx-emulated.
#define DS_VEC_BYTES 16
#include "cpu/conv/group_conv_kernel.h"
#include "cpu/conv/tile_weight_grad_kernel.h"
#include "cpu/spmm/tile_spmm_kernel.h"

namespace ds {
namespace {

struct EmulatedTiles {
  alignas(64) char registers[8][1024];

  void configure() { __builtin_memset(registers, 0, sizeof registers); }
  void release() {}
  void order_memory() {}

  template <int R>
  void load(const void* p, int64_t stride = 64) {
    for (int row = 0; row < 16; ++row)
      __builtin_memcpy(registers[R] + row * 64, static_cast<const char*>(p) + row * stride, 64);
  }
  template <int R>
  void store(void* p, int64_t stride = 64) const {
    for (int row = 0; row < 16; ++row)
      __builtin_memcpy(static_cast<char*>(p) + row * stride, registers[R] + row * 64, 64);
  }

  static const bf16* spread(const bf16* values, const uint32_t* masks, bf16* into) {
    for (int64_t i = 0; i < kUnitWords * kTileDepth; ++i)
      into[i] = (masks[i / 32] >> i % 32 & 1) != 0 ? *values++ : bf16{0};
    return values;
  }
  static void round(const float* low, const float* high, bf16* to) {
    for (int64_t c = 0; c < kTileColumns; ++c) {
      to[c] = rounded<bf16>(flushed(low[c]));
      to[kTileColumns + c] = rounded<bf16>(flushed(high[c]));
    }
  }

  // Denormals count as zero, and so do denormal results.
  static float flushed(float v) {
    const uint32_t bits = float_bits(v);
    return (bits & 0x7f800000) == 0 ? float_of_bits(bits & 0x80000000) : v;
  }
  // One rounding; a product of two bfloat16 is exact in float32 unless it leaves the exponents.
  static float multiply_add(float a, float b, float sum) {
    const float product = a * b;
    const uint32_t exponent = float_bits(product) & 0x7f800000;
    if (exponent != 0 && exponent != 0x7f800000) return flushed(product + sum);
    return flushed(__builtin_fmaf(a, b, sum));
  }

  template <int Sum, int A, int B>
  void multiply() {
    for (int m = 0; m < kHalfRows; ++m) {
      float even[kTileColumns] = {}, odd[kTileColumns] = {}, sum[kTileColumns];
      for (int pair = 0; pair < kTileDepth / 2; ++pair) {
        bf16 a[2], b[2 * kTileColumns];
        __builtin_memcpy(a, registers[A] + m * 64 + pair * 4, sizeof a);
        __builtin_memcpy(b, registers[B] + pair * 64, sizeof b);
        const float a0 = flushed(widened(a[0])), a1 = flushed(widened(a[1]));
        for (int n = 0; n < kTileColumns; ++n) {
          even[n] = multiply_add(a0, flushed(widened(b[2 * n])), even[n]);
          odd[n] = multiply_add(a1, flushed(widened(b[2 * n + 1])), odd[n]);
        }
      }
      __builtin_memcpy(sum, registers[Sum] + m * 64, sizeof sum);
      for (int n = 0; n < kTileColumns; ++n)
        sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
      __builtin_memcpy(registers[Sum] + m * 64, sum, sizeof sum);
    }
  }
};

}  // namespace

void emulated_group_conv(const GroupConvTile& t);
void emulated_group_conv(const GroupConvTile& t) {
  group_conv_tile<EmulatedTiles>(t);
}
void emulated_weight_grad(const WeightGradBlock<bf16>& t);
void emulated_weight_grad(const WeightGradBlock<bf16>& t) {
  tile_weight_grad_block<EmulatedTiles>(t);
}
void emulated_tile_spmm(const TileSpmmPart& part);
void emulated_tile_spmm(const TileSpmmPart& part) {
  tile_spmm_part<EmulatedTiles>(part);
}

}  // namespace ds
