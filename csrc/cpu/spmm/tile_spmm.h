// y = x W^T + bias with matrix tiles (AMX): bfloat16 in and out, summed in float32, rounded once; W
// pruned, in 32 x 32 blocks (tile_blocks.h). Rows of x are named by where they lie, so that the
// same kernel multiplies a matrix and convolves a padded channels-last image in place. Torch-free;
// the caller allocates everything.
#pragma once
#include <cstdint>

#include "cpu/spmm/tile_blocks.h"

namespace ds {

// Outputs come in halves of 16 consecutive rows (one tile); value c of row r of half h, in block
// column b, is x[start(h) + r * row_stride + offset(b) + c].
struct TileRows {
  const bf16* x;
  int64_t row_stride;          // values
  const int64_t* half_start;   // (n_halves), or null: half h starts at row 16 h
  const int64_t* block_start;  // (n_block_columns), or null: 32 b
  const int32_t* out_rows;     // (n_halves, 16) row of y, or -1: of none; or null: row 16 h + r
  int64_t n_halves;
  const bf16* last_half;  // where the last half starts instead, or null

  [[gnu::always_inline]] const bf16* half(int64_t h) const {
    if (last_half != nullptr && h == n_halves - 1) return last_half;
    return x + (half_start != nullptr ? half_start[h] : h * kHalfRows * row_stride);
  }
  [[gnu::always_inline]] int64_t block(int64_t column) const {
    return block_start != nullptr ? block_start[column] : column * kTileDepth;
  }
  [[gnu::always_inline]] int64_t out_row(int64_t h, int64_t r, int64_t n_rows) const {
    const int64_t row = h * kHalfRows + r;
    return out_rows != nullptr ? out_rows[row] : row < n_rows ? row : -1;
  }
};

// Pairs of halves that are multiplied with a weight before the next weight, at most.
constexpr int64_t kPanelPairs = 16;
constexpr int64_t kTileSums = kHalfRows * kTileColumns;

struct TileSpmm {
  TileBlocks weight;
  TileRows rows;
  int64_t n_rows;     // of y
  const float* bias;  // (n_out) or null
  bf16* y;            // (n_rows, n_out)
};

// The halves, at most 2 kPanelPairs, and the block rows that one call of the kernel is for.
struct TileSpmmPart {
  const TileSpmm& all;
  int64_t half_begin, half_end, row_begin, row_end;
};

void tile_spmm(const TileSpmm& t, int n_threads);

// Plain rows of x (n_rows, n_in): what is no whole tile is copied first, beside zeros.
int64_t tile_rows_workspace(int64_t n_rows, int64_t n_in);
TileRows plain_tile_rows(const bf16* x, int64_t n_rows, int64_t n_in, bf16* workspace,
                         int n_threads);

}  // namespace ds
