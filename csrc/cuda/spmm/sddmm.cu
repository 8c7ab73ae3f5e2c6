// dy^T x at the kept entries of W: the weight's gradient. As spmm (panel_tile.h), with dy in the
// place of the sums: a thread has 4 rows of dy and x for each of 8 rows of W, a warp multiplies an
// entry's 128 pairs and adds up 4 entries' sums in 6 exchanges. 5.5 cycles of shared memory an
// entry and 128 rows: 4096 x 4096 at 90 %, m = 512, float32: about 190 us by counting.
//
// A block takes every n_splits-th tile of 128 rows and adds to its own partial sums; finish_kernel
// adds those up in their order: the same bits every time.
#include "cuda/spmm/panel_tile.h"
#include "cuda/spmm/spmm.h"

namespace ds::gpu {
namespace {

// The warp's sums of kChunk values, of which lane 8 * e gets that of value e.
template <class T>
DS_DEVICE T sum_chunk(const T (&mine)[kChunk]) {
  const bool upper = (lane_index() & 16) != 0, high = (lane_index() & 8) != 0;
  const T a = (upper ? mine[2] : mine[0]) + shuffle_xor(upper ? mine[0] : mine[2], 16);
  const T b = (upper ? mine[3] : mine[1]) + shuffle_xor(upper ? mine[1] : mine[3], 16);
  T sum = (high ? b : a) + shuffle_xor(high ? a : b, 8);
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

template <class C>
struct DyRows {
  Pack<typename C::T, C::kVec> of[kSlabRows];
};

template <class C>
DS_DEVICE DyRows<C> load_dy(const SddmmArgs& args, int64_t block, int64_t m_first) {
  using T = typename C::T;
  const int64_t slab = warp_slab<C>(args.plan, block).slab, n_padded = padded_rows(args.m);
  DyRows<C> dy{};
#pragma unroll
  for (int r = 0; r < kSlabRows; ++r) {
    const int64_t row = slab * kSlabRows + r;
    if (slab >= 0 && row < args.plan.n_rows)
      dy.of[r] = load_pack<C::kVec>(static_cast<const T*>(args.dy) + row * n_padded + m_first +
                                    lane_index() * C::kVec);
  }
  return dy;
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) sddmm_kernel(SddmmArgs args) {
  using T = typename C::T;
  const int64_t n_blocks = ceil_div(n_slabs_of(args.plan), C::kWarps);
  const int64_t n_tiles = ceil_div(args.m, C::kM), n_splits = sddmm_splits(args.m);
  const int64_t block = blockIdx.x % n_blocks, split = blockIdx.x / n_blocks;
  const Lanes<T> x{static_cast<const T*>(args.x), padded_rows(args.m)};
  T* partial = static_cast<T*>(args.partial) + split * args.plan.n_chunks * kChunk;
  const int place = lane_index() / (kWarp / kChunk);
  for (int64_t tile = split; tile < n_tiles; tile += n_splits) {
    const DyRows<C> dy = load_dy<C>(args, block, tile * C::kM);
    walk_panels<C>(args.plan, x, nullptr, block, tile * C::kM,
                   [&](int row, const auto& panel, const auto& entries, int i, int32_t c) {
                     const auto columns = load_pack<kChunk>(entries.columns[i]);
                     T sums[kChunk] = {};
#pragma unroll
                     for (int e = 0; e < kChunk; ++e) {
                       const auto lanes = lane_values<C>(panel, columns.v[e]);
#pragma unroll
                       for (int v = 0; v < C::kVec; ++v)
                         sums[e] = fused(dy.of[row].v[v], lanes.v[v], sums[e]);
                     }
                     const T sum = sum_chunk(sums);
                     if (lane_index() % (kWarp / kChunk) != 0) return;
                     T& to = partial[static_cast<int64_t>(c) * kChunk + place];
                     to = tile == split ? sum : to + sum;
                   });
  }
}

constexpr int kThreads = 256;

template <class T, class S>
__global__ void finish_kernel(SddmmArgs args) {
  const int64_t n_entries = args.plan.n_chunks * kChunk, n_splits = sddmm_splits(args.m);
  const T* partial = static_cast<const T*>(args.partial);
  for (int64_t i = thread_index(); i < n_entries; i += n_threads()) {
    const int64_t k = args.source[i];
    if (k < 0 || k >= args.n_kept) continue;
    const int64_t at = args.kept == nullptr ? k : args.kept[k];
    if (at < 0 || at >= args.n_out) continue;
    T sum = 0;
    if (args.m > 0)
      for (int64_t s = 0; s < n_splits; ++s) sum += partial[s * n_entries + i];
    static_cast<S*>(args.out)[at] = rounded<S>(sum);
  }
}

template <class T, int kVec, int kWarps, class S>
Status run(const Stream& stream, const SddmmArgs& args) {
  if (args.m > 0) {
    const Status status = with_panel_tile<T, T, kVec, kWarps>(stream, [&](auto tile) {
      using C = decltype(tile);
      const int64_t n_blocks = ceil_div(n_slabs_of(args.plan), C::kWarps);
      return launch(stream, {n_blocks * sddmm_splits(args.m)}, C::kThreads,
                    sizeof(typename C::Shared), sddmm_kernel<C>, args);
    });
    if (status != 0) return status;
  }
  return launch(stream, {blocks_for(args.plan.n_chunks * kChunk, kThreads)}, kThreads, 0,
                finish_kernel<T, S>, args);
}

}  // namespace

Status sddmm(const Stream& stream, const SddmmArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return run<double, 2, 8, double>(stream, args);
    case DType::kBFloat16:
      return run<float, 4, 16, bf16>(stream, args);
    case DType::kFloat16:
      return run<float, 4, 16, f16>(stream, args);
    default:
      return run<float, 4, 16, float>(stream, args);
  }
}

}  // namespace ds::gpu
