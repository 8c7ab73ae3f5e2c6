#include "cpu/kernels.h"
#include "cpu/rows/rows.h"
#include "cpu/rows/segments.h"

namespace ds {

template <class T>
int64_t segment_workspace(int64_t n_positions, int64_t n_channels) {
  const SegmentPlanSize size(n_positions);
  const int64_t bytes = size.n_long * static_cast<int64_t>(sizeof(LongSegment)) +
                        size.n_slots * n_channels * static_cast<int64_t>(sizeof(Acc<T>));
  return (bytes + 7) / 8;
}

template <class T>
void segment_sum(const SegmentSumArgs<T>& a, int64_t* workspace, int n_threads) {
  const auto piece = [&](int64_t first, int64_t n, const int64_t* start, const T* bias, T* out,
                         Acc<T>* partial) {
    SegmentSumArgs<T> part = a;
    part.start = start;
    part.n_segments = n;
    part.bias = bias;
    part.mean = a.mean ? a.mean + first * a.n_channels : nullptr;
    part.out = out;
    part.partial = partial;
    kernels<T>().segment_sum(part);
  };
  reduce_segments(a.start, a.n_segments, a.n_channels, a.bias, a.out, workspace, n_threads, piece);
}

template int64_t segment_workspace<float>(int64_t, int64_t);
template int64_t segment_workspace<double>(int64_t, int64_t);
template void segment_sum<float>(const SegmentSumArgs<float>&, int64_t*, int);
template void segment_sum<double>(const SegmentSumArgs<double>&, int64_t*, int);
template void segment_sum<bf16>(const SegmentSumArgs<bf16>&, int64_t*, int);
template void segment_sum<f16>(const SegmentSumArgs<f16>&, int64_t*, int);

}  // namespace ds
