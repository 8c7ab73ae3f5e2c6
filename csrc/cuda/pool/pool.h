// Reductions over windows (see cuda/windows/windows.h for their table): maximum with its winners,
// its gradient, sum; the operators of cpu/pool/, same order, so the same bits.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// An entry of the table that names no row reads nothing.
template <class T>
struct Windows {
  const T* x;       // (n_active, n_channels)
  const T* ground;  // (n_ground, n_channels), or null where the table names none
  int64_t n_active, n_ground;
  const int32_t* table;  // (n_out, n_offsets)
  int64_t n_out, n_offsets, n_channels;
  T* y;          // (n_out, n_channels)
  int32_t* arg;  // maximum only: the winning tap, the first among equals; a NaN beats any number
};

// A window without taps: -inf and winner -1.
template <class T>
Status window_max(const Stream& stream, const Windows<T>& args);
// Taps ascending, one chain from zero.
template <class T>
Status window_sum(const Stream& stream, const Windows<T>& args);

// dx[v] = sum over the positions j = o * n_offsets + k in index[start[v] .. start[v + 1]) of dy[o]
// where arg[o] is k. Positions of no window add nothing.
template <class T>
struct WindowMaxGrad {
  const T* dy;         // (n_out, n_channels)
  const int32_t* arg;  // (n_out, n_channels)
  int64_t n_out;
  const int64_t* start;  // (n_rows + 1), ascending
  const int64_t* index;  // (n_positions)
  int64_t n_offsets, n_positions, n_rows, n_channels;
  T* dx;          // (n_rows, n_channels)
  Acc<T>* slots;  // (segment_slots(n_positions), n_channels)
};
template <class T>
Status window_max_grad(const Stream& stream, const WindowMaxGrad<T>& args);

}  // namespace ds::gpu
