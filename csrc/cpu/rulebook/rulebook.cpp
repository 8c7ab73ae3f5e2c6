#include "cpu/rulebook/rulebook.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"

namespace ds {
namespace {

// What a merge does with a pair: count it, or write it. Branch-free: an unpredictable branch a site costs more.
struct Counter {
  int64_t* counts;
  void operator()(int64_t offset, int64_t, int64_t, bool hit) { counts[offset] += hit; }
};

struct Writer {
  int64_t* cursor;                  // next position of each list
  int32_t* query_rows;
  int32_t* target_rows;
  void operator()(int64_t offset, int64_t query, int64_t target, bool hit) {
    if (!hit) return;
    const int64_t at = cursor[offset]++;
    query_rows[at] = static_cast<int32_t>(query);
    target_rows[at] = static_cast<int32_t>(target);
  }
};

struct LinePair {
  const int32_t* query;             // last coordinates of the whole site list
  const int32_t* target;
  int64_t query_begin, query_end, target_begin, target_end;
  int64_t offset;                   // kernel offset of tap 0
};

// Stride 1, dilation 1: the taps of a site read kTaps neighbouring positions, one cursor serves all.
template <int kTaps, class Emit>
void merge_adjacent(const LinePair& l, int64_t first_tap, int64_t n_taps, int64_t padding, Emit& emit) {
  const int64_t taps = kTaps > 0 ? kTaps : n_taps;
  int64_t at = l.target_begin;
  for (int64_t q = l.query_begin; q < l.query_end; ++q) {
    const int64_t low = l.query[q] - padding + first_tap;
    while (at < l.target_end && l.target[at] < low) ++at;
    int64_t t = at;
    for (int64_t i = 0; i < taps; ++i) {
      const bool hit = t < l.target_end && l.target[t] == low + i;
      emit(l.offset + first_tap + i, q, t, hit);
      t += hit;
    }
  }
}

template <class Emit>
void merge_general(const LinePair& l, int64_t n_taps, int64_t stride, int64_t padding, int64_t dilation,
                   Emit& emit) {
  for (int64_t i = 0; i < n_taps; ++i) {
    int64_t at = l.target_begin;
    for (int64_t q = l.query_begin; q < l.query_end && at < l.target_end; ++q) {
      const int64_t wanted = l.query[q] * stride - padding + i * dilation;
      while (at < l.target_end && l.target[at] < wanted) ++at;
      emit(l.offset + i, q, at, at < l.target_end && l.target[at] == wanted);
    }
  }
}

// n_taps: all, or fewer for the centre row of a symmetric rulebook.
template <class Emit>
void merge_line(const LinePair& l, const Window& w, int64_t n_taps, Emit& emit) {
  const int a = w.n_axes - 1;
  if (w.stride[a] != 1 || w.dilation[a] != 1)
    return merge_general(l, n_taps, w.stride[a], w.padding[a], w.dilation[a], emit);
  switch (n_taps) {
    case 1: return merge_adjacent<1>(l, 0, 1, w.padding[a], emit);
    case 2: return merge_adjacent<2>(l, 0, 2, w.padding[a], emit);
    case 3: return merge_adjacent<3>(l, 0, 3, w.padding[a], emit);
    default: return merge_adjacent<0>(l, 0, n_taps, w.padding[a], emit);
  }
}

// All lines of one chunk against the target lines that one kernel row reads: a merge of two sorted lists of lines.
template <class Emit>
void merge_kernel_row(const PairProblem& p, const int64_t* taps, int64_t offset, int64_t n_taps,
                      int64_t line_begin, int64_t line_end, Emit& emit) {
  const Window& w = p.window;
  const int prefix = w.n_axes - 1;
  const int64_t* keys = p.target.line_key;
  int64_t target = -1;
  for (int64_t line = line_begin; line < line_end; ++line) {
    const int32_t* c = p.query.coords + static_cast<int64_t>(p.query.line_start[line]) * (1 + w.n_axes);
    int64_t wanted = c[0];
    bool inside = true;
    for (int a = 0; a < prefix; ++a) {
      const int64_t position = c[1 + a] * w.stride[a] - w.padding[a] + taps[a] * w.dilation[a];
      inside &= position >= 0 && position < p.target_shape[a];
      wanted = wanted * p.target_shape[a] + position;
    }
    if (!inside) continue;
    if (target < 0) target = std::lower_bound(keys, keys + p.target.n_lines, wanted) - keys;
    while (target < p.target.n_lines && keys[target] < wanted) ++target;
    if (target == p.target.n_lines) return;
    if (keys[target] != wanted) continue;
    merge_line({p.query.last, p.target.last, p.query.line_start[line], p.query.line_start[line + 1],
                p.target.line_start[target], p.target.line_start[target + 1], offset},
               w, n_taps, emit);
  }
}

// Kernel offsets that are merged: all, or those before the centre.
int64_t merged_offsets(const PairProblem& p) {
  const int64_t n = p.window.n_offsets();
  return p.symmetric ? n / 2 : n;
}

template <class Emit>
void merge_chunk(const PairProblem& p, int64_t chunk, Emit& emit) {
  const int32_t* starts = p.query.line_start;
  const int32_t* starts_end = starts + p.query.n_lines;
  const int64_t line_begin = std::lower_bound(starts, starts_end, chunk * kChunkSites) - starts;
  const int64_t line_end = std::lower_bound(starts, starts_end, (chunk + 1) * kChunkSites) - starts;
  const Window& w = p.window;
  const int64_t row_taps = w.kernel[w.n_axes - 1], merged = merged_offsets(p);
  int64_t taps[kMaxAxes] = {};
  for (int64_t offset = 0; offset < merged; offset += row_taps) {
    merge_kernel_row(p, taps, offset, std::min(row_taps, merged - offset), line_begin, line_end, emit);
    for (int a = w.n_axes - 2; a >= 0 && ++taps[a] == w.kernel[a]; --a) taps[a] = 0;
  }
}

}  // namespace

void find_lines(SiteLines* s, const int64_t* shape) {
  const int width = 1 + s->n_axes;
  int64_t n = 0;
  for (int64_t i = 0; i < s->n_sites; ++i) {
    const int32_t* c = s->coords + i * width;
    s->last[i] = c[width - 1];
    if (i > 0 && std::memcmp(c, c - width, (width - 1) * sizeof(int32_t)) == 0) continue;
    int64_t key = c[0];
    for (int a = 0; a + 1 < s->n_axes; ++a) key = key * shape[a] + c[1 + a];
    s->line_key[n] = key;
    s->line_start[n++] = static_cast<int32_t>(i);
  }
  s->line_start[n] = static_cast<int32_t>(s->n_sites);
  s->n_lines = n;
}

void count_pairs(const PairProblem& p, int64_t* counts, int n_threads) {
  const int64_t n_offsets = p.window.n_offsets(), n_chunks = n_pair_chunks(p.query.n_sites);
  std::memset(counts, 0, n_chunks * n_offsets * sizeof(int64_t));
  parallel_for(n_chunks, n_threads, [&](int64_t chunk) {
    Counter counter{counts + chunk * n_offsets};
    merge_chunk(p, chunk, counter);
  });
}

void place_pairs(const PairProblem& p, int64_t* counts, int64_t* offset_start) {
  const int64_t n_offsets = p.window.n_offsets(), n_chunks = n_pair_chunks(p.query.n_sites);
  const int64_t merged = merged_offsets(p);
  int64_t total = 0;
  for (int64_t k = 0; k < n_offsets; ++k) {
    offset_start[k] = total;
    if (p.symmetric && k == merged) total += p.query.n_sites;              // the centre: every site with itself
    else if (p.symmetric && k > merged) total += offset_start[n_offsets - k] - offset_start[n_offsets - 1 - k];
    for (int64_t c = 0; k < merged && c < n_chunks; ++c) {
      int64_t* count = counts + c * n_offsets + k;
      total += *count;
      *count = total - *count;                                             // becomes the position
    }
  }
  offset_start[n_offsets] = total;
}

void fill_pairs(const PairProblem& p, int64_t* positions, const int64_t* offset_start, int32_t* query_rows,
                int32_t* target_rows, int n_threads) {
  const int64_t n_offsets = p.window.n_offsets(), merged = merged_offsets(p);
  parallel_for(n_pair_chunks(p.query.n_sites), n_threads, [&](int64_t chunk) {
    Writer writer{positions + chunk * n_offsets, query_rows, target_rows};
    merge_chunk(p, chunk, writer);
  });
  if (!p.symmetric) return;
  parallel_for(n_offsets - merged, n_threads, [&](int64_t i) {
    const int64_t k = merged + i, begin = offset_start[k], n = offset_start[k + 1] - begin;
    if (i == 0) {
      for (int64_t j = 0; j < n; ++j) query_rows[begin + j] = target_rows[begin + j] = static_cast<int32_t>(j);
      return;
    }
    // For one offset both rows ascend together, so the opposite offset's list is this one with the rows swapped.
    const int64_t mirror = offset_start[n_offsets - 1 - k];
    std::memcpy(query_rows + begin, target_rows + mirror, n * sizeof(int32_t));
    std::memcpy(target_rows + begin, query_rows + mirror, n * sizeof(int32_t));
  });
}

}  // namespace ds
