#include "cuda/conv/pack.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

DS_DEVICE bool counts_as_finite(float v) {
  return (float_bits(v) & 0x7fffffffu) < 0x7f7ff000u;  // from there on tf32 rounds to infinity
}
DS_DEVICE bool counts_as_finite(double v) {
  return v - v == 0;
}

// One thread a value of the result: stores are coalesced, and the weight is small enough to stay in
// the L2 cache while its lines are read in pieces.
template <class T>
__global__ void pack_kernel(PackArgs<T> a) {
  const ConvShape& s = a.shape;
  const int64_t n = s.groups * s.depth * s.c_out_padded;
  bool finite = true;
  for (int64_t i = thread_index(); i < n; i += n_threads()) {
    const int64_t out = i % s.c_out_padded, row = i / s.c_out_padded;
    const int64_t depth = row % s.depth, group = row / s.depth;
    const int64_t offset = depth / s.c_in_padded, in = depth % s.c_in_padded;
    T value{};
    if (out < s.c_out && in < s.c_in && offset < s.n_offsets) {
      const int64_t first = a.transposed ? group * s.c_in + in : group * s.c_out + out;
      const int64_t second = a.transposed ? out : in;
      value = a.weight[first * a.strides[0] + second * a.strides[1] + offset * a.strides[2]];
    }
    finite &= counts_as_finite(widened(value));
    a.packed[i] = value;
  }
  if (!finite) atomic_or(a.not_finite, 1);
}

}  // namespace

template <class T>
Status pack_weight(const Stream& stream, const PackArgs<T>& args) {
  const Status status = fill_bytes(stream, args.not_finite, 0, sizeof(uint32_t));
  if (status != 0) return status;
  const int64_t blocks = blocks_for(packed_values(args.shape), kThreads);
  return launch(stream, {blocks}, kThreads, 0, pack_kernel<T>, args);
}

template Status pack_weight(const Stream&, const PackArgs<float>&);
template Status pack_weight(const Stream&, const PackArgs<double>&);
template Status pack_weight(const Stream&, const PackArgs<bf16>&);
template Status pack_weight(const Stream&, const PackArgs<f16>&);

}  // namespace ds::gpu
