// How the kernels read an unstructured pruned matrix W (n_rows, n_columns).
//
// Columns are cut into panels of kPanelColumns, so that a panel's part of the activations fits in
// shared memory twice; rows into slabs of kSlabRows neighbours, which one warp multiplies and whose
// results fill a sector (32 bytes of float32) of a row of y. A segment is what one row keeps in one
// panel: chunks of kChunk entries, the last one filled up with entries whose column is
// kPanelColumns, where shared memory holds zeros, and whose value is 0. So an entry's value and
// column are read as vectors, broadcast to a warp, and no weight meets an activation that is not
// its own.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

constexpr int kPanelColumns = 112;
constexpr int kSlabRows = 8;
constexpr int kChunk = 4;

struct SpmmPlan {
  const int32_t* slabs;     // (n_slabs,): all of them, those with most chunks first
  const int32_t* starts;    // (n_slabs * n_panels * kSlabRows + 1,): first chunk of every segment
  const uint16_t* columns;  // (n_chunks, kChunk): from the panel's first
  int64_t n_rows, n_columns, n_chunks;
};

DS_HOST_DEVICE int64_t n_slabs_of(const SpmmPlan& plan) {
  return ceil_div(plan.n_rows, kSlabRows);
}
DS_HOST_DEVICE int64_t n_panels_of(const SpmmPlan& plan) {
  return ceil_div(plan.n_columns, kPanelColumns);
}

}  // namespace ds::gpu
