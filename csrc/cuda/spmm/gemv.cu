// y = x W^T + bias for 1 to 4 rows of x: a warp per row of W. A weight is read once, as 2 bytes of
// column and its value (columns need no more below 65536 of them, wider matrices run spmm's
// kernel); x comes from L1. Lanes take neighbouring entries: loads of W are whole lines, and those
// of x, which ascend with the columns, meet few lines. 4096 x 4096 at 90 % in float32: 10 MB, 3 us
// by bytes.
#include "cuda/spmm/spmm.h"
#include "cuda/spmm/widen.h"

namespace ds::gpu {
namespace {

constexpr int kWarps = 8, kUnroll = 4;

template <class S, int kM>
struct XRows {
  const S* at;
  int64_t n_columns;
  int n;  // rows that there are; the others repeat the last one
  DS_DEVICE Acc<S> of(int row, int column) const {
    return weight_of<Acc<S>>(at[(row < n ? row : n - 1) * n_columns + column]);
  }
};

template <class S, class V, int kM>
DS_DEVICE void multiply_row(const GemvArgs& args, int64_t row, Acc<S> (&sums)[kM]) {
  const XRows<S, kM> x{static_cast<const S*>(args.x), args.n_columns, static_cast<int>(args.m)};
  const V* values = static_cast<const V*>(args.values);
  int64_t first = args.row_start[row], last = args.row_start[row + 1];
  first = first < 0 ? 0 : first;
  last = last < args.n_kept ? last : args.n_kept;
  for (int64_t base = first; base < last; base += kWarp * kUnroll) {
    int columns[kUnroll];
    Acc<S> weights[kUnroll];
    bool valid[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {  // all loads of W before the first one of x
      const int64_t i = base + u * kWarp + lane_index();
      columns[u] = i < last ? args.columns[i] : 0;
      weights[u] = i < last ? weight_of<Acc<S>>(values[i]) : Acc<S>(0);
      valid[u] = i < last && columns[u] < args.n_columns;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int m = 0; m < kM; ++m)
        if (valid[u]) sums[m] = fused(weights[u], x.of(m, columns[u]), sums[m]);
  }
}

template <class S, class V, int kM>
__global__ void __launch_bounds__(kWarp* kWarps) gemv_kernel(GemvArgs args) {
  using T = Acc<S>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  T sums[kM] = {};
  if (row < args.n_rows) multiply_row<S, V, kM>(args, row, sums);
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sums[m] += shuffle_xor(sums[m], mask);
  if (row >= args.n_rows || lane_index() != 0) return;
  const T scale = args.scales == nullptr ? T(1) : static_cast<T>(args.scales[row]);
  const T bias = args.bias == nullptr ? T(0) : static_cast<const T*>(args.bias)[row];
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (m < args.m)
      static_cast<S*>(args.y)[m * args.n_rows + row] = rounded<S>(sums[m] * scale + bias);
}

template <class S, class V>
Status run(const Stream& stream, const GemvArgs& args) {
  const int64_t n_blocks = args.m > 0 ? ceil_div(args.n_rows, kWarps) : 0;
  const auto kernel = args.m == 1 ? gemv_kernel<S, V, 1> : gemv_kernel<S, V, kMostGemvRows>;
  return launch(stream, {n_blocks}, kWarp * kWarps, 0, kernel, args);
}

template <class S>
Status run_values(const Stream& stream, const GemvArgs& args) {
  switch (args.value_dtype) {
    case DType::kBFloat16:
      return run<S, bf16>(stream, args);
    case DType::kFloat16:
      return run<S, f16>(stream, args);
    case DType::kInt8:
      return run<S, int8_t>(stream, args);
    default:
      return run<S, float>(stream, args);
  }
}

}  // namespace

Status gemv(const Stream& stream, const GemvArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return run<double, double>(stream, args);
    case DType::kBFloat16:
      return run_values<bf16>(stream, args);
    case DType::kFloat16:
      return run_values<f16>(stream, args);
    default:
      return run_values<float>(stream, args);
  }
}

}  // namespace ds::gpu
