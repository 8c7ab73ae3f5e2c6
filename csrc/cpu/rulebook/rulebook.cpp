#include "cpu/rulebook/rulebook.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"

namespace ds {
namespace {

struct Stream {
  int64_t taps[kMaxAxes];     // of the axes before the last
  int64_t first_tap, n_taps;  // of the last axis
  int64_t offset;             // kernel offset of first_tap
};

// Kernel offsets that are merged: all, or those before the centre.
int64_t merged_offsets(const Window& w, bool symmetric) {
  return symmetric ? w.n_offsets() / 2 : w.n_offsets();
}

// Calls f(stream index, stream) for all streams, offsets ascending.
template <class F>
int64_t for_each_stream(const Window& w, bool symmetric, const F& f) {
  const int last = w.n_axes - 1;
  const int64_t merged = merged_offsets(w, symmetric);
  const int64_t widest = w.dilation[last] == 1 ? kMaxStreamTaps : 1;
  Stream s{};
  int64_t index = 0;
  while (s.offset < merged) {
    s.n_taps = std::min({widest, w.kernel[last] - s.first_tap, merged - s.offset});
    f(index++, s);
    s.offset += s.n_taps;
    s.first_tap += s.n_taps;
    if (s.first_tap < w.kernel[last]) continue;
    s.first_tap = 0;
    for (int a = last - 1; a >= 0 && ++s.taps[a] == w.kernel[a]; --a) s.taps[a] = 0;
  }
  return index;
}

struct LinePair {
  const int32_t* query;  // last coordinates of all query sites, and of all target sites
  const int32_t* target;
  int64_t query_begin, query_end, target_begin, target_end;
  int64_t stride, shift;  // first wanted position = query * stride + shift
};

// One query line against one target line: cursors and hit bits. kTaps = 0: n_taps is only known at
// run time.
template <int kTaps>
void merge_line(const LinePair& l, int64_t n_taps, int32_t* cursors, uint8_t* hits,
                int64_t* counts) {
  const int64_t taps = kTaps > 0 ? kTaps : n_taps;
  int64_t at = l.target_begin;
  for (int64_t q = l.query_begin; q < l.query_end; ++q) {
    const int64_t low = l.query[q] * l.stride + l.shift;
    while (at < l.target_end && l.target[at] < low) ++at;
    int64_t t = at;
    unsigned bits = 0;
    for (int64_t i = 0; i < taps; ++i) {  // branch-free: hits are not predictable
      const unsigned hit = (t < l.target_end) & (l.target[t] == low + i);
      bits |= hit << i;
      counts[i] += hit;
      t += hit;
    }
    cursors[q] = static_cast<int32_t>(at);
    hits[q] = static_cast<uint8_t>(bits);
  }
}

void merge_line(const LinePair& l, int64_t n_taps, int32_t* cursors, uint8_t* hits,
                int64_t* counts) {
  switch (n_taps) {
    case 1:
      return merge_line<1>(l, 1, cursors, hits, counts);
    case 2:
      return merge_line<2>(l, 2, cursors, hits, counts);
    case 3:
      return merge_line<3>(l, 3, cursors, hits, counts);
    default:
      return merge_line<0>(l, n_taps, cursors, hits, counts);
  }
}

// The sites [site_begin, site_end) of the query against the lines that one stream reads: a merge of
// two sorted lists of lines, and inside it of sites.
void merge_stream(const PairPlan& plan, int64_t index, const Stream& s, int64_t site_begin,
                  int64_t site_end, int64_t* counts) {
  const PairProblem& p = plan.problem;
  const Window& w = p.window;
  const int last = w.n_axes - 1;
  const int64_t* keys = p.target.line_key;
  const int64_t* keys_end = keys + p.target.n_lines;
  const int32_t* starts = p.query.line_start;
  int32_t* cursors = plan.cursors + index * p.query.n_sites;
  uint8_t* hits = plan.hits + index * p.query.n_sites;
  std::memset(hits + site_begin, 0, site_end - site_begin);
  LinePair l{p.query.last,
             p.target.last,
             0,
             0,
             0,
             0,
             w.stride[last],
             s.first_tap * w.dilation[last] - w.padding[last]};
  int64_t target = -1;
  int64_t line = std::upper_bound(starts, starts + p.query.n_lines, site_begin) - starts - 1;
  for (; line < p.query.n_lines && starts[line] < site_end; ++line) {
    const int32_t* c = p.query.coords + int64_t{starts[line]} * (1 + w.n_axes);
    int64_t wanted = c[0];
    bool inside = true;
    for (int a = 0; a < last; ++a) {
      const int64_t position = c[1 + a] * w.stride[a] - w.padding[a] + s.taps[a] * w.dilation[a];
      inside &= position >= 0 && position < p.target_shape[a];
      wanted = wanted * p.target_shape[a] + position;
    }
    if (!inside) continue;
    if (target < 0) target = std::lower_bound(keys, keys_end, wanted) - keys;
    while (target < p.target.n_lines && keys[target] < wanted) ++target;
    if (target == p.target.n_lines) return;
    if (keys[target] != wanted) continue;
    l.query_begin = std::max<int64_t>(starts[line], site_begin);
    l.query_end = std::min<int64_t>(starts[line + 1], site_end);
    l.target_begin = p.target.line_start[target];
    l.target_end = p.target.line_start[target + 1];
    if (l.query_begin >
        starts[line])  // a line cut by the chunk: skip what its earlier sites passed
      l.target_begin = std::lower_bound(l.target + l.target_begin, l.target + l.target_end,
                                        l.query[l.query_begin] * l.stride + l.shift) -
                       l.target;
    merge_line(l, s.n_taps, cursors, hits, counts + s.offset);
  }
}

// A chunk's part of a stream's lists: gathered without branches in a buffer, then copied to its
// place.
void fill_stream(const PairPlan& plan, int64_t index, const Stream& s, int64_t chunk,
                 int32_t* query_rows, int32_t* target_rows) {
  const int64_t n_query = plan.problem.query.n_sites;
  const int64_t begin = chunk * kChunkSites, end = std::min(n_query, begin + kChunkSites);
  const int32_t* cursors = plan.cursors + index * n_query;
  const uint8_t* hits = plan.hits + index * n_query;
  int32_t buffer[2][kMaxStreamTaps][kChunkSites + 1];
  int64_t n[kMaxStreamTaps] = {};
  for (int64_t q = begin; q < end; ++q) {
    const unsigned bits = hits[q];
    if (bits == 0) continue;
    int32_t at = cursors[q];
    for (int64_t i = 0; i < s.n_taps; ++i) {
      const unsigned hit = bits >> i & 1;
      buffer[0][i][n[i]] = static_cast<int32_t>(q);
      buffer[1][i][n[i]] = at;
      n[i] += hit;
      at += static_cast<int32_t>(hit);
    }
  }
  const int64_t* position = plan.positions + chunk * plan.problem.window.n_offsets() + s.offset;
  for (int64_t i = 0; i < s.n_taps; ++i) {
    std::memcpy(query_rows + position[i], buffer[0][i], n[i] * sizeof(int32_t));
    std::memcpy(target_rows + position[i], buffer[1][i], n[i] * sizeof(int32_t));
  }
}

// counts (chunk, offset) become positions; offset_start closes every list.
void place_pairs(const PairPlan& plan) {
  const PairProblem& p = plan.problem;
  const int64_t n_offsets = p.window.n_offsets(), merged = merged_offsets(p.window, p.symmetric);
  int64_t* start = plan.offset_start;
  int64_t total = 0;
  for (int64_t k = 0; k < n_offsets; ++k) {
    start[k] = total;
    if (p.symmetric && k == merged) total += p.query.n_sites;  // the centre: every site with itself
    if (p.symmetric && k > merged) total += start[n_offsets - k] - start[n_offsets - 1 - k];
    for (int64_t c = 0; k < merged && c < n_chunks(p.query.n_sites); ++c) {
      const int64_t count = plan.positions[c * n_offsets + k];
      plan.positions[c * n_offsets + k] = total;
      total += count;
    }
  }
  start[n_offsets] = total;
}

}  // namespace

int64_t n_streams(const Window& window, bool symmetric) {
  return for_each_stream(window, symmetric, [](int64_t, const Stream&) {});
}

void find_lines(SiteLines* s, int n_axes, const int64_t* shape) {
  const int last = n_axes;
  int64_t n = 0;
  for (int64_t i = 0; i < s->n_sites; ++i) {
    const int32_t* c = s->coords + i * (1 + n_axes);
    s->last[i] = c[last];
    bool same = i > 0;
    for (int a = 0; a < last; ++a) same = same && c[a] == c[a - 1 - n_axes];
    if (same) continue;
    int64_t key = c[0];
    for (int a = 0; a + 1 < n_axes; ++a) key = key * shape[a] + c[1 + a];
    s->line_key[n] = key;
    s->line_start[n++] = static_cast<int32_t>(i);
  }
  s->line_start[n] = static_cast<int32_t>(s->n_sites);
  s->last[s->n_sites] = -1;
  s->n_lines = n;
}

void count_pairs(const PairPlan& plan, int n_threads) {
  const PairProblem& p = plan.problem;
  const int64_t n_offsets = p.window.n_offsets();
  parallel_for(n_chunks(p.query.n_sites), n_threads, [&](int64_t chunk) {
    int64_t* counts = plan.positions + chunk * n_offsets;
    std::memset(counts, 0, n_offsets * sizeof(int64_t));
    const int64_t begin = chunk * kChunkSites, end = std::min(p.query.n_sites, begin + kChunkSites);
    for_each_stream(p.window, p.symmetric, [&](int64_t i, const Stream& s) {
      merge_stream(plan, i, s, begin, end, counts);
    });
  });
  place_pairs(plan);
}

void fill_pairs(const PairPlan& plan, int32_t* query_rows, int32_t* target_rows, int n_threads) {
  const PairProblem& p = plan.problem;
  const int64_t n_offsets = p.window.n_offsets(), merged = merged_offsets(p.window, p.symmetric);
  parallel_for(n_chunks(p.query.n_sites), n_threads, [&](int64_t chunk) {
    for_each_stream(p.window, p.symmetric, [&](int64_t i, const Stream& s) {
      fill_stream(plan, i, s, chunk, query_rows, target_rows);
    });
  });
  if (!p.symmetric) return;
  parallel_for(n_offsets - merged, n_threads, [&](int64_t i) {
    const int64_t k = merged + i, begin = plan.offset_start[k],
                  n = plan.offset_start[k + 1] - begin;
    if (i == 0) {
      for (int64_t j = 0; j < n; ++j)
        query_rows[begin + j] = target_rows[begin + j] = static_cast<int32_t>(j);
      return;
    }
    // For one offset both rows ascend together, so the opposite offset's list is this one with the
    // rows swapped.
    const int64_t mirror = plan.offset_start[n_offsets - 1 - k];
    std::memcpy(query_rows + begin, target_rows + mirror, n * sizeof(int32_t));
    std::memcpy(target_rows + begin, query_rows + mirror, n * sizeof(int32_t));
  });
}

}  // namespace ds
