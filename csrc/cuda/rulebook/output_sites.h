// Output sites: the sorted, unique keys of all cells that read an active one (contract:
// cpu/rulebook/rulebook.h, dilate_axis), some axes at a time. Every key becomes fan-out keys, which
// are sorted and made unique.
//
// Bound: with m = keys * fan-out, 8 bytes written per m, then 16 per m and 8-bit digit of the sort.
// Memory: two lists of m keys, and the sort's third.
#pragma once
#include "cuda/algorithms.h"
#include "cuda/sites/keys.h"

namespace ds::gpu {

// Along one axis a cell c meets the outputs o with o * stride - padding + t * dilation == c for a
// tap t (transposed: c * stride - padding + t * dilation == o). The taps that meet c are every
// period-th, from the solution of one linear congruence on.
struct AxisFan {
  int64_t now, next;  // extents before and after; of an axis that is left alone n_outputs is 0
  int64_t kernel, stride, padding, dilation;
  int64_t n_outputs;  // at most, per cell
  int64_t divisor, period,
      inverse;  // gcd(stride, dilation); stride / it; of dilation / it, modulo period
};
AxisFan axis_fan(int64_t now, int64_t next, int64_t kernel, int64_t stride, int64_t padding,
                 int64_t dilation, bool transposed);

struct DilateProblem {
  int n_axes;
  AxisFan axis[kMostAxes];
  bool transposed;
  int64_t n_samples;
  const int64_t* keys;
  int64_t n_keys, n_expanded;  // n_expanded: n_keys times the n_outputs of the axes
  int64_t *expanded, *sorted;  // (n_expanded): the result is in `expanded`
  int64_t* n_out;              // (1), in device memory
  Workspace workspace;         // for n_expanded items
};
Status dilate_keys(const Stream& stream, const DilateProblem& problem);

}  // namespace ds::gpu
