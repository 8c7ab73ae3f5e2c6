#include <algorithm>
#include <limits>
#include <numeric>

#include "core/parallel.h"
#include "cpu/rulebook/rulebook.h"

namespace ds {

int64_t axis_fan_out(const AxisWindow& a) {
  if (a.transposed) return a.kernel;
  const int64_t period =
      a.stride / std::gcd(a.stride, a.dilation);  // taps t and t + period reach one input together
  return (a.kernel + period - 1) / period;
}

namespace {

// Keys that differ only after this axis form a run; a run moves as a whole.
struct Runs {
  int64_t* begin;     // (n + 1): first key of each run
  int64_t* base;      // (n): outer * extent_out
  int64_t* position;  // (n): coordinate along the axis
  int64_t n;
};

Runs find_runs(const int64_t* keys, int64_t n_keys, const AxisWindow& a, int64_t* workspace) {
  Runs r{workspace, workspace + n_keys + 1, workspace + 2 * n_keys + 1, 0};
  int64_t next = 0;  // least key of the next run
  for (int64_t i = 0; i < n_keys; ++i) {
    if (keys[i] < next) continue;  // divisions are dear: one a run
    const int64_t upper = a.inner == 1 ? keys[i] : keys[i] / a.inner, outer = upper / a.extent_in;
    next = (upper + 1) * a.inner;
    r.begin[r.n] = i;
    r.base[r.n] = outer * a.extent_out;
    r.position[r.n++] = upper - outer * a.extent_in;
  }
  r.begin[r.n] = n_keys;
  return r;
}

// Last axis, dilation 1: the output positions of a site are an interval, and intervals ascend with
// the site.
int64_t expand_intervals(const Runs& r, const AxisWindow& a, int64_t* out) {
  int64_t count = 0, next = 0, line = -1;
  for (int64_t i = 0; i < r.n; ++i) {
    int64_t low, high;
    if (a.transposed) {
      low = r.position[i] * a.stride - a.padding;
      high = low + a.kernel - 1;
    } else {
      low = r.position[i] + a.padding - (a.kernel - 1);
      high = r.position[i] + a.padding;
      if (a.stride != 1) {
        low = (std::max<int64_t>(low, 0) + a.stride - 1) / a.stride;
        high = high < 0 ? -1 : high / a.stride;
      }
    }
    if (r.base[i] != line) {
      line = r.base[i];
      next = 0;
    }
    high = std::min(high, a.extent_out - 1);
    for (next = std::max(low, next); next <= high; ++next) out[count++] = line + next;
  }
  return count;
}

struct List {
  const int64_t* keys;
  const int64_t* end;
  int64_t shift;  // added to every key
};

// Union of sorted lists. One list, by far the most common, is a shifted copy.
int64_t* merge_lists(List* lists, int64_t n, int64_t* out) {
  constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
  while (n > 1) {
    int64_t least = kEnd;
    for (int64_t i = 0; i < n; ++i) least = std::min(least, *lists[i].keys + lists[i].shift);
    *out++ = least;
    bool ended = false;
    for (int64_t i = 0; i < n; ++i) {
      lists[i].keys += *lists[i].keys + lists[i].shift == least;
      ended |= lists[i].keys == lists[i].end;
    }
    if (!ended) continue;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i)
      if (lists[i].keys != lists[i].end) lists[kept++] = lists[i];
    n = kept;
  }
  for (; n == 1 && lists[0].keys != lists[0].end; ++lists[0].keys)
    *out++ = *lists[0].keys + lists[0].shift;
  return out;
}

}  // namespace

// For one tap the map c -> c' is strictly increasing, so each tap gives a sorted list of runs; the
// union is a merge of runs by (outer, c'), and of keys where several taps meet.
int64_t dilate_axis(const int64_t* keys, int64_t n_keys, const AxisWindow& a, int64_t* workspace,
                    int64_t* out) {
  const Runs r = find_runs(keys, n_keys, a, workspace);
  if (a.inner == 1 && a.dilation == 1) return expand_intervals(r, a, out);
  constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
  int64_t* cursor =
      workspace + 3 * n_keys + 1;  // per tap: the run after its head, and the head's (outer, c')
  int64_t* head = cursor + a.kernel;
  List* lists = reinterpret_cast<List*>(head + a.kernel);
  const auto advance = [&](int64_t t) {
    for (int64_t i = cursor[t]; i < r.n; ++i) {
      int64_t c = a.transposed ? r.position[i] * a.stride - a.padding + t * a.dilation
                               : r.position[i] + a.padding - t * a.dilation;
      if (!a.transposed && a.stride != 1) {
        if (c < 0 || c % a.stride != 0) continue;
        c /= a.stride;
      }
      if (c < 0 || c >= a.extent_out) continue;
      cursor[t] = i + 1;
      head[t] = r.base[i] + c;
      return;
    }
    cursor[t] = r.n + 1;
    head[t] = kEnd;
  };
  for (int64_t t = 0; t < a.kernel; ++t) {
    cursor[t] = 0;
    advance(t);
  }
  int64_t* end = out;
  for (;;) {
    int64_t least = kEnd;
    for (int64_t t = 0; t < a.kernel; ++t) least = std::min(least, head[t]);
    if (least == kEnd) return end - out;
    int64_t n = 0;
    for (int64_t t = 0; t < a.kernel; ++t) {
      if (head[t] != least) continue;
      const int64_t run = cursor[t] - 1, first = keys[r.begin[run]];
      lists[n++] = {keys + r.begin[run], keys + r.begin[run + 1],
                    least * a.inner - (first - first % a.inner)};
      advance(t);
    }
    end = merge_lists(lists, n, end);
  }
}

void coords_to_keys(const int32_t* coords, int64_t n, int n_axes, const int64_t* shape,
                    int64_t* keys, int n_threads) {
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

void keys_to_coords(const int64_t* keys, int64_t n, int n_axes, const int64_t* shape,
                    int32_t* coords, int n_threads) {
  constexpr int64_t kBlock = 16384;
  const int64_t extent = shape[n_axes - 1];
  parallel_for((n + kBlock - 1) / kBlock, n_threads, [&](int64_t block) {
    int64_t line = 0,
            line_end = -1;  // keys of one line share all columns but the last: divide once a line
    int32_t prefix[1 + kMaxAxes];
    for (int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
      if (keys[i] < line || keys[i] >= line_end) {
        int64_t key = keys[i] / extent;
        line = key * extent;
        line_end = line + extent;
        for (int a = n_axes - 2; a >= 0; --a) {
          const int64_t upper = key / shape[a];
          prefix[1 + a] = static_cast<int32_t>(key - upper * shape[a]);
          key = upper;
        }
        prefix[0] = static_cast<int32_t>(key);
      }
      int32_t* c = coords + i * (1 + n_axes);
      for (int a = 0; a < n_axes; ++a) c[a] = prefix[a];
      c[n_axes] = static_cast<int32_t>(keys[i] - line);
    }
  });
}

}  // namespace ds
