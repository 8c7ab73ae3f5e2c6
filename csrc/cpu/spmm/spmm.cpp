#include "cpu/spmm/spmm.h"

#include "core/parallel.h"
#include "cpu/spmm/panels.h"

namespace ds {
namespace {

// A job multiplies kGroupPanels panels with kChunkRows rows of W, block after block: its part of W
// in a block is read once for all panels. Panels and sums are to stay in L2.
constexpr int64_t kGroupPanels = 4, kGroupBytes = 256 * 1024;
constexpr int64_t kChunkRows = 256, kLeastChunkRows = 32;
// Up to here rows of activations go one by one: a vector of lanes would be mostly empty.
constexpr int64_t kSingleRows = 2;

struct Plan {
  int64_t n_panels, group_panels, n_groups, wave_groups, chunk_rows, n_chunks, width;
};

template <class T>
Plan plan_of(const Tiles& w, int64_t m, int n_threads) {
  Plan p;
  p.width = narrow_width<T>(m);
  p.n_panels = ceil_div(m, p.width);
  const int64_t panel_bytes = w.n_columns * p.width * static_cast<int64_t>(sizeof(T));
  p.group_panels = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(panel_bytes, 1), 1,
                                       std::clamp<int64_t>(p.n_panels, 1, kGroupPanels));
  p.n_groups = ceil_div(p.n_panels, p.group_panels);
  p.wave_groups = std::clamp<int64_t>(p.n_groups, 1, n_threads);
  // few panels and many threads: shorter chunks (they change no bits)
  const int64_t wanted = ceil_div(2 * n_threads, p.wave_groups);
  p.chunk_rows =
      std::clamp(round_up(ceil_div(w.n_rows, wanted), kMaxUnitRows), kLeastChunkRows, kChunkRows);
  if (n_threads == 1) p.chunk_rows = kChunkRows;
  p.n_chunks = ceil_div(w.n_rows, p.chunk_rows);
  return p;
}

// Elements of one worker: sums of a chunk and its decoded values.
template <class T>
int64_t scratch_of(const Tiles& w, const Plan& p, bool plain) {
  const int64_t sums = p.chunk_rows * p.group_panels * p.width;
  const int64_t values = plain ? 0 : round_up(p.chunk_rows * w.block_columns, 16);
  return sums + values;
}

template <class T, class S>
struct Multiply {
  const SpmmArgs<T, S>& a;
  const Plan& p;
  T* panels;   // of this wave
  T* scratch;  // of this worker

  void operator()(int64_t first_panel, int64_t chunk) const {
    const Tiles& w = a.tiles;
    const int64_t row_begin = chunk * p.chunk_rows;
    const int64_t row_end = std::min(w.n_rows, row_begin + p.chunk_rows);
    const int64_t n_panels = std::min(p.group_panels, p.n_panels - first_panel);
    T* sums = scratch;
    T* values = sums + p.chunk_rows * p.group_panels * p.width;
    SpmmTile<T> t;
    t.columns = w.columns;
    t.places = nullptr;
    t.ldx = p.width;
    t.ldy = p.width;
    t.bias = a.bias;
    t.unit_begin = row_begin / w.unit_rows;
    t.unit_end = row_end / w.unit_rows;
    t.unit_rows = w.unit_rows;
    for (int64_t b = 0; b < w.n_blocks(); ++b) {
      t.starts = w.starts + b * w.n_units();
      t.values = decoded(w, a.values, t.starts, t.unit_begin, t.unit_end, values);
      t.first = b == 0;
      for (int64_t i = 0; i < n_panels; ++i) {
        const int64_t rows = std::min(p.width, a.m - (first_panel + i) * p.width);
        t.vectors = static_cast<int>(ceil_div(rows, kernels<T>().spmm.lanes));
        t.x = panels + (i * w.n_columns + b * w.block_columns) * p.width;
        t.y = sums + (i * p.chunk_rows - row_begin) * p.width;
        kernels<T>().spmm.spmm_tile(t);
      }
    }
    for (int64_t i = 0; i < n_panels; ++i) {
      const int64_t first = (first_panel + i) * p.width;
      empty_panel(sums + i * p.chunk_rows * p.width, p.width, std::min(p.width, a.m - first),
                  row_end - row_begin, a.y + first * w.n_rows + row_begin, w.n_rows);
    }
  }
};

template <class T, class S>
void multiply_panels(const SpmmArgs<T, S>& a, int n_threads) {
  const Tiles& w = a.tiles;
  const Plan p = plan_of<T>(w, a.m, n_threads);
  const int64_t panel_size = w.n_columns * p.width;
  const int64_t scratch_size = scratch_of<T>(w, p, a.values.kind == ValueKind::kPlain);
  const int64_t wave_panels = p.wave_groups * p.group_panels;
  T* scratch = a.workspace + wave_panels * panel_size;
  for (int64_t panel = 0; panel < p.n_panels; panel += wave_panels) {
    const int64_t n_panels = std::min(wave_panels, p.n_panels - panel);
    const int64_t n_blocks = w.n_blocks();
    parallel_for(n_panels * n_blocks, n_threads, [&](int64_t job) {
      const int64_t i = job / n_blocks, begin = job % n_blocks * w.block_columns;
      const int64_t first = (panel + i) * p.width;
      fill_panel(a.x + first * w.n_columns, w.n_columns, std::min(p.width, a.m - first), begin,
                 std::min(w.n_columns, begin + w.block_columns), a.workspace + i * panel_size,
                 p.width);
    });
    const int64_t n_groups = ceil_div(n_panels, p.group_panels);
    parallel_for_workers(n_groups * p.n_chunks, n_threads, [&](int64_t job, int worker) {
      const int64_t group = job / p.n_chunks;
      const Multiply<T, S> multiply{a, p, a.workspace + group * p.group_panels * panel_size,
                                    scratch + worker * scratch_size};
      multiply(panel + group * p.group_panels, job % p.n_chunks);
    });
  }
}

// ------------------------------------------------------------------ one or two rows
template <class T>
int64_t single_scratch(const Tiles& w, bool plain) {
  return plain ? 0 : round_up(kLeastChunkRows * w.block_columns, 16);
}

// Rows [begin, end) of W, block after block, so that W streams.
template <class T, class S>
void multiply_row(const SpmmArgs<T, S>& a, const T* x, int64_t begin, int64_t end, T* sums,
                  T* scratch) {
  const Tiles& w = a.tiles;
  const int64_t step = a.values.kind == ValueKind::kPlain ? end - begin : kLeastChunkRows;
  SpmvTile<T> t;
  t.columns = w.columns;
  t.y = sums;
  t.bias = a.bias;
  t.unit_rows = w.unit_rows;
  for (int64_t b = 0; b < w.n_blocks(); ++b) {
    t.starts = w.starts + b * w.n_units();
    t.x = x + b * w.block_columns;
    t.first = b == 0;
    for (int64_t row = begin; row < end; row += step) {
      t.unit_begin = row / w.unit_rows;
      t.unit_end = std::min(end, row + step) / w.unit_rows;
      t.values = decoded(w, a.values, t.starts, t.unit_begin, t.unit_end, scratch);
      kernels<T>().spmm.spmv_tile(t);
    }
  }
}

// The workspace: the rows of x and of y as T where they are stored otherwise, then scratch.
template <class T, class S>
void multiply_single_rows(const SpmmArgs<T, S>& a, int n_threads) {
  const Tiles& w = a.tiles;
  const bool plain = a.values.kind == ValueKind::kPlain;
  T* scratch = a.workspace + kSingleRows * (w.n_columns + w.n_rows);
  const int64_t chunk_rows =
      std::max(round_up(ceil_div(w.n_rows, n_threads), kMaxUnitRows), kLeastChunkRows);
  for (int64_t i = 0; i < a.m; ++i) {
    const S* x_row = a.x + i * w.n_columns;
    S* y_row = a.y + i * w.n_rows;
    const T* x;
    T* y;
    if constexpr (std::is_same_v<T, S>) {
      x = x_row;
      y = y_row;
    } else {
      kernels<S>().widen(x_row, w.n_columns, a.workspace);
      x = a.workspace;
      y = a.workspace + w.n_columns;
    }
    parallel_for_workers(ceil_div(w.n_rows, chunk_rows), n_threads, [&](int64_t chunk, int worker) {
      multiply_row(a, x, chunk * chunk_rows, std::min(w.n_rows, (chunk + 1) * chunk_rows), y,
                   scratch + worker * single_scratch<T>(w, plain));
    });
    if constexpr (!std::is_same_v<T, S>) kernels<S>().round(y, w.n_rows, y_row);
  }
}

}  // namespace

template <class T>
int64_t spmm_workspace(const Tiles& w, bool plain, int64_t m, int n_threads) {
  if (m <= kSingleRows)
    return kSingleRows * (w.n_columns + w.n_rows) + n_threads * single_scratch<T>(w, plain);
  const Plan p = plan_of<T>(w, m, n_threads);
  return p.wave_groups * p.group_panels * w.n_columns * p.width +
         n_threads * scratch_of<T>(w, p, plain);
}

template <class T, class S>
void spmm(const SpmmArgs<T, S>& a, int n_threads) {
  if (a.m == 0 || a.tiles.n_rows == 0) return;
  if (a.m <= kSingleRows) return multiply_single_rows(a, n_threads);
  multiply_panels(a, n_threads);
}

template int64_t spmm_workspace<float>(const Tiles&, bool, int64_t, int);
template int64_t spmm_workspace<double>(const Tiles&, bool, int64_t, int);
template void spmm(const SpmmArgs<float, float>&, int);
template void spmm(const SpmmArgs<float, bf16>&, int);
template void spmm(const SpmmArgs<float, f16>&, int);
template void spmm(const SpmmArgs<double, double>&, int);

}  // namespace ds
