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

// A block turns 32 output channels of 32 values that lie together in memory, so that reads and
// writes both are coalesced. Padding was zeroed before.
constexpr int kTile = 32, kWarps = kThreads / kWarp;

template <class T>
struct PackShared {
  T values[kTile][kTile + 1];
};

// What the inner index counts: (input channel, offset), the one that is further apart first.
struct Inner {
  int64_t in, offset;
};
template <class T>
DS_DEVICE Inner inner_of(const PackArgs<T>& a, int64_t i) {
  const ConvShape& s = a.shape;
  const int64_t stride_in = a.transposed ? a.strides[0] : a.strides[1];
  if (stride_in < a.strides[2]) return {i % s.c_in, i / s.c_in};
  return {i / s.n_offsets, i % s.n_offsets};
}

template <class T>
__global__ void pack_kernel(PackArgs<T> a) {
  PackShared<T>& sh = shared<PackShared<T>>();
  const ConvShape& s = a.shape;
  const int64_t n_inner = static_cast<int64_t>(s.c_in) * s.n_offsets;
  const int64_t n_down = ceil_div(n_inner, kTile), n_across = ceil_div(s.c_out, kTile);
  const int64_t block = blockIdx.x, group = block / n_across / n_down;
  const int64_t first_inner = block / n_across % n_down * kTile;
  const int64_t first_out = block % n_across * kTile;
  const int64_t mine = first_inner + lane_index();
  const Inner at = inner_of(a, mine);
  for (int i = warp_index(); i < kTile; i += kWarps) {
    const int64_t out = first_out + i;
    if (mine >= n_inner || out >= s.c_out) continue;
    const int64_t first = a.transposed ? group * s.c_in + at.in : group * s.c_out + out;
    const int64_t second = a.transposed ? out : at.in;
    sh.values[i][lane_index()] =
        a.weight[first * a.strides[0] + second * a.strides[1] + at.offset * a.strides[2]];
  }
  sync_block();
  bool finite = true;
  for (int i = warp_index(); i < kTile; i += kWarps) {
    const int64_t out = first_out + lane_index();
    if (first_inner + i >= n_inner || out >= s.c_out) continue;
    const Inner to = inner_of(a, first_inner + i);
    const T value = sh.values[lane_index()][i];
    finite &= counts_as_finite(widened(value));
    const int64_t depth = group * s.depth + to.offset * s.c_in_padded + to.in;
    a.packed[depth * s.c_out_padded + out] = value;
  }
  if (!finite) atomic_or(a.not_finite, 1);
}

}  // namespace

template <class T>
Status pack_weight(const Stream& stream, const PackArgs<T>& args) {
  const ConvShape& s = args.shape;
  const int64_t n_bytes = packed_values(s) * static_cast<int64_t>(sizeof(T)) + 16;
  const Status status = fill_bytes(stream, args.packed, 0, n_bytes);  // the flag too
  if (status != 0) return status;
  const int64_t n_inner = static_cast<int64_t>(s.c_in) * s.n_offsets;
  const int64_t blocks = ceil_div(n_inner, kTile) * ceil_div(s.c_out, kTile) * s.groups;
  return launch(stream, {blocks}, kThreads, sizeof(PackShared<T>), pack_kernel<T>, args);
}

template Status pack_weight(const Stream&, const PackArgs<float>&);
template Status pack_weight(const Stream&, const PackArgs<double>&);
template Status pack_weight(const Stream&, const PackArgs<bf16>&);
template Status pack_weight(const Stream&, const PackArgs<f16>&);

}  // namespace ds::gpu
