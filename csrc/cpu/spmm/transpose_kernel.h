// Row-major rows to panels and back: squares of kLanes x kLanes transposed in registers, by
// log2(kLanes) rounds of shuffles of two vectors.
#pragma once
#include "cpu/isa/vec.h"

namespace ds {
namespace {

template <class T>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  typedef int32_t type __attribute__((vector_size(DS_VEC_BYTES)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t type __attribute__((vector_size(DS_VEC_BYTES)));
};

// Exchanges the off-diagonal squares of width `kStep` between rows i and i + kStep.
template <class T, int kStep>
[[gnu::always_inline]] inline void exchange(Vec<T>* rows) {
  using Index = typename LaneIndex<T>::type;
  Index low, high;
#pragma GCC unroll 16
  for (int j = 0; j < kLanes<T>; ++j) {
    low[j] = j & kStep ? kLanes<T> + j - kStep : j;
    high[j] = j & kStep ? kLanes<T> + j : j + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & kStep)) {
      const Vec<T> a = rows[i], b = rows[i + kStep];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + kStep] = __builtin_shuffle(a, b, high);
    }
}

template <class T>
[[gnu::always_inline]] inline void transpose_square(Vec<T>* rows) {
  exchange<T, 1>(rows);
  if constexpr (kLanes<T> > 2) exchange<T, 2>(rows);
  if constexpr (kLanes<T> > 4) exchange<T, 4>(rows);
  if constexpr (kLanes<T> > 8) exchange<T, 8>(rows);
}

// (kLanes, kLanes) at `from`, rows `from_stride` apart, transposed to `into`.
template <class T>
[[gnu::always_inline]] inline void move_square(const T* from, int64_t from_stride, T* into,
                                               int64_t into_stride) {
  Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) square[i] = load(from + i * from_stride);
  transpose_square<T>(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) store(into + i * into_stride, square[i]);
}

// Contract: cpu/spmm/spmm.h.
template <class T>
void rows_to_panel(const T* x, int64_t ldx, int64_t rows, int64_t columns, T* panel,
                   int64_t width) {
  const int64_t whole_rows = rows - rows % kLanes<T>;
  const int64_t whole_columns = columns - columns % kLanes<T>;
  // A cache line of every row at a time, the next ones on their way: rows lie a power of two apart
  // in memory, often, so that few of their lines stay in L1, and no hardware follows 32 of them.
  constexpr int64_t kLine = 64 / sizeof(T), kAhead = 4 * kLine;
  for (int64_t line = 0; line < whole_columns; line += kLine)
    for (int64_t r = 0; r < whole_rows; r += kLanes<T>) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) __builtin_prefetch(x + (r + i) * ldx + line + kAhead);
      for (int64_t c = line; c < least(line + kLine, whole_columns); c += kLanes<T>)
        move_square(x + r * ldx + c, ldx, panel + c * width + r, width);
    }
  for (int64_t c = whole_columns; c < columns; ++c)
    for (int64_t r = 0; r < whole_rows; ++r) panel[c * width + r] = x[r * ldx + c];
  if (whole_rows == width) return;
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = whole_rows; r < width; ++r)
      panel[c * width + r] = r < rows ? x[r * ldx + c] : T(0);
}

template <class T>
void panel_to_rows(const T* panel, int64_t width, int64_t rows, int64_t columns, T* y,
                   int64_t ldy) {
  const int64_t whole_rows = rows - rows % kLanes<T>;
  const int64_t whole_columns = columns - columns % kLanes<T>;
  for (int64_t r = 0; r < whole_rows; r += kLanes<T>)
    for (int64_t c = 0; c < whole_columns; c += kLanes<T>)
      move_square(panel + c * width + r, width, y + r * ldy + c, ldy);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      y[r * ldy + c] = panel[c * width + r];
}

}  // namespace
}  // namespace ds
