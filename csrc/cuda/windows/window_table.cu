// The neighbour table, turned: offsets by rows becomes rows by offsets, through shared memory, so
// that both sides move whole lines. What has no neighbour gets its ground row on the way out.
//
// Bound    bytes: both tables once.
#include "cuda/windows/table_tile.h"
#include "cuda/windows/windows.h"

namespace ds::gpu {
namespace {

// The entry of a tap without neighbour.
DS_DEVICE int32_t inactive_tap(const WindowTable& w, int64_t row, int64_t offset) {
  if (w.out_class == nullptr) return kNoTap;
  const int64_t out_class = w.out_class[row];
  if (out_class < 0 || out_class >= w.n_classes) return kNoTap;
  int64_t class_row = w.tap_class[out_class * w.n_offsets + offset];
  if (class_row < 0) return kNoTap;
  if (w.out_batch != nullptr) {
    const int64_t sample = w.out_batch[row];
    if (sample < 0 || class_row >= w.rows_per_sample) return kNoTap;
    if (sample > kMaxClassRow / w.rows_per_sample) return kNoTap;
    class_row += sample * w.rows_per_sample;
  }
  return class_row <= kMaxClassRow ? static_cast<int32_t>(-2 - class_row) : kNoTap;
}

__global__ void table_kernel(WindowTable w) {
  TableTile& tile = shared<TableTile>();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * TableTile::kRows;
  const int row = static_cast<int>(threadIdx.x);
  for (int64_t k = 0; k < w.n_offsets; k += TableTile::kOffsets) {
    const TileExtent t = tile_extent(first_row, k, w.n_out, w.n_offsets);
    for (int offset = 0; row < t.n_rows && offset < t.n_offsets; ++offset)
      tile.at(row, offset) = w.neighbours[(k + offset) * w.n_out + first_row + row];
    sync_block();
    for_entries(t, w.n_offsets, [&](int r, int offset, int64_t place) {
      const int32_t entry = tile.at(r, offset);
      w.table[place] = entry >= 0 ? entry : inactive_tap(w, first_row + r, k + offset);
    });
    sync_block();
  }
}

}  // namespace

Status window_table(const Stream& stream, const WindowTable& w) {
  return launch(stream, {ceil_div(w.n_out, TableTile::kRows)}, TableTile::kRows, sizeof(TableTile),
                table_kernel, w);
}

}  // namespace ds::gpu
