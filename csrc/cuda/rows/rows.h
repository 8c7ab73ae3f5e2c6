// Feature rows summed over segments, added and set: the operators of cpu/rows/, same results.
#pragma once
#include "cuda/device.h"
#include "cuda/algorithms.h"

namespace ds::gpu {

// out[s] = bias + sum over j in [start[s], start[s + 1]) of values[rows[j]]; with `mean`: of
// (values[rows[j]] - mean[s])^2. Rows that do not exist add nothing; starts are cut to the
// positions there are.
template <class T>
struct SegmentSum {
  const T* values;  // (n_values, n_channels)
  int64_t n_values;
  const int32_t* rows32;  // at most one of the two; neither: row j is j
  const int64_t* rows64;
  int64_t n_positions;   // of rows, or n_values
  const int64_t* start;  // (n_segments + 1), ascending
  int64_t n_segments, n_channels;
  const T* bias;  // (n_channels) or null
  const T* mean;  // (n_segments, n_channels) or null; without rows and bias
  T* out;         // (n_segments, n_channels)
  Acc<T>* slots;  // (segment_slots(n_positions), n_channels)
};
int64_t segment_slots_of(int64_t n_positions);
template <class T>
Status segment_sum(const Stream& stream, const SegmentSum<T>& args);

// The union of two strictly ascending lists, and the row of each that has a key, or -1.
struct JoinRows {
  const int64_t* a;
  const int64_t* b;
  int64_t n_a, n_b;
  int32_t* rank;    // workspace (n_a): the first row of b with a key not below
  int32_t* shared;  // workspace (n_a + 1)
  int32_t* before;  // (n_a + 1): shared keys before each row of a; the last is their number
  int64_t* keys;    // (n_a + n_b): this many less the shared ones are written
  int32_t* from_a;
  int32_t* from_b;
};
Status join_rows(const Stream& stream, const Workspace& workspace, const JoinRows& args);

// y[i] = value of a + scale * value of b; a value is a row where from >= 0, row -2 - from of the
// ground where from <= -2, and zero where it is -1 or there is no such row.
template <class T>
struct AddRows {
  struct Operand {
    const T* rows;    // (n_rows, n_channels)
    const T* ground;  // (n_ground, n_channels) or null
    int64_t n_rows, n_ground;
    const int32_t* from;  // (n_out)
  } a, b;
  T scale;
  int64_t n_out, n_channels;
  T* y;
};
template <class T>
Status add_rows(const Stream& stream, const AddRows<T>& args);

// Rows of any type to places of a larger array, the rest zero. Places out of range, or not above
// the one before, are passed over.
struct ScatterRows {
  const char* rows;      // (n_rows, row_bytes)
  const int64_t* place;  // (n_rows), strictly ascending
  int64_t n_rows, n_out, row_bytes;
  char* out;  // (n_out, row_bytes)
};
Status scatter_rows(const Stream& stream, const ScatterRows& args);

}  // namespace ds::gpu
