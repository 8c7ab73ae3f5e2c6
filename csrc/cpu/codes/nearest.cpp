#include "cpu/codes/nearest.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int64_t kGroup = kNearestPoints;
// A block's lists (300 KB at 75 non-zero values a point) then stay in L2 beside a panel, and the
// panels, which come from L3, are used often enough: with 256 points 10 % more time.
constexpr int64_t kBlockPoints = 512;
constexpr int64_t kBlockValues = 1 << 18;  // points with many features: fewer of them
// The dense form does a multiply-add in 0.4 of the time of a list's.
constexpr int64_t kDenseNumerator = 2, kDenseDenominator = 5;

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

int64_t block_points(int64_t n, int64_t d_sub, int n_threads) {
  const int64_t share = (n + n_threads - 1) / std::max(n_threads, 1);
  const int64_t most = std::min({kBlockPoints, kBlockValues / d_sub, share});
  return round_up(std::max<int64_t>(most, 1), kGroup);
}

// Where things lie in the workspace, in floats; every part starts on 64 bytes.
struct Places {
  int64_t lanes, n_panels, panel, half_norm, workers, rows, entries, ints, worker_size;
  Places(int64_t block, int64_t k, int64_t d_sub)
      : lanes(kernel_table().nearest.lanes),
        n_panels((k + lanes - 1) / lanes),
        panel(d_sub * lanes),
        half_norm(round_up(n_panels * panel, 16)),
        workers(round_up(half_norm + n_panels * lanes, 16)),
        rows(0),
        entries(round_up(block * d_sub, 16)),
        // One step more: where the write after a list's end goes.
        ints(round_up(entries + 2 * block * d_sub + 2 * kGroup, 16)),
        worker_size(round_up(ints + 5 * block, 16)) {}
};

// One block of points in one worker's memory.
struct Block {
  const NearestArgs& a;
  int64_t lanes, first, size, n_groups;
  float* rows;        // (size, d_sub): the points' columns
  uint32_t* entries;  // see NearestTile
  float* best;        // (n_groups * 4) each; slot s holds point first + order[s]
  int32_t *nearest, *order, *counts, *steps;

  // Copies the points' columns and counts the non-zero values; false where a value is too large.
  bool gather(int64_t i, int32_t limit) {
    const float* x = a.points + (first + i) * a.d;
    float* row = rows + i * a.d_sub;
    if (a.columns)
      for (int64_t j = 0; j < a.d_sub; ++j) row[j] = x[a.columns[j]];
    else
      std::memcpy(row, x, a.d_sub * sizeof(float));
    int32_t largest = 0, count = 0;
    for (int64_t j = 0; j < a.d_sub; ++j) {
      int32_t bits;
      std::memcpy(&bits, row + j, sizeof bits);
      bits &= 0x7fffffff;
      largest = std::max(largest, bits);
      count += bits != 0;
    }
    counts[i] = count;
    return largest <= limit;
  }

  // Points with lists of like lengths next to each other; returns the steps of all groups.
  int64_t sort() {
    std::iota(order, order + size, 0);
    std::sort(order, order + size, [&](int32_t p, int32_t q) {
      return counts[p] != counts[q] ? counts[p] < counts[q] : p < q;
    });
    int64_t sum = 0;
    for (int64_t g = 0; g < n_groups; ++g) {
      steps[g] = counts[order[std::min(g * kGroup + kGroup, size) - 1]];
      sum += steps[g];
    }
    return sum;
  }

  void fill_lists() {
    uint32_t* group = entries;
    for (int64_t g = 0; g < n_groups; ++g) {
      for (int64_t p = 0; p < kGroup; ++p) {
        const int64_t slot = g * kGroup + p;
        uint32_t* at = group + p;
        if (slot < size) {
          const float* row = rows + order[slot] * a.d_sub;
          for (int64_t j = 0; j < a.d_sub; ++j) {
            at[0] = static_cast<uint32_t>(j * lanes * static_cast<int64_t>(sizeof(float)));
            std::memcpy(at + kGroup, row + j, sizeof(float));
            at += row[j] != 0 ? 2 * kGroup : 0;
          }
        }
        uint32_t* const end = group + p + int64_t{steps[g]} * 2 * kGroup;
        for (; at != end; at += 2 * kGroup) at[0] = at[kGroup] = 0;
      }
      group += int64_t{steps[g]} * 2 * kGroup;
    }
  }

  void fill_dense() {
    for (int64_t slot = 0; slot < n_groups * kGroup; ++slot) {
      uint32_t* at = entries + slot / kGroup * kGroup * a.d_sub + slot % kGroup;
      const float* row = slot < size ? rows + order[slot] * a.d_sub : nullptr;
      for (int64_t j = 0; j < a.d_sub; ++j, at += kGroup) {
        const float value = row ? row[j] : 0;
        std::memcpy(at, &value, sizeof value);
      }
    }
  }

  void write_out() const {
    for (int64_t s = 0; s < size; ++s) {
      const int64_t i = first + order[s];
      if (a.is_wide)
        static_cast<uint16_t*>(a.out)[i] = static_cast<uint16_t>(nearest[s]);
      else
        static_cast<uint8_t*>(a.out)[i] = static_cast<uint8_t>(nearest[s]);
    }
  }
};

}  // namespace

float largest_value(int64_t d_sub) {
  return 0.99f * std::sqrt(FLT_MAX / static_cast<float>(d_sub));
}

int64_t nearest_workspace(int64_t n, int64_t k, int64_t d_sub, int n_threads) {
  const Places at(block_points(n, d_sub, n_threads), k, d_sub);
  return at.workers + std::max(n_threads, 1) * at.worker_size;
}

int64_t nearest_centers(const NearestArgs& a, float* workspace, int n_threads) {
  const NearestKernels& kernels = kernel_table().nearest;
  const int64_t block = block_points(a.n, a.d_sub, n_threads);
  const Places at(block, a.k, a.d_sub);
  float* const half_norms = workspace + at.half_norm;
  parallel_for(at.n_panels, n_threads, [&](int64_t p) {
    const int64_t c = p * at.lanes;
    kernels.pack_centers(a.centers + c * a.d_sub, std::min(at.lanes, a.k - c), a.d_sub,
                         workspace + p * at.panel, half_norms + c);
  });
  const float largest = largest_value(a.d_sub);
  int32_t limit;
  std::memcpy(&limit, &largest, sizeof limit);
  std::atomic<int64_t> first_bad{a.n};
  parallel_for_workers((a.n + block - 1) / block, n_threads, [&](int64_t job, int worker) {
    float* const mine = workspace + at.workers + worker * at.worker_size;
    int32_t* const ints = reinterpret_cast<int32_t*>(mine + at.ints);
    const int64_t first = job * block, size = std::min(block, a.n - first);
    Block b{a,
            at.lanes,
            first,
            size,
            (size + kGroup - 1) / kGroup,
            mine + at.rows,
            reinterpret_cast<uint32_t*>(mine + at.entries),
            reinterpret_cast<float*>(ints),
            ints + block,
            ints + 2 * block,
            ints + 3 * block,
            ints + 4 * block};
    for (int64_t i = 0; i < size; ++i) {
      if (b.gather(i, limit)) continue;
      int64_t known = first_bad.load();
      while (first + i < known && !first_bad.compare_exchange_weak(known, first + i)) {
      }
      return;
    }
    const bool is_dense = b.sort() * kDenseDenominator > b.n_groups * a.d_sub * kDenseNumerator;
    if (is_dense)
      b.fill_dense();
    else
      b.fill_lists();
    std::fill(b.best, b.best + b.n_groups * kGroup, -std::numeric_limits<float>::infinity());
    std::fill(b.nearest, b.nearest + b.n_groups * kGroup, 0);
    for (int64_t p = 0; p < at.n_panels; ++p)
      kernels.nearest_tile({workspace + p * at.panel, half_norms + p * at.lanes, b.entries,
                            is_dense ? nullptr : b.steps, b.n_groups, a.d_sub,
                            static_cast<int32_t>(p * at.lanes), b.best, b.nearest});
    b.write_out();
  });
  return first_bad;
}

}  // namespace ds
