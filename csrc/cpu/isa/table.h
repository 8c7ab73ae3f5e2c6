// Included last by each ISA's .cpp file: gathers its kernels into the exported table.
#pragma once
#include "cpu/codes/nearest_kernel.h"
#include "cpu/codes/agree_kernel.h"
#include "cpu/conv/depthwise_kernel.h"
#include "cpu/conv/gemm_kernel.h"
#include "cpu/conv/kept_kernel.h"
#include "cpu/conv/weight_grad_kernel.h"
#include "cpu/kernels.h"
#include "cpu/lowrank/force_kernel.h"
#include "cpu/pool/pool_grad_kernel.h"
#include "cpu/pool/pool_kernel.h"
#include "cpu/rows/segment_sum_kernel.h"
#include "cpu/spmm/expand_kernel.h"
#include "cpu/spmm/sddmm_kernel.h"
#include "cpu/spmm/spmm_kernel.h"
#include "cpu/spmm/transpose_kernel.h"

namespace ds {
namespace {

template <class T>
constexpr RowKernels<T> row_kernels() {
  return {window_max_kernel<T>, window_sum_kernel<T>, window_max_grad_kernel<T>,
          segment_sum_kernel<T>};
}

template <class T>
constexpr SpmmKernels<T> spmm_kernels() {
  return {kLanes<T>,    expand_values<T>, scale_values<T>,  spmm_tile<T>,
          spmv_tile<T>, sddmm_tile<T>,    rows_to_panel<T>, panel_to_rows<T>};
}

template <class T>
constexpr ForceKernels<T> force_kernels() {
  return {kRows, kPanel<T>, add_distances<T>, invert_distances<T>, add_pulls<T>, finish_row<T>};
}

template <class T>
constexpr KernelSet<T> kernel_set() {
  return {row_kernels<T>(),     kPanel<T>,         gemm_tile<T>,
          weight_grad_block<T>, depthwise_tile<T>, depthwise_grad_chunk<T>,
          spmm_kernels<T>(),    kept_tile<T>,      kept_grad<T>,
          force_kernels<T>()};
}

template <class T>
void widen_values(const T* from, int64_t n, float* into) {
  widen_row(from, n, into);
}
template <class T>
void round_values(const float* from, int64_t n, T* into) {
  round_row(from, n, into);
}

template <class T>
constexpr HalfKernelSet<T> half_kernel_set() {
  return {row_kernels<T>(), widen_values<T>, round_values<T>};
}

constexpr NearestKernels nearest_kernels() {
  return {kNearestLanes, pack_centers, nearest_tile};
}

}  // namespace
}  // namespace ds

#define DS_EXPORT_KERNELS(name, isa)                   \
  namespace ds {                                       \
  extern const KernelTable name;                       \
  const KernelTable name = {isa,                       \
                            kernel_set<float>(),       \
                            kernel_set<double>(),      \
                            half_kernel_set<bf16>(),   \
                            half_kernel_set<f16>(),    \
                            nearest_kernels(),         \
                            agree_kernels<uint8_t>(),  \
                            agree_kernels<uint16_t>(), \
                            nullptr,                   \
                            nullptr,                   \
                            nullptr};                  \
  }
