// Products with a pruned weight matrix W (n_rows, n_columns): Y = X W^T, and the product dY^T X
// sampled at the kept entries of W. Torch-free; the caller allocates everything.
//
// Layout of W   *tiles*: the columns in blocks of `block_columns`, the rows in units of `unit_rows`
// (1, or 4, 8, 16 where whole columns of a unit are kept). Segment (block b, unit r) is
// [starts[b * n_units + r], starts[b * n_units + r + 1]): the kept columns of the unit in the
// block, ascending, counted from the block's first; values[i * unit_rows + j] is the weight of
// entry i in row j of its unit. A block of the activations' panel (block_columns x 4 vectors) fits
// L1, which is what the two load ports need; 16-bit columns make a kept float32 weight cost 6
// bytes.
//
// Layout of X   *panels* of kPanelVectors vectors of rows ("lanes"): panel[column][lane]. The
// transposition from and to torch's row-major rows is done by the drivers, in registers.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace ds {

constexpr int kPanelVectors = 4;
constexpr int64_t kMaxUnitRows = 16;
constexpr int64_t kExpandPadding = 16;  // values behind the last one of a bitmask

struct Tiles {
  const int64_t* starts;    // (n_blocks * n_units + 1)
  const uint16_t* columns;  // (n_entries)
  int64_t n_rows, n_columns, block_columns, unit_rows;

  int64_t n_blocks() const { return (n_columns + block_columns - 1) / block_columns; }
  int64_t n_units() const { return (n_rows + unit_rows - 1) / unit_rows; }
};

// One block of columns against one panel, for units [unit_begin, unit_end):
// y[row] (+)= sum over the segment of value * x[place], lanes [0, vectors * kLanes). An entry's
// place is column * ldx, or places[entry] where that is not null (a convolution). A row's sum runs
// in 8 / vectors chains (entry i of a segment in chain i mod chains), added up in a fixed order at
// the end of the segment.
template <class T>
struct SpmmTile {
  const int64_t* starts;  // of this block: (n_units + 1)
  const uint16_t* columns;
  const T* values;        // entry 0 of the matrix
  const T* x;             // first lane of the panel's block
  const int32_t* places;  // (n_entries) or null: where an entry's lanes begin, from x
  int64_t ldx;
  T* y;  // row 0: (n_rows, ldy), aligned to a vector
  int64_t ldy;
  const T* bias;  // (n_rows) or null: what the first block starts from
  int64_t unit_begin, unit_end, unit_rows;
  int vectors;  // 1 .. kPanelVectors
  bool first;   // y is written, not added to
};

// y[row] (+)= sum of value * x[column] over one block's segment: one row of activations.
template <class T>
struct SpmvTile {
  const int64_t* starts;
  const uint16_t* columns;
  const T* values;
  const T* x;  // the block's first column
  T* y;
  const T* bias;
  int64_t unit_begin, unit_end, unit_rows;
  bool first;
};

// values[i] (+)= sum over lanes of dy[row] * x[place of i]; unit_rows == 1.
template <class T>
struct SddmmTile {
  const int64_t* starts;
  const uint16_t* columns;
  T* values;
  const T* x;
  const int32_t* places;  // (n_entries) or null: where an entry's lanes begin, from x
  int64_t ldx;
  const T* dy;  // row 0: (n_rows, ldy)
  int64_t ldy;
  int64_t unit_begin, unit_end;
  int vectors;
  bool first;
};

template <class T>
struct SpmmKernels {
  int lanes;  // of one vector
  // the 16 rows of each of n entries, from the kept ones alone: cpu/spmm/expand_kernel.h
  void (*expand_values)(const uint16_t* bits, int64_t n, const T* values, T* into);
  // int8 values of one row to the float32 (or float64) they stand for
  void (*scale_values)(const int8_t* from, int64_t n, T scale, T* into);
  void (*spmm_tile)(const SpmmTile<T>&);
  void (*spmv_tile)(const SpmvTile<T>&);
  void (*sddmm_tile)(const SddmmTile<T>&);
  // (rows, columns) row-major with ldx to panel[column][width], rows <= width padded with zeros,
  // and back (only the `rows` rows that there are).
  void (*rows_to_panel)(const T* x, int64_t ldx, int64_t rows, int64_t columns, T* panel,
                        int64_t width);
  void (*panel_to_rows)(const T* panel, int64_t width, int64_t rows, int64_t columns, T* y,
                        int64_t ldy);
};

// ------------------------------------------------------------------ whole products
// Kept weights as they are stored: T itself, or 16-bit or int8 values (with a scale per row), or
// values of T with a bit for every weight of an entry, whose zeros are not stored. They are decoded
// a chunk of rows at a time, once for the chunk's panels.
enum class ValueKind : uint8_t { kPlain, kBFloat16, kFloat16, kInt8, kBitmask };

struct Values {
  const void* data;     // (n_entries * unit_rows)
  const float* scales;  // (n_rows), int8 only
  ValueKind kind;
  // Of a bitmask, whose units have 16 rows: a value of type T for every bit, kExpandPadding more.
  const uint16_t* bits = nullptr;   // (n_entries)
  const int64_t* places = nullptr;  // (n_blocks * n_units): each segment's first value
};

// y (m, n_rows) = x (m, n_columns) W^T + bias. S is what x and y are stored in: T, or 16 bits where
// T is float32.
template <class T, class S>
struct SpmmArgs {
  Tiles tiles;
  Values values;
  const S* x;
  const T* bias;  // (n_rows) or null
  S* y;
  T* workspace;  // spmm_workspace() elements, aligned to 64 bytes
  int64_t m;
};

template <class T>
int64_t spmm_workspace(const Tiles& tiles, bool plain_values, int64_t m, int n_threads);
template <class T, class S>
void spmm(const SpmmArgs<T, S>& args, int n_threads);

// values (n_entries) = (dy^T x) at the entries of tiles with unit_rows == 1; dy (m, n_rows), x (m,
// n_columns).
template <class T, class S>
struct SddmmArgs {
  Tiles tiles;
  const S* x;
  const S* dy;
  T* values;
  T* workspace;  // sddmm_workspace() elements, aligned to 64 bytes
  int64_t m;
};

template <class T>
int64_t sddmm_workspace(const Tiles& tiles, int64_t m);
template <class T, class S>
void sddmm(const SddmmArgs<T, S>& args, int n_threads);

}  // namespace ds
