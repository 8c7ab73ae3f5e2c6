// Counting sort of the positions by value. Negative rows (in a window table most of them) are
// sifted out first, a block at a time and without a branch.
#include <algorithm>

#include "core/parallel.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

// More chunks than this pay for more counts than they save time.
constexpr int64_t kMinChunkRows = 64 * 1024;
constexpr int64_t kBlockRows = 1024;  // 8 KiB of positions in L1

// Calls f(row, position) for the rows >= 0 of chunk c, ascending; f returns false to give up.
template <class F>
bool for_present_rows(const RowList& list, int64_t c, F f) {
  const int64_t each = list.n_rows / list.n_chunks, more = list.n_rows % list.n_chunks;
  const int64_t end = each * (c + 1) + std::min(c + 1, more);
  int64_t present[kBlockRows];
  for (int64_t begin = each * c + std::min(c, more); begin < end; begin += kBlockRows) {
    const int64_t block_end = std::min(end, begin + kBlockRows);
    int64_t n = 0;
    for (int64_t j = begin; j < block_end; ++j) {
      present[n] = j;
      n += list.rows[j] >= 0;
    }
    for (int64_t i = 0; i < n; ++i)
      if (!f(list.rows[present[i]], present[i])) return false;
  }
  return true;
}

void set_relaxed(int32_t* flag) {
  __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

}  // namespace

int64_t invert_chunks(int64_t n_rows, int64_t n_values, int n_threads) {
  return std::clamp<int64_t>(n_rows / std::max(kMinChunkRows, n_values), 1, std::max(n_threads, 1));
}

bool plan_inverse(const RowList& list, int64_t* counts, int64_t* start, int n_threads) {
  int32_t failed = 0;
  parallel_for(list.n_chunks, n_threads, [&](int64_t c) {
    int64_t* count = counts + c * list.n_values;
    std::fill(count, count + list.n_values, 0);
    const bool good =
        for_present_rows(list, c, [=, n_values = list.n_values](int32_t row, int64_t) {
          if (row >= n_values) return false;
          ++count[row];
          return true;
        });
    if (!good) set_relaxed(&failed);
  });
  int64_t total = 0;
  for (int64_t v = 0; v < list.n_values; ++v) {
    start[v] = total;
    for (int64_t c = 0; c < list.n_chunks; ++c) {
      int64_t* count = counts + c * list.n_values + v;
      total += *count;
      *count = total - *count;  // becomes the position
    }
  }
  start[list.n_values] = total;
  return failed == 0;
}

bool fill_inverse(const RowList& list, int64_t* positions, int64_t n_index, int64_t* index,
                  int n_threads) {
  int32_t failed = 0;
  parallel_for(list.n_chunks, n_threads, [&](int64_t c) {
    int64_t* position = positions + c * list.n_values;
    const bool good =
        for_present_rows(list, c, [=, n_values = list.n_values](int32_t row, int64_t j) {
          if (row >= n_values) return false;
          const int64_t at = position[row]++;
          if (at < 0 || at >= n_index) return false;
          index[at] = j;
          return true;
        });
    if (!good) set_relaxed(&failed);
  });
  return failed == 0;
}

}  // namespace ds
