// A neighbour table turned around, and to lists and back.
#include "cuda/rulebook/neighbours.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    reverse_kernel(const int32_t* table, int64_t n_offsets, int64_t n_dst, int32_t* reversed,
                   int64_t n_src) {
  for (int64_t k = blockIdx.y; k < n_offsets; k += gridDim.y)
    for (int64_t d = thread_index(); d < n_dst; d += n_threads()) {
      const int64_t s = table[k * n_dst + d];
      if (s >= 0 && s < n_src) reversed[k * n_src + s] = static_cast<int32_t>(d);
    }
}

struct Tile {
  int64_t offset, begin, end;  // destination rows
};
DS_DEVICE Tile tile_at(int64_t index, int64_t n_dst) {
  const int64_t a_offset = tiles_of(n_dst), offset = index / a_offset;
  const int64_t begin = (index - offset * a_offset) * kTileRows;
  return {offset, begin, begin + kTileRows < n_dst ? begin + kTileRows : n_dst};
}

// A warp per tile. counts has one entry more than there are tiles, a zero, so that its sums end
// with the total.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const int32_t* table, int64_t n_tiles, int64_t n_dst, int32_t* counts) {
  const int64_t n_warps = n_threads() / kWarp;
  for (int64_t i = thread_index() / kWarp; i <= n_tiles; i += n_warps) {
    int n = 0;
    if (i < n_tiles) {
      const Tile tile = tile_at(i, n_dst);
      for (int64_t begin = tile.begin; begin < tile.end; begin += kWarp) {
        const int64_t d = begin + lane_index();
        n += count_bits(ballot(d < tile.end && table[tile.offset * n_dst + d] >= 0));
      }
    }
    if (lane_index() == 0) counts[i] = n;
  }
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(const int32_t* table, int64_t n_tiles, int64_t n_dst, const int64_t* tile_start,
                int32_t* src_rows, int32_t* dst_rows, int64_t n_pairs) {
  const int64_t n_warps = n_threads() / kWarp;
  for (int64_t i = thread_index() / kWarp; i < n_tiles; i += n_warps) {
    const Tile tile = tile_at(i, n_dst);
    int64_t at = tile_start[i];
    for (int64_t begin = tile.begin; begin < tile.end; begin += kWarp) {
      const int64_t d = begin + lane_index();
      const int32_t s = d < tile.end ? table[tile.offset * n_dst + d] : -1;
      const uint32_t bits = ballot(s >= 0);
      const int64_t to = at + count_bits(bits & ((uint32_t{1} << lane_index()) - 1));
      if (s >= 0 && to >= 0 && to < n_pairs) {
        src_rows[to] = s;
        dst_rows[to] = static_cast<int32_t>(d);
      }
      at += count_bits(bits);
    }
  }
}

// The last offset whose list starts at or before pair i.
DS_DEVICE int64_t offset_of(const PairLists& lists, int64_t i) {
  int64_t low = 0, high = lists.n_offsets - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (lists.offset_start[middle] <= i)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    scatter_kernel(PairLists lists, int32_t* table, int64_t n_src, int64_t n_dst) {
  for (int64_t i = thread_index(); i < lists.n_pairs; i += n_threads()) {
    const int64_t s = lists.src_rows[i], d = lists.dst_rows[i];
    if (s >= 0 && s < n_src && d >= 0 && d < n_dst)
      table[offset_of(lists, i) * n_dst + d] = static_cast<int32_t>(s);
  }
}

constexpr int64_t kWarpsABlock = kThreads / kWarp;

}  // namespace

Status reverse_table(const Stream& stream, const int32_t* table, int64_t n_offsets, int64_t n_dst,
                     int32_t* reversed, int64_t n_src) {
  const Status status = fill_bytes(stream, reversed, 0xff, 4 * n_offsets * n_src);
  if (status != 0) return status;
  const Grid grid{blocks_for(n_dst, kThreads), n_offsets < 65535 ? n_offsets : 65535};
  return launch(stream, grid, kThreads, 0, reverse_kernel, table, n_offsets, n_dst, reversed,
                n_src);
}

Status count_pairs(const Stream& stream, const Workspace& workspace, const int32_t* table,
                   int64_t n_offsets, int64_t n_dst, int32_t* counts, int64_t* tile_start) {
  const int64_t n_tiles = n_offsets * tiles_of(n_dst);
  const Status status = launch(stream, {blocks_for(n_tiles + 1, kWarpsABlock)}, kThreads, 0,
                               count_kernel, table, n_tiles, n_dst, counts);
  if (status != 0) return status;
  return exclusive_sum(stream, workspace, counts, tile_start, n_tiles + 1);
}

Status fill_pairs(const Stream& stream, const int32_t* table, int64_t n_offsets, int64_t n_dst,
                  const int64_t* tile_start, int32_t* src_rows, int32_t* dst_rows,
                  int64_t n_pairs) {
  const int64_t n_tiles = n_offsets * tiles_of(n_dst);
  return launch(stream, {blocks_for(n_tiles, kWarpsABlock)}, kThreads, 0, fill_kernel, table,
                n_tiles, n_dst, tile_start, src_rows, dst_rows, n_pairs);
}

Status table_of_lists(const Stream& stream, const PairLists& lists, int32_t* table, int64_t n_src,
                      int64_t n_dst) {
  const Status status = fill_bytes(stream, table, 0xff, 4 * lists.n_offsets * n_dst);
  if (status != 0 || lists.n_offsets == 0) return status;
  return launch(stream, {blocks_for(lists.n_pairs, kThreads)}, kThreads, 0, scatter_kernel, lists,
                table, n_src, n_dst);
}

}  // namespace ds::gpu
