// Index work around windows, the operators of cpu/windows/: what each tap of each output row reads,
// which (offset, ground class) products a layer needs, and the inverse of a row list.
//
// A window table is int32 (n_out, n_offsets), row-major. An entry >= 0 is the feature row of the
// active site that the tap reads, -1 reads nothing, -2 - g reads ground class row g.
#pragma once
#include "cuda/algorithms.h"
#include "cuda/device.h"

namespace ds::gpu {

constexpr int32_t kNoTap = -1;
constexpr int64_t kMaxClassRow = INT64_C(2147483646);  // -2 - g must fit int32

// A class, sample or class row that is out of range makes a tap that reads nothing.
struct WindowTable {
  const int32_t* neighbours;  // (n_offsets, n_out): the row that offset k joins to an output, or -1
  int64_t n_out, n_offsets;
  const int32_t* out_class;  // (n_out), or null: an inactive tap reads nothing
  const int32_t* tap_class;  // (n_classes, n_offsets): the input class a tap reads, or -1
  int64_t n_classes;
  const int32_t* out_batch;  // (n_out), or null: one ground for all samples
  int64_t rows_per_sample;   // class rows of one sample, where out_batch is given
  int32_t* table;            // (n_out, n_offsets)
};
Status window_table(const Stream& stream, const WindowTable& args);

// The inactive in-bounds taps of a table as CSR by output row (start, u_rows).
struct Taps {
  const int32_t* table;
  int64_t n_out, n_offsets, n_class_rows;
  int32_t* counts;  // workspace (n_out + 1)
  int64_t* start;   // (n_out + 1)
  int64_t* found;   // (3): taps, u rows, and not 0 where an entry is below -1 - n_class_rows
};
// u has a row for every (offset, class row): k * n_class_rows + g. Fills start and found.
Status plan_every_tap(const Stream& stream, const Workspace& workspace, const Taps& args);
Status fill_every_tap(const Stream& stream, const Taps& args, int64_t n_taps, int32_t* u_rows);

// u has a row for every (offset, class row) that occurs, sorted: class_rows[u], of offset k where
// u_offset_start[k] <= u < u_offset_start[k + 1].
struct GroundTaps {
  Taps taps;
  int32_t* flags;           // workspace (1 + n_offsets * n_class_rows)
  int64_t* numbers;         // workspace (1 + n_offsets * n_class_rows)
  int64_t* u_offset_start;  // (n_offsets + 1)
};
// Fills flags, numbers, start, u_offset_start and found.
Status plan_ground_taps(const Stream& stream, const Workspace& workspace, const GroundTaps& args);
Status fill_ground_taps(const Stream& stream, const GroundTaps& args, int64_t n_taps, int64_t n_u,
                        int32_t* u_rows, int32_t* class_rows);

// Positions of each value in [0, n_values): start (n_values + 1), positions ascending within a
// value; negative rows are skipped.
struct InvertRows {
  const int32_t* rows;
  int64_t n_rows, n_values;
  uint32_t* keys;          // workspace (2, n_rows)
  int32_t* positions;      // workspace (n_rows)
  int32_t* positions_out;  // (n_rows): those of values, then of the rows that were skipped
  int64_t* start;          // (n_values + 1)
  int64_t* found;          // (2): positions of values, and not 0 where a row is not below n_values
};
Status invert_rows(const Stream& stream, const Workspace& workspace, const InvertRows& args);

}  // namespace ds::gpu
