// The table of SIMD kernels: one per instruction set, chosen once per process. A kernel works on
// one tile or one block on the calling thread; it owns neither threads nor memory and cannot fail.
#pragma once
#include <cstdint>

#include "core/cpu_features.h"
#include "core/half.h"
#include "cpu/codes/nearest.h"
#include "cpu/codes/agree.h"
#include "cpu/conv/depthwise.h"
#include "cpu/conv/group_conv.h"
#include "cpu/lowrank/force.h"
#include "cpu/pool/pool.h"
#include "cpu/rows/rows.h"
#include "cpu/spmm/spmm.h"
#include "cpu/spmm/tile_spmm.h"

namespace ds {

// y[dst] = bias + sum of u rows + sum_k W_k x[src], for the output rows [row_begin, row_end).
// The list of offset k is pairs [offset_start[k], offset_start[k + 1]), ascending in dst: the
// tile's part of it is found by binary search. For every output the sum runs over offsets, then
// input channels, ascending, in one chain of multiply-adds: its bits depend on neither the tile nor
// the grouping of rows.
constexpr int64_t kNarrowColumns = 4;  // up to here a weight is packed with panel width 1

template <class T>
struct GemmTile {
  const T* x;  // (n_src, ldx), this group's c_in columns from column 0
  int64_t ldx;
  const T* w;  // packed: [offset][panel][c_in][width], zero-padded; width = packed_width()
  int64_t n_offsets, c_in, c_out;
  T* y;  // (n_dst, ldy)
  int64_t ldy;
  const T* bias;  // (c_out) or null
  const T* u;     // (n_u, ldy) or null: values to add to a row, CSR by output row
  const int64_t* u_start;
  const int32_t* u_rows;
  const int32_t* src;
  const int32_t* dst;
  const int64_t* offset_start;
  int64_t row_begin, row_end;
};

// dw += sum over pairs of x[src]^T dy[dst]: (c_in, ldw), ldw = c_out rounded up to the panel width.
template <class T>
struct WeightGradBlock {
  const T* x;
  int64_t ldx;
  const T* dy;
  int64_t ldy;
  const int32_t* src;
  const int32_t* dst;
  int64_t n_pairs, c_in, c_out;
  Acc<T>* dw;
  int64_t ldw;
};

// Both of a pruned weight (cpu/conv/kept.h): the channels of the list of offset k and panel p are
// channels[start[k * n_panels + p]] .. channels[start[k * n_panels + p + 1] - 1].
template <class T>
struct KeptTile : GemmTile<T> {  // w: [entry][width], entries counted as in `start`
  const int64_t* start;
  const int32_t* channels;
  int64_t width, n_panels;
};
template <class T>
struct KeptGradBlock : WeightGradBlock<T> {  // one offset; dw: [entry][width], ldw is not read
  const int64_t* start;
  const int32_t* channels;
  int64_t width, n_panels;
};

// What every floating type has.
template <class T>
struct RowKernels {
  // rows [row_begin, row_end) of the table
  void (*window_max)(const WindowArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*window_sum)(const WindowArgs<T>&, int64_t row_begin, int64_t row_end);
  // These two leave out segments longer than kSegmentChunk: the driver cuts them up
  // (cpu/rows/segments.h).
  void (*window_max_grad)(const WindowMaxGradArgs<T>&);
  void (*segment_sum)(const SegmentSumArgs<T>&);
};

template <class T>
struct KernelSet : RowKernels<T> {
  int panel_width;  // columns of a packed weight panel
  void (*gemm_tile)(const GemmTile<T>&);
  void (*weight_grad_block)(const WeightGradBlock<T>&);
  // c_in == c_out == the channels, w (n_offsets, channels)
  void (*depthwise_tile)(const GemmTile<T>&);
  void (*depthwise_grad_chunk)(const DepthwiseGradChunk<T>&);
  SpmmKernels<T> spmm;  // products with pruned weights
  void (*kept_tile)(const KeptTile<T>&);
  void (*kept_grad)(const KeptGradBlock<T>&);
  ForceKernels<T> force;
};

// bfloat16 and float16: convolutions run on the float32 kernels, between two conversions.
template <class T>
struct HalfKernelSet : RowKernels<T> {
  void (*widen)(const T* from, int64_t n, float* into);
  void (*round)(const float* from, int64_t n, T* into);
};

struct KernelTable {
  Isa isa;
  KernelSet<float> f32;
  KernelSet<double> f64;
  HalfKernelSet<bf16> b16;
  HalfKernelSet<f16> h16;
  NearestKernels nearest;
  AgreeKernels<uint8_t> agree8;
  AgreeKernels<uint16_t> agree16;
  // With matrix tiles; null where there are none. dw is padded to 32 x 32 in both dimensions.
  void (*group_conv)(const GroupConvTile&);
  void (*tile_weight_grad)(const WeightGradBlock<bf16>&);
  void (*tile_spmm)(const TileSpmmPart&);
};

const KernelTable& kernel_table();            // of the chosen ISA
const KernelTable* kernel_table_of(Isa isa);  // null where not compiled in
Isa chosen_isa();                             // DOUBLESPARSE_ISA caps what detected_isa() found

template <class T>
const auto& kernels() {
  if constexpr (sizeof(T) == 8)
    return kernel_table().f64;
  else if constexpr (sizeof(T) == 4)
    return kernel_table().f32;
  else if constexpr (kIsBfloat<T>)
    return kernel_table().b16;
  else
    return kernel_table().h16;
}

// Columns of a group's packed weight.
template <class T>
int64_t packed_width(int64_t c_out) {
  return c_out <= kNarrowColumns ? 1 : kernels<T>().panel_width;
}

}  // namespace ds
