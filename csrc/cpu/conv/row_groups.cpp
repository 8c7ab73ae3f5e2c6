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

// 1 if a row of the first half reads offset k, + 2 if one of the second does.
int halves_of(const int32_t* table, int64_t n_offsets, const int32_t* order, int64_t k) {
  int halves = 0;
  for (int slot = 0; slot < kGroupRows; ++slot)
    if (order[slot] >= 0 && table[order[slot] * n_offsets + k] >= 0)
      halves |= 1 << slot / kHalfRows;
  return halves;
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
    for (int64_t g = job * kJobGroups; g < end; ++g) {
      start[g + 1] = 0;
      for (int64_t k = 0; k < n_offsets; ++k)
        start[g + 1] += halves_of(table, n_offsets, order + g * kGroupRows, k) != 0;
    }
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
        const int halves = halves_of(table, n_offsets, slots, k);
        if (halves == 0) continue;
        if (entry == start[g + 1]) {
          good = false;
          break;
        }
        taps[entry] = static_cast<int32_t>(4 * k + halves);
        for (int slot = 0; slot < kGroupRows; ++slot)
          rows[entry * kGroupRows + slot] =
              slots[slot] < 0 ? -1 : std::max(-1, table[slots[slot] * n_offsets + k]);
        ++entry;
      }
      if (entry != start[g + 1]) good = false;
    }
  });
  return good;
}

}  // namespace ds
