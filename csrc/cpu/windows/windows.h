// Index work around windows: what each tap of each output row reads, which (offset, ground class)
// products a layer needs, and the inverse of a row list. Torch-free; the caller allocates
// everything.
//
// A window table is int32 (n_out, n_offsets), row-major. An entry >= 0 is the feature row of the
// active site that the tap reads, -1 reads nothing, -2 - g reads ground class row g.
#pragma once
#include <cstdint>

#include "cpu/conv/conv.h"

namespace ds {

constexpr int32_t kNoTap = -1;
constexpr int64_t kMaxClassRow = INT64_C(2147483646);  // -2 - g must fit int32

struct WindowTableArgs {
  PairList pairs;  // dst = rows of the table
  int64_t n_out;
  const int32_t* out_class;  // (n_out), or null: an inactive tap reads nothing
  const int32_t* tap_class;  // (n_classes, n_offsets): the input class a tap reads, or -1
  const int32_t* out_batch;  // (n_out), or null: one ground for all samples
  int64_t rows_per_sample;   // class rows of one sample, where out_batch is given
  int32_t* table;
};
void window_table(const WindowTableArgs& args, int n_threads);

// The inactive in-bounds taps of a table as CSR by output row (start, u_rows). Each names a row u
// of the sorted, unique list of the (offset, class row) that occur: class_rows[u], of offset k
// where u_offset_start[k] <= u < u_offset_start[k + 1].
struct GroundTapsArgs {
  const int32_t* table;
  int64_t n_out, n_offsets, n_class_rows;
  int32_t* flags;           // workspace (1 + n_offsets * n_class_rows), zeroed by the caller
  int64_t* start;           // (n_out + 1)
  int64_t* u_offset_start;  // (n_offsets + 1)
};
// Fills flags, start and u_offset_start. False where an entry is below -1 - n_class_rows.
bool plan_ground_taps(const GroundTapsArgs& args, int n_threads);
// Uses the flags up. False where table, flags, start or u_offset_start are not what plan left:
// nothing is written out of bounds then.
bool fill_ground_taps(const GroundTapsArgs& args, int32_t* u_rows, int32_t* class_rows,
                      int n_threads);

// The same taps where u has a row for every (offset, class row), needed or not: k * n_class_rows +
// g.
struct EveryTapArgs {
  const int32_t* table;
  int64_t n_out, n_offsets, n_class_rows;
  int64_t* start;  // (n_out + 1)
};
// Fills start.
void plan_every_tap(const EveryTapArgs& args, int n_threads);
// u_rows (start[n_out]). False where an entry is below -1 - n_class_rows, or start is not its plan.
bool fill_every_tap(const EveryTapArgs& args, int32_t* u_rows, int n_threads);

// Positions of each value in [0, n_values): start (n_values + 1), index ascending within a value;
// negative rows are skipped. Each chunk of the list has its own counts, (n_chunks, n_values).
struct RowList {
  const int32_t* rows;
  int64_t n_rows, n_values, n_chunks;
};
int64_t invert_chunks(int64_t n_rows, int64_t n_values, int n_threads);
// False where a row is not below n_values.
bool plan_inverse(const RowList& list, int64_t* counts, int64_t* start, int n_threads);
// Uses the counts up. False where rows or counts are not what plan left.
bool fill_inverse(const RowList& list, int64_t* counts, int64_t n_index, int64_t* index,
                  int n_threads);

}  // namespace ds
