#include <limits>

#include "cpu/reference.h"
#include "cpu/rows/rows.h"

namespace ds {
namespace {

// The row that a tap reads, or null.
template <class T>
const T* tap_row(const WindowArgs<T>& a, int32_t entry) {
  if (entry >= 0) return a.x + entry * a.n_channels;
  return entry == -1 ? nullptr : a.ground + (INT64_C(-2) - entry) * a.n_channels;
}

}  // namespace

template <class T>
void window_max_ref(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    for (int64_t c = 0; c < a.n_channels; ++c) {
      Acc<T> best = -std::numeric_limits<Acc<T>>::infinity();
      int32_t winner = -1;
      for (int64_t k = 0; k < a.n_offsets; ++k) {
        const T* row = tap_row(a, a.table[i * a.n_offsets + k]);
        if (row == nullptr) continue;
        const Acc<T> value = widened(row[c]);
        const bool beats = value > best || (value != value && best == best);
        if (winner >= 0 && !beats) continue;
        best = value;
        winner = static_cast<int32_t>(k);
      }
      a.y[i * a.n_channels + c] = rounded<T>(best);
      a.arg[i * a.n_channels + c] = winner;
    }
  }
}

template <class T>
void window_sum_ref(const WindowArgs<T>& a, int64_t row_begin, int64_t row_end) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    for (int64_t c = 0; c < a.n_channels; ++c) {
      Acc<T> sum = 0;
      for (int64_t k = 0; k < a.n_offsets; ++k) {
        const T* row = tap_row(a, a.table[i * a.n_offsets + k]);
        if (row != nullptr) sum += widened(row[c]);
      }
      a.y[i * a.n_channels + c] = rounded<T>(sum);
    }
  }
}

template <class T>
void window_max_grad_ref(const WindowMaxGradArgs<T>& a) {
  for (int64_t v = 0; v < a.n_rows; ++v) {
    if (a.start[v + 1] - a.start[v] > kSegmentChunk) continue;
    for (int64_t c = 0; c < a.n_channels; ++c) {
      Acc<T> sum = 0;
      for (int64_t j = a.start[v]; j < a.start[v + 1]; ++j) {
        const int64_t out = a.index[j] / a.n_offsets, k = a.index[j] % a.n_offsets;
        if (a.arg[out * a.n_channels + c] == k) sum += widened(a.dy[out * a.n_channels + c]);
      }
      if (a.partial)
        a.partial[v * a.n_channels + c] = sum;
      else
        a.dx[v * a.n_channels + c] = rounded<T>(sum);
    }
  }
}

template void window_max_ref<float>(const WindowArgs<float>&, int64_t, int64_t);
template void window_sum_ref<float>(const WindowArgs<float>&, int64_t, int64_t);
template void window_max_grad_ref<float>(const WindowMaxGradArgs<float>&);
template void window_max_ref<double>(const WindowArgs<double>&, int64_t, int64_t);
template void window_sum_ref<double>(const WindowArgs<double>&, int64_t, int64_t);
template void window_max_grad_ref<double>(const WindowMaxGradArgs<double>&);
template void window_max_ref<bf16>(const WindowArgs<bf16>&, int64_t, int64_t);
template void window_sum_ref<bf16>(const WindowArgs<bf16>&, int64_t, int64_t);
template void window_max_grad_ref<bf16>(const WindowMaxGradArgs<bf16>&);
template void window_max_ref<f16>(const WindowArgs<f16>&, int64_t, int64_t);
template void window_sum_ref<f16>(const WindowArgs<f16>&, int64_t, int64_t);
template void window_max_grad_ref<f16>(const WindowMaxGradArgs<f16>&);

}  // namespace ds
