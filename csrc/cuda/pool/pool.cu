// Maximum and sum over windows: rows of x and of the ground are read in place, where the table
// says.
//
// Tile     one thread has a pack of channels of a window and kTapsAhead taps in flight; the table's
//          entries are one address for all threads of a row.
// Bound    bytes: n_out * taps rows read (most of them from L2: neighbouring windows overlap), one
//          row (two for the maximum) written.
// Order    taps ascending; a later tap wins only if not (value <= best) and best is a number: so
//          the first of equals stays, the first NaN stays, and any NaN beats a number.
#include "cuda/pool/pool.h"

#include "cuda/rows/row_packs.h"

namespace ds::gpu {
namespace {

constexpr int kTapsAhead = 4;

// The row that an entry names, or null.
template <class T>
DS_DEVICE const T* tap_row(const Windows<T>& w, int32_t entry) {
  const int64_t ground = INT64_C(-2) - entry;
  if (entry >= 0) return entry < w.n_active ? w.x + entry * w.n_channels : nullptr;
  return ground >= 0 && ground < w.n_ground ? w.ground + ground * w.n_channels : nullptr;
}

// What is kept of the taps that passed by; values are compared and kept as numbers of Acc<T>.
template <class T, int N>
struct Maximum {
  Acc<T> best[N];
  int32_t winner[N];

  DS_DEVICE Maximum() {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      best[e] = -static_cast<Acc<T>>(__builtin_huge_valf());
      winner[e] = -1;
    }
  }
  DS_DEVICE void add(const Pack<T, N>& row, int32_t offset) {
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const Acc<T> value = wide(row.v[e]);
      const bool beats = !(value <= best[e]) && best[e] == best[e];
      const bool wins = beats || winner[e] < 0;  // -inf is a value too
      best[e] = wins ? value : best[e];
      winner[e] = wins ? offset : winner[e];
    }
  }
  DS_DEVICE void store(const Windows<T>& w, int64_t at) const {
    store_sums(w.y + at, best);
    store_channels(w.arg + at, winner);
  }
};

template <class T, int N>
struct Sum {
  Acc<T> sums[N] = {};

  DS_DEVICE void add(const Pack<T, N>& row, int32_t) {
#pragma unroll
    for (int e = 0; e < N; ++e) sums[e] += wide(row.v[e]);
  }
  DS_DEVICE void store(const Windows<T>& w, int64_t at) const { store_sums(w.y + at, sums); }
};

template <class T, int N, template <class, int> class Reduction>
__global__ void windows_kernel(Windows<T> w) {
  const int64_t per_row = w.n_channels / N;
  for (int64_t i = thread_index(); i < w.n_out * per_row; i += n_threads()) {
    const PackPlace at = pack_place(i, per_row, N);
    const int32_t* entries = w.table + at.row * w.n_offsets;
    Reduction<T, N> kept;
    for (int64_t k = 0; k < w.n_offsets; k += kTapsAhead) {
      Pack<T, N> ahead[kTapsAhead];
      bool there[kTapsAhead];
#pragma unroll
      for (int t = 0; t < kTapsAhead; ++t) {
        const T* row = k + t < w.n_offsets ? tap_row(w, entries[k + t]) : nullptr;
        there[t] = row != nullptr;
        if (there[t]) ahead[t] = load_pack<N>(row + at.channel);
      }
#pragma unroll
      for (int t = 0; t < kTapsAhead; ++t)
        if (there[t]) kept.add(ahead[t], static_cast<int32_t>(k + t));
    }
    kept.store(w, at.row * w.n_channels + at.channel);
  }
}

template <class T, template <class, int> class Reduction>
Status reduce_windows(const Stream& stream, const Windows<T>& w) {
  return with_packs<T>(w.n_channels, {w.x, w.ground, w.y, beside_packs(w.arg)}, [&](auto width) {
    constexpr int N = decltype(width)::value;
    return launch(stream, {blocks_for(w.n_out * (w.n_channels / N), kPackThreads)}, kPackThreads, 0,
                  windows_kernel<T, N, Reduction>, w);
  });
}

}  // namespace

template <class T>
Status window_max(const Stream& stream, const Windows<T>& w) {
  return reduce_windows<T, Maximum>(stream, w);
}

template <class T>
Status window_sum(const Stream& stream, const Windows<T>& w) {
  return reduce_windows<T, Sum>(stream, w);
}

template Status window_max<float>(const Stream&, const Windows<float>&);
template Status window_max<double>(const Stream&, const Windows<double>&);
template Status window_max<bf16>(const Stream&, const Windows<bf16>&);
template Status window_max<f16>(const Stream&, const Windows<f16>&);
template Status window_sum<float>(const Stream&, const Windows<float>&);
template Status window_sum<double>(const Stream&, const Windows<double>&);
template Status window_sum<bf16>(const Stream&, const Windows<bf16>&);
template Status window_sum<f16>(const Stream&, const Windows<f16>&);

}  // namespace ds::gpu
