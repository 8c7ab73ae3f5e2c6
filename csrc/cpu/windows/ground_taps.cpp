// Deduplication by one flag per (offset, class row): offset-major, so that numbering the flags in memory order sorts
// the result.
#include <algorithm>

#include "core/parallel.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

constexpr int64_t kBlockEntries = 64 * 1024;

int64_t rows_per_block(const GroundTapsArgs& a) {
  return std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(a.n_offsets, 1));
}

// Marks what the rows need and leaves in start[i + 1] the number of taps of the rows up to i. Threads meet in a flag
// only to write the same 1: relaxed stores, which cost as much as plain ones. Taps that are not ground go to a dummy:
// whether a tap is, is a coin toss that a branch would lose.
void mark_rows(const GroundTapsArgs& a, int64_t row_begin, int64_t row_end) {
  int64_t taps = 0;
  int32_t dummy = 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t* entry = a.table + row * a.n_offsets;
    int32_t* flags = a.flags;
    for (int64_t k = 0; k < a.n_offsets; ++k, flags += a.n_class_rows) {
      const bool ground = entry[k] < kNoTap;
      int32_t* flag = ground ? flags + (INT64_C(-2) - entry[k]) : &dummy;
      __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
      taps += ground;
    }
    a.start[row + 1] = taps;
  }
}

}  // namespace

void plan_ground_taps(const GroundTapsArgs& a, int n_threads) {
  const int64_t block = rows_per_block(a);
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    mark_rows(a, b * block, std::min(a.n_out, (b + 1) * block));
  });
  int64_t before = a.start[0] = 0;
  for (int64_t begin = 0; begin < a.n_out; begin += block) {
    const int64_t end = std::min(a.n_out, begin + block);
    for (int64_t row = begin; row < end; ++row) a.start[row + 1] += before;
    before = a.start[end];
  }
  parallel_for(a.n_offsets, n_threads, [&](int64_t k) {
    const int32_t* flags = a.flags + k * a.n_class_rows;
    int64_t needed = 0;
    for (int64_t g = 0; g < a.n_class_rows; ++g) needed += flags[g];
    a.u_offset_start[k + 1] = needed;
  });
  a.u_offset_start[0] = 0;
  for (int64_t k = 0; k < a.n_offsets; ++k) a.u_offset_start[k + 1] += a.u_offset_start[k];
}

bool fill_ground_taps(const GroundTapsArgs& a, int32_t* u_rows, int32_t* class_rows, int n_threads) {
  int32_t failed = 0;
  parallel_for(a.n_offsets, n_threads, [&](int64_t k) {
    int32_t* flags = a.flags + k * a.n_class_rows;
    int64_t u = a.u_offset_start[k];
    for (int64_t g = 0; g < a.n_class_rows; ++g) {
      if (flags[g] == 0) continue;
      if (u == a.u_offset_start[k + 1]) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      class_rows[u] = static_cast<int32_t>(g);
      flags[g] = static_cast<int32_t>(u++);
    }
  });
  const int64_t block = rows_per_block(a);
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    const int64_t row_end = std::min(a.n_out, (b + 1) * block);
    int64_t at = a.start[b * block];
    for (int64_t row = b * block; row < row_end; ++row) {
      const int32_t* entry = a.table + row * a.n_offsets;
      const int32_t* flags = a.flags;
      for (int64_t k = 0; k < a.n_offsets; ++k, flags += a.n_class_rows) {
        if (entry[k] >= kNoTap) continue;
        if (at == a.start[row + 1]) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        u_rows[at++] = flags[INT64_C(-2) - entry[k]];
      }
    }
  });
  return failed == 0;
}

}  // namespace ds
