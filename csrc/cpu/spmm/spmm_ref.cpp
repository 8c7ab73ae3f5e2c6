// The scalar kernels of this family: sums entry by entry, one chain a row.
#include "cpu/reference.h"

namespace ds {
namespace {

template <class Tile>
int64_t place(const Tile& t, int64_t entry) {
  return t.places ? t.places[entry] : t.columns[entry] * t.ldx;
}

}  // namespace

template <class T>
void spmm_tile_ref(const SpmmTile<T>& t) {
  for (int64_t u = t.unit_begin; u < t.unit_end; ++u)
    for (int64_t r = 0; r < t.unit_rows; ++r)
      for (int64_t lane = 0; lane < t.vectors * kRefLanes; ++lane) {
        const int64_t row = u * t.unit_rows + r;
        T* y = t.y + row * t.ldy + lane;
        T sum = !t.first ? *y : t.bias ? t.bias[row] : T(0);
        for (int64_t j = t.starts[u]; j < t.starts[u + 1]; ++j)
          sum += t.values[j * t.unit_rows + r] * t.x[place(t, j) + lane];
        *y = sum;
      }
}

template <class T>
void spmv_tile_ref(const SpmvTile<T>& t) {
  for (int64_t u = t.unit_begin; u < t.unit_end; ++u)
    for (int64_t r = 0; r < t.unit_rows; ++r) {
      const int64_t row = u * t.unit_rows + r;
      T sum = !t.first ? t.y[row] : t.bias ? t.bias[row] : T(0);
      for (int64_t j = t.starts[u]; j < t.starts[u + 1]; ++j)
        sum += t.values[j * t.unit_rows + r] * t.x[t.columns[j]];
      t.y[row] = sum;
    }
}

template <class T>
void sddmm_tile_ref(const SddmmTile<T>& t) {
  for (int64_t row = t.unit_begin; row < t.unit_end; ++row)
    for (int64_t j = t.starts[row]; j < t.starts[row + 1]; ++j) {
      T sum = 0;
      for (int64_t lane = 0; lane < t.vectors * kRefLanes; ++lane)
        sum += t.dy[row * t.ldy + lane] * t.x[place(t, j) + lane];
      t.values[j] = t.first ? sum : t.values[j] + sum;
    }
}

template <class T>
void rows_to_panel_ref(const T* x, int64_t ldx, int64_t rows, int64_t columns, T* panel,
                       int64_t width) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < width; ++r) panel[c * width + r] = r < rows ? x[r * ldx + c] : T(0);
}

template <class T>
void panel_to_rows_ref(const T* panel, int64_t width, int64_t rows, int64_t columns, T* y,
                       int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) y[r * ldy + c] = panel[c * width + r];
}

template <class T>
void expand_values_ref(const uint16_t* bits, int64_t n, const T* values, T* into) {
  for (int64_t i = 0; i < n; ++i)
    for (int r = 0; r < kMaxUnitRows; ++r)
      into[i * kMaxUnitRows + r] = bits[i] >> r & 1 ? *values++ : T(0);
}

template <class T>
void scale_values_ref(const int8_t* from, int64_t n, T scale, T* into) {
  for (int64_t i = 0; i < n; ++i) into[i] = static_cast<T>(from[i]) * scale;
}

template void spmm_tile_ref(const SpmmTile<float>&);
template void spmv_tile_ref(const SpmvTile<float>&);
template void sddmm_tile_ref(const SddmmTile<float>&);
template void rows_to_panel_ref(const float*, int64_t, int64_t, int64_t, float*, int64_t);
template void panel_to_rows_ref(const float*, int64_t, int64_t, int64_t, float*, int64_t);
template void expand_values_ref(const uint16_t*, int64_t, const float*, float*);
template void scale_values_ref(const int8_t*, int64_t, float, float*);
template void spmm_tile_ref(const SpmmTile<double>&);
template void spmv_tile_ref(const SpmvTile<double>&);
template void sddmm_tile_ref(const SddmmTile<double>&);
template void rows_to_panel_ref(const double*, int64_t, int64_t, int64_t, double*, int64_t);
template void panel_to_rows_ref(const double*, int64_t, int64_t, int64_t, double*, int64_t);
template void expand_values_ref(const uint16_t*, int64_t, const double*, double*);
template void scale_values_ref(const int8_t*, int64_t, double, double*);

}  // namespace ds
