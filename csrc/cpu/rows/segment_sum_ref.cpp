#include "cpu/reference.h"

namespace ds {

template <class T>
void segment_sum_ref(const SegmentSumArgs<T>& a) {
  for (int64_t s = 0; s < a.n_segments; ++s) {
    if (a.start[s + 1] - a.start[s] > kSegmentChunk) continue;
    for (int64_t c = 0; c < a.n_channels; ++c) {
      T sum = a.bias ? a.bias[c] : T(0);
      for (int64_t j = a.start[s]; j < a.start[s + 1]; ++j) {
        const int64_t row = a.rows32 ? a.rows32[j] : a.rows64 ? a.rows64[j] : j;
        const T value = a.values[row * a.n_channels + c];
        const T deviation = a.mean ? value - a.mean[s * a.n_channels + c] : T(0);
        sum += a.mean ? deviation * deviation : value;
      }
      a.out[s * a.n_channels + c] = sum;
    }
  }
}

template void segment_sum_ref<float>(const SegmentSumArgs<float>&);
template void segment_sum_ref<double>(const SegmentSumArgs<double>&);

}  // namespace ds
