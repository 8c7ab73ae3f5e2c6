// The nearest of k centres for every point, in a random part of the features: one clustering of a
// layer of a multilayer bootstrap network. Torch-free; the caller allocates everything.
//
// nearest(x) = argmax over centres c of x.c - |c|^2 / 2, the lowest index on ties: what is left of
// |x - c|^2 without what all centres share. float32, one chain of multiply-adds for each (point,
// centre) and for each |c|^2, features ascending; the half norm is subtracted last. Bits depend on
// neither threads, nor the split of the points, nor which form their block takes: a zero of the
// point adds nothing, fma(0, c, sum) = sum. They are the same for every instruction set that fuses
// (avx2, avx512, NEON, and the scalar reference); the x86 baseline rounds twice.
#pragma once
#include <cstdint>

namespace ds {

constexpr int kNearestPoints = 4;  // a group: points that are multiplied together

// One block of points against one panel of centres. A block has one of two forms, values of a
// group's points side by side in both:
//   lists    entries of group g: steps[g] times (4 byte offsets of a panel row, 4 values); a list
//            that is shorter than its group's longest ends in zeros
//   dense    steps is null; entries of a group: d_sub times 4 values
struct NearestTile {
  const float* panel;      // (d_sub, lanes): centres first_center, ...
  const float* half_norm;  // (lanes): |c|^2 / 2, infinite where there is no centre
  const uint32_t* entries;
  const int32_t* steps;
  int64_t n_groups, d_sub;
  int32_t first_center;
  float* best;  // (n_groups * 4): best value so far, its centre
  int32_t* nearest;
};

struct NearestKernels {
  int lanes;  // centres of a panel
  // n <= lanes rows of centers (n, d_sub) into a panel (d_sub, lanes), and half norms (lanes)
  void (*pack_centers)(const float* centers, int64_t n, int64_t d_sub, float* panel,
                       float* half_norm);
  void (*nearest_tile)(const NearestTile&);
};

struct NearestArgs {
  const float* points;  // (n, d)
  int64_t n, d;
  const float* centers;  // (k, d_sub)
  int64_t k, d_sub;
  const int64_t* columns;  // (d_sub), within [0, d), or null: feature j is column j
  void* out;               // (n) uint8 or uint16
  bool is_wide;            // uint16
};

// Values up to this size: no sum of d_sub products can then overflow.
float largest_value(int64_t d_sub);

// Floats of workspace, aligned to 64 bytes.
int64_t nearest_workspace(int64_t n, int64_t k, int64_t d_sub, int n_threads);
// Returns the first point with a value beyond largest_value() or not a number, or n; `out` is then
// of no use. Centres are finite and within it.
int64_t nearest_centers(const NearestArgs& args, float* workspace, int n_threads);

}  // namespace ds
