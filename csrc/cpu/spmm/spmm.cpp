#include "cpu/spmm/spmm.h"

#include "core/parallel.h"
#include "cpu/spmm/panels.h"

namespace ds {
namespace {

// A job multiplies kGroupPanels panels with kChunkRows rows of W, block after block: its part of W
// in a block is read once for all panels, its sums (kChunkRows x 4 panels) stay in L2.
constexpr int64_t kGroupPanels = 4;
constexpr int64_t kChunkRows = 256, kLeastChunkRows = 32;
// Up to here rows of activations go one by one: a vector of lanes would be mostly empty.
constexpr int64_t kSingleRows = 2;

struct Plan {
  int64_t n_panels, group_panels, n_groups, wave_groups, chunk_rows, n_chunks, width;
};

template <class T>
Plan plan_of(const Tiles& w, int64_t m, int n_threads) {
  Plan p;
  p.width = panel_width<T>();
  p.n_panels = ceil_div(m, p.width);
  p.group_panels = std::min(kGroupPanels, std::max<int64_t>(p.n_panels, 1));
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

// Elements of one worker: sums of a chunk, its decoded values, the columns' places.
template <class T>
int64_t scratch_of(const Tiles& w, const Plan& p, bool plain) {
  const int64_t sums = p.chunk_rows * p.group_panels * p.width;
  const int64_t values = plain ? 0 : round_up(p.chunk_rows * w.block_columns, 16);
  return sums + values + round_up(w.block_columns, 16);
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
    int32_t* offset = reinterpret_cast<int32_t*>(sums + p.chunk_rows * p.group_panels * p.width);
    T* values = reinterpret_cast<T*>(offset + round_up(w.block_columns, 16));
    for (int64_t c = 0; c < w.block_columns; ++c) offset[c] = static_cast<int32_t>(c * p.width);
    SpmmTile<T> t;
    t.columns = w.columns;
    t.offset = offset;
    t.ldy = p.width;
    t.bias = a.bias;
    t.unit_begin = row_begin / w.unit_rows;
    t.unit_end = row_end / w.unit_rows;
    t.unit_rows = w.unit_rows;
    t.n_rows = w.n_rows;
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
  return (plain ? 0 : round_up(kLeastChunkRows * w.block_columns, 16)) + kLeastChunkRows;
}

template <class T, class S>
void multiply_single_rows(const SpmmArgs<T, S>& a, int n_threads) {
  const Tiles& w = a.tiles;
  const int64_t x_size = round_up(w.n_columns, 16);
  T* wide = a.workspace;
  if constexpr (!std::is_same_v<T, S>)
    for (int64_t i = 0; i < a.m; ++i)
      kernels<S>().widen(a.x + i * w.n_columns, w.n_columns, wide + i * x_size);
  T* scratch = a.workspace + kSingleRows * x_size;
  const int64_t scratch_size = single_scratch<T>(w, a.values.kind == ValueKind::kPlain);
  const int64_t n_chunks = ceil_div(w.n_rows, kLeastChunkRows);
  const auto job = [&](int64_t chunk, int worker) {
    const int64_t begin = chunk * kLeastChunkRows;
    const int64_t end = std::min(w.n_rows, begin + kLeastChunkRows);
    T* sums = scratch + worker * scratch_size;
    SpmvTile<T> t;
    t.columns = w.columns;
    t.bias = a.bias;
    t.unit_begin = begin / w.unit_rows;
    t.unit_end = end / w.unit_rows;
    t.unit_rows = w.unit_rows;
    t.n_rows = w.n_rows;
    for (int64_t i = 0; i < a.m; ++i) {
      for (int64_t b = 0; b < w.n_blocks(); ++b) {
        t.starts = w.starts + b * w.n_units();
        t.values = decoded(w, a.values, t.starts, t.unit_begin, t.unit_end, sums + kLeastChunkRows);
        t.first = b == 0;
        if constexpr (std::is_same_v<T, S>)
          t.x = a.x + i * w.n_columns + b * w.block_columns;
        else
          t.x = wide + i * x_size + b * w.block_columns;
        t.y = sums - begin;
        kernels<T>().spmm.spmv_tile(t);
      }
      S* y = a.y + i * w.n_rows + begin;
      if constexpr (std::is_same_v<T, S>)
        std::copy(sums, sums + (end - begin), y);
      else
        kernels<S>().round(sums, end - begin, y);
    }
  };
  parallel_for_workers(n_chunks, n_threads, job);
}

}  // namespace

template <class T>
int64_t spmm_workspace(const Tiles& w, bool plain, int64_t m, int n_threads) {
  if (m <= kSingleRows)
    return kSingleRows * round_up(w.n_columns, 16) + n_threads * single_scratch<T>(w, plain);
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
