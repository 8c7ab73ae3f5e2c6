#include "cpu/conv/group_conv.h"

#include <algorithm>
#include <atomic>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// Groups of a job: a megabyte of gathered rows at 64 channels, so that starting the stream of rows
// anew is a small part of it.
constexpr int64_t kJobGroups = 32;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// All tiles of one column block and one offset, from torch's layout. Returns whether all values
// are finite.
bool pack_block(const ConvArgs<bf16>& a, int64_t block, int64_t k) {
  const int64_t k_count = a.pairs.n_offsets, n_depth = ceil_div(a.c_in, kTileDepth);
  // (c_out, c_in, k), or (c_in, c_out, k) where transposed
  const int64_t in_stride = a.transposed ? a.c_out * k_count : k_count;
  const int64_t out_stride = a.transposed ? k_count : a.c_in * k_count;
  bf16* tile = reinterpret_cast<bf16*>(a.workspace) +
               (block * k_count + k) * n_depth * 2 * kTileValues;
  bool finite = true;
  for (int64_t depth = 0; depth < n_depth; ++depth) {
    for (int64_t column = block * kBlockColumns; column < (block + 1) * kBlockColumns;
         column += kTileColumns, tile += kTileValues) {
      for (int64_t i = 0; i < kTileValues; ++i) {
        const int64_t pair = i / (2 * kTileColumns), o = column + i % (2 * kTileColumns) / 2;
        const int64_t c = depth * kTileDepth + 2 * pair + i % 2;
        const bool exists = c < a.c_in && o < a.c_out;
        tile[i] = exists ? a.weight[o * out_stride + c * in_stride + k] : bf16{0};
        finite &= (tile[i].bits & 0x7f80) != 0x7f80;
      }
    }
  }
  return finite;
}

}  // namespace

bool takes_row_groups(int64_t c_in, int64_t c_out, int64_t groups) {
  return kernel_table().group_conv != nullptr && groups == 1 && c_in >= kLeastGroupChannels &&
         c_out >= kLeastGroupChannels;
}

int64_t group_conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets) {
  return ceil_div(c_out, kBlockColumns) * n_offsets * ceil_div(c_in, kTileDepth) * 2 * kTileValues;
}

void group_conv(const ConvArgs<bf16>& a, const RowGroups& groups, int n_threads) {
  const int64_t n_offsets = a.pairs.n_offsets;
  std::atomic<bool> is_finite{true};
  parallel_for(ceil_div(a.c_out, kBlockColumns) * n_offsets, n_threads, [&](int64_t job) {
    if (!pack_block(a, job / n_offsets, job % n_offsets)) is_finite = false;
  });
  parallel_for(ceil_div(groups.n_groups, kJobGroups), n_threads, [&](int64_t job) {
    GroupConvTile t{};
    t.x = a.x;
    t.w = reinterpret_cast<const bf16*>(a.workspace);
    t.is_finite = is_finite;
    t.n_offsets = n_offsets;
    t.c_in = a.c_in;
    t.c_out = a.c_out;
    t.y = a.y;
    t.bias = a.bias;
    t.u = a.u;
    t.u_start = a.u_start;
    t.u_rows = a.u_rows;
    t.groups = groups;
    t.begin = job * kJobGroups;
    t.end = std::min(groups.n_groups, t.begin + kJobGroups);
    kernel_table().group_conv(t);
  });
}

}  // namespace ds
