// Reductions over windows: maximum with its winners, the gradient of the maximum, sum. The windows
// are a table (see cpu/windows/windows.h): active rows and ground class rows are read in place.
// 16-bit values are added in float32 and the sum is rounded once. Torch-free.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace ds {

template <class T>
struct WindowArgs {
  const T* x;            // (n_active, n_channels)
  const T* ground;       // (n_class_rows, n_channels), or null where the table names none
  const int32_t* table;  // (n_out, n_offsets)
  int64_t n_out, n_offsets, n_channels;
  T* y;          // (n_out, n_channels)
  int32_t* arg;  // maximum only: the winning tap, the first among equals; a NaN beats any number
};

// A window without taps: -inf and winner -1.
template <class T>
void window_max(const WindowArgs<T>& args, int n_threads);
// Taps ascending, one chain from zero.
template <class T>
void window_sum(const WindowArgs<T>& args, int n_threads);

// dx[v] = sum over the positions j = o * n_offsets + k in index[start[v] .. start[v + 1]) of dy[o]
// where arg[o] is k.
template <class T>
struct WindowMaxGradArgs {
  const T* dy;  // (n_out, n_channels)
  const int32_t* arg;
  const int64_t* start;  // (n_rows + 1), ascending
  const int64_t* index;
  int64_t n_offsets, n_rows, n_channels;
  T* dx;            // (n_rows, n_channels)
  Acc<T>* partial;  // (n_rows, n_channels) or null: where to put the sums, unrounded, in dx's stead
};
// workspace: segment_workspace() of the positions.
template <class T>
void window_max_grad(const WindowMaxGradArgs<T>& args, int64_t* workspace, int n_threads);

}  // namespace ds
