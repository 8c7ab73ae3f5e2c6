// Depthwise convolution and its weight gradient, channel by channel: y[dst] += x[src] * w[k],
// dw[k] += x[src] * dy[dst].
//
// Layout   x, y, dy row-major (rows, channels); w and dw (offset, channel); lanes are channels.
// Tile     a step of 8 or 16 KiB of output rows stays in L1, with the rows of x that it reads,
//          while all offsets pass over it. Within a step a strip of up to 8 vectors of channels
//          keeps the offset's weights (or the sums of dw) in registers while its pairs stream by.
// Bound    forward: 2 loads and 1 store of L1 a vector (one vector of products a cycle); gradient:
//          2 loads a vector. Bytes from memory: x and y (or x and dy) once, 8 bytes a pair.
// Order    forward: bias, u, then offsets ascending in one chain; gradient: pairs ascending in one
//          chain per offset.
#pragma once
#include "cpu/conv/gemm_kernel.h"
#include "cpu/isa/vec.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int kGroupOffsets = 64;             // offsets whose places in their lists are kept
constexpr int kLineVecs = 64 / DS_VEC_BYTES;  // vectors of a cache line

// Rows that come from memory are asked for kAhead pairs before their turn: neighbouring pairs are
// near one another but not adjacent, so the hardware does not follow them. That gains a fifth where
// an operand is larger than kFarBytes and costs a tenth where the caches hold it.
constexpr int64_t kAhead = 8;
constexpr int64_t kFarBytes = 2 << 20;

// The pairs of one offset that write the rows of one step. The first `ahead` pairs from here on,
// those of later steps included, may be looked at for prefetching.
struct StepPairs {
  const int32_t* src;
  const int32_t* dst;
  int64_t n, ahead;
};

// A row's address as one register: gcc else forms every vector's address anew from its parts.
template <class T>
[[gnu::always_inline]] inline T* row_of(T* base, int64_t row, int64_t n_channels) {
  T* p = base + row * n_channels;
  asm("" : "+r"(p));
  return p;
}

template <class T, int V>
[[gnu::always_inline]] inline void prefetch_strip(const T* p) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v += kLineVecs) __builtin_prefetch(p + v * kLanes<T>);
}

template <class T, int V>
[[gnu::always_inline]] inline void multiply_strip(const StepPairs& p, const T* x, const T* w, T* y,
                                                  int64_t n_channels) {
  Vec<T> weight[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) weight[v] = load(w + v * kLanes<T>);
  for (int64_t i = 0; i < p.n; ++i) {
    const T* from = row_of(x, p.src[i], n_channels);
    T* into = row_of(y, p.dst[i], n_channels);
    if (i + kAhead < p.ahead) prefetch_strip<T, V>(row_of(x, p.src[i + kAhead], n_channels));
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      store(into + v * kLanes<T>,
            fma(load(from + v * kLanes<T>), weight[v], load(into + v * kLanes<T>)));
  }
}

template <class T, int V>
[[gnu::always_inline]] inline void accumulate_strip(const StepPairs& p, const T* x, T* dw,
                                                    const T* dy, int64_t n_channels) {
  Vec<T> sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = load(dw + v * kLanes<T>);
  for (int64_t i = 0; i < p.n; ++i) {
    const T* a = row_of(x, p.src[i], n_channels);
    const T* b = row_of(dy, p.dst[i], n_channels);
    if (i + kAhead < p.ahead) {
      prefetch_strip<T, V>(row_of(x, p.src[i + kAhead], n_channels));
      prefetch_strip<T, V>(row_of(dy, p.dst[i + kAhead], n_channels));
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      sum[v] = fma(load(a + v * kLanes<T>), load(b + v * kLanes<T>), sum[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(dw + v * kLanes<T>, sum[v]);
}

// What a walk does with the pairs of one offset and step, over all channels.
template <class T>
struct DepthwiseForward {
  const T* x;
  const T* w;
  T* y;
  int64_t n_channels;
  const GemmTile<T>& tile;

  void begin_step(int64_t row_begin, int64_t row_end) const {
    GemmTile<T> rows = tile;
    rows.row_begin = row_begin;
    rows.row_end = row_end;
    init_rows(rows);
  }
  template <int V>
  void strip(const StepPairs& p, int64_t k, int64_t c) const {
    multiply_strip<T, V>(p, x + c, w + k * n_channels + c, y + c, n_channels);
  }
  void column(const StepPairs& p, int64_t k, int64_t c) const {
    const T weight = w[k * n_channels + c];
    for (int64_t i = 0; i < p.n; ++i)
      y[p.dst[i] * n_channels + c] += x[p.src[i] * n_channels + c] * weight;
  }
};

template <class T>
struct DepthwiseGrad {
  const T* x;
  const T* dy;
  T* dw;
  int64_t n_channels;

  void begin_step(int64_t, int64_t) const {}
  template <int V>
  void strip(const StepPairs& p, int64_t k, int64_t c) const {
    accumulate_strip<T, V>(p, x + c, dw + k * n_channels + c, dy + c, n_channels);
  }
  void column(const StepPairs& p, int64_t k, int64_t c) const {
    T sum = dw[k * n_channels + c];
    for (int64_t i = 0; i < p.n; ++i)
      sum += x[p.src[i] * n_channels + c] * dy[p.dst[i] * n_channels + c];
    dw[k * n_channels + c] = sum;
  }
};

template <class T, class Work>
void all_channels(const Work& work, const StepPairs& p, int64_t k) {
  constexpr int64_t kLane = kLanes<T>;
  int64_t c = 0;
  for (; c + 8 * kLane <= work.n_channels; c += 8 * kLane) work.template strip<8>(p, k, c);
  if (c + 4 * kLane <= work.n_channels) {
    work.template strip<4>(p, k, c);
    c += 4 * kLane;
  }
  if (c + 2 * kLane <= work.n_channels) {
    work.template strip<2>(p, k, c);
    c += 2 * kLane;
  }
  if (c + kLane <= work.n_channels) {
    work.template strip<1>(p, k, c);
    c += kLane;
  }
  for (; c < work.n_channels; ++c) work.column(p, k, c);
}

// Steps over the rows, offsets within a step. Where each list goes on is kept for kGroupOffsets
// lists at a time: a binary search per step and list would cost as much as its few pairs.
template <class T, class Work>
void walk_steps(const Work& work, const int32_t* src, const int32_t* dst,
                const int64_t* offset_start, int64_t n_offsets, int64_t row_begin,
                int64_t row_end) {
  const int64_t row_bytes = work.n_channels * static_cast<int64_t>(sizeof(T));
  const bool far = offset_start[n_offsets] / n_offsets * row_bytes > kFarBytes;  // an offset's rows
  const int64_t fitting = (far ? 16 : 8) * 1024 / row_bytes, step = fitting < 16 ? 16 : fitting;
  int64_t next[kGroupOffsets];
  for (int64_t first = 0; first < n_offsets; first += kGroupOffsets) {
    const int64_t last = n_offsets - first < kGroupOffsets ? n_offsets : first + kGroupOffsets;
    for (int64_t k = first; k < last; ++k)
      next[k - first] = first_pair(dst, offset_start[k], offset_start[k + 1], row_begin);
    for (int64_t row = row_begin; row < row_end; row += step) {
      const int64_t step_end = row_end - row < step ? row_end : row + step;
      if (first == 0) work.begin_step(row, step_end);
      for (int64_t k = first; k < last; ++k) {
        const int64_t begin = next[k - first], list_end = offset_start[k + 1];
        int64_t end = begin;
        while (end < list_end && dst[end] < step_end) ++end;
        next[k - first] = end;
        if (begin < end)
          all_channels<T>(work, {src + begin, dst + begin, end - begin, far ? list_end - begin : 0},
                          k);
      }
    }
  }
}

template <class T>
void depthwise_tile(const GemmTile<T>& t) {
  const DepthwiseForward<T> work{t.x, t.w, t.y, t.c_out, t};
  if (t.n_offsets == 0) return init_rows(t);
  walk_steps<T>(work, t.src, t.dst, t.offset_start, t.n_offsets, t.row_begin, t.row_end);
}

template <class T>
void depthwise_grad_chunk(const DepthwiseGradChunk<T>& t) {
  if (t.pairs.n_offsets == 0) return;
  const DepthwiseGrad<T> work{t.x, t.dy, t.dw, t.n_channels};
  walk_steps<T>(work, t.pairs.src, t.pairs.dst, t.pairs.offset_start, t.pairs.n_offsets,
                t.row_begin, t.row_end);
}

}  // namespace
}  // namespace ds
