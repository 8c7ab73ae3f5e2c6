// y = x W^T + bias, and y = x W, where W keeps whole square blocks: for large batches, in which the
// multiplications are what takes the time.
//
// W (n_rows, n_columns) is stored as blocks (n_blocks, size, size) in row-major order of blocks,
// with zeros where the last ones stick out; size is 32, 64 or 128. A line is a row of blocks, or,
// of the transposed product, a column of them: `starts` says where its blocks begin in `inner`, the
// number of each block along the other axis, and `order`, which of the stored blocks it is.
//
// A thread block makes 128 rows of y times one line: for each kept block of the line, 32 or 64
// columns of x and of the block at a time, through three or four stages of cp.async, ldmatrix and
// mma, each warp 64 x 32 (32 x 32 where size is 32) of y in registers. Nothing is done for a block
// that is not kept; with 4096 x 4096 x 4096 and a tenth of the blocks there are 13.7 GFLOP left and
// 70 MB to read and write, 21 us of an H100, which, at the 400 to 500 TFLOP/s that mma.sync
// gives, computes in 30. An L2 of 50 MB keeps x; per block of 128, 128 x 128 products share 64 KB:
// 64 flops a byte read.
//
// Blocks that are kept are multiplied as the dense matrix, inf and NaN included; x at the others is
// not looked at.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// T (bf16 or f16) for x, blocks and y.
struct BlockProduct {
  const void* x;          // (m, n_inner), n_inner a multiple of 8, 16-byte aligned
  const void* blocks;     // (n_blocks, size, size), 16-byte aligned
  const int32_t* starts;  // (ceil(n_outer / size) + 1)
  const int32_t* inner;   // (n_blocks)
  const int32_t* order;   // (n_blocks)
  const float* bias;      // (n_outer), or null
  void* y;                // (m, n_outer)
  int64_t m, n_outer, n_inner, n_blocks;
};

constexpr int kBlockUnit = 8;  // values in 16 bytes
constexpr bool is_block_size(int64_t size) {
  return size == 32 || size == 64 || size == 128;
}

// `transposed`: y = x W, and lines are columns of blocks.
template <class T>
Status block_spmm(const Stream& stream, const BlockProduct& p, int size, bool transposed);

}  // namespace ds::gpu
