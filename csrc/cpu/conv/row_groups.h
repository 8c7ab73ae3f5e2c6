// Output rows in an order in which neighbours read the same kernel offsets, for kernels whose
// accumulators are costly to reload (matrix tiles): a group of rows keeps its sums in registers
// while the offsets that any of them reads pass by. Built once per pair list and kept with it.
#pragma once
#include <cstdint>

namespace ds {

// Two register tiles of rows. Whether a half of the group reads an offset is known, and a half that
// does not costs nothing.
constexpr int kGroupRows = 32, kHalfRows = 16;

// Rows are sorted within stretches of as many: more sorts better, fewer keeps the rows that a
// stretch reads in L2. Products done over products needed, halves of groups, lidar scan, 3^3:
// 1.51 / 1.45 / 1.40 for 2048 / 4096 / 8192 (1.57 / 1.50 / 1.44 by the masks as plain numbers).
constexpr int64_t kSortRows = 4096;

struct RowGroups {
  const int32_t* order;  // (n_groups, kGroupRows): output row of each slot; -1 past the last
  const int64_t* start;  // (n_groups + 1): entries of each group, offsets ascending
  const int32_t* taps;   // (n_entries): 4 * offset + 1 if the first half reads it + 2 if the second
  const int32_t* rows;   // (n_entries, kGroupRows): source row of each slot, or -1
  int64_t n_groups;
};

inline int64_t n_row_groups(int64_t n_dst) {
  return (n_dst + kGroupRows - 1) / kGroupRows;
}

// table (n_dst, n_offsets): source row or -1. Writes order and start; keys: n_dst elements of
// workspace. Returns the number of entries.
int64_t plan_row_groups(const int32_t* table, int64_t n_dst, int64_t n_offsets, uint64_t* keys,
                        int32_t* order, int64_t* start, int n_threads);
// Writes taps and rows; false where table, order and start are not those of the plan.
bool fill_row_groups(const int32_t* table, int64_t n_offsets, int64_t n_groups,
                     const int32_t* order, const int64_t* start, int32_t* taps, int32_t* rows,
                     int n_threads);

}  // namespace ds
