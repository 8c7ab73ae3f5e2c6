#include "core/parallel.h"
#include "cpu/spmm/panels.h"
#include "cpu/spmm/spmm.h"

namespace ds {
namespace {

constexpr int64_t kWavePanels = 4;   // panels of x and of dy that are kept at a time
constexpr int64_t kChunkRows = 128;  // of dy: their panel stays in L2 while blocks of x pass

}  // namespace

template <class T>
int64_t sddmm_workspace(const Tiles& w, int64_t m) {
  const int64_t width = narrow_width<T>(m);
  return std::min(kWavePanels, ceil_div(m, width)) * (w.n_columns + w.n_rows) * width;
}

template <class T, class S>
void sddmm(const SddmmArgs<T, S>& a, int n_threads) {
  const Tiles& w = a.tiles;
  const int64_t n_entries = w.starts[w.n_blocks() * w.n_rows], width = narrow_width<T>(a.m);
  if (a.m == 0) return std::fill(a.values, a.values + n_entries, T(0));
  const int64_t n_panels = ceil_div(a.m, width), wave = std::min(kWavePanels, n_panels);
  T* x_panels = a.workspace;
  T* dy_panels = x_panels + wave * w.n_columns * width;
  const int64_t x_slabs = w.n_blocks(), dy_slabs = ceil_div(w.n_rows, w.block_columns);
  for (int64_t panel = 0; panel < n_panels; panel += wave) {
    const int64_t n_wave = std::min(wave, n_panels - panel);
    parallel_for(n_wave * (x_slabs + dy_slabs), n_threads, [&](int64_t job) {
      const int64_t i = job / (x_slabs + dy_slabs), slab = job % (x_slabs + dy_slabs);
      const int64_t first = (panel + i) * width, rows = std::min(width, a.m - first);
      const bool of_x = slab < x_slabs;
      const int64_t n = of_x ? w.n_columns : w.n_rows;
      const int64_t begin = (of_x ? slab : slab - x_slabs) * w.block_columns;
      fill_panel((of_x ? a.x : a.dy) + first * n, n, rows, begin,
                 std::min(n, begin + w.block_columns),
                 (of_x ? x_panels : dy_panels) + i * n * width, width);
    });
    parallel_for(ceil_div(w.n_rows, kChunkRows), n_threads, [&](int64_t chunk) {
      SddmmTile<T> t;
      t.columns = w.columns;
      t.values = a.values;
      t.places = nullptr;
      t.ldx = width;
      t.ldy = width;
      t.unit_begin = chunk * kChunkRows;
      t.unit_end = std::min(w.n_rows, t.unit_begin + kChunkRows);
      for (int64_t b = 0; b < w.n_blocks(); ++b) {
        t.starts = w.starts + b * w.n_rows;
        for (int64_t i = 0; i < n_wave; ++i) {
          const int64_t rows = std::min(width, a.m - (panel + i) * width);
          t.vectors = static_cast<int>(ceil_div(rows, kernels<T>().spmm.lanes));
          t.x = x_panels + (i * w.n_columns + b * w.block_columns) * width;
          t.dy = dy_panels + i * w.n_rows * width;
          t.first = panel + i == 0;
          kernels<T>().spmm.sddmm_tile(t);
        }
      }
    });
  }
}

template int64_t sddmm_workspace<float>(const Tiles&, int64_t);
template int64_t sddmm_workspace<double>(const Tiles&, int64_t);
template void sddmm(const SddmmArgs<float, float>&, int);
template void sddmm(const SddmmArgs<float, bf16>&, int);
template void sddmm(const SddmmArgs<float, f16>&, int);
template void sddmm(const SddmmArgs<double, double>&, int);

}  // namespace ds
