#include "cpu/reference.h"

namespace ds {
namespace {

template <class T>
constexpr RowKernels<T> row_set() {
  return {window_max_ref<T>, window_sum_ref<T>, window_max_grad_ref<T>, segment_sum_ref<T>};
}

template <class T>
constexpr SpmmKernels<T> spmm_set() {
  return {kRefLanes,        expand_values_ref<T>, scale_values_ref<T>,  spmm_tile_ref<T>,
          spmv_tile_ref<T>, sddmm_tile_ref<T>,    rows_to_panel_ref<T>, panel_to_rows_ref<T>};
}

template <class T>
constexpr ForceKernels<T> force_set() {
  return {1,
          kRefLanes,
          add_distances_ref<T>,
          invert_distances_ref<T>,
          add_pulls_ref<T>,
          finish_row_ref<T>};
}

template <class T>
constexpr KernelSet<T> reference_set() {
  return {row_set<T>(),          1,
          gemm_tile_ref<T>,      weight_grad_block_ref<T>,
          depthwise_tile_ref<T>, depthwise_grad_chunk_ref<T>,
          spmm_set<T>(),         kept_tile_ref<T>,
          kept_grad_ref<T>,      force_set<T>()};
}

template <class T>
constexpr HalfKernelSet<T> half_reference_set() {
  return {row_set<T>(), widen_ref<T>, round_ref<T>};
}

template <class Code>
constexpr AgreeKernels<Code> agree_set() {
  return {kRefLanes, agree_compare_ref<Code>, agree_lists_ref<Code>};
}

}  // namespace

extern const KernelTable kReferenceKernels;
const KernelTable kReferenceKernels = {Isa::kReference,
                                       reference_set<float>(),
                                       reference_set<double>(),
                                       half_reference_set<bf16>(),
                                       half_reference_set<f16>(),
                                       {kRefLanes, pack_centers_ref, nearest_tile_ref},
                                       agree_set<uint8_t>(),
                                       agree_set<uint16_t>(),
                                       nullptr,
                                       nullptr,
                                       tile_spmm_ref};

}  // namespace ds
