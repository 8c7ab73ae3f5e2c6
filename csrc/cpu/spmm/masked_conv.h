// Convolution of dense images with a pruned weight, and the weight's gradient at kept entries.
// Torch-free. See image_panel.h for how images become panels.
//
// The weight is a matrix in tiles (spmm.h): row = output channel, column = channel * n_taps + tap
// within the row's group. Neighbouring taps of a channel share most of what they read, so a block
// of columns (some channels, all their taps) occupies less of L1 than its columns times a tile.
// Input gradient: the same product, rows = input channels, columns = output channel * n_taps + tap;
// with a stride one call for each phase of the input, with the taps that reach it.
#pragma once
#include "cpu/spmm/image_panel.h"
#include "cpu/spmm/spmm.h"

namespace ds {

template <class T>
struct MaskedConvArgs {
  Image<const T> x;  // (batch, c_in, ...)
  LaneMap map;
  Tiles tiles;      // (c_out, c_in / groups * n_taps); unit_rows divides c_out / groups
  const T* values;  // in tile order
  const T* bias;    // (c_out) or null
  int64_t groups;
  Image<T> y;  // (batch, c_out, ...): the outputs of `map` are written
  T* workspace;
};

template <class T>
struct MaskedConvGradArgs {
  Image<const T> x;
  LaneMap map;
  Tiles tiles;  // unit_rows == 1
  int64_t groups;
  Image<const T> dy;
  T* values;  // in tile order, overwritten
  T* workspace;
};

// What a call cuts its work into, elements of its workspace; `gradient`: of the weight. -1 where a
// block's columns lie further apart than 32-bit offsets reach.
template <class T>
int64_t masked_conv_workspace(const LaneMap& map, int64_t batch, int64_t c_in, int64_t c_out,
                              int64_t groups, int64_t block_columns, int64_t n_entries,
                              bool gradient, int n_threads);

template <class T>
void masked_conv(const MaskedConvArgs<T>& args, int n_threads);
template <class T>
void masked_conv_weight_grad(const MaskedConvGradArgs<T>& args, int n_threads);

}  // namespace ds
