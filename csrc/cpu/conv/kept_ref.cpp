// Any panel width.
#include "cpu/reference.h"

namespace ds {

template <class T>
void kept_tile_ref(const KeptTile<T>& t) {
  GemmTile<T> empty = t;  // bias and u rows
  empty.n_offsets = 0;
  gemm_tile_ref(empty);
  for (int64_t k = 0; k < t.n_offsets; ++k)
    for (int64_t p = t.offset_start[k]; p < t.offset_start[k + 1]; ++p) {
      if (t.dst[p] < t.row_begin || t.dst[p] >= t.row_end) continue;
      const T* x = t.x + t.src[p] * t.ldx;
      T* y = t.y + t.dst[p] * t.ldy;
      for (int64_t panel = 0; panel < t.n_panels; ++panel)
        for (int64_t e = t.start[k * t.n_panels + panel]; e < t.start[k * t.n_panels + panel + 1];
             ++e)
          for (int64_t j = 0; j < t.width && panel * t.width + j < t.c_out; ++j)
            y[panel * t.width + j] += x[t.channels[e]] * t.w[e * t.width + j];
    }
}

template <class T>
void kept_grad_ref(const KeptGradBlock<T>& t) {
  for (int64_t panel = 0; panel < t.n_panels; ++panel)
    for (int64_t e = t.start[panel]; e < t.start[panel + 1]; ++e)
      for (int64_t j = 0; j < t.width && panel * t.width + j < t.c_out; ++j)
        for (int64_t p = 0; p < t.n_pairs; ++p)
          t.dw[e * t.width + j] +=
              t.x[t.src[p] * t.ldx + t.channels[e]] * t.dy[t.dst[p] * t.ldy + panel * t.width + j];
}

template void kept_tile_ref<float>(const KeptTile<float>&);
template void kept_tile_ref<double>(const KeptTile<double>&);
template void kept_grad_ref<float>(const KeptGradBlock<float>&);
template void kept_grad_ref<double>(const KeptGradBlock<double>&);

}  // namespace ds
