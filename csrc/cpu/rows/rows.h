// Sums of feature rows over segments: batch norm statistics, ground responses, gradients of
// gathers. Torch-free; the caller allocates everything.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace ds {

// A segment of at most this many rows is one chain of additions (the same chain, and so the same
// bits, as the sum of u rows inside a convolution); a longer one is cut into chunks of as many,
// whose sums are added pairwise. The cut depends on the segment alone. 1024 rows of 64 floats are
// 256 KiB: a job worth a thread.
constexpr int64_t kSegmentChunk = 1024;

// out[s] = bias + sum over j in [start[s], start[s + 1]) of values[rows[j]], in ascending order of
// j; with `mean`: of (values[rows[j]] - mean[s])^2. 16-bit values are added in float32 and the sum
// is rounded once.
template <class T>
struct SegmentSumArgs {
  const T* values;        // (n, n_channels)
  const int32_t* rows32;  // at most one of the two; neither: row j is j
  const int64_t* rows64;
  const int64_t* start;  // (n_segments + 1), ascending
  int64_t n_segments, n_channels;
  const T* bias;    // (n_channels) or null
  const T* mean;    // (n_segments, n_channels) or null
  T* out;           // (n_segments, n_channels)
  Acc<T>* partial;  // (n_segments, n_channels) or null: where to put the sums, unrounded, in out's
                    // stead
};

// Elements of int64 workspace for any cut of `n_positions` rows into segments.
template <class T>
int64_t segment_workspace(int64_t n_positions, int64_t n_channels);
template <class T>
void segment_sum(const SegmentSumArgs<T>& args, int64_t* workspace, int n_threads);

}  // namespace ds
