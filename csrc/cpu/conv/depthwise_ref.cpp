#include "cpu/reference.h"

namespace ds {

template <class T>
void depthwise_tile_ref(const GemmTile<T>& t) {
  for (int64_t i = t.row_begin; i < t.row_end; ++i) {
    for (int64_t c = 0; c < t.c_out; ++c) {
      T sum = t.bias ? t.bias[c] : T(0);
      if (t.u)
        for (int64_t j = t.u_start[i]; j < t.u_start[i + 1]; ++j)
          sum += t.u[t.u_rows[j] * t.ldy + c];
      t.y[i * t.ldy + c] = sum;
    }
  }
  for (int64_t k = 0; k < t.n_offsets; ++k) {
    for (int64_t p = t.offset_start[k]; p < t.offset_start[k + 1]; ++p) {
      if (t.dst[p] < t.row_begin || t.dst[p] >= t.row_end) continue;
      for (int64_t c = 0; c < t.c_out; ++c)
        t.y[t.dst[p] * t.ldy + c] += t.x[t.src[p] * t.ldx + c] * t.w[k * t.c_out + c];
    }
  }
}

template <class T>
void depthwise_grad_chunk_ref(const DepthwiseGradChunk<T>& t) {
  const PairList& list = t.pairs;
  for (int64_t k = 0; k < list.n_offsets; ++k) {
    for (int64_t p = list.offset_start[k]; p < list.offset_start[k + 1]; ++p) {
      if (list.dst[p] < t.row_begin || list.dst[p] >= t.row_end) continue;
      const T* x = t.x + list.src[p] * t.n_channels;
      const T* dy = t.dy + list.dst[p] * t.n_channels;
      for (int64_t c = 0; c < t.n_channels; ++c) t.dw[k * t.n_channels + c] += x[c] * dy[c];
    }
  }
}

template void depthwise_tile_ref<float>(const GemmTile<float>&);
template void depthwise_tile_ref<double>(const GemmTile<double>&);
template void depthwise_grad_chunk_ref<float>(const DepthwiseGradChunk<float>&);
template void depthwise_grad_chunk_ref<double>(const DepthwiseGradChunk<double>&);

}  // namespace ds
