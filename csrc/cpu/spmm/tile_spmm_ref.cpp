#include "cpu/reference.h"

namespace ds {
namespace {

// weight[output][input] of a block, pruned values as zeros.
void decode_block(const TileBlocks& w, int64_t b, float (*weight)[kTileDepth]) {
  const bool is_whole = w.place[b] < 0;
  const bf16* next = w.values + (is_whole ? ~w.place[b] : w.place[b]);
  for (int64_t i = 0; i < kBlockValues; ++i) {
    const int64_t output = i / kTileValues * kTileColumns + i % (2 * kTileColumns) / 2;
    const int64_t input = i % kTileValues / (2 * kTileColumns) * 2 + i % 2;
    const bool is_stored = is_whole || (w.masks[b * kMaskWords + i / 32] >> i % 32 & 1) != 0;
    weight[output][input] = is_stored ? widened(*next++) : 0;
  }
}

}  // namespace

void tile_spmm_ref(const TileSpmmPart& part) {
  const TileSpmm& t = part.all;
  const int64_t n_out = t.weight.n_out;
  float weight[kBlockColumns][kTileDepth], sums[kHalfRows][kBlockColumns];
  for (int64_t row = part.row_begin; row < part.row_end; ++row) {
    const int64_t first = row * kBlockColumns;
    const int64_t n = n_out - first < kBlockColumns ? n_out - first : kBlockColumns;
    for (int64_t half = part.half_begin; half < part.half_end; ++half) {
      for (auto& sum : sums)
        for (int64_t o = 0; o < n; ++o) sum[o] = t.bias != nullptr ? t.bias[first + o] : 0;
      for (int64_t b = t.weight.start[row]; b < t.weight.start[row + 1]; ++b) {
        decode_block(t.weight, b, weight);
        const bf16* x = t.rows.half(half) + t.rows.block(t.weight.columns[b]);
        for (int64_t r = 0; r < kHalfRows; ++r)
          for (int64_t o = 0; o < n; ++o)
            for (int64_t c = 0; c < kTileDepth; ++c)
              sums[r][o] += widened(x[r * t.rows.row_stride + c]) * weight[o][c];
      }
      for (int64_t r = 0; r < kHalfRows; ++r) {
        const int64_t to = t.rows.out_row(half, r, t.n_rows);
        for (int64_t o = 0; to >= 0 && o < n; ++o)
          t.y[to * n_out + first + o] = rounded<bf16>(sums[r][o]);
      }
    }
  }
}

}  // namespace ds
