// y (m, n_rows) = x W^T + bias. One block: 16 slabs of 8 rows of W by 128 rows of x (8 by 32 where
// x has few), one thread per 8 x 4 results, all panels of W (panel_tile.h).
//
// 4096 x 4096 at 90 %, m = 512, float32: 1.72 GFLOP; 128 blocks, a wave of an H100. Per block and
// panel 57 KB of x come from L2 (270 MB in all, 50 us, behind the products), W once (11 MB). Shared
// memory: 4.5 cycles an entry and block, 14 % of entries are fill: about 150 us at 1.7 GHz; at 95 %
// 85 us. x is transposed before (16 MB, 8 us). These are bounds by counting, not measurements.
//
// A result is one thread's sum over ascending columns, whatever else is computed beside it.
#include "cuda/spmm/spmm.h"

#include "cuda/spmm/panel_tile.h"
#include "cuda/spmm/widen.h"

namespace ds::gpu {
namespace {

template <class C>
struct Results {
  typename C::T of[kSlabRows][C::kVec];
};

// sums[r] of a slab's rows, for one row of x: a sector of y, in vectors where they are aligned.
template <class S, class T>
DS_DEVICE void store_slab(S* y, const T (&sums)[kSlabRows], int64_t n_rows_left, bool aligned) {
  constexpr int kOf16 = 16 / sizeof(S);
  if (aligned && n_rows_left >= kSlabRows) {
#pragma unroll
    for (int r = 0; r < kSlabRows; r += kOf16) {
      Pack<S, kOf16> pack;
#pragma unroll
      for (int i = 0; i < kOf16; ++i) pack.v[i] = rounded<S>(sums[r + i]);
      store_pack(y + r, pack);
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < kSlabRows; ++r)
    if (r < n_rows_left) y[r] = rounded<S>(sums[r]);
}

template <class C>
DS_DEVICE void store_results(const SpmmArgs& args, const Results<C>& results, int64_t slab,
                             int64_t m_first) {
  using T = typename C::T;
  const int64_t n_rows = args.plan.n_rows, row = slab * kSlabRows, left = n_rows - row;
  const bool aligned = n_rows % kSlabRows == 0;
  const T* bias = static_cast<const T*>(args.bias);
#pragma unroll
  for (int v = 0; v < C::kVec; ++v) {
    const int64_t m = m_first + lane_index() * C::kVec + v;
    if (m >= args.m) break;
    T sums[kSlabRows];
#pragma unroll
    for (int r = 0; r < kSlabRows; ++r) {
      sums[r] = results.of[r][v];
      if (args.scales != nullptr && r < left) sums[r] *= static_cast<T>(args.scales[row + r]);
      if (bias != nullptr && r < left) sums[r] += bias[row + r];
    }
    const int64_t at = m * n_rows + row;
    if constexpr (sizeof(T) == 8)
      store_slab(static_cast<double*>(args.y) + at, sums, left, aligned);
    else if (args.dtype == DType::kBFloat16)
      store_slab(static_cast<bf16*>(args.y) + at, sums, left, aligned);
    else if (args.dtype == DType::kFloat16)
      store_slab(static_cast<f16*>(args.y) + at, sums, left, aligned);
    else
      store_slab(static_cast<float*>(args.y) + at, sums, left, aligned);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) spmm_kernel(SpmmArgs args) {
  using T = typename C::T;
  const int64_t n_blocks = ceil_div(n_slabs_of(args.plan), C::kWarps);
  const int64_t block = blockIdx.x % n_blocks, m_first = blockIdx.x / n_blocks * C::kM;
  const Lanes<T> x{static_cast<const T*>(args.lanes), padded_rows(args.m)};
  Results<C> results{};
  walk_panels<C>(args.plan, x, static_cast<const typename C::V*>(args.values), block, m_first,
                 [&](int row, const auto& panel, const auto& entries, int i, int32_t) {
                   const auto columns = load_pack<kChunk>(entries.columns[i]);
                   T weights[kChunk];
#pragma unroll
                   for (int e = 0; e < kChunk; ++e) weights[e] = weight_of<T>(entries.values[i][e]);
#pragma unroll
                   for (int e = 0; e < kChunk; ++e) {
                     const auto lanes = lane_values<C>(panel, columns.v[e]);
#pragma unroll
                     for (int v = 0; v < C::kVec; ++v)
                       results.of[row][v] = fused(weights[e], lanes.v[v], results.of[row][v]);
                   }
                 });
  const WarpSlab mine = warp_slab<C>(args.plan, block);
  if (mine.slab >= 0) store_results<C>(args, results, mine.slab, m_first);
}

template <class T, class V, int kVec, int kWarps>
Status launch_spmm(const Stream& stream, const SpmmArgs& args) {
  return with_panel_tile<T, V, kVec, kWarps>(stream, [&](auto tile) {
    using C = decltype(tile);
    const int64_t n_blocks = ceil_div(n_slabs_of(args.plan), C::kWarps);
    return launch(stream, {n_blocks * ceil_div(args.m, C::kM)}, C::kThreads,
                  sizeof(typename C::Shared), spmm_kernel<C>, args);
  });
}

template <class V>
Status spmm_of(const Stream& stream, const SpmmArgs& args) {
  if (args.m > kWarp) return launch_spmm<float, V, 4, 16>(stream, args);
  return launch_spmm<float, V, 1, 8>(stream, args);
}

}  // namespace

Status spmm(const Stream& stream, const SpmmArgs& args) {
  switch (args.value_dtype) {
    case DType::kFloat64:
      return launch_spmm<double, double, 2, 8>(stream, args);
    case DType::kBFloat16:
      return spmm_of<bf16>(stream, args);
    case DType::kFloat16:
      return spmm_of<f16>(stream, args);
    case DType::kInt8:
      return spmm_of<int8_t>(stream, args);
    default:
      return spmm_of<float>(stream, args);
  }
}

}  // namespace ds::gpu
