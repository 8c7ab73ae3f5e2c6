#include "cpu/conv/row_groups.h"

#include <algorithm>
#include <atomic>

#include "core/parallel.h"

namespace ds {
namespace {

constexpr int64_t kJobGroups = 32;

// The place of a row's mask of offsets in the reflected Gray code. Sorted so, rows that follow one
// another differ in fewer offsets than sorted by the mask as a number. Of a large kernel the middle
// 64 offsets decide: they are the near ones, which most rows read.
uint64_t gray_rank(const int32_t* entry, int64_t n_offsets) {
  const int64_t n = std::min<int64_t>(n_offsets, 64), first = (n_offsets - n) / 2;
  uint64_t mask = 0;
  for (int64_t k = 0; k < n; ++k) mask |= static_cast<uint64_t>(entry[first + k] >= 0) << k;
  for (int shift = 1; shift < 64; shift *= 2) mask ^= mask >> shift;
  return mask;
}

// The source rows of a group's slots at offset k. Returns 1 if the first half has any, + 2 if the
// second has.
int gather_rows(const int32_t* table, int64_t n_offsets, const int32_t* order, int64_t k,
                int32_t* rows) {
  int32_t all[2] = {-1, -1};  // negative while all are
  for (int slot = 0; slot < kGroupRows; ++slot) {
    rows[slot] = order[slot] < 0 ? -1 : table[order[slot] * n_offsets + k];
    all[slot / kHalfRows] &= rows[slot];
  }
  return (all[0] >= 0) + 2 * (all[1] >= 0);
}

// How many offsets the rows of a group read.
int64_t count_entries(const int32_t* table, int64_t n_offsets, const uint64_t* keys,
                      const int32_t* order) {
  int64_t count = 0;
  if (n_offsets <= 64) {
    uint64_t mask = 0;
    for (int slot = 0; slot < kGroupRows && order[slot] >= 0; ++slot)
      mask |= keys[order[slot]] ^ keys[order[slot]] >> 1;  // from the Gray code back
    return __builtin_popcountll(mask);
  }
  int32_t rows[kGroupRows];
  for (int64_t k = 0; k < n_offsets; ++k)
    count += gather_rows(table, n_offsets, order, k, rows) != 0;
  return count;
}

}  // namespace

int64_t plan_row_groups(const int32_t* table, int64_t n_dst, int64_t n_offsets, uint64_t* keys,
                        int32_t* order, int64_t* start, int n_threads) {
  static_assert(kSortRows % kGroupRows == 0, "a group must not span two stretches");
  parallel_for((n_dst + kSortRows - 1) / kSortRows, n_threads, [&](int64_t stretch) {
    const int64_t begin = stretch * kSortRows, end = std::min(n_dst, begin + kSortRows);
    for (int64_t i = begin; i < end; ++i) {
      keys[i] = gray_rank(table + i * n_offsets, n_offsets);
      order[i] = static_cast<int32_t>(i);
    }
    std::sort(order + begin, order + end,
              [&](int32_t a, int32_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  });
  const int64_t n_groups = n_row_groups(n_dst);
  std::fill(order + n_dst, order + n_groups * kGroupRows, -1);
  parallel_for((n_groups + kJobGroups - 1) / kJobGroups, n_threads, [&](int64_t job) {
    const int64_t end = std::min(n_groups, (job + 1) * kJobGroups);
    for (int64_t g = job * kJobGroups; g < end; ++g)
      start[g + 1] = count_entries(table, n_offsets, keys, order + g * kGroupRows);
  });
  start[0] = 0;
  for (int64_t g = 0; g < n_groups; ++g) start[g + 1] += start[g];
  return start[n_groups];
}

bool fill_row_groups(const int32_t* table, int64_t n_offsets, int64_t n_groups,
                     const int32_t* order, const int64_t* start, int32_t* taps, int32_t* rows,
                     int n_threads) {
  std::atomic<bool> good{true};
  parallel_for((n_groups + kJobGroups - 1) / kJobGroups, n_threads, [&](int64_t job) {
    const int64_t end = std::min(n_groups, (job + 1) * kJobGroups);
    for (int64_t g = job * kJobGroups; g < end; ++g) {
      const int32_t* slots = order + g * kGroupRows;
      int64_t entry = start[g];
      for (int64_t k = 0; k < n_offsets; ++k) {
        int32_t found[kGroupRows];
        const int halves = gather_rows(table, n_offsets, slots, k, found);
        if (halves == 0) continue;
        if (entry == start[g + 1]) {
          good = false;
          break;
        }
        taps[entry] = static_cast<int32_t>(4 * k + halves);
        std::copy(found, found + kGroupRows, rows + entry * kGroupRows);
        ++entry;
      }
      if (entry != start[g + 1]) good = false;
    }
  });
  return good;
}

}  // namespace ds
