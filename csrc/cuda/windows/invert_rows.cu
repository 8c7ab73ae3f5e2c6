// Positions sorted by value: a stable radix sort of as many bits as the values have. Negative rows,
// and those out of range, are sorted behind all values.
#include "cuda/windows/windows.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

__global__ void keys_kernel(InvertRows a) {
  for (int64_t j = thread_index(); j < a.n_rows; j += n_threads()) {
    const int64_t row = a.rows[j];
    if (row >= a.n_values) a.found[1] = 1;  // whoever comes: the same 1
    a.keys[j] = static_cast<uint32_t>(row < 0 || row >= a.n_values ? a.n_values : row);
    a.positions[j] = static_cast<int32_t>(j);
  }
}

// start[v] = the first sorted key that is not below v; that of n_values ends the values.
__global__ void starts_kernel(InvertRows a) {
  const uint32_t* sorted = a.keys + a.n_rows;
  for (int64_t v = thread_index(); v <= a.n_values; v += n_threads()) {
    int64_t low = 0, high = a.n_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (sorted[middle] < v)
        low = middle + 1;
      else
        high = middle;
    }
    a.start[v] = low;
    if (v == a.n_values) a.found[0] = low;
  }
}

}  // namespace

Status invert_rows(const Stream& stream, const Workspace& workspace, const InvertRows& a) {
  int n_bits = 1;
  while (a.n_values >> n_bits != 0) ++n_bits;
  Status status = fill_bytes(stream, a.found, 0, 2 * int64_t{sizeof(int64_t)});
  if (status == 0)
    status = launch(stream, {blocks_for(a.n_rows, kThreads)}, kThreads, 0, keys_kernel, a);
  if (status == 0 && a.n_rows > 0)
    status = sort_pairs<uint32_t, int32_t>(stream, workspace, a.keys, a.keys + a.n_rows,
                                           a.positions, a.positions_out, a.n_rows, n_bits);
  if (status != 0) return status;
  return launch(stream, {blocks_for(a.n_values + 1, kThreads)}, kThreads, 0, starts_kernel, a);
}

}  // namespace ds::gpu
