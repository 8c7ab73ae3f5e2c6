#include "cpu/lowrank/force.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// Rows that go through a panel while it is in L1: so many that little of it comes from L3.
constexpr int64_t kForceBlock = 48;
constexpr int64_t kGroupPanels = 4;  // of columns: a block of the table is read once for them all

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// A row of a table of n columns: an odd number of cache lines, so that rows do not meet in the
// same few sets of a cache.
template <class T>
int64_t padded(int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return (round_up(n, kLine) / kLine | 1) * kLine;
}

// Where things lie in the workspace, in elements; every part starts on 64 bytes.
template <class T>
struct Places {
  static constexpr int64_t kLine = 64 / sizeof(T);
  int64_t lanes, n_panels, ld_rows, ld_table, table, panels, rows, workers, pulls, worker_size;

  Places(int64_t n, int64_t d, int64_t table_rows)
      : lanes(kernels<T>().force.lanes),
        n_panels((n + lanes - 1) / lanes),
        ld_rows(padded<T>(std::min(d, kForceDepth))),
        ld_table(padded<T>(n_panels * lanes)),
        table(0),
        panels(table_rows * ld_table),
        rows(panels + round_up(n_panels * lanes * std::min(d, kForceDepth), kLine)),
        workers(rows + n * ld_rows),
        pulls(round_up(kGroupPanels * lanes * n, kLine)),  // behind a group's columns
        worker_size(pulls + kForceBlock * lanes) {}
};

template <class T>
struct Forces {
  const ForceArgs<T>& a;
  const Places<T> at;
  T* const memory;
  const int n_threads;
  const ForceKernels<T>& kernels;

  int64_t table_rows(int64_t first) const { return std::min(a.table_rows, a.n - first); }
  bool is_symmetric() const { return a.table_rows == a.n; }
  T* table(int64_t i) const { return memory + at.table + i * at.ld_table; }

  // Features [c, c + depth) of all rows: transposed, panel by panel, and side by side.
  void pack(int64_t c, int64_t depth) const {
    parallel_for(at.n_panels, n_threads, [&](int64_t p) {
      const int64_t j = p * at.lanes, n_rows = std::min(at.lanes, a.n - j);
      const T* from = a.unit + j * a.d + c;
      ds::kernels<T>().spmm.rows_to_panel(from, a.d, n_rows, depth, memory + at.panels + j * depth,
                                          at.lanes);
      T* into = memory + at.rows + j * at.ld_rows;
      for (int64_t r = 0; r < n_rows; ++r)
        std::memcpy(into + r * at.ld_rows, from + r * a.d, depth * sizeof(T));
    });
  }

  // Squared distances of the rows first, first + 1, ... of the table; of the whole, those right
  // of the diagonal.
  void add_distances(int64_t first, int64_t c, int64_t depth) const {
    const int64_t size = table_rows(first);
    // Smaller blocks where threads would wait for the last one.
    const int64_t share = round_up((size + 2 * n_threads - 1) / (2 * n_threads), kernels.rows);
    const int64_t block = n_threads > 1 ? std::min(kForceBlock, share) : kForceBlock;
    parallel_for((size + block - 1) / block, n_threads, [&](int64_t job) {
      const int64_t begin = job * block, end = std::min(begin + block, size);
      for (int64_t p = is_symmetric() ? begin / at.lanes : 0; p < at.n_panels; ++p) {
        const int64_t last = is_symmetric() ? std::min(end, (p + 1) * at.lanes) : end;
        kernels.add_distances({memory + at.rows + (first + begin) * at.ld_rows, at.ld_rows,
                               last - begin, memory + at.panels + p * at.lanes * depth, depth,
                               table(begin) + p * at.lanes, at.ld_table, c == 0});
      }
    });
  }

  void invert(int64_t first) const {
    parallel_for(table_rows(first), n_threads, [&](int64_t i) {
      const int64_t begin = is_symmetric() ? i : 0;
      kernels.invert(table(i) + begin, a.n - begin);
    });
    if (!is_symmetric()) return;
    // What is left of the diagonal, a cache line of each of its columns at a time.
    constexpr int64_t kLine = Places<T>::kLine;
    parallel_for((a.n + kLine - 1) / kLine, n_threads, [&](int64_t job) {
      const int64_t begin = job * kLine, end = std::min(begin + kLine, a.n);
      for (int64_t j = 0; j < end; ++j)
        for (int64_t i = std::max(begin, j + 1); i < end; ++i) table(i)[j] = table(j)[i];
    });
  }

  // out = table x unit, for a few panels of columns.
  void pull(int64_t first, int64_t group, int worker) const {
    T* const mine = memory + at.workers + worker * at.worker_size;
    const int64_t begin = group * kGroupPanels * at.lanes;
    const int64_t n_panels = std::min(kGroupPanels, (a.d - begin + at.lanes - 1) / at.lanes);
    for (int64_t j = 0; j < a.n; ++j)
      for (int64_t p = 0; p < n_panels; ++p) {
        const int64_t c = begin + p * at.lanes, width = std::min(at.lanes, a.d - c);
        T* into = mine + (p * a.n + j) * at.lanes;
        std::memcpy(into, a.unit + j * a.d + c, width * sizeof(T));
        std::fill(into + width, into + at.lanes, T(0));
        // Rows are pages apart: no hardware sees the next one coming.
        __builtin_prefetch(a.unit + std::min(j + 8, a.n - 1) * a.d + c);
      }
    const int64_t size = table_rows(first);
    T* const pulls = mine + at.pulls;
    for (int64_t i = 0; i < size; i += kForceBlock) {
      const int64_t n_rows = std::min(kForceBlock, size - i);
      for (int64_t p = 0; p < n_panels; ++p) {
        const T* others = mine + p * at.lanes * a.n;
        std::fill(pulls, pulls + n_rows * at.lanes, T(0));
        for (int64_t j = 0; j < a.n; j += kForceDepth)
          kernels.add_pulls({table(i) + j, at.ld_table, n_rows, others + j * at.lanes,
                             std::min(kForceDepth, a.n - j), pulls});
        const int64_t c = begin + p * at.lanes, width = std::min(at.lanes, a.d - c);
        for (int64_t r = 0; r < n_rows; ++r)
          std::memcpy(a.out + (first + i + r) * a.d + c, pulls + r * at.lanes, width * sizeof(T));
      }
    }
  }

  void run(int64_t first) const {
    for (int64_t c = 0; c < a.d; c += kForceDepth) {
      const int64_t depth = std::min(kForceDepth, a.d - c);
      pack(c, depth);
      add_distances(first, c, depth);
    }
    invert(first);
    const int64_t columns = kGroupPanels * at.lanes;
    parallel_for_workers((a.d + columns - 1) / columns, n_threads,
                         [&](int64_t group, int worker) { pull(first, group, worker); });
    parallel_for(table_rows(first), n_threads, [&](int64_t r) {
      const int64_t i = first + r;
      kernels.finish_row({table(r), a.n, a.unit + i * a.d, a.d, a.lengths[i], a.out + i * a.d});
    });
  }
};

}  // namespace

template <class T>
int64_t force_workspace(int64_t n, int64_t d, int64_t table_rows, int n_threads) {
  const Places<T> at(n, d, table_rows);
  return at.workers + std::max(n_threads, 1) * at.worker_size;
}

template <class T>
void constant_forces(const ForceArgs<T>& a, T* workspace, int n_threads) {
  const Forces<T> forces{a, Places<T>(a.n, a.d, a.table_rows), workspace, n_threads,
                         kernels<T>().force};
  for (int64_t first = 0; first < a.n; first += a.table_rows) forces.run(first);
}

template int64_t force_workspace<float>(int64_t, int64_t, int64_t, int);
template int64_t force_workspace<double>(int64_t, int64_t, int64_t, int);
template void constant_forces(const ForceArgs<float>&, float*, int);
template void constant_forces(const ForceArgs<double>&, double*, int);

}  // namespace ds
