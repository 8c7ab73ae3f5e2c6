// A pruned bfloat16 weight matrix (n_out, n_in) as matrix tiles read it: blocks of 32 outputs x 32
// inputs, of which only those that hold something are kept. Made from CSR in two steps: a plan that
// counts, a fill that can be repeated where only values changed. Torch-free; the caller allocates.
#pragma once
#include <cstdint>

#include "core/half.h"
#include "cpu/conv/group_conv.h"

namespace ds {

constexpr int64_t kBlockValues = kTileDepth * kBlockColumns;
constexpr int64_t kMaskWords = kBlockValues / 32;
// A block with more kept values than this is stored whole: reading it takes no decoding, and the
// zeros are at most a quarter of its bytes.
constexpr int64_t kMostPacked = 768;
// Behind the last packed block: vectors are read whole, whatever is taken of them.
constexpr int64_t kValuesSlack = 32;

// Within a block the order of values and of mask bits is that of two weight tiles, outputs 0-15 and
// 16-31: [2 tiles][16 input pairs][16 outputs][2]. So a mask word is one row of a tile.
struct TileBlocks {
  int64_t n_out, n_in;
  const int64_t* start;    // (n_block_rows + 1): blocks of 32 outputs
  const int32_t* columns;  // (n_blocks) number of 32 inputs, ascending within a block row
  // (n_blocks) where a block's values start: p >= 0 the kept ones alone, else ~p all of them, at a
  // multiple of 32 values
  const int64_t* place;
  const uint32_t* masks;  // (n_blocks, 32) bit = kept
  const bf16* values;     // blocks in their order, and kValuesSlack more
};

constexpr int64_t n_tile_blocks(int64_t n) {
  return (n + kBlockColumns - 1) / kBlockColumns;
}

// A weight in CSR: rows are outputs, columns strictly ascend within a row.
struct CsrWeight {
  const int64_t* row_start;  // (n_out + 1)
  const int32_t* columns;    // in [0, n_in)
  int64_t n_out, n_in;
};

struct TilePlan {
  int64_t n_blocks, n_values;
};
// counts (n_block_rows, n_block_columns): kept values of every block. Fills `start`.
TilePlan plan_tile_blocks(const CsrWeight& w, int32_t* counts, int64_t* start, int n_threads);

struct FilledBlocks {
  int32_t* columns;
  int64_t* place;
  uint32_t* masks;
  bf16* values;
  int64_t n_values;
};
// start: ascending from 0; counts: not negative. False, with nothing written out of bounds, if the
// lists are not those that were counted or do not ascend. T: float or bf16.
template <class T>
bool fill_tile_blocks(const CsrWeight& w, const T* values, const int32_t* counts,
                      const int64_t* start, const FilledBlocks& out, int n_threads);

}  // namespace ds
