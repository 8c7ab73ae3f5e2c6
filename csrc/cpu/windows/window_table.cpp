// The table of one tile of rows stays in L2 between its two passes: inactive entries are written
// for all taps, then each offset's pairs of the tile overwrite theirs. Memory sees every entry
// once.
#include <algorithm>

#include "core/parallel.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

constexpr int64_t kTileEntries = 16 * 1024;  // 64 KiB of table
constexpr int64_t kMinTileRows = 64;         // or the binary searches outweigh the pairs

void write_inactive(const WindowTableArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t n = a.pairs.n_offsets;
  if (a.out_class == nullptr) {
    std::fill(a.table + row_begin * n, a.table + row_end * n, kNoTap);
    return;
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t* taps = a.tap_class + a.out_class[row] * n;
    const int64_t first = a.out_batch != nullptr ? a.out_batch[row] * a.rows_per_sample : 0;
    const int32_t base = static_cast<int32_t>(-2 - first);
    int32_t* out = a.table + row * n;
    for (int64_t k = 0; k < n; ++k) out[k] = taps[k] < 0 ? kNoTap : base - taps[k];
  }
}

}  // namespace

void window_table(const WindowTableArgs& a, int n_threads) {
  const PairList& p = a.pairs;
  const int64_t n = p.n_offsets;
  const int64_t tile_rows = std::max(kMinTileRows, kTileEntries / std::max<int64_t>(n, 1));
  parallel_for((a.n_out + tile_rows - 1) / tile_rows, n_threads, [&](int64_t tile) {
    const int64_t row_begin = tile * tile_rows, row_end = std::min(a.n_out, row_begin + tile_rows);
    write_inactive(a, row_begin, row_end);
    for (int64_t k = 0; k < n; ++k) {
      const int32_t* end = p.dst + p.offset_start[k + 1];
      const int32_t* dst = std::lower_bound(p.dst + p.offset_start[k], end, row_begin);
      const int32_t* src = p.src + (dst - p.dst);
      for (; dst < end && *dst < row_end; ++dst, ++src) a.table[*dst * n + k] = *src;
    }
  });
}

}  // namespace ds
