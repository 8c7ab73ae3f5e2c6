#include <algorithm>
#include <limits>
#include <numeric>

#include "core/parallel.h"
#include "cpu/rulebook/rulebook.h"

namespace ds {

int64_t axis_fan_out(const AxisWindow& a) {
  if (a.transposed) return a.kernel;
  const int64_t period = a.stride / std::gcd(a.stride, a.dilation);   // taps t and t + period reach one input together
  return (a.kernel + period - 1) / period;
}

// For one tap the map c -> c' is strictly increasing, so each tap gives a sorted list and the union is a merge.
int64_t dilate_axis(const int64_t* keys, int64_t n, const AxisWindow& a, int64_t* workspace, int64_t* out) {
  int64_t* base = workspace;                  // the key without this axis' coordinate, in the output's numbering
  int64_t* position = workspace + n;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t upper = keys[i] / a.inner, outer = upper / a.extent_in;
    position[i] = upper - outer * a.extent_in;
    base[i] = outer * a.extent_out * a.inner + (keys[i] - upper * a.inner);
  }
  constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
  int64_t* cursor = workspace + 2 * n;        // per tap: next site, and its key
  int64_t* head = cursor + a.kernel;
  const auto advance = [&](int64_t t) {
    for (int64_t i = cursor[t]; i < n; ++i) {
      int64_t c = a.transposed ? position[i] * a.stride - a.padding + t * a.dilation
                               : position[i] + a.padding - t * a.dilation;
      if (!a.transposed && a.stride != 1) {
        if (c < 0 || c % a.stride != 0) continue;
        c /= a.stride;
      }
      if (c < 0 || c >= a.extent_out) continue;
      cursor[t] = i + 1;
      head[t] = base[i] + c * a.inner;
      return;
    }
    cursor[t] = n;
    head[t] = kEnd;
  };
  for (int64_t t = 0; t < a.kernel; ++t) {
    cursor[t] = 0;
    advance(t);
  }
  int64_t count = 0;
  for (;;) {
    int64_t least = kEnd;
    for (int64_t t = 0; t < a.kernel; ++t) least = std::min(least, head[t]);
    if (least == kEnd) return count;
    out[count++] = least;
    for (int64_t t = 0; t < a.kernel; ++t)
      if (head[t] == least) advance(t);
  }
}

void coords_to_keys(const int32_t* coords, int64_t n, int n_axes, const int64_t* shape, int64_t* keys,
                    int n_threads) {
  constexpr int64_t kBlock = 16384;
  parallel_for((n + kBlock - 1) / kBlock, n_threads, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
      const int32_t* c = coords + i * (1 + n_axes);
      int64_t key = c[0];
      for (int a = 0; a < n_axes; ++a) key = key * shape[a] + c[1 + a];
      keys[i] = key;
    }
  });
}

void keys_to_coords(const int64_t* keys, int64_t n, int n_axes, const int64_t* shape, int32_t* coords,
                    int n_threads) {
  constexpr int64_t kBlock = 16384;
  parallel_for((n + kBlock - 1) / kBlock, n_threads, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
      int32_t* c = coords + i * (1 + n_axes);
      int64_t key = keys[i];
      for (int a = n_axes - 1; a >= 0; --a) {
        const int64_t upper = key / shape[a];
        c[1 + a] = static_cast<int32_t>(key - upper * shape[a]);
        key = upper;
      }
      c[0] = static_cast<int32_t>(key);
    }
  });
}

}  // namespace ds
