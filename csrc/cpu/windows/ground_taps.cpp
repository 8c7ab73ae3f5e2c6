// Deduplication by one flag per (offset, class row): offset-major, so that numbering the flags in
// memory order sorts the result. Whether a tap reads the ground is a coin toss, so the two passes
// over the table have no branch on it: the flag in front of all others stands for "no flag".
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

constexpr int64_t kBlockEntries = 64 * 1024;
constexpr int64_t kBufferTaps = 64;

int64_t rows_per_block(const GroundTapsArgs& a) {
  return std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(a.n_offsets, 1));
}

void set_relaxed(int32_t* flag) {
  __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

// The flag of an entry of an offset whose flags begin at `first`: 0 where it reads no ground row,
// and where the row does not exist, which clears *good. Masks, because gcc makes a select a branch.
int64_t flag_of(int32_t entry, int64_t first, int64_t n_class_rows, int64_t* ground,
                int64_t* good) {
  const int64_t class_row = INT64_C(-2) - entry;
  const int64_t known = -static_cast<int64_t>(class_row < n_class_rows);
  *ground = -static_cast<int64_t>(class_row >= 0);
  *good &= known;
  return *ground & known & (first + class_row);
}

// Marks what the rows need and leaves in start[row + 1] the number of taps of the block up to row.
// Threads meet in a flag only to write the same 1: relaxed stores, which cost as much as plain
// ones. False where an entry is below -1 - n_class_rows.
bool mark_rows(const GroundTapsArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t n_offsets = a.n_offsets, n_class_rows = a.n_class_rows;
  int32_t* const flags = a.flags;
  int64_t taps = 0, good = -1;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t* entry = a.table + row * n_offsets;
    for (int64_t k = 0, first = 1; k < n_offsets; ++k, first += n_class_rows) {
      int64_t ground;
      set_relaxed(flags + flag_of(entry[k], first, n_class_rows, &ground, &good));
      taps -= ground;
    }
    a.start[row + 1] = taps;
  }
  return good != 0;
}

// The numbers of the rows' taps, from start[row] on. False where they do not fit there.
bool fill_rows(const GroundTapsArgs& a, int64_t row_begin, int64_t row_end, int32_t* u_rows) {
  const int64_t n_offsets = a.n_offsets, n_class_rows = a.n_class_rows;
  int32_t buffer[kBufferTaps];
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t* entry = a.table + row * n_offsets;
    int64_t at = a.start[row], first = 1, good = -1;
    for (int64_t begin = 0; begin < n_offsets; begin += kBufferTaps) {
      const int64_t end = std::min(n_offsets, begin + kBufferTaps);
      int64_t n = 0;
      for (int64_t k = begin; k < end; ++k, first += n_class_rows) {
        int64_t ground;
        buffer[n] = a.flags[flag_of(entry[k], first, n_class_rows, &ground, &good)];
        n -= ground;
      }
      if (good == 0 || at + n > a.start[row + 1]) return false;
      std::memcpy(u_rows + at, buffer, n * sizeof(int32_t));
      at += n;
    }
    if (at != a.start[row + 1]) return false;
  }
  return true;
}

}  // namespace

bool plan_ground_taps(const GroundTapsArgs& a, int n_threads) {
  const int64_t block = rows_per_block(a);
  int32_t failed = 0;
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    if (!mark_rows(a, b * block, std::min(a.n_out, (b + 1) * block))) set_relaxed(&failed);
  });
  int64_t before = a.start[0] = 0;
  for (int64_t begin = 0; begin < a.n_out; begin += block) {
    const int64_t end = std::min(a.n_out, begin + block);
    for (int64_t row = begin; row < end; ++row) a.start[row + 1] += before;
    before = a.start[end];
  }
  parallel_for(a.n_offsets, n_threads, [&](int64_t k) {
    const int32_t* flags = a.flags + 1 + k * a.n_class_rows;
    int64_t needed = 0;
    for (int64_t g = 0; g < a.n_class_rows; ++g) needed += flags[g];
    a.u_offset_start[k + 1] = needed;
  });
  a.u_offset_start[0] = 0;
  for (int64_t k = 0; k < a.n_offsets; ++k) a.u_offset_start[k + 1] += a.u_offset_start[k];
  return failed == 0;
}

bool fill_ground_taps(const GroundTapsArgs& a, int32_t* u_rows, int32_t* class_rows,
                      int n_threads) {
  int32_t failed = 0;
  parallel_for(a.n_offsets, n_threads, [&](int64_t k) {
    int32_t* flags = a.flags + 1 + k * a.n_class_rows;
    int64_t u = a.u_offset_start[k];
    for (int64_t g = 0; g < a.n_class_rows; ++g) {
      if (flags[g] == 0) continue;
      if (u == a.u_offset_start[k + 1]) return set_relaxed(&failed);
      class_rows[u] = static_cast<int32_t>(g);
      flags[g] = static_cast<int32_t>(u++);
    }
  });
  if (failed != 0) return false;
  const int64_t block = rows_per_block(a);
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    if (!fill_rows(a, b * block, std::min(a.n_out, (b + 1) * block), u_rows)) set_relaxed(&failed);
  });
  return failed == 0;
}

void plan_every_tap(const EveryTapArgs& a, int n_threads) {
  const int64_t block = std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(a.n_offsets, 1));
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    for (int64_t row = b * block; row < std::min(a.n_out, (b + 1) * block); ++row) {
      const int32_t* entry = a.table + row * a.n_offsets;
      int64_t taps = 0;
      for (int64_t k = 0; k < a.n_offsets; ++k) taps += entry[k] < kNoTap;
      a.start[row + 1] = taps;
    }
  });
  a.start[0] = 0;
  for (int64_t row = 0; row < a.n_out; ++row) a.start[row + 1] += a.start[row];
}

bool fill_every_tap(const EveryTapArgs& a, int32_t* u_rows, int n_threads) {
  const int64_t block = std::max<int64_t>(1, kBlockEntries / std::max<int64_t>(a.n_offsets, 1));
  int32_t failed = 0;
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    for (int64_t row = b * block; row < std::min(a.n_out, (b + 1) * block); ++row) {
      const int32_t* entry = a.table + row * a.n_offsets;
      int64_t at = a.start[row];
      for (int64_t k = 0, first = 0; k < a.n_offsets; ++k, first += a.n_class_rows) {
        if (entry[k] >= kNoTap) continue;
        const int64_t class_row = INT64_C(-2) - entry[k];
        if (class_row >= a.n_class_rows || at == a.start[row + 1]) return set_relaxed(&failed);
        u_rows[at++] = static_cast<int32_t>(first + class_row);
      }
      if (at != a.start[row + 1]) return set_relaxed(&failed);
    }
  });
  return failed == 0;
}

}  // namespace ds
