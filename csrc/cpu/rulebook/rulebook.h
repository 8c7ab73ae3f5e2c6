// Hash-free rulebook: for each kernel offset the (query row, target row) pairs it joins, found by
// streaming merges of sorted lines. A line is a run of sites that differ in the last coordinate
// only.
//
//   query site q, offset t:  target position = q * stride - padding + t * dilation, per axis
//   convolution:             query = output sites, target = input sites
//   transposed convolution:  query = input sites,  target = output sites
#pragma once
#include <cstdint>

namespace ds {

constexpr int kMaxAxes = 4;

struct Window {
  int n_axes;
  int64_t kernel[kMaxAxes], stride[kMaxAxes], padding[kMaxAxes], dilation[kMaxAxes];

  int64_t n_offsets() const {
    int64_t n = 1;
    for (int a = 0; a < n_axes; ++a) n *= kernel[a];
    return n;
  }
};

// Sorted sites with their lines. `coords` (n_sites, 1 + n_axes) = [batch, spatial...]. find_lines()
// fills the rest.
struct SiteLines {
  const int32_t* coords;
  int64_t n_sites;
  int32_t* last;  // (n_sites + 1): the last coordinate, contiguous, and one readable entry more
  int32_t* line_start;  // (n_sites + 1): first site of each line, then n_sites
  int64_t* line_key;    // (n_sites): linear key of batch and all but the last coordinate, in the
                        // target's shape
  int64_t n_lines;
};
void find_lines(SiteLines* sites, int n_axes, const int64_t* shape);

struct PairProblem {
  SiteLines query, target;
  int64_t target_shape[kMaxAxes];
  Window window;
  bool symmetric;  // submanifold: query is target; half of the offsets is merged, the rest mirrored
};

// A stream is one merge: up to kMaxStreamTaps taps of one kernel row that read adjacent positions
// (dilation 1), or a single tap. Its result for a query site is a cursor into the target's line and
// one hit bit a tap; counting makes them, filling reads them, so that lines are merged once.
constexpr int64_t kMaxStreamTaps = 8;
constexpr int64_t kChunkSites = 2048;  // a job's query sites
struct PairPlan {
  PairProblem problem;
  int32_t* cursors;       // (n_streams, n_query)
  uint8_t* hits;          // (n_streams, n_query)
  int64_t* positions;     // (n_chunks, n_offsets): where a chunk's part of each list starts
  int64_t* offset_start;  // (n_offsets + 1)
};
int64_t n_streams(const Window& window, bool symmetric);
inline int64_t n_chunks(int64_t n_query) {
  return (n_query + kChunkSites - 1) / kChunkSites;
}

void count_pairs(const PairPlan& plan, int n_threads);  // fills everything but the pairs
void fill_pairs(const PairPlan& plan, int32_t* query_rows, int32_t* target_rows, int n_threads);

// Output sites along one axis: from sorted keys ((outer * extent_in + c) * inner + rest) to the
// sorted, unique keys of all positions c' with c' * stride - padding + t * dilation == c for a tap
// t (or c == ... transposed).
struct AxisWindow {
  int64_t extent_in, extent_out, inner;
  int64_t kernel, stride, padding, dilation;
  bool transposed;
};
// Upper bound of the number of keys per input key.
int64_t axis_fan_out(const AxisWindow& axis);
// workspace: axis_workspace() int64. Returns the number of keys written.
inline int64_t axis_workspace(int64_t n_keys, int64_t kernel) {
  return 3 * n_keys + 1 + 5 * kernel;
}
int64_t dilate_axis(const int64_t* keys, int64_t n_keys, const AxisWindow& axis, int64_t* workspace,
                    int64_t* out);

void coords_to_keys(const int32_t* coords, int64_t n, int n_axes, const int64_t* shape,
                    int64_t* keys, int n_threads);
void keys_to_coords(const int64_t* keys, int64_t n, int n_axes, const int64_t* shape,
                    int32_t* coords, int n_threads);

}  // namespace ds
