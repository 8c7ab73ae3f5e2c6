// What the drivers of this family share: rows of activations in and out of panels, in slabs of
// columns that fit L1, through float32 where they are stored in 16 bits; and decoded weights.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/kernels.h"

namespace ds {

constexpr int64_t kSlabColumns = 64;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

template <class T>
int64_t panel_width() {
  return kPanelVectors * kernels<T>().spmm.lanes;
}

// Of a batch of m rows: a narrow one has narrow panels.
template <class T>
int64_t narrow_width(int64_t m) {
  return std::min(panel_width<T>(), round_up(std::max<int64_t>(m, 1), kernels<T>().spmm.lanes));
}

// Columns [begin, end) of x (rows, ldx) to panel[column][width].
template <class T, class S>
void fill_panel(const S* x, int64_t ldx, int64_t rows, int64_t begin, int64_t end, T* panel,
                int64_t width) {
  const auto& k = kernels<T>().spmm;
  if constexpr (std::is_same_v<T, S>) {
    k.rows_to_panel(x + begin, ldx, rows, end - begin, panel + begin * width, width);
  } else {
    alignas(64) T slab[64 * kSlabColumns];  // a panel is at most 64 rows wide
    for (int64_t c = begin; c < end; c += kSlabColumns) {
      const int64_t n = std::min(kSlabColumns, end - c);
      for (int64_t r = 0; r < rows; ++r)
        kernels<S>().widen(x + r * ldx + c, n, slab + r * kSlabColumns);
      k.rows_to_panel(slab, kSlabColumns, rows, n, panel + c * width, width);
    }
  }
}

// Back: panel[column][width] to columns [0, columns) of y (rows, ldy).
template <class T, class S>
void empty_panel(const T* panel, int64_t width, int64_t rows, int64_t columns, S* y, int64_t ldy) {
  const auto& k = kernels<T>().spmm;
  if constexpr (std::is_same_v<T, S>) {
    k.panel_to_rows(panel, width, rows, columns, y, ldy);
  } else {
    alignas(64) T slab[64 * kSlabColumns];
    for (int64_t c = 0; c < columns; c += kSlabColumns) {
      const int64_t n = std::min(kSlabColumns, columns - c);
      k.panel_to_rows(panel + c * width, width, rows, n, slab, kSlabColumns);
      for (int64_t r = 0; r < rows; ++r)
        kernels<S>().round(slab + r * kSlabColumns, n, y + r * ldy + c);
    }
  }
}

// The values of units [unit_begin, unit_end) of a block, as T, such that result[i * unit_rows] is
// the first of entry i: the stored ones, or decoded into `scratch`.
template <class T>
const T* decoded(const Tiles& w, const Values& values, const int64_t* starts, int64_t unit_begin,
                 int64_t unit_end, T* scratch) {
  if (values.kind == ValueKind::kPlain) return static_cast<const T*>(values.data);
  const int64_t first = starts[unit_begin] * w.unit_rows;
  if (values.kind == ValueKind::kBitmask) {
    const int64_t* places = values.places + (starts - w.starts);
    for (int64_t u = unit_begin; u < unit_end; ++u)
      kernels<T>().spmm.expand_values(values.bits + starts[u], starts[u + 1] - starts[u],
                                      static_cast<const T*>(values.data) + places[u],
                                      scratch + starts[u] * w.unit_rows - first);
    return scratch - first;
  }
  const int64_t n = starts[unit_end] * w.unit_rows - first;
  if constexpr (std::is_same_v<T, float>) {
    if (values.kind == ValueKind::kBFloat16)
      kernels<bf16>().widen(static_cast<const bf16*>(values.data) + first, n, scratch);
    if (values.kind == ValueKind::kFloat16)
      kernels<f16>().widen(static_cast<const f16*>(values.data) + first, n, scratch);
    if (values.kind == ValueKind::kInt8) {
      const int8_t* from = static_cast<const int8_t*>(values.data);
      for (int64_t u = unit_begin; u < unit_end; ++u) {
        const int64_t begin = starts[u] * w.unit_rows, end = starts[u + 1] * w.unit_rows;
        if (w.unit_rows == 1)
          kernels<T>().spmm.scale_values(from + begin, end - begin, values.scales[u],
                                         scratch + (begin - first));
        else
          for (int64_t i = begin; i < end; ++i)
            scratch[i - first] =
                from[i] * values.scales[u * w.unit_rows + (i - begin) % w.unit_rows];
      }
    }
  }
  return scratch - first;
}

}  // namespace ds
