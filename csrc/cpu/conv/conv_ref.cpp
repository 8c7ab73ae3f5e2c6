// Panel width 1, so a packed weight is [offset][c_out][c_in].
#include "cpu/reference.h"

namespace ds {

template <class T>
void gemm_tile_ref(const GemmTile<T>& t) {
  for (int64_t i = t.row_begin; i < t.row_end; ++i) {
    for (int64_t o = 0; o < t.c_out; ++o) {
      T sum = t.bias ? t.bias[o] : T(0);
      if (t.u)
        for (int64_t j = t.u_start[i]; j < t.u_start[i + 1]; ++j)
          sum += t.u[t.u_rows[j] * t.ldy + o];
      t.y[i * t.ldy + o] = sum;
    }
  }
  for (int64_t k = 0; k < t.n_offsets; ++k) {
    for (int64_t p = t.offset_start[k]; p < t.offset_start[k + 1]; ++p) {
      if (t.dst[p] < t.row_begin || t.dst[p] >= t.row_end) continue;
      const T* x = t.x + t.src[p] * t.ldx;
      T* y = t.y + t.dst[p] * t.ldy;
      for (int64_t o = 0; o < t.c_out; ++o)
        for (int64_t c = 0; c < t.c_in; ++c) y[o] += x[c] * t.w[(k * t.c_out + o) * t.c_in + c];
    }
  }
}

template <class T>
void weight_grad_block_ref(const WeightGradBlock<T>& t) {
  for (int64_t c = 0; c < t.c_in; ++c) {
    for (int64_t o = 0; o < t.c_out; ++o) {
      T sum = t.dw[c * t.ldw + o];
      for (int64_t p = 0; p < t.n_pairs; ++p)
        sum += t.x[t.src[p] * t.ldx + c] * t.dy[t.dst[p] * t.ldy + o];
      t.dw[c * t.ldw + o] = sum;
    }
  }
}

template <class T>
void widen_ref(const T* from, int64_t n, float* into) {
  for (int64_t i = 0; i < n; ++i) into[i] = widened(from[i]);
}
template <class T>
void round_ref(const float* from, int64_t n, T* into) {
  for (int64_t i = 0; i < n; ++i) into[i] = rounded<T>(from[i]);
}
template void gemm_tile_ref<float>(const GemmTile<float>&);
template void gemm_tile_ref<double>(const GemmTile<double>&);
template void weight_grad_block_ref<float>(const WeightGradBlock<float>&);
template void weight_grad_block_ref<double>(const WeightGradBlock<double>&);
template void widen_ref<bf16>(const bf16*, int64_t, float*);
template void widen_ref<f16>(const f16*, int64_t, float*);
template void round_ref<bf16>(const float*, int64_t, bf16*);
template void round_ref<f16>(const float*, int64_t, f16*);

}  // namespace ds
