// The scalar kernels: plain statements of what the SIMD kernels compute, kept as their oracle
// (DOUBLESPARSE_ISA=reference). Each family defines its own in <op>_ref.cpp; reference.cpp gathers
// them.
#pragma once
#include "cpu/kernels.h"

namespace ds {

template <class T>
void gemm_tile_ref(const GemmTile<T>& t);
template <class T>
void weight_grad_block_ref(const WeightGradBlock<T>& t);
template <class T>
void depthwise_tile_ref(const GemmTile<T>& t);
template <class T>
void depthwise_grad_chunk_ref(const DepthwiseGradChunk<T>& t);
template <class T>
void kept_tile_ref(const KeptTile<T>& t);
template <class T>
void kept_grad_ref(const KeptGradBlock<T>& t);
template <class T>
void window_max_ref(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end);
template <class T>
void window_sum_ref(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end);
template <class T>
void window_max_grad_ref(const WindowMaxGradArgs<T>& a);
template <class T>
void segment_sum_ref(const SegmentSumArgs<T>& a);
template <class T>
void widen_ref(const T* from, int64_t n, float* into);
template <class T>
void round_ref(const float* from, int64_t n, T* into);
void tile_spmm_ref(const TileSpmmPart& part);
template <class T>
void add_distances_ref(const DistanceTile<T>& t);
template <class T>
void invert_distances_ref(T* squared, int64_t n);
template <class T>
void add_pulls_ref(const PullTile<T>& t);
template <class T>
void finish_row_ref(const ForceRow<T>& f);
void pack_centers_ref(const float* centers, int64_t n, int64_t d_sub, float* panel,
                      float* half_norm);
void nearest_tile_ref(const NearestTile& t);
template <class Code>
void agree_compare_ref(const CompareTile<Code>& t);
template <class Code>
void agree_lists_ref(const ListTile<Code>& t);

template <class T>
void spmm_tile_ref(const SpmmTile<T>& t);
template <class T>
void spmv_tile_ref(const SpmvTile<T>& t);
template <class T>
void sddmm_tile_ref(const SddmmTile<T>& t);
template <class T>
void rows_to_panel_ref(const T* x, int64_t ldx, int64_t rows, int64_t columns, T* panel,
                       int64_t width);
template <class T>
void panel_to_rows_ref(const T* panel, int64_t width, int64_t rows, int64_t columns, T* y,
                       int64_t ldy);
template <class T>
void expand_values_ref(const uint16_t* bits, int64_t n, const T* values, T* into);
template <class T>
void scale_values_ref(const int8_t* from, int64_t n, T scale, T* into);
constexpr int kRefLanes = 4;  // of the scalar kernels' panels

}  // namespace ds
