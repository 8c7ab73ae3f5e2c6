// Sorting, scanning and compacting on the device: CUB, behind functions that name their workspace.
// All of them give the same result run after run.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

// Bytes of workspace that serve any of the functions below for n items on that device.
int64_t algorithm_workspace(const Stream& stream, int64_t n);

struct Workspace {
  void* at;
  int64_t n_bytes;
};

// Ascending by bits [0, n_bits) of the key, ties in their order; in and out are apart.
template <class Key, class Value>  // uint32_t or uint64_t; int32_t
Status sort_pairs(const Stream& stream, const Workspace& workspace, const Key* keys, Key* keys_out,
                  const Value* values, Value* values_out, int64_t n, int n_bits);
template <class Key>
Status sort_keys(const Stream& stream, const Workspace& workspace, const Key* keys, Key* keys_out,
                 int64_t n, int n_bits);

// out[i] = the sum of in[0 .. i - 1]; in may be out.
template <class In, class Out>  // int32_t to int32_t or int64_t; int64_t to int64_t
Status exclusive_sum(const Stream& stream, const Workspace& workspace, const In* in, Out* out,
                     int64_t n);

// The different values of a sorted list, in order; their number to *n_out, in device memory.
Status unique(const Stream& stream, const Workspace& workspace, const uint64_t* in, uint64_t* out,
              int64_t* n_out, int64_t n);

}  // namespace ds::gpu
