// The dense matrix of bitmaps, for products with more rows than bitmap_spmm is good for: a block
// decodes a tile, a warp its strip, a sub-tile at a time.
//
// Bound    bytes: the kept values are read and the matrix is written, each once.
#include "cuda/spmm/bitmap_spmm.h"

namespace ds::gpu {
namespace {

using Tiling = BitmapTiling;
constexpr int kThreads = Tiling::kStrips * kWarp;

// Lane i: where the values of this warp's sub-tile i begin, and its two words.
struct Subtiles {
  int64_t start;
  uint32_t low, high;
};
DS_DEVICE Subtiles subtiles_of(const BitmapMatrix& w, int64_t tile) {
  const uint32_t* words = w.words + tile * Tiling::kWords + lane_index();
  Subtiles mine{};
  int before = 0, own = 0;  // values of earlier strips at this lane's place, and of this strip
  for (int strip = 0; strip <= warp_index(); ++strip) {
    before += own;
    mine.low = words[2 * strip * Tiling::kSubtiles];
    mine.high = words[(2 * strip + 1) * Tiling::kSubtiles];
    own = count_bits(mine.low) + count_bits(mine.high);
  }
  int up_to = own;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int below = shuffle_up(up_to, delta);
    up_to += lane_index() >= delta ? below : 0;
    before += shuffle_xor(before, delta);
  }
  mine.start = int64_t{w.starts[tile]} * Tiling::kUnit + before + up_to - own;
  return mine;
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(BitmapMatrix w, uint16_t* out) {
  const int64_t n_across = ceil_div(w.n_columns, Tiling::kColumns), tile = blockIdx.x;
  const Subtiles mine = subtiles_of(w, tile);
  const auto* values = static_cast<const uint16_t*>(w.values);
  const int64_t n_values = w.n_units * Tiling::kUnit;
  const int lane = lane_index(), shift = lane % 16 * 2;
  const int64_t first_row =
      tile / n_across * Tiling::kRows + warp_index() * Tiling::kStripRows + lane / 4;
  const int64_t first_column = tile % n_across * Tiling::kColumns + lane % 4 * 2;
  for (int i = 0; i < Tiling::kSubtiles; ++i) {
    const uint32_t low = shuffle(mine.low, i), high = shuffle(mine.high, i);
    const uint32_t word = lane < 16 ? low : high, bits = word >> shift & 3;
    int64_t at = shuffle(mine.start, i) + count_bits(word & ((1u << shift) - 1));
    if (lane >= 16) at += count_bits(low);
    Pack<uint16_t, 2> pair;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool kept = (bits >> e & 1) != 0;  // values that do not exist are zeros
      pair.v[e] = kept && at >= 0 && at < n_values ? values[at] : uint16_t{0};
      at += kept;
    }
    const int64_t row = first_row + i % 2 * 8, column = first_column + i / 2 * 8;
    if (row >= w.n_rows || column >= w.n_columns) continue;
    uint16_t* to = out + row * w.n_columns + column;
    if (w.n_columns % 2 == 0) {
      store_pack(to, pair);
    } else {
      to[0] = pair.v[0];
      if (column + 1 < w.n_columns) to[1] = pair.v[1];
    }
  }
}

}  // namespace

Status bitmap_unpack(const Stream& stream, const BitmapMatrix& w, void* out) {
  const int64_t n_tiles =
      ceil_div(w.n_rows, Tiling::kRows) * ceil_div(w.n_columns, Tiling::kColumns);
  return launch(stream, {n_tiles}, kThreads, 0, unpack_kernel, w, static_cast<uint16_t*>(out));
}

}  // namespace ds::gpu
