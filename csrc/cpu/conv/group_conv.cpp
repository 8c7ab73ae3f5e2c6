#include "cpu/conv/group_conv.h"

#include <algorithm>
#include <atomic>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// Groups of a job: a job starts its stream of rows anew, which costs as much as a few groups.
constexpr int64_t kLeastGroups = 8, kMostGroups = 128, kJobsPerThread = 4;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The tiles of all offsets for 32 columns and 32 input channels, from torch's layout, whose offsets
// lie together. Returns whether all values are finite.
bool pack_block(const ConvArgs<bf16>& a, int64_t block, int64_t depth) {
  const int64_t n_offsets = a.pairs.n_offsets, n_depth = ceil_div(a.c_in, kTileDepth);
  // (c_out, c_in, n_offsets), or (c_in, c_out, n_offsets) where transposed
  const int64_t in_stride = a.transposed ? a.c_out * n_offsets : n_offsets;
  const int64_t out_stride = a.transposed ? n_offsets : a.c_in * n_offsets;
  const int64_t tiles_stride = n_depth * 2 * kTileValues;
  bf16* tiles = reinterpret_cast<bf16*>(a.workspace) + block * n_offsets * tiles_stride +
                depth * 2 * kTileValues;
  bool finite = true;
  for (int64_t column = 0; column < kBlockColumns; ++column) {
    for (int64_t channel = 0; channel < kTileDepth; ++channel) {
      const int64_t o = block * kBlockColumns + column, c = depth * kTileDepth + channel;
      const bf16* from = a.weight + o * out_stride + c * in_stride;
      bf16* into = tiles + column / kTileColumns * kTileValues + channel / 2 * 2 * kTileColumns +
                   column % kTileColumns * 2 + channel % 2;
      const bool exists = o < a.c_out && c < a.c_in;
      for (int64_t k = 0; k < n_offsets; ++k) {
        const bf16 value = exists ? from[k] : bf16{0};
        into[k * tiles_stride] = value;
        finite &= (value.bits & 0x7f80) != 0x7f80;
      }
    }
  }
  return finite;
}

}  // namespace

bool takes_tiles(int64_t c_in, int64_t c_out, int64_t groups) {
  return kernel_table().group_conv != nullptr && groups == 1 && c_in >= kLeastTileChannels &&
         c_out >= kLeastTileChannels;
}

int64_t group_conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets) {
  return ceil_div(c_out, kBlockColumns) * n_offsets * ceil_div(c_in, kTileDepth) * 2 * kTileValues;
}

void group_conv(const ConvArgs<bf16>& a, const RowGroups& groups, int n_threads) {
  const int64_t n_depth = ceil_div(a.c_in, kTileDepth);
  std::atomic<bool> is_finite{true};
  parallel_for(ceil_div(a.c_out, kBlockColumns) * n_depth, n_threads, [&](int64_t job) {
    if (!pack_block(a, job / n_depth, job % n_depth)) is_finite = false;
  });
  // How the groups are cut into jobs shows in no result.
  const int64_t job_groups = std::clamp(groups.n_groups / (kJobsPerThread * std::max(1, n_threads)),
                                        kLeastGroups, kMostGroups);
  parallel_for(ceil_div(groups.n_groups, job_groups), n_threads, [&](int64_t job) {
    GroupConvTile t{};
    t.x = a.x;
    t.w = reinterpret_cast<const bf16*>(a.workspace);
    t.is_finite = is_finite;
    t.n_offsets = a.pairs.n_offsets;
    t.c_in = a.c_in;
    t.c_out = a.c_out;
    t.y = a.y;
    t.bias = a.bias;
    t.u = a.u;
    t.u_start = a.u_start;
    t.u_rows = a.u_rows;
    t.groups = groups;
    t.begin = job * job_groups;
    t.end = std::min(groups.n_groups, t.begin + job_groups);
    kernel_table().group_conv(t);
  });
}

}  // namespace ds
