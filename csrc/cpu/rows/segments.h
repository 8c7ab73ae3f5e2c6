// The driver of every reduction over segments: cuts long segments into chunks, spreads chunks and
// short segments over the threads, adds the chunks up pairwise.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/parallel.h"
#include "cpu/rows/rows.h"

namespace ds {

struct LongSegment {
  int64_t segment, first_slot;  // its chunk sums lie in slots first_slot, first_slot + 1, ...
};

struct SegmentPlanSize {
  int64_t n_long, n_slots;  // at most, whatever the segments
  explicit SegmentPlanSize(int64_t n_positions)
      : n_long(n_positions / (kSegmentChunk + 1)), n_slots(n_positions / kSegmentChunk + n_long) {}
};

// sum[c] of n_slots rows, into the first of them: a tree over neighbours, so the error grows with
// its depth.
template <class T>
void add_pairwise(T* slots, int64_t n_slots, int64_t n_channels) {
  for (int64_t step = 1; step < n_slots; step *= 2) {
    for (int64_t i = 0; i + step < n_slots; i += 2 * step) {
      T* into = slots + i * n_channels;
      const T* from = slots + (i + step) * n_channels;
      for (int64_t c = 0; c < n_channels; ++c) into[c] += from[c];
    }
  }
}

// piece(first, n, start, bias, out, partial): reduces the segments first .. first + n - 1, bounded
// by start[0 .. n], into the rows of `partial` (unrounded) or, where that is null, of `out`,
// leaving out those longer than kSegmentChunk.
template <class T, class Piece>
void reduce_segments(const int64_t* start, int64_t n_segments, int64_t n_channels, const T* bias,
                     T* out, int64_t* workspace, int n_threads, const Piece& piece) {
  const SegmentPlanSize size(start[n_segments] - start[0]);
  LongSegment* longs = reinterpret_cast<LongSegment*>(workspace);
  Acc<T>* slots = reinterpret_cast<Acc<T>*>(longs + size.n_long);
  int64_t n_long = 0, n_slots = 0;
  for (int64_t s = 0; size.n_long > 0 && s < n_segments; ++s) {
    const int64_t n = start[s + 1] - start[s];
    if (n <= kSegmentChunk) continue;
    longs[n_long++] = {s, n_slots};
    n_slots += (n + kSegmentChunk - 1) / kSegmentChunk;
  }
  parallel_for(n_slots, n_threads, [&](int64_t slot) {
    const LongSegment* one =
        std::upper_bound(longs, longs + n_long, slot,
                         [](int64_t at, const LongSegment& s) { return at < s.first_slot; }) -
        1;
    const int64_t begin = start[one->segment] + (slot - one->first_slot) * kSegmentChunk;
    const int64_t bounds[2] = {begin, std::min(begin + kSegmentChunk, start[one->segment + 1])};
    piece(one->segment, 1, bounds, nullptr, nullptr, slots + slot * n_channels);
  });
  parallel_for(n_long, n_threads, [&](int64_t i) {
    const int64_t s = longs[i].segment, first = longs[i].first_slot;
    Acc<T>* sum = slots + first * n_channels;
    add_pairwise(sum, (i + 1 < n_long ? longs[i + 1].first_slot : n_slots) - first, n_channels);
    for (int64_t c = 0; c < n_channels; ++c)
      out[s * n_channels + c] = rounded<T>(bias ? widened(bias[c]) + sum[c] : sum[c]);
  });
  const int64_t block = std::clamp<int64_t>(n_segments / 64, 1, 256);
  parallel_for((n_segments + block - 1) / block, n_threads, [&](int64_t b) {
    const int64_t first = b * block, n = std::min(block, n_segments - first);
    piece(first, n, start + first, bias, out + first * n_channels, nullptr);
  });
}

}  // namespace ds
