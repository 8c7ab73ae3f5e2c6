// bfloat16 convolution with matrix tiles (AMX) over rows in groups; sums in float32, rounded once.
// Which convolutions it takes depends on sizes and instruction set alone. Torch-free; the caller
// allocates everything.
#pragma once
#include <cstdint>

#include "core/half.h"
#include "cpu/conv/conv.h"
#include "cpu/conv/row_groups.h"

namespace ds {

// A matrix tile multiplies 16 rows x 32 channels by 32 channels x 16 columns.
constexpr int64_t kTileDepth = 32, kTileColumns = 16, kTileValues = kTileDepth * kTileColumns;
// Columns are multiplied by two tiles at a time.
constexpr int64_t kBlockColumns = 2 * kTileColumns;

// Below these sizes padding to whole tiles costs more than tiles gain.
constexpr int64_t kLeastTileChannels = 16;
bool takes_tiles(int64_t c_in, int64_t c_out, int64_t groups);

// Elements of bfloat16.
int64_t group_conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets);
// args.workspace holds group_conv_workspace() values, args.groups is 1.
void group_conv(const ConvArgs<bf16>& args, const RowGroups& groups, int n_threads);

// The row groups [begin, end).
struct GroupConvTile {
  const bf16* x;  // (n_src, c_in)
  // [column block][offset][depth block][2 tiles][16 channel pairs][16 columns][2], zero-padded
  const bf16* w;
  bool is_finite;  // all of w. If not, it must not meet the zeros that stand for missing rows.
  int64_t n_offsets, c_in, c_out;
  bf16* y;            // (n_dst, c_out)
  const float* bias;  // (c_out) or null
  const float* u;     // (n_u, c_out) or null, with u_start and u_rows: see ConvArgs
  const int64_t* u_start;
  const int32_t* u_rows;
  RowGroups groups;
  int64_t begin, end;
};

}  // namespace ds
