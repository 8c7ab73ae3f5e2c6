#include "cpu/spmm/masked_conv.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/spmm/panels.h"

namespace ds {
namespace {

constexpr int64_t kPanelBytes = 8 << 20;  // a band's panel; a quarter of a usual L3
constexpr int64_t kFillChannels = 32;     // a job of filling it
constexpr int64_t kJobs = 64, kMinUnits = 16;
constexpr int64_t kGradRows = 128;  // rows that share a block of x in L1

int64_t padded(int64_t n) {  // parts of the workspace begin at a cache line
  return round_up(n, 16);
}

// Images [begin, end) that share panels of `images` (a vector's lanes, or 1) images.
struct Batch {
  int64_t begin, end, images;
};

// How the work is cut: depends on sizes alone.
template <class T>
struct Cut {
  LaneMap map;
  Phases phases;
  int64_t n_lanes, band;
  std::vector<Batch> batches;

  PanelShape shape(int64_t images, int64_t begin) const {
    const int64_t all = map.lanes[band_axis_of(map)];
    return panel_shape(map, phases, images, n_lanes, begin, std::min(band, all - begin), sizeof(T));
  }
};

template <class T>
Cut<T> cut_of(const LaneMap& map, int64_t batch, int64_t c_in) {
  Cut<T> cut{map, phases_of(map), kernels<T>().spmm.lanes, map.lanes[band_axis_of(map)], {}};
  const int64_t whole = batch / cut.n_lanes * cut.n_lanes, rest = batch - whole;
  if (whole > 0) cut.batches.push_back({0, whole, cut.n_lanes});
  if (rest > 0) {  // a vector that is not full, or vectors of pixels: what costs less
    const int64_t full = cost_of(runs_of(cut.shape(cut.n_lanes, 0), cut.n_lanes));
    const int64_t single = cost_of(runs_of(cut.shape(1, 0), cut.n_lanes));
    cut.batches.push_back({whole, batch, full <= rest * single ? cut.n_lanes : 1});
  }
  // The widest band whose panel fits; its halo is at most a fifth where the panel allows it.
  const int64_t images = cut.batches.empty() ? 1 : cut.batches[0].images;
  const int64_t bytes = cut.shape(images, 0).plane * c_in * static_cast<int64_t>(sizeof(T));
  const int64_t reach = phases_of(map).reach[band_axis_of(map)];
  const int64_t fits = (cut.band + reach) * kPanelBytes / std::max<int64_t>(1, bytes) - reach;
  const int64_t n_bands =
      ceil_div(cut.band, std::clamp<int64_t>(fits, std::min(cut.band, 4 * reach + 1), cut.band));
  cut.band = ceil_div(cut.band, n_bands);
  return cut;
}

// The parts of the workspace; tiles: [worker][row][kPanelVectors * lanes], or [tile][row][its
// lanes] of a whole band.
template <class T>
struct Parts {
  int64_t panel = 0, offsets = 0, tiles = 0;
  int64_t most_distance = 0;  // of a column from its block's first channel
};

template <class T>
Parts<T> parts_of(const Cut<T>& cut, int64_t c_in, int64_t c_out, int64_t groups,
                  int64_t block_columns, int64_t n_entries, bool gradient, int n_threads) {
  Parts<T> parts;
  const int64_t n_columns = c_in / groups * cut.map.n_taps;
  parts.offsets = padded(ceil_div((n_columns + n_entries) * 4, sizeof(T)));
  const int64_t block_channels =
      std::min(ceil_div(block_columns, cut.map.n_taps) + 1, c_in / groups);
  for (const Batch& batch : cut.batches) {
    const PanelShape s = cut.shape(batch.images, 0);
    // what overshoots the last plane: a tile's last vector
    parts.panel = std::max(parts.panel, padded(s.plane * c_in + cut.n_lanes));
    parts.most_distance = std::max(parts.most_distance, s.plane * block_channels);
    const Runs runs = runs_of(s, cut.n_lanes);
    const int64_t tiles = gradient ? runs.n_runs * runs.vectors * cut.n_lanes * c_out
                                   : n_threads * c_out * kPanelVectors * cut.n_lanes;
    parts.tiles = std::max(parts.tiles, padded(tiles));
  }
  return parts;
}

int64_t entries_of(const Tiles& w) {
  return w.starts[w.n_blocks() * w.n_units()];
}

// The columns' places, for every entry: the kernels load one number an entry, not two.
void place_entries(const Tiles& w, const int32_t* of_column, int n_threads, int32_t* places) {
  parallel_for(w.n_blocks(), n_threads, [&](int64_t b) {
    const int32_t* of_block = of_column + b * w.block_columns;
    for (int64_t j = w.starts[b * w.n_units()]; j < w.starts[(b + 1) * w.n_units()]; ++j)
      places[j] = of_block[w.columns[j]];
  });
}

// What is there while one band of some images is worked on.
template <class T>
struct Band {
  PanelShape shape;
  Runs runs;
  int64_t b, n_images;
  const T* panel;
  const int32_t* places;  // of every entry, from its block's first channel
  T* tiles;
};

// f(band, whether it is the first), for every band of every group of images, its panel filled.
template <class T, class Args, class F>
void for_bands(const Args& a, int64_t c_out, bool gradient, int n_threads, const F& f) {
  const Cut<T> cut = cut_of<T>(a.map, a.x.batch, a.x.channels);
  const Parts<T> parts = parts_of(cut, a.x.channels, c_out, a.groups, a.tiles.block_columns,
                                  entries_of(a.tiles), gradient, n_threads);
  T* panel = a.workspace;
  int32_t* offset = reinterpret_cast<int32_t*>(panel + parts.panel);
  int32_t* places = offset + a.tiles.n_columns;
  T* tiles = panel + parts.panel + parts.offsets;
  bool first = true;
  for (const Batch& batch : cut.batches)
    for (int64_t begin = 0; begin < a.map.lanes[band_axis_of(a.map)]; begin += cut.band) {
      const PanelShape s = cut.shape(batch.images, begin);
      column_offsets(a.map, cut.phases, s, a.tiles.n_columns, a.tiles.block_columns, offset);
      place_entries(a.tiles, offset, n_threads, places);
      std::memset(panel + s.plane * a.x.channels, 0, cut.n_lanes * sizeof(T));
      for (int64_t b = batch.begin; b < batch.end; b += batch.images) {
        const int64_t n_images = std::min(batch.images, batch.end - b);
        parallel_for(ceil_div(a.x.channels, kFillChannels), n_threads, [&](int64_t job) {
          fill_images(a.x, a.map, cut.phases, s, b, n_images, job * kFillChannels,
                      std::min(a.x.channels, (job + 1) * kFillChannels), panel);
        });
        f(Band<T>{s, runs_of(s, cut.n_lanes), b, n_images, panel, places, tiles}, first);
        first = false;
      }
    }
}

// f(group, units of it) for the part of [begin, end) that lies in each group.
template <class F>
void for_groups(int64_t begin, int64_t end, int64_t units, const F& f) {
  while (begin < end) {
    const int64_t g = begin / units, stop = std::min(end, (g + 1) * units);
    f(g, begin, stop);
    begin = stop;
  }
}

}  // namespace

template <class T>
int64_t masked_conv_workspace(const LaneMap& map, int64_t batch, int64_t c_in, int64_t c_out,
                              int64_t groups, int64_t block_columns, int64_t n_entries,
                              bool gradient, int n_threads) {
  const Cut<T> cut = cut_of<T>(map, batch, c_in);
  const Parts<T> parts = parts_of(cut, c_in, c_out, groups, block_columns, n_entries, gradient,
                                  std::max(1, n_threads));
  if (parts.most_distance >= INT32_MAX) return -1;
  return parts.panel + parts.offsets + parts.tiles;
}

template <class T>
void masked_conv(const MaskedConvArgs<T>& a, int n_threads) {
  const int64_t n_lanes = kernels<T>().spmm.lanes, width = kPanelVectors * n_lanes;
  const int64_t n_rows = a.tiles.n_rows, unit_rows = a.tiles.unit_rows;
  const int64_t n_units = a.tiles.n_units(), group_units = n_units / a.groups;
  const int64_t c_in = a.x.channels / a.groups;
  for_bands<T>(a, n_rows, false, std::max(1, n_threads), [&](const Band<T>& band, bool) {
    // Few tiles: their rows are cut up too.
    const int64_t wanted = ceil_div(kJobs, band.runs.count());
    const int64_t units = std::max(kMinUnits, ceil_div(n_units, wanted));
    const int64_t n_parts = ceil_div(n_units, units);
    parallel_for_workers(band.runs.count() * n_parts, n_threads, [&](int64_t job, int worker) {
      const int64_t tile = job / n_parts % band.runs.tiles, run = job / n_parts / band.runs.tiles;
      const int64_t begin = job % n_parts * units, end = std::min(n_units, begin + units);
      const int64_t v = band.runs.begin(tile), n_vectors = band.runs.begin(tile + 1) - v;
      const T* x = band.panel + run_start(band.shape, band.runs, run) + v * n_lanes;
      T* y = band.tiles + worker * n_rows * width;
      SpmmTile<T> t{};
      t.columns = a.tiles.columns;
      t.values = a.values;
      t.y = y;
      t.ldy = width;
      t.unit_rows = unit_rows;
      t.vectors = static_cast<int>(n_vectors);
      for_groups(begin, end, group_units, [&](int64_t g, int64_t unit_begin, int64_t unit_end) {
        t.unit_begin = unit_begin;
        t.unit_end = unit_end;
        for (int64_t block = 0; block < a.tiles.n_blocks(); ++block) {
          const int64_t column = block * a.tiles.block_columns;
          t.starts = a.tiles.starts + block * n_units;
          t.x = x + (g * c_in + column / a.map.n_taps) * band.shape.plane;
          t.places = band.places;
          t.first = block == 0;
          t.bias = t.first ? a.bias : nullptr;
          kernels<T>().spmm.spmm_tile(t);
        }
      });
      const int64_t row = begin * unit_rows, row_end = std::min(n_rows, end * unit_rows);
      tile_to_image(TileLanes<T>{a.map, band.shape, band.runs, run, v * n_lanes,
                                 n_vectors * n_lanes, band.b, band.n_images},
                    y + row * width, width, row, row_end, a.y);
    });
  });
}

template <class T>
void masked_conv_weight_grad(const MaskedConvGradArgs<T>& a, int n_threads) {
  const int64_t n_lanes = kernels<T>().spmm.lanes;
  const int64_t n_rows = a.tiles.n_rows, group_rows = n_rows / a.groups;
  const int64_t c_in = a.x.channels / a.groups, n_blocks = a.tiles.n_blocks();
  const int64_t rows = std::min(kGradRows, n_rows), n_parts = ceil_div(n_rows, rows);
  for_bands<T>(a, n_rows, true, std::max(1, n_threads), [&](const Band<T>& band, bool first_band) {
    const int64_t run_size = band.runs.vectors * n_lanes * n_rows;  // tiles one after the other
    const auto tile_of = [&](int64_t run, int64_t tile) {
      return band.tiles + run * run_size + band.runs.begin(tile) * n_lanes * n_rows;
    };
    parallel_for(band.runs.count(), n_threads, [&](int64_t job) {
      const int64_t tile = job % band.runs.tiles, run = job / band.runs.tiles;
      const int64_t v = band.runs.begin(tile), n = (band.runs.begin(tile + 1) - v) * n_lanes;
      image_to_tile(
          TileLanes<T>{a.map, band.shape, band.runs, run, v * n_lanes, n, band.b, band.n_images},
          a.dy, 0, n_rows, tile_of(run, tile), n);
    });
    parallel_for(n_blocks * n_parts, n_threads, [&](int64_t job) {
      const int64_t column = job / n_parts * a.tiles.block_columns;
      const int64_t begin = job % n_parts * rows, end = std::min(n_rows, begin + rows);
      SddmmTile<T> t{};
      t.starts = a.tiles.starts + job / n_parts * n_rows;
      t.columns = a.tiles.columns;
      t.values = a.values;
      t.places = band.places;
      for (int64_t i = 0; i < band.runs.count(); ++i) {
        const int64_t tile = i % band.runs.tiles, run = i / band.runs.tiles;
        const int64_t v = band.runs.begin(tile);
        t.vectors = static_cast<int>(band.runs.begin(tile + 1) - v);
        t.dy = tile_of(run, tile);
        t.ldy = t.vectors * n_lanes;
        t.first = first_band && i == 0;
        for_groups(begin, end, group_rows, [&](int64_t g, int64_t row_begin, int64_t row_end) {
          t.x = band.panel + (g * c_in + column / a.map.n_taps) * band.shape.plane +
                run_start(band.shape, band.runs, run) + v * n_lanes;
          t.unit_begin = row_begin;
          t.unit_end = row_end;
          kernels<T>().spmm.sddmm_tile(t);
        });
      }
    });
  });
}

#define DS_INSTANTIATE(T)                                                                       \
  template int64_t masked_conv_workspace<T>(const LaneMap&, int64_t, int64_t, int64_t, int64_t, \
                                            int64_t, int64_t, bool, int);                       \
  template void masked_conv<T>(const MaskedConvArgs<T>&, int);                                  \
  template void masked_conv_weight_grad<T>(const MaskedConvGradArgs<T>&, int);
DS_INSTANTIATE(float)
DS_INSTANTIATE(double)
#undef DS_INSTANTIATE

}  // namespace ds
