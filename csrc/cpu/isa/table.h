// Included last by each ISA's .cpp file: gathers its kernels into the exported table.
#pragma once
#include "cpu/conv/depthwise_kernel.h"
#include "cpu/conv/gemm_kernel.h"
#include "cpu/conv/weight_grad_kernel.h"
#include "cpu/kernels.h"
#include "cpu/pool/pool_grad_kernel.h"
#include "cpu/pool/pool_kernel.h"
#include "cpu/rows/segment_sum_kernel.h"

namespace ds {
namespace {

template <class T>
constexpr KernelSet<T> kernel_set() {
  return {kPanel<T>,
          gemm_tile<T>,
          weight_grad_block<T>,
          depthwise_tile<T>,
          depthwise_grad_chunk<T>,
          window_max_kernel<T>,
          window_sum_kernel<T>,
          window_max_grad_kernel<T>,
          segment_sum_kernel<T>};
}

}  // namespace
}  // namespace ds

#define DS_EXPORT_KERNELS(name, isa)                                         \
  namespace ds {                                                             \
  extern const KernelTable name;                                             \
  const KernelTable name = {isa, kernel_set<float>(), kernel_set<double>()}; \
  }
