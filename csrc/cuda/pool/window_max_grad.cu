// Gradient of the window maximum: every row of x gathers, from the windows that read it, dy where
// it won. A reduction over segments of positions o * n_offsets + k (see rows/segments.h).
//
// Bound    bytes: positions * (dy row + arg row).
// Order    positions ascending, one chain from zero. Selected, not multiplied: a NaN in dy stays
//          with its winner.
#include "cuda/pool/pool.h"
#include "cuda/rows/segments.h"

namespace ds::gpu {
namespace {

constexpr int kWindowsAhead = 4;  // two packs each

template <class T>
struct WinnerSource {
  const T* dy;
  const int32_t* arg;
  int64_t n_out, n_offsets, n_channels;
  const int64_t* index;

  template <int N>
  DS_DEVICE void begin(int64_t, Acc<T> (&sums)[N]) const {
#pragma unroll
    for (int e = 0; e < N; ++e) sums[e] = 0;
  }

  template <int N, int>  // as many windows of a row are in flight, however many it has
  DS_DEVICE void add(int64_t, const Range& range, int64_t channel, Acc<T> (&sums)[N]) const {
    for (int64_t j = range.begin; j < range.end; j += kWindowsAhead) {
      Pack<T, N> ahead[kWindowsAhead];
      Pack<int32_t, N> winner[kWindowsAhead];
      int32_t offset[kWindowsAhead];  // -2: no such window
#pragma unroll
      for (int i = 0; i < kWindowsAhead; ++i) {
        const int64_t position = j + i < range.end ? index[j + i] : -1;
        const bool there = position >= 0 && n_offsets > 0 && position < n_out * n_offsets;
        const PackPlace window = pack_place(there ? position : 0, there ? n_offsets : 1, 1);
        offset[i] = there ? static_cast<int32_t>(window.channel) : -2;
        if (!there) continue;
        ahead[i] = load_pack<N>(dy + window.row * n_channels + channel);
        winner[i] = load_channels<N>(arg + window.row * n_channels + channel);
      }
#pragma unroll
      for (int i = 0; i < kWindowsAhead; ++i) {
        if (offset[i] < 0) continue;
#pragma unroll
        for (int e = 0; e < N; ++e)
          sums[e] += winner[i].v[e] == offset[i] ? wide(ahead[i].v[e]) : Acc<T>(0);
      }
    }
  }
};

}  // namespace

template <class T>
Status window_max_grad(const Stream& stream, const WindowMaxGrad<T>& a) {
  const WinnerSource<T> source{a.dy, a.arg, a.n_out, a.n_offsets, a.n_channels, a.index};
  return reduce_segments<T>(stream, {a.start, a.n_rows, a.n_positions, a.n_channels}, source,
                            {a.dy, beside_packs(a.arg), a.dx}, a.slots, a.dx);
}

template Status window_max_grad<float>(const Stream&, const WindowMaxGrad<float>&);
template Status window_max_grad<double>(const Stream&, const WindowMaxGrad<double>&);
template Status window_max_grad<bf16>(const Stream&, const WindowMaxGrad<bf16>&);
template Status window_max_grad<f16>(const Stream&, const WindowMaxGrad<f16>&);

}  // namespace ds::gpu
