#include "cpu/rows/join_rows.h"

#include <algorithm>

#include "core/parallel.h"

namespace ds {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024;

template <class T>
const T* row_of(const typename AddRowsArgs<T>::Operand& o, int64_t i, int64_t n_channels) {
  const int64_t from = o.from[i];
  if (from >= 0) return o.rows + from * n_channels;
  return from == -1 ? nullptr : o.ground + (-2 - from) * n_channels;
}

}  // namespace

int64_t join_rows(const JoinArgs& j) {
  int64_t a = 0, b = 0, n = 0;
  for (; a < j.n_a || b < j.n_b; ++n) {
    // past the end counts as a key above all others
    const bool take_a = b == j.n_b || (a < j.n_a && j.a[a] <= j.b[b]);
    const bool take_b = a == j.n_a || (b < j.n_b && j.b[b] <= j.a[a]);
    j.keys[n] = take_a ? j.a[a] : j.b[b];
    j.from_a[n] = take_a ? static_cast<int32_t>(a) : -1;
    j.from_b[n] = take_b ? static_cast<int32_t>(b) : -1;
    a += take_a;
    b += take_b;
  }
  return n;
}

template <class T>
void add_rows(const AddRowsArgs<T>& p, int n_threads) {
  const int64_t n_channels = p.n_channels, row_bytes = n_channels * int64_t{sizeof(T)};
  const int64_t block = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(row_bytes, 1));
  parallel_for((p.n_out + block - 1) / block, n_threads, [&](int64_t job) {
    for (int64_t i = job * block; i < std::min(p.n_out, (job + 1) * block); ++i) {
      const T* a = row_of<T>(p.a, i, n_channels);
      const T* b = row_of<T>(p.b, i, n_channels);
      T* y = p.y + i * n_channels;
      if (a != nullptr && b != nullptr)
        for (int64_t c = 0; c < n_channels; ++c) y[c] = a[c] + p.scale * b[c];
      else if (b != nullptr)
        for (int64_t c = 0; c < n_channels; ++c) y[c] = p.scale * b[c];
      else if (a != nullptr)
        std::copy(a, a + n_channels, y);
      else
        std::fill(y, y + n_channels, T(0));
    }
  });
}

template void add_rows<float>(const AddRowsArgs<float>&, int);
template void add_rows<double>(const AddRowsArgs<double>&, int);

}  // namespace ds
