// Distances of rows to a panel of others, and sums of others with the inverse distances as weights.
//
// Layout   a panel holds kPanel rows side by side, one line per feature, so that lanes are pairs:
//          no sum across a vector, and each pair is one chain.
// Tile     kRows x 2 vectors, as in cpu/conv/gemm_kernel.h, for both: 12 of 16 registers on AVX2.
// Bound    distances: a subtraction and a multiply-add per pair and feature, n^2 d / 2 of each; two
//          ports do both where there are no others for additions. Pulls: n^2 d multiply-adds.
#pragma once
#include "cpu/conv/gemm_kernel.h"
#include "cpu/isa/vec.h"
#include "cpu/lowrank/force.h"

namespace ds {
namespace {

template <class T, int R>
[[gnu::always_inline]] inline void distance_rows(const DistanceTile<T>& t, int64_t row) {
  Vec<T> acc[R][kVecs] = {};
  const T* x[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) x[r] = t.rows + (row + r) * t.ld_rows;
  const T* panel = t.panel;
  for (int64_t j = 0; j < t.depth; ++j, panel += kPanel<T>) {
    Vec<T> b[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) b[v] = load(panel + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec<T> a = splat(x[r][j]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        const Vec<T> apart = a - b[v];
        acc[r][v] = fma(apart, apart, acc[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    T* to = t.table + (row + r) * t.ld_table;
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      if (!t.is_first) acc[r][v] += load(to + v * kLanes<T>);
      store(to + v * kLanes<T>, acc[r][v]);
    }
  }
}

template <class T>
void add_distances(const DistanceTile<T>& t) {
  for (int64_t row = 0; row < t.n_rows; row += kRows)
    for_rows<kRows>(static_cast<int>(least(kRows, t.n_rows - row)),
                    [&](auto r) __attribute__((always_inline)) {
                      distance_rows<T, decltype(r)::value>(t, row);
                    });
}

[[gnu::always_inline]] inline float square_root(float v) {
  return __builtin_sqrtf(v);
}
[[gnu::always_inline]] inline double square_root(double v) {
  return __builtin_sqrt(v);
}

template <class T>
void invert_distances(T* squared, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const T distance = square_root(squared[j]), inverse = T(1) / distance;
    squared[j] = distance > T(1e-4) ? inverse : T(0);
  }
}

template <class T>
void add_pulls(const PullTile<T>& t) {
  for (int64_t row = 0; row < t.n_rows; row += kRows) {
    const int n = static_cast<int>(least(kRows, t.n_rows - row));
    const T* x[kRows];
    T* y[kRows];
    for (int r = 0; r < n; ++r) {
      x[r] = t.table + (row + r) * t.ld_table;
      y[r] = t.pulls + (row + r) * kPanel<T>;
    }
    multiply_group<T, kRows, kVecs, kPanel<T>>(n, x, ChannelRange{0}, t.depth, t.others, y, 0);
  }
}

// Chains of a sum along a row, element j in chain j % kForceSums.
template <class T>
struct RowSum {
  static constexpr int kVectors = kForceSums / kLanes<T>;
  Vec<T> chains[kVectors] = {};

  // f(j, v): adds elements j, j + 1, ... to the vector v.
  template <class F>
  [[gnu::always_inline]] static void over(int64_t n_whole, const F& f) {
    for (int64_t j = 0; j < n_whole; j += kForceSums)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) f(j + v * kLanes<T>, v);
  }

  // The rest are the elements after the last whole kForceSums.
  template <class F>
  [[gnu::always_inline]] T total(int64_t n_rest, const F& add) const {
    T sums[kForceSums];
    for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes<T>, chains[v]);
    for (int64_t j = 0; j < n_rest; ++j) sums[j] = add(j, sums[j]);
    for (int half = kForceSums / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
  }
};

template <class T>
void finish_row(const ForceRow<T>& f) {
  const int64_t whole_n = f.n - f.n % kForceSums, whole_d = f.d - f.d % kForceSums;
  RowSum<T> weight, along;
  RowSum<T>::over(whole_n, [&](int64_t j, int v) __attribute__((always_inline)) {
    weight.chains[v] += load(f.inverse + j);
  });
  const T minus =
      -weight.total(f.n - whole_n, [&](int64_t j, T sum) { return sum + f.inverse[whole_n + j]; });
  RowSum<T>::over(whole_d, [&](int64_t j, int v) __attribute__((always_inline)) {
    const Vec<T> w = load(f.row + j), force = fma(splat(minus), w, load(f.out + j));
    store(f.out + j, force);
    along.chains[v] = fma(force, w, along.chains[v]);
  });
  const T part = -along.total(f.d - whole_d, [&](int64_t j, T sum) {
    const T w = f.row[whole_d + j], force = fma(minus, w, f.out[whole_d + j]);
    f.out[whole_d + j] = force;
    return fma(force, w, sum);
  });
  for (int64_t j = 0; j < whole_d; j += kLanes<T>)
    store(f.out + j, splat(f.length) * fma(splat(part), load(f.row + j), load(f.out + j)));
  for (int64_t j = whole_d; j < f.d; ++j) f.out[j] = f.length * fma(part, f.row[j], f.out[j]);
}

}  // namespace
}  // namespace ds
