// Ground reads of a window table as CSR. Deduplication by one flag per (offset, class row):
// offset-major, so that numbering the flags in memory order sorts the result.
//
// Tile     a thread has a row, its entries come through shared memory (table_tile.h).
// Bound    bytes: the table twice (count, fill), the flags three times.
#include "cuda/windows/table_tile.h"
#include "cuda/windows/windows.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

// f(offset, entry) for the entries of the thread's row, offsets ascending.
template <class F>
DS_DEVICE void for_row_entries(const Taps& a, const F& f) {
  TableTile& tile = shared<TableTile>();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * TableTile::kRows;
  const int row = static_cast<int>(threadIdx.x);
  for (int64_t k = 0; k < a.n_offsets; k += TableTile::kOffsets) {
    const TileExtent t = tile_extent(first_row, k, a.n_out, a.n_offsets);
    for_entries(t, a.n_offsets,
                [&](int r, int offset, int64_t place) { tile.at(r, offset) = a.table[place]; });
    sync_block();
    for (int offset = 0; row < t.n_rows && offset < t.n_offsets; ++offset)
      f(k + offset, tile.at(row, offset));
    sync_block();
  }
}

// counts[row] = taps of the row; marks what it needs, where there are flags. Threads meet in a flag
// only to write the same 1.
__global__ void count_kernel(Taps a, int32_t* flags) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * TableTile::kRows + threadIdx.x;
  int32_t n = 0;
  bool good = true;
  for_row_entries(a, [&](int64_t offset, int32_t entry) {
    const int64_t class_row = INT64_C(-2) - entry;
    if (class_row < 0) return;
    ++n;
    if (class_row >= a.n_class_rows)
      good = false;
    else if (flags != nullptr)
      flags[offset * a.n_class_rows + class_row] = 1;
  });
  if (row <= a.n_out) a.counts[row] = n;
  if (!good) a.found[2] = 1;
}

// u_rows from start[row] on: the flag's number, or the flag itself where nothing is numbered.
__global__ void fill_kernel(Taps a, const int64_t* numbers, int64_t n_taps, int32_t* u_rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * TableTile::kRows + threadIdx.x;
  int64_t at = row < a.n_out ? a.start[row] : 0;
  for_row_entries(a, [&](int64_t offset, int32_t entry) {
    const int64_t class_row = INT64_C(-2) - entry;
    if (class_row < 0 || class_row >= a.n_class_rows || at < 0 || at >= n_taps) return;
    const int64_t flag = offset * a.n_class_rows + class_row;
    u_rows[at++] = static_cast<int32_t>(numbers != nullptr ? numbers[flag] : flag);
  });
}

__global__ void offsets_kernel(GroundTaps g) {
  const Taps& a = g.taps;
  for (int64_t k = thread_index(); k <= a.n_offsets; k += n_threads())
    g.u_offset_start[k] = g.numbers[k * a.n_class_rows];
}

__global__ void class_rows_kernel(GroundTaps g, int64_t n_u, int32_t* class_rows) {
  const int64_t n_class_rows = g.taps.n_class_rows;
  for (int64_t i = thread_index(); i < g.taps.n_offsets * n_class_rows; i += n_threads())
    if (g.flags[i] != 0 && g.numbers[i] < n_u)
      class_rows[g.numbers[i]] = static_cast<int32_t>(i % n_class_rows);
}

__global__ void totals_kernel(Taps a, const int64_t* n_u) {
  if (thread_index() > 0) return;
  a.found[0] = a.start[a.n_out];
  a.found[1] = n_u != nullptr ? *n_u : 0;
}

Status count_taps(const Stream& stream, const Workspace& workspace, const Taps& a, int32_t* flags) {
  Status status = fill_bytes(stream, a.found, 0, 3 * int64_t{sizeof(int64_t)});
  if (status == 0)  // one row more than there are: its count is 0
    status = launch(stream, {ceil_div(a.n_out + 1, TableTile::kRows)}, TableTile::kRows,
                    sizeof(TableTile), count_kernel, a, flags);
  if (status != 0) return status;
  return exclusive_sum(stream, workspace, a.counts, a.start, a.n_out + 1);
}

Status fill_taps(const Stream& stream, const Taps& a, const int64_t* numbers, int64_t n_taps,
                 int32_t* u_rows) {
  return launch(stream, {ceil_div(a.n_out, TableTile::kRows)}, TableTile::kRows, sizeof(TableTile),
                fill_kernel, a, numbers, n_taps, u_rows);
}

}  // namespace

Status plan_every_tap(const Stream& stream, const Workspace& workspace, const Taps& a) {
  const Status status = count_taps(stream, workspace, a, nullptr);
  if (status != 0) return status;
  const int64_t* n_u = nullptr;
  return launch(stream, {1}, kWarp, 0, totals_kernel, a, n_u);
}

Status fill_every_tap(const Stream& stream, const Taps& a, int64_t n_taps, int32_t* u_rows) {
  return fill_taps(stream, a, nullptr, n_taps, u_rows);
}

Status plan_ground_taps(const Stream& stream, const Workspace& workspace, const GroundTaps& g) {
  const Taps& a = g.taps;
  const int64_t n_flags = a.n_offsets * a.n_class_rows;
  Status status = fill_bytes(stream, g.flags, 0, (1 + n_flags) * int64_t{sizeof(int32_t)});
  if (status == 0) status = count_taps(stream, workspace, a, g.flags);
  if (status == 0) status = exclusive_sum(stream, workspace, g.flags, g.numbers, 1 + n_flags);
  if (status == 0)
    status =
        launch(stream, {blocks_for(a.n_offsets + 1, kThreads)}, kThreads, 0, offsets_kernel, g);
  if (status != 0) return status;
  const int64_t* n_u = g.numbers + n_flags;
  return launch(stream, {1}, kWarp, 0, totals_kernel, a, n_u);
}

Status fill_ground_taps(const Stream& stream, const GroundTaps& g, int64_t n_taps, int64_t n_u,
                        int32_t* u_rows, int32_t* class_rows) {
  const int64_t n_flags = g.taps.n_offsets * g.taps.n_class_rows;
  const Status status = launch(stream, {blocks_for(n_flags, kThreads)}, kThreads, 0,
                               class_rows_kernel, g, n_u, class_rows);
  if (status != 0) return status;
  return fill_taps(stream, g.taps, g.numbers, n_taps, u_rows);
}

}  // namespace ds::gpu
