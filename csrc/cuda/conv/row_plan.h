// Rows of a neighbour table in an order in which those that have the same neighbours lie together,
// so that a block of rows meets few offsets that only some of its rows have.
#pragma once
#include "cuda/algorithms.h"

namespace ds::gpu {

constexpr int kPlanRows = 32;  // sorted rows that share a mask

DS_HOST_DEVICE constexpr int64_t plan_groups(int64_t n_dst) {
  return ceil_div(n_dst, kPlanRows);
}
DS_HOST_DEVICE constexpr int64_t mask_words(int64_t n_offsets) {
  return ceil_div(n_offsets, 32);
}

struct RowPlanArgs {
  const int32_t* table;  // (n_offsets, n_dst), negative where there is no neighbour
  int64_t n_offsets, n_dst;
  uint64_t* keys;   // (2, n_dst): workspace
  int32_t* rows;    // (n_dst): workspace
  int32_t* order;   // (n_dst): rows sorted by the bits of their offsets (64 up: folded), stable
  uint32_t* masks;  // (plan_groups(n_dst), mask_words(n_offsets)): offsets that any of 32 rows has
};

Status plan_rows(const Stream& stream, const Workspace& workspace, const RowPlanArgs& args);

}  // namespace ds::gpu
