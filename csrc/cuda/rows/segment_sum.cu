// Sums of feature rows over segments, or of squared deviations; see segments.h for the tiles.
//
// Order    one chain per channel, j ascending, starting from the bias.
#include "cuda/rows/rows.h"
#include "cuda/rows/segments.h"

namespace ds::gpu {
namespace {

struct NoIndex {};  // row j is j

template <class T, class Index, bool kSquared>
struct RowSource {
  const T* values;
  int64_t n_values, n_channels;
  const Index* rows;
  const T* bias;
  const T* mean;

  template <int N>
  DS_DEVICE void begin(int64_t channel, Acc<T> (&sums)[N]) const {
#pragma unroll
    for (int e = 0; e < N; ++e) sums[e] = bias ? wide(bias[channel + e]) : Acc<T>(0);
  }

  // -1: no such row
  DS_DEVICE int64_t row_of(int64_t j) const {
    int64_t row = j;
    if constexpr (!std::is_same_v<Index, NoIndex>) row = rows[j];
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(n_values) ? row : -1;
  }

  template <int N>
  DS_DEVICE void add_row(const Pack<T, N>& row, const Acc<T> (&centre)[N],
                         Acc<T> (&sums)[N]) const {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const Acc<T> deviation = kSquared ? wide(row.v[e]) - centre[e] : Acc<T>(0);
      sums[e] = kSquared ? fused(deviation, deviation, sums[e]) : sums[e] + wide(row.v[e]);
    }
  }

  template <int N, int kFar>
  DS_DEVICE void add(int64_t segment, const Range& range, int64_t channel,
                     Acc<T> (&sums)[N]) const {
    Acc<T> centre[N] = {};
    if constexpr (kSquared) {
#pragma unroll
      for (int e = 0; e < N; ++e) centre[e] = wide(mean[segment * n_channels + channel + e]);
    }
    int64_t j = range.begin;
    for (; j + kFar <= range.end; j += kFar)
      add_rows<kFar, N>({j, j + kFar}, channel, centre, sums);
    for (; j < range.end; j += kAhead) add_rows<kAhead, N>({j, range.end}, channel, centre, sums);
  }

  // The first kRows of a range, or all of them, their loads before their additions.
  template <int kRows, int N>
  DS_DEVICE void add_rows(const Range& range, int64_t channel, const Acc<T> (&centre)[N],
                          Acc<T> (&sums)[N]) const {
    Pack<T, N> ahead[kRows];
    bool there[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = range.begin + i < range.end ? row_of(range.begin + i) : -1;
      there[i] = row >= 0;
      if (there[i]) ahead[i] = load_pack<N>(values + row * n_channels + channel);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (there[i]) add_row<N>(ahead[i], centre, sums);
  }
};

template <class T, class Index, bool kSquared>
Status sum_of(const Stream& stream, const SegmentSum<T>& a, const Index* rows) {
  const RowSource<T, Index, kSquared> source{a.values, a.n_values, a.n_channels,
                                             rows,     a.bias,     a.mean};
  return reduce_segments<T>(stream, {a.start, a.n_segments, a.n_positions, a.n_channels}, source,
                            {a.values, a.out}, a.slots, a.out);
}

}  // namespace

int64_t segment_slots_of(int64_t n_positions) {
  return segment_slots(n_positions);
}

template <class T>
Status segment_sum(const Stream& stream, const SegmentSum<T>& a) {
  if (a.mean) return sum_of<T, NoIndex, true>(stream, a, nullptr);
  if (a.rows32) return sum_of<T, int32_t, false>(stream, a, a.rows32);
  if (a.rows64) return sum_of<T, int64_t, false>(stream, a, a.rows64);
  return sum_of<T, NoIndex, false>(stream, a, nullptr);
}

template Status segment_sum<float>(const Stream&, const SegmentSum<float>&);
template Status segment_sum<double>(const Stream&, const SegmentSum<double>&);
template Status segment_sum<bf16>(const Stream&, const SegmentSum<bf16>&);
template Status segment_sum<f16>(const Stream&, const SegmentSum<f16>&);

}  // namespace ds::gpu
