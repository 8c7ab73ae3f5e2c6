// Panels of images: what lets a convolution run as products of a pruned matrix with lanes (spmm.h)
// without im2col. Torch-free.
//
// Panel    panel[channel][phase][position][image]: `images` (one vector of lanes, or 1) images are
//          innermost. A position q of phase f holds pixel q * step + f - pad, or 0 outside of the
//          image: neighbouring outputs read neighbouring positions whatever the stride is, so a
//          tap is a constant distance in memory and all lanes of a tile share it.
// Lanes    output o lies `pitch` positions per axis from the first one, as its pixels do: a tile of
//          lanes is a contiguous part of a *run*, which covers the last axis or the last two or
//          three (then the lanes between two lines, which read padding, are garbage and never
//          leave the workspace).
// Planes   those of different channels begin at different cache sets: a block of columns reads the
//          same few positions of many channels.
#pragma once
#include <cstdint>
#include <vector>

namespace ds {

constexpr int kAxes = 3;  // fewer: the first ones have one position

// A dense tensor (batch, channels, axes) of any strides, in elements.
template <class T>
struct Image {
  T* data;
  int64_t batch, channels, batch_stride, channel_stride;
  int64_t shape[kAxes], stride[kAxes];
};

// Output o of tap k reads pixel o * step + at[k] - pad of the source, and is pixel
// o * out_step + out_start of the result.
struct LaneMap {
  int64_t lanes[kAxes];  // outputs
  int64_t step[kAxes], pad[kAxes], out_step[kAxes], out_start[kAxes];
  int64_t n_taps;
  const int64_t* at;  // (n_taps, kAxes), not negative
};

// The taps' phases and distances in positions: of the map alone.
struct Phases {
  std::vector<int64_t> of[kAxes];  // the phases that some tap reads
  int64_t reach[kAxes];            // most positions from an output's first
  int64_t count() const { return static_cast<int64_t>(of[0].size() * of[1].size() * of[2].size()); }
};
Phases phases_of(const LaneMap& map);

// The panel of a band: outputs [begin, begin + size) of the first axis that has more than one.
struct PanelShape {
  int64_t images, extent[kAxes], pitch[kAxes], phase_size, plane;
  int64_t band_axis, band_begin;
  int64_t lanes[kAxes];  // of the band
};
int band_axis_of(const LaneMap& map);
PanelShape panel_shape(const LaneMap& map, const Phases& phases, int64_t images, int64_t n_lanes,
                       int64_t band_begin, int64_t band_size, int64_t element_bytes);

// Where column channel * n_taps + tap begins, from the plane of the first channel of its block.
void column_offsets(const LaneMap& map, const Phases& phases, const PanelShape& shape,
                    int64_t n_columns, int64_t block_columns, int32_t* offset);

// Images [b, b + n_images) of channels [c_begin, c_end) into the panel: all of it is written.
template <class T>
void fill_images(const Image<const T>& x, const LaneMap& map, const Phases& phases,
                 const PanelShape& shape, int64_t b, int64_t n_images, int64_t c_begin,
                 int64_t c_end, T* panel);

// How a band's lanes are cut: into runs over the last axes, those into tiles of 1..4 vectors.
struct Runs {
  int axes;  // that a run covers
  int64_t n_runs, vectors, tiles;
  int64_t begin(int64_t tile) const { return tile * vectors / tiles; }  // vectors
  int64_t count() const { return n_runs * tiles; }
};
Runs runs_of(const PanelShape& shape, int64_t n_lanes);
// Vector loads that the lanes of `lanes` outputs cost, per kept weight: to choose `images` with.
int64_t cost_of(const Runs& runs);
int64_t run_start(const PanelShape& shape, const Runs& runs, int64_t run);  // in elements

// A tile's lanes, [lane, lane + n) of a run, between (channels, ld) rows and the tensor that they
// are outputs of. Reading (to_tile), lanes that are no output become 0.
template <class T>
struct TileLanes {
  const LaneMap& map;
  const PanelShape& shape;
  const Runs& runs;
  int64_t run, lane, n, b, n_images;
};
template <class T>
void tile_to_image(const TileLanes<T>& t, const T* tile, int64_t ld, int64_t c_begin, int64_t c_end,
                   const Image<T>& y);
template <class T>
void image_to_tile(const TileLanes<T>& t, const Image<const T>& y, int64_t c_begin, int64_t c_end,
                   T* tile, int64_t ld);

}  // namespace ds
