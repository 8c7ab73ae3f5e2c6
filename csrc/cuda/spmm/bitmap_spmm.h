// y = x W^T + bias for small batches, where reading W is what takes the time: W is stored as a bit
// per weight and the kept values, and becomes dense again in registers, on its way into the matrix
// units.
//
// Layout. W (n_rows, n_columns) is cut in tiles of 64 x 128, tile (row, column) number
// row * n_column_tiles + column; what sticks out is not kept. A tile is four strips of 16 x 128,
// one a warp; a strip is eight steps of 16 x 16, the A operand of one mma; a step is four
// sub-tiles of 8 x 8, in the order of the operand's registers: (rows 0-7, columns 0-7), (8-15,
// 0-7), (0-7, 8-15), (8-15, 8-15). In a sub-tile, lane l holds row l / 4, columns 2 (l % 4) and
// the next: bits 2 l and 2 l + 1 in row-major order. So a lane finds its values by counting the
// bits below its own.
//   words   uint32 (n_tiles, 4 strips, 2 halves, 32 sub-tiles): rows 0-3 and 4-7 of a sub-tile;
//           halves apart, so that a lane reads its half of a step's words as 16 bytes
//   values  the kept ones by tile, strip, sub-tile, half, bit; each tile filled up to 16 bytes
//   starts  int32 (n_tiles + 1): where a tile's values begin, in 16 bytes
// Bytes a weight at density d: 2 d + 1/8 (+ 12 / 8192 of starts and filling), so the bound against
// dense 2 bytes is 1.78x at d = 0.5, 2.75x at 0.3, 6.1x at 0.1.
//
// Work. 128 threads take a row of tiles, a part of its columns and 16, 32 or 64 rows of x;
// cp.async streams words, values and x through three stages, two of them on their way. Decoding
// costs the same at every density: 12 instructions a sub-tile and warp, 19 with copies and the scan
// of counts. That is 5 million for 4096 x 4096, which 132 multiprocessors issue in 5.3 us at
// 1.75 GHz, against 10 us that reading the dense weight takes at 3.35 TB/s (counted in the machine
// code, not measured). So the bytes bound what is gained at d = 0.5 and above; below that decoding
// does, and 1.8x is what to hope for, not 2.75x or 6.1x.
// Partial sums of parts go to a workspace and are added in order by a second kernel, so that
// results do not depend on timing.
//
// The product is that of the dense matrix: 0 * inf = NaN where a weight is pruned, too.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

struct BitmapTiling {
  static constexpr int kRows = 64, kColumns = 128;        // of a tile
  static constexpr int kStrips = 4, kStripRows = 16;      // a strip is a warp's
  static constexpr int kSteps = 8, kSubtiles = 32;        // of a strip: mma steps, 8 x 8
  static constexpr int kWords = kStrips * 2 * kSubtiles;  // of a tile
  static constexpr int kValues = kRows * kColumns;
  static constexpr int kUnit = 8;  // values in 16 bytes
  static_assert(kStrips * kStripRows == kRows && kSteps * 16 == kColumns);
};

struct BitmapMatrix {
  const uint32_t* words;
  const void* values;
  const int32_t* starts;
  int64_t n_rows, n_columns;
  int64_t n_units;  // of values: 16 bytes each
};

// T (bf16 or f16) for x, values and y.
struct BitmapProduct : BitmapMatrix {
  const void* x;      // (m, n_columns), n_columns a multiple of 8, 16-byte aligned
  const float* bias;  // (n_rows), or null
  float* partial;     // (n_parts, m, n_rows)
  void* y;            // (m, n_rows)
  int64_t m;
  int most_values;  // of a tile
  int n_parts;      // of the columns
};

// Parts that make blocks enough for this device.
int bitmap_parts(const Stream& stream, int64_t m, int64_t n_rows, int64_t n_columns);

template <class T>
Status bitmap_spmm(const Stream& stream, const BitmapProduct& p);

// out (n_rows, n_columns), 16 bits each, zeros where nothing is kept; 4-byte aligned.
Status bitmap_unpack(const Stream& stream, const BitmapMatrix& w, void* out);

}  // namespace ds::gpu
