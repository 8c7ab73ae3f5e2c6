// Force regularization with forces of constant size: every filter is drawn to every other one,
// along its sphere. Torch-free; the caller allocates everything.
//
//   A_ij = 1 / |w_i - w_j|, 0 where the distance is at most 1e-4       w (n, d): rows of length 1
//   F_i  = sum_j A_ij w_j - (sum_j A_ij) w_i
//   out_i = lengths_i (F_i - (F_i . w_i) w_i)
//
// Distances are sums of squared differences, never 2 - 2 w_i . w_j, whose rounding would be all
// that is left of near filters.
//
// Order    squared distance: chains of multiply-adds over kForceDepth features, and those sums one
//          after another; sum_j A_ij w_j: one chain, j ascending; sums along a row: kForceSums
//          chains, then halves added. Bits depend on neither threads nor blocks of rows, and are
//          the same for every instruction set that fuses (the x86 baseline rounds twice).
// Error    u = 2^-24 or 2^-53. A squared distance: (kForceDepth + ceil(d / kForceDepth) + 3) u
//          relative, all terms being positive; A_ij: half of it and 3 u. For float32 and d = 2304,
//          1.6e-5 at worst, and A_ij 8e-6: float32 sums are enough.
#pragma once
#include <cstdint>

namespace ds {

constexpr int64_t kForceDepth = 256;  // features of a pass: 256 x 16 floats = 16 KiB of L1
constexpr int kForceSums = 16;        // chains of a sum along a row: vectors of every width

// One pass: (n_rows, lanes) += squared distances of rows and a panel of other rows.
template <class T>
struct DistanceTile {
  const T* rows;  // (n_rows, ld_rows): `depth` features
  int64_t ld_rows, n_rows;
  const T* panel;  // (depth, lanes): the others, transposed
  int64_t depth;
  T* table;  // (n_rows, ld_table), lanes columns
  int64_t ld_table;
  bool is_first;  // = instead of +=
};

// pulls (n_rows, lanes) += table (n_rows, ld_table), depth columns, times others (depth, lanes).
template <class T>
struct PullTile {
  const T* table;
  int64_t ld_table, n_rows;
  const T* others;
  int64_t depth;
  T* pulls;
};

// One filter: from sum_j A_ij w_j in `out` to the result, in place.
template <class T>
struct ForceRow {
  const T* inverse;  // (n): its row of A
  int64_t n;
  const T* row;  // (d)
  int64_t d;
  T length;
  T* out;  // (d)
};

template <class T>
struct ForceKernels {
  int rows, lanes;  // of a tile in registers, which is what a caller passes multiples of, if it can
  void (*add_distances)(const DistanceTile<T>&);
  void (*invert)(T* squared, int64_t n);  // squared distances to A
  void (*add_pulls)(const PullTile<T>&);
  void (*finish_row)(const ForceRow<T>&);
};

template <class T>
struct ForceArgs {
  const T* unit;  // (n, d)
  int64_t n, d;
  const T* lengths;    // (n)
  int64_t table_rows;  // 1 .. n rows of A at a time; where all of them, each pair is computed once
  T* out;              // (n, d), apart from everything else
};

// Elements of workspace, aligned to 64 bytes.
template <class T>
int64_t force_workspace(int64_t n, int64_t d, int64_t table_rows, int n_threads);
template <class T>
void constant_forces(const ForceArgs<T>& args, T* workspace, int n_threads);

}  // namespace ds
