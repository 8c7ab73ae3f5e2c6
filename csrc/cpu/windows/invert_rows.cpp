#include <algorithm>

#include "core/parallel.h"
#include "cpu/windows/windows.h"

namespace ds {
namespace {

// More chunks than this pay for more counts than they save time.
constexpr int64_t kMinChunkRows = 64 * 1024;

struct Chunk {
  int64_t begin, end;
};

Chunk chunk_of(int64_t c, int64_t n_chunks, int64_t n_rows) {
  return {n_rows / n_chunks * c + std::min(c, n_rows % n_chunks),
          n_rows / n_chunks * (c + 1) + std::min(c + 1, n_rows % n_chunks)};
}

}  // namespace

int64_t invert_chunks(int64_t n_rows, int64_t n_values, int n_threads) {
  return std::clamp<int64_t>(n_rows / std::max(kMinChunkRows, n_values), 1, std::max(n_threads, 1));
}

void plan_inverse(const int32_t* rows, int64_t n_rows, int64_t n_values, int64_t n_chunks, int64_t* counts,
                  int64_t* start, int n_threads) {
  parallel_for(n_chunks, n_threads, [&](int64_t c) {
    int64_t* count = counts + c * n_values;
    std::fill(count, count + n_values, 0);
    const Chunk chunk = chunk_of(c, n_chunks, n_rows);
    for (int64_t j = chunk.begin; j < chunk.end; ++j)
      if (rows[j] >= 0) ++count[rows[j]];
  });
  int64_t total = 0;
  for (int64_t v = 0; v < n_values; ++v) {
    start[v] = total;
    for (int64_t c = 0; c < n_chunks; ++c) {
      int64_t* count = counts + c * n_values + v;
      total += *count;
      *count = total - *count;                             // becomes the position
    }
  }
  start[n_values] = total;
}

bool fill_inverse(const int32_t* rows, int64_t n_rows, int64_t n_values, int64_t n_chunks, int64_t* positions,
                  int64_t n_index, int64_t* index, int n_threads) {
  int32_t failed = 0;
  parallel_for(n_chunks, n_threads, [&](int64_t c) {
    int64_t* position = positions + c * n_values;
    const Chunk chunk = chunk_of(c, n_chunks, n_rows);
    for (int64_t j = chunk.begin; j < chunk.end; ++j) {
      if (rows[j] < 0) continue;
      const int64_t at = position[rows[j]]++;
      if (at < 0 || at >= n_index) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      index[at] = j;
    }
  });
  return failed == 0;
}

}  // namespace ds
