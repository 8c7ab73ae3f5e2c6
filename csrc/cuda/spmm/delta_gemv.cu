// A warp per row of W: lanes take neighbouring units, so loads of W are whole lines, and a scan of
// the lanes' gaps says where each one's columns begin. For one row of x all loads of 512 entries,
// a row of 4096 columns at 12 %, are on their way before the first scan; for more of them, 256.
//
// Bound    bytes: W is read once; x, which all rows share, comes from L1 and L2.
#include "cuda/spmm/delta_gemv.h"

namespace ds::gpu {
namespace {

constexpr int kWarps = 8, kUnit = DeltaTiling::kUnit, kFiller = DeltaTiling::kFiller;
static_assert(kUnit == 4, "as many bytes as a word has");

// Columns that an entry leaves behind: its gap and itself, or a filler's 255.
DS_DEVICE uint32_t step_of(uint8_t gap) {
  return gap == kFiller ? kFiller : gap + 1u;
}

// Sums of the lanes up to this one.
DS_DEVICE uint32_t up_to_lane(uint32_t steps) {
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const uint32_t below = shuffle_up(steps, delta);
    steps += lane_index() >= delta ? below : 0;
  }
  return steps;
}

// A unit's entries from `column` on. Wrong gaps may lead past the row, where nothing is read;
// unsigned, so that wrapping around is defined.
template <class T, int kM>
DS_DEVICE void add_unit(const DeltaProduct& p, const Pack<uint8_t, kUnit>& gaps,
                        const Pack<T, kUnit>& values, uint32_t column, float (&sums)[kM]) {
  const T* x = static_cast<const T*>(p.x);
#pragma unroll
  for (int e = 0; e < kUnit; ++e) {
    const uint32_t at = column + gaps.v[e];
    column += step_of(gaps.v[e]);
    if (gaps.v[e] == kFiller || at >= p.n_columns) continue;
#pragma unroll
    for (int m = 0; m < kM; ++m) {  // rows that x has not repeat its last one
      const int64_t row = m < p.m ? m : p.m - 1;
      sums[m] = fused(widened(values.v[e]), widened(x[row * p.n_columns + at]), sums[m]);
    }
  }
}

template <class T, int kM>
DS_DEVICE void multiply_row(const DeltaProduct& p, int64_t row, float (&sums)[kM]) {
  constexpr int kUnroll = kM == 1 ? 4 : 2;  // with more, registers of four rows are spilled
  const T* values = static_cast<const T*>(p.values);
  int64_t first = p.starts[row], last = p.starts[row + 1];
  first = first < 0 ? 0 : first;
  last = last < p.n_units ? last : p.n_units;
  uint32_t column = 0;  // the first one that no unit so far has been at
  for (int64_t base = first; base < last; base += kWarp * kUnroll) {
    Pack<uint8_t, kUnit> gaps[kUnroll];
    Pack<T, kUnit> weights[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kWarp + lane_index();
      gaps[u] = {{kFiller, kFiller, kFiller, kFiller}};
      weights[u] = {};
      if (i >= last) continue;
      gaps[u] = load_pack<kUnit>(p.gaps + i * kUnit);
      weights[u] = load_pack<kUnit>(values + i * kUnit);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      uint32_t steps = 0;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) steps += step_of(gaps[u].v[e]);
      const uint32_t up_to = up_to_lane(steps);
      add_unit<T, kM>(p, gaps[u], weights[u], column + up_to - steps, sums);
      column += shuffle(up_to, kWarp - 1);
    }
  }
}

template <class T, int kM>
__global__ void __launch_bounds__(kWarp* kWarps) delta_kernel(DeltaProduct p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= p.n_rows) return;  // whole warps
  float sums[kM] = {};
  multiply_row<T, kM>(p, row, sums);
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sums[m] += shuffle_xor(sums[m], mask);
  if (lane_index() != 0) return;
  const float bias = p.bias == nullptr ? 0.0f : p.bias[row];
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (m < p.m) static_cast<T*>(p.y)[m * p.n_rows + row] = rounded<T>(sums[m] + bias);
}

}  // namespace

template <class T>
Status delta_gemv(const Stream& stream, const DeltaProduct& p) {
  const int64_t n_blocks = p.m > 0 ? ceil_div(p.n_rows, kWarps) : 0;
  const auto kernel = p.m == 1 ? delta_kernel<T, 1> : delta_kernel<T, DeltaTiling::kMostRows>;
  return launch(stream, {n_blocks}, kWarp * kWarps, 0, kernel, p);
}
template Status delta_gemv<bf16>(const Stream&, const DeltaProduct&);
template Status delta_gemv<f16>(const Stream&, const DeltaProduct&);

}  // namespace ds::gpu
