#include "cpu/rows/scatter_rows.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"

namespace ds {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024;

}  // namespace

void scatter_rows(const ScatterRowsArgs& a, int n_threads) {
  const int64_t block = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(a.row_bytes, 1));
  parallel_for((a.n_out + block - 1) / block, n_threads, [&](int64_t b) {
    const int64_t end = std::min(a.n_out, (b + 1) * block);
    int64_t at = b * block;  // the next row of the result
    int64_t i = std::lower_bound(a.place, a.place + a.n_rows, at) - a.place;
    while (at < end) {
      const int64_t next = i < a.n_rows ? std::min(a.place[i], end) : end;
      std::memset(a.out + at * a.row_bytes, 0, static_cast<size_t>((next - at) * a.row_bytes));
      at = next;
      int64_t n = 0;  // rows that lie side by side in both
      while (at + n < end && i + n < a.n_rows && a.place[i + n] == at + n) ++n;
      std::memcpy(a.out + at * a.row_bytes, a.rows + i * a.row_bytes,
                  static_cast<size_t>(n * a.row_bytes));
      at += n;
      i += n;
    }
  });
}

}  // namespace ds
