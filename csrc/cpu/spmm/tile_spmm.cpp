#include "cpu/spmm/tile_spmm.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/reference.h"

namespace ds {
namespace {

// The rows of x that are multiplied with all weights before the next: three quarters of the 2 MiB
// of cache that machines with tiles have for each core, so that weights, which are read once a
// panel, pass through the rest.
constexpr int64_t kPanelBytes = int64_t{3} << 19;
constexpr int64_t kJobsPerThread = 4;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Halves of a panel: an even number, panels of one size.
int64_t panel_halves(const TileRows& rows) {
  const int64_t pair_bytes = kGroupRows * rows.row_stride * static_cast<int64_t>(sizeof(bf16));
  const int64_t n_pairs = ceil_div(rows.n_halves, 2);
  const int64_t most =
      std::clamp(kPanelBytes / std::max<int64_t>(1, pair_bytes), int64_t{1}, kPanelPairs);
  return 2 * ceil_div(n_pairs, ceil_div(n_pairs, most));
}

}  // namespace

int64_t tile_rows_workspace(int64_t n_rows, int64_t n_in) {
  if (n_in % kTileDepth != 0)
    return ceil_div(n_rows, kHalfRows) * kHalfRows * n_tile_blocks(n_in) * kTileDepth;
  return n_rows % kHalfRows != 0 ? kHalfRows * n_in : 0;
}

TileRows plain_tile_rows(const bf16* x, int64_t n_rows, int64_t n_in, bf16* workspace,
                         int n_threads) {
  const int64_t n_halves = ceil_div(n_rows, kHalfRows);
  const int64_t stride = n_tile_blocks(n_in) * kTileDepth;
  // all of x where its rows end within a tile, else the last half, if it is not full
  const bool all = stride != n_in;
  const int64_t first = all ? 0 : n_rows / kHalfRows * kHalfRows;
  parallel_for(n_halves - first / kHalfRows, n_threads, [&](int64_t half) {
    for (int64_t r = half * kHalfRows; r < (half + 1) * kHalfRows; ++r) {
      const bool exists = first + r < n_rows;
      bf16* row = workspace + r * stride;
      if (exists) std::copy_n(x + (first + r) * n_in, n_in, row);
      std::fill(row + (exists ? n_in : 0), row + stride, bf16{0});
    }
  });
  return {all ? workspace : x,
          stride,
          nullptr,
          nullptr,
          nullptr,
          n_halves,
          !all && n_rows % kHalfRows != 0 ? workspace : nullptr};
}

void tile_spmm(const TileSpmm& t, int n_threads) {
  const int64_t n_block_rows = n_tile_blocks(t.weight.n_out);
  if (t.rows.n_halves == 0 || n_block_rows == 0) return;
  const int64_t halves = panel_halves(t.rows), n_panels = ceil_div(t.rows.n_halves, halves);
  // How rows of blocks are cut into jobs shows in no result.
  const int64_t n_jobs = n_threads > 1 ? kJobsPerThread * n_threads : 1;
  const int64_t job_rows = ceil_div(n_block_rows, n_jobs);
  const int64_t jobs_a_panel = ceil_div(n_block_rows, job_rows);
  auto* const kernel = kernel_table().tile_spmm;
  parallel_for(n_panels * jobs_a_panel, n_threads, [&](int64_t job) {
    const int64_t half = job / jobs_a_panel * halves, row = job % jobs_a_panel * job_rows;
    const TileSpmmPart part{t, half, std::min(t.rows.n_halves, half + halves), row,
                            std::min(n_block_rows, row + job_rows)};
    kernel != nullptr ? kernel(part) : tile_spmm_ref(part);
  });
}

}  // namespace ds
