#include "cuda/algorithms.h"

#ifdef DS_EMULATED
  #include <algorithm>
  #include <numeric>
  #include <vector>
#else
  #include <cub/device/device_radix_sort.cuh>
  #include <cub/device/device_scan.cuh>
  #include <cub/device/device_select.cuh>
#endif

namespace ds::gpu {

#ifdef DS_EMULATED

int64_t algorithm_workspace(const Stream&, int64_t) {
  return 1;
}

template <class Key, class Value>
Status sort_pairs(const Stream&, const Workspace&, const Key* keys, Key* keys_out,
                  const Value* values, Value* values_out, int64_t n, int n_bits) {
  const Key mask = n_bits >= static_cast<int>(8 * sizeof(Key)) ? ~Key{0} : (Key{1} << n_bits) - 1;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (int64_t i = 0; i < n; ++i) {
    keys_out[i] = keys[order[i]];
    values_out[i] = values[order[i]];
  }
  return 0;
}

template <class Key>
Status sort_keys(const Stream&, const Workspace&, const Key* keys, Key* keys_out, int64_t n, int) {
  std::copy(keys, keys + n, keys_out);
  std::sort(keys_out, keys_out + n);
  return 0;
}

template <class In, class Out>
Status exclusive_sum(const Stream&, const Workspace&, const In* in, Out* out, int64_t n) {
  Out sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Out v = in[i];
    out[i] = sum;
    sum += v;
  }
  return 0;
}

Status unique(const Stream&, const Workspace&, const uint64_t* in, uint64_t* out, int64_t* n_out,
              int64_t n) {
  *n_out = std::unique_copy(in, in + n, out) - out;
  return 0;
}

#else

int64_t algorithm_workspace(const Stream& stream, int64_t n) {
  const DeviceGuard guard(stream);
  size_t most = 0, bytes = 0;
  const uint64_t* keys = nullptr;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, static_cast<uint64_t*>(nullptr),
                                  static_cast<const int32_t*>(nullptr),
                                  static_cast<int32_t*>(nullptr), n);
  most = bytes > most ? bytes : most;
  cub::DeviceScan::ExclusiveSum(nullptr, bytes, static_cast<const int64_t*>(nullptr),
                                static_cast<int64_t*>(nullptr), n);
  most = bytes > most ? bytes : most;
  cub::DeviceSelect::Unique(nullptr, bytes, keys, static_cast<uint64_t*>(nullptr),
                            static_cast<int64_t*>(nullptr), n);
  most = bytes > most ? bytes : most;
  return static_cast<int64_t>(most) + 256;
}

// CUB is told the size that it may use: had it grown past what algorithm_workspace() saw, it says
// so.
template <class Key, class Value>
Status sort_pairs(const Stream& stream, const Workspace& workspace, const Key* keys, Key* keys_out,
                  const Value* values, Value* values_out, int64_t n, int n_bits) {
  size_t bytes = static_cast<size_t>(workspace.n_bytes);
  return cub::DeviceRadixSort::SortPairs(workspace.at, bytes, keys, keys_out, values, values_out, n,
                                         0, n_bits, static_cast<cudaStream_t>(stream.handle));
}

template <class Key>
Status sort_keys(const Stream& stream, const Workspace& workspace, const Key* keys, Key* keys_out,
                 int64_t n, int n_bits) {
  size_t bytes = static_cast<size_t>(workspace.n_bytes);
  return cub::DeviceRadixSort::SortKeys(workspace.at, bytes, keys, keys_out, n, 0, n_bits,
                                        static_cast<cudaStream_t>(stream.handle));
}

template <class In, class Out>
Status exclusive_sum(const Stream& stream, const Workspace& workspace, const In* in, Out* out,
                     int64_t n) {
  size_t bytes = static_cast<size_t>(workspace.n_bytes);
  return cub::DeviceScan::ExclusiveScan(workspace.at, bytes, in, out, cuda::std::plus<>{}, Out{0},
                                        n, static_cast<cudaStream_t>(stream.handle));
}

Status unique(const Stream& stream, const Workspace& workspace, const uint64_t* in, uint64_t* out,
              int64_t* n_out, int64_t n) {
  size_t bytes = static_cast<size_t>(workspace.n_bytes);
  return cub::DeviceSelect::Unique(workspace.at, bytes, in, out, n_out, n,
                                   static_cast<cudaStream_t>(stream.handle));
}

#endif

template Status sort_pairs<uint32_t, int32_t>(const Stream&, const Workspace&, const uint32_t*,
                                              uint32_t*, const int32_t*, int32_t*, int64_t, int);
template Status sort_pairs<uint64_t, int32_t>(const Stream&, const Workspace&, const uint64_t*,
                                              uint64_t*, const int32_t*, int32_t*, int64_t, int);
template Status sort_keys<uint64_t>(const Stream&, const Workspace&, const uint64_t*, uint64_t*,
                                    int64_t, int);
template Status exclusive_sum<int32_t, int32_t>(const Stream&, const Workspace&, const int32_t*,
                                                int32_t*, int64_t);
template Status exclusive_sum<int32_t, int64_t>(const Stream&, const Workspace&, const int32_t*,
                                                int64_t*, int64_t);
template Status exclusive_sum<int64_t, int64_t>(const Stream&, const Workspace&, const int64_t*,
                                                int64_t*, int64_t);

}  // namespace ds::gpu
