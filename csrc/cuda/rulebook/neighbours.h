// The GPU's rulebook: the neighbour table, int32 (n_offsets, n_query), contiguous. Entry [k][q] is
// the target row at
//
//   query position * stride - padding + tap * dilation       (per axis; same sample)
//
// or -1: the contract of cpu/rulebook/rulebook.h without lists, whose lengths would have to be read
// back. A table takes three launches, and no look at it from the host.
//
// Bound: 4 bytes written per (query site, offset). What is read comes from the L2 cache: a query's
// 4 * (1 + n_axes) bytes once per kernel row (a row: the taps of the last axis), and 8 bytes per
// tap from the bitmap, or 8 * log2(n_target) per row from the sorted keys.
#pragma once
#include "cuda/algorithms.h"
#include "cuda/sites/keys.h"

namespace ds::gpu {

struct TapGeometry {
  int64_t kernel[kMostAxes], stride[kMostAxes], padding[kMostAxes], dilation[kMostAxes];
};

// 32 cells of the grid in row-major order: which are sites, and the row of the first that is.
struct alignas(8) Cells {
  uint32_t bits;
  int32_t first_row;
};

struct NeighbourProblem {
  const int32_t* query;   // (n_query, 1 + n_axes) = [batch, spatial...]
  const int32_t* target;  // (n_target, 1 + n_axes), in lexicographic order, unique
  int64_t n_query, n_target;
  GridShape shape;  // the target's
  TapGeometry taps;
  int64_t n_rows;  // kernel rows: the product of kernel[] without the last, below 2^31
  // Workspaces. The bitmap is used where it is long enough for all samples, which only the device
  // knows (the last site's batch): elsewhere the keys are searched. Both give the same table.
  Cells* bitmap;  // (n_bitmap)
  int64_t n_bitmap;
  int64_t* keys;   // (n_target)
  int32_t* table;  // (n_offsets, n_query)
};
Status neighbour_table(const Stream& stream, const NeighbourProblem& problem);

// rev[k][s] = d where table[k][d] = s, else -1: (n_offsets, n_src). 4 bytes read, 8 written.
Status reverse_table(const Stream& stream, const int32_t* table, int64_t n_offsets, int64_t n_dst,
                     int32_t* reversed, int64_t n_src);

// Lists of a table, sorted by (offset, destination row), are made in tiles: a tile is kTileRows
// entries of one offset. count_pairs() fills counts and tile_start, both (n_tiles + 1); the lists'
// length is tile_start's last, and tile_start[k * tiles of an offset] is where offset k starts.
constexpr int64_t kTileRows = 512;
DS_HOST_DEVICE constexpr int64_t tiles_of(int64_t n_dst) {
  return ceil_div(n_dst, kTileRows);
}
Status count_pairs(const Stream& stream, const Workspace& workspace, const int32_t* table,
                   int64_t n_offsets, int64_t n_dst, int32_t* counts, int64_t* tile_start);
Status fill_pairs(const Stream& stream, const int32_t* table, int64_t n_offsets, int64_t n_dst,
                  const int64_t* tile_start, int32_t* src_rows, int32_t* dst_rows, int64_t n_pairs);

// The table of lists; a pair that names a row outside of it is left out.
struct PairLists {
  const int32_t *src_rows, *dst_rows;
  const int64_t* offset_start;  // (n_offsets + 1)
  int64_t n_offsets, n_pairs;
};
Status table_of_lists(const Stream& stream, const PairLists& lists, int32_t* table, int64_t n_src,
                      int64_t n_dst);

}  // namespace ds::gpu
