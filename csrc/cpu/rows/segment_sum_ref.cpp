#include "cpu/reference.h"

namespace ds {

template <class T>
void segment_sum_ref(const SegmentSumArgs<T>& a) {
  for (int64_t s = 0; s < a.n_segments; ++s) {
    if (a.start[s + 1] - a.start[s] > kSegmentChunk) continue;
    for (int64_t c = 0; c < a.n_channels; ++c) {
      Acc<T> sum = a.bias ? widened(a.bias[c]) : 0;
      for (int64_t j = a.start[s]; j < a.start[s + 1]; ++j) {
        const int64_t row = a.rows32 ? a.rows32[j] : a.rows64 ? a.rows64[j] : j;
        const Acc<T> value = widened(a.values[row * a.n_channels + c]);
        const Acc<T> deviation = a.mean ? value - widened(a.mean[s * a.n_channels + c]) : 0;
        sum += a.mean ? deviation * deviation : value;
      }
      if (a.partial)
        a.partial[s * a.n_channels + c] = sum;
      else
        a.out[s * a.n_channels + c] = rounded<T>(sum);
    }
  }
}

template void segment_sum_ref<float>(const SegmentSumArgs<float>&);
template void segment_sum_ref<double>(const SegmentSumArgs<double>&);
template void segment_sum_ref<bf16>(const SegmentSumArgs<bf16>&);
template void segment_sum_ref<f16>(const SegmentSumArgs<f16>&);

}  // namespace ds
