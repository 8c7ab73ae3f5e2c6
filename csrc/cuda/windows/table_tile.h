// A tile of a window table in shared memory: kRows rows by kOffsets offsets, so that a thread has a
// row of its own while the block reads and writes the table in whole lines.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// 256 rows by 16 offsets: 17 KiB, 8 blocks a multiprocessor. A row's pitch is odd, so that the
// threads of a warp, each in its row, meet 32 banks.
struct TableTile {
  static constexpr int kRows = 256, kOffsets = 16, kPitch = kOffsets + 1;
  int32_t entry[kRows * kPitch];

  DS_DEVICE int32_t& at(int row, int offset) { return entry[row * kPitch + offset]; }
};
static_assert(TableTile::kPitch % 2 == 1);

// Where the tile lies: offsets [first_offset, first_offset + n_offsets) of n_rows rows.
struct TileExtent {
  int64_t first_row, first_offset;
  int n_rows, n_offsets;
};
DS_DEVICE TileExtent tile_extent(int64_t first_row, int64_t first_offset, int64_t n_out,
                                 int64_t n_offsets) {
  const int64_t rows = n_out - first_row, offsets = n_offsets - first_offset;
  return {first_row, first_offset,
          static_cast<int>(rows < TableTile::kRows ? rows : TableTile::kRows),
          static_cast<int>(offsets < TableTile::kOffsets ? offsets : TableTile::kOffsets)};
}

// f(row, offset, place in the table) for every entry of the tile: consecutive threads have
// consecutive places.
template <class F>
DS_DEVICE void for_entries(const TileExtent& t, int64_t n_offsets, const F& f) {
  for (int i = static_cast<int>(threadIdx.x); i < t.n_rows * t.n_offsets; i += TableTile::kRows) {
    const int row = i / t.n_offsets, offset = i - row * t.n_offsets;
    f(row, offset, (t.first_row + row) * n_offsets + t.first_offset + offset);
  }
}

}  // namespace ds::gpu
