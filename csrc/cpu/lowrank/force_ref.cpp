#include <cmath>

#include "cpu/reference.h"

namespace ds {

template <class T>
void add_distances_ref(const DistanceTile<T>& t) {
  for (int64_t r = 0; r < t.n_rows; ++r)
    for (int i = 0; i < kRefLanes; ++i) {
      T sum = 0;
      for (int64_t j = 0; j < t.depth; ++j) {
        const T apart = t.rows[r * t.ld_rows + j] - t.panel[j * kRefLanes + i];
        sum = std::fma(apart, apart, sum);
      }
      T& total = t.table[r * t.ld_table + i];
      total = t.is_first ? sum : sum + total;
    }
}

template <class T>
void invert_distances_ref(T* squared, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const T distance = std::sqrt(squared[j]);
    squared[j] = distance > T(1e-4) ? T(1) / distance : T(0);
  }
}

template <class T>
void add_pulls_ref(const PullTile<T>& t) {
  for (int64_t r = 0; r < t.n_rows; ++r)
    for (int i = 0; i < kRefLanes; ++i) {
      T& sum = t.pulls[r * kRefLanes + i];
      for (int64_t j = 0; j < t.depth; ++j)
        sum = std::fma(t.table[r * t.ld_table + j], t.others[j * kRefLanes + i], sum);
    }
}

template <class T>
static T total(T (&sums)[kForceSums]) {
  for (int half = kForceSums / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

template <class T>
void finish_row_ref(const ForceRow<T>& f) {
  T weights[kForceSums] = {}, parts[kForceSums] = {};
  for (int64_t j = 0; j < f.n; ++j) weights[j % kForceSums] += f.inverse[j];
  const T minus = -total(weights);
  for (int64_t j = 0; j < f.d; ++j) {
    f.out[j] = std::fma(minus, f.row[j], f.out[j]);
    T& part = parts[j % kForceSums];
    part = std::fma(f.out[j], f.row[j], part);
  }
  const T part = -total(parts);
  for (int64_t j = 0; j < f.d; ++j) f.out[j] = f.length * std::fma(part, f.row[j], f.out[j]);
}

template void add_distances_ref(const DistanceTile<float>&);
template void add_distances_ref(const DistanceTile<double>&);
template void invert_distances_ref(float*, int64_t);
template void invert_distances_ref(double*, int64_t);
template void add_pulls_ref(const PullTile<float>&);
template void add_pulls_ref(const PullTile<double>&);
template void finish_row_ref(const ForceRow<float>&);
template void finish_row_ref(const ForceRow<double>&);

}  // namespace ds
