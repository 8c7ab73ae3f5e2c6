#include "cpu/spmm/image_panel.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"

namespace ds {
namespace {

// A line of pixels along the last axis, for some channels and images, in a tensor and in lanes
// (lanes[channel * ld + pixel * images + image]).
template <class T>
struct Line {
  T* pixels;
  int64_t pixel_stride, batch_stride, channel_stride;
  int64_t n_pixels, n_images, n_channels;
  int64_t images, ld;  // of the lanes
};

// into[r * into_ld + c] = from[c * from_ld + r].
template <class T>
void transpose(const T* from, int64_t from_ld, int64_t rows, int64_t columns, T* into,
               int64_t into_ld) {
  kernels<T>().spmm.panel_to_rows(from, from_ld, rows, columns, into, into_ld);
}

template <class T>
void line_to_lanes(const Line<const T>& l, T* lanes) {
  if (l.channel_stride == 1 && l.images > 1) {
    for (int64_t i = 0; i < l.n_pixels; ++i)
      transpose(l.pixels + i * l.pixel_stride, l.batch_stride, l.n_channels, l.n_images,
                lanes + i * l.images, l.ld);
  } else if (l.channel_stride == 1) {
    transpose(l.pixels, l.pixel_stride, l.n_channels, l.n_pixels, lanes, l.ld);
  } else if (l.pixel_stride == 1 && l.images > 1) {
    for (int64_t c = 0; c < l.n_channels; ++c)
      transpose(l.pixels + c * l.channel_stride, l.batch_stride, l.n_pixels, l.n_images,
                lanes + c * l.ld, l.images);
  } else if (l.pixel_stride == 1) {
    for (int64_t c = 0; c < l.n_channels; ++c)
      std::memcpy(lanes + c * l.ld, l.pixels + c * l.channel_stride, l.n_pixels * sizeof(T));
  } else {
    for (int64_t c = 0; c < l.n_channels; ++c)
      for (int64_t i = 0; i < l.n_pixels; ++i)
        for (int64_t b = 0; b < l.n_images; ++b)
          lanes[c * l.ld + i * l.images + b] =
              l.pixels[c * l.channel_stride + i * l.pixel_stride + b * l.batch_stride];
  }
}

template <class T>
void lanes_to_line(const T* lanes, const Line<T>& l) {
  if (l.channel_stride == 1 && l.images > 1) {
    for (int64_t i = 0; i < l.n_pixels; ++i)
      transpose(lanes + i * l.images, l.ld, l.n_images, l.n_channels, l.pixels + i * l.pixel_stride,
                l.batch_stride);
  } else if (l.channel_stride == 1) {
    transpose(lanes, l.ld, l.n_pixels, l.n_channels, l.pixels, l.pixel_stride);
  } else if (l.pixel_stride == 1 && l.images > 1) {
    for (int64_t c = 0; c < l.n_channels; ++c)
      transpose(lanes + c * l.ld, l.images, l.n_images, l.n_pixels, l.pixels + c * l.channel_stride,
                l.batch_stride);
  } else if (l.pixel_stride == 1) {
    for (int64_t c = 0; c < l.n_channels; ++c)
      std::memcpy(l.pixels + c * l.channel_stride, lanes + c * l.ld, l.n_pixels * sizeof(T));
  } else {
    for (int64_t c = 0; c < l.n_channels; ++c)
      for (int64_t i = 0; i < l.n_pixels; ++i)
        for (int64_t b = 0; b < l.n_images; ++b)
          l.pixels[c * l.channel_stride + i * l.pixel_stride + b * l.batch_stride] =
              lanes[c * l.ld + i * l.images + b];
  }
}

template <class T>
void zero_lanes(T* lanes, int64_t n_channels, int64_t ld, int64_t n) {
  if (n <= 0) return;
  for (int64_t c = 0; c < n_channels; ++c) std::memset(lanes + c * ld, 0, n * sizeof(T));
}

int64_t ceiling(int64_t a, int64_t b) {  // of a / b; b > 0, any a
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

}  // namespace

Phases phases_of(const LaneMap& map) {
  Phases phases{};
  for (int a = 0; a < kAxes; ++a) {
    for (int64_t k = 0; k < map.n_taps; ++k) {
      const int64_t at = map.at[k * kAxes + a], phase = at % map.step[a];
      phases.reach[a] = std::max(phases.reach[a], at / map.step[a]);
      std::vector<int64_t>& known = phases.of[a];
      if (std::find(known.begin(), known.end(), phase) == known.end()) known.push_back(phase);
    }
  }
  return phases;
}

int band_axis_of(const LaneMap& map) {
  for (int a = 0; a < kAxes - 1; ++a)
    if (map.lanes[a] > 1) return a;
  return kAxes - 1;
}

PanelShape panel_shape(const LaneMap& map, const Phases& phases, int64_t images, int64_t n_lanes,
                       int64_t band_begin, int64_t band_size, int64_t element_bytes) {
  PanelShape s{};
  s.images = images;
  s.band_axis = band_axis_of(map);
  s.band_begin = band_begin;
  int64_t size = images;
  for (int a = kAxes - 1; a >= 0; --a) {
    s.lanes[a] = a == s.band_axis ? band_size : map.lanes[a];
    s.extent[a] = s.lanes[a] + phases.reach[a];
    s.pitch[a] = size;
    size *= s.extent[a];
  }
  s.phase_size = size;
  // The last vector of a run may reach past its plane's last position.
  s.plane = size * phases.count() + (images == 1 ? n_lanes : 0);
  // Planes 5 lines apart modulo 16: all sets of an L1 are used before one is used again.
  const int64_t line = 64 / element_bytes;
  int64_t lines = ceiling(s.plane, line);
  lines += (5 - lines % 16 + 16) % 16;
  s.plane = lines * line;
  return s;
}

void column_offsets(const LaneMap& map, const Phases& phases, const PanelShape& s,
                    int64_t n_columns, int64_t block_columns, int32_t* offset) {
  std::vector<int64_t> of_tap(map.n_taps);
  for (int64_t k = 0; k < map.n_taps; ++k) {
    int64_t phase_index = 0, distance = 0;
    for (int a = 0; a < kAxes; ++a) {
      const int64_t at = map.at[k * kAxes + a];
      const std::vector<int64_t>& known = phases.of[a];
      const auto found = std::find(known.begin(), known.end(), at % map.step[a]);
      phase_index = phase_index * static_cast<int64_t>(known.size()) + (found - known.begin());
      distance += at / map.step[a] * s.pitch[a];
    }
    of_tap[k] = phase_index * s.phase_size + distance;
  }
  for (int64_t column = 0; column < n_columns; ++column) {
    const int64_t first = column / block_columns * block_columns / map.n_taps;
    offset[column] =
        static_cast<int32_t>((column / map.n_taps - first) * s.plane + of_tap[column % map.n_taps]);
  }
}

template <class T>
void fill_images(const Image<const T>& x, const LaneMap& map, const Phases& phases,
                 const PanelShape& s, int64_t b, int64_t n_images, int64_t c_begin, int64_t c_end,
                 T* panel) {
  const int64_t n_channels = c_end - c_begin, line_size = s.extent[2] * s.images;
  T* const planes = panel + c_begin * s.plane;
  T* lanes = planes;
  int64_t origin[kAxes];  // pixel of position 0, phase 0
  for (int a = 0; a < kAxes; ++a)
    origin[a] = (a == s.band_axis ? s.band_begin * map.step[a] : 0) - map.pad[a];
  const auto pixel = [&](int a, int64_t phase, int64_t q) {
    return origin[a] + phase + q * map.step[a];
  };
  for (const int64_t f0 : phases.of[0])
    for (const int64_t f1 : phases.of[1])
      for (const int64_t f2 : phases.of[2]) {
        // positions [begin, end) of the last axis are pixels
        const int64_t first = origin[2] + f2, step = map.step[2];
        const int64_t begin = std::clamp<int64_t>(ceiling(-first, step), 0, s.extent[2]);
        const int64_t end =
            std::clamp<int64_t>(ceiling(x.shape[2] - first, step), begin, s.extent[2]);
        for (int64_t q0 = 0; q0 < s.extent[0]; ++q0)
          for (int64_t q1 = 0; q1 < s.extent[1]; ++q1, lanes += line_size) {
            const int64_t p0 = pixel(0, f0, q0), p1 = pixel(1, f1, q1);
            const bool inside = p0 >= 0 && p0 < x.shape[0] && p1 >= 0 && p1 < x.shape[1];
            if (!inside || begin == end || n_images < s.images)
              zero_lanes(lanes, n_channels, s.plane, line_size);
            if (!inside || begin == end) continue;
            if (n_images == s.images) {
              zero_lanes(lanes, n_channels, s.plane, begin * s.images);
              zero_lanes(lanes + end * s.images, n_channels, s.plane, line_size - end * s.images);
            }
            const Line<const T> line{x.data + b * x.batch_stride + c_begin * x.channel_stride +
                                         p0 * x.stride[0] + p1 * x.stride[1] +
                                         (first + begin * step) * x.stride[2],
                                     x.stride[2] * step,
                                     x.batch_stride,
                                     x.channel_stride,
                                     end - begin,
                                     n_images,
                                     n_channels,
                                     s.images,
                                     s.plane};
            line_to_lanes(line, lanes + begin * s.images);
          }
      }
  zero_lanes(lanes, n_channels, s.plane, s.plane - (lanes - planes));
}

Runs runs_of(const PanelShape& s, int64_t n_lanes) {
  Runs best{};
  for (int axes = 1; axes <= kAxes; ++axes) {
    Runs r{axes, 1, 0, 0};
    int64_t n = s.images;
    for (int a = 0; a < kAxes; ++a) {
      if (a < kAxes - axes)
        r.n_runs *= s.lanes[a];
      else
        n += (s.lanes[a] - 1) * s.pitch[a];
    }
    r.vectors = (n + n_lanes - 1) / n_lanes;
    r.tiles = (r.vectors + kPanelVectors - 1) / kPanelVectors;
    if (axes == 1 || cost_of(r) < cost_of(best)) best = r;
  }
  return best;
}

// A kept weight in a tile of v vectors: v + 1 loads of vectors on two ports (the weight is
// broadcast), or with its column and offset v + 3 loads on three.
int64_t cost_of(const Runs& r) {
  int64_t cost = 0;
  for (int64_t t = 0; t < r.tiles; ++t) {
    const int64_t v = r.begin(t + 1) - r.begin(t);
    cost += std::max(3 * (v + 1), 2 * (v + 3));
  }
  return cost * r.n_runs;
}

int64_t run_start(const PanelShape& s, const Runs& runs, int64_t run) {
  int64_t start = 0;
  for (int a = kAxes - runs.axes - 1; a >= 0; --a) {
    start += run % s.lanes[a] * s.pitch[a];
    run /= s.lanes[a];
  }
  return start;
}

namespace {

// f(line of outputs, its first lane within the tile), for every line that the tile has a part of.
template <class T, class U, class F>
void for_lines(const TileLanes<T>& t, const Image<U>& y, int64_t c_begin, int64_t c_end, int64_t ld,
               const F& f) {
  const PanelShape& s = t.shape;
  int64_t fixed[kAxes] = {};              // of the axes outside of the run
  const int outer = kAxes - t.runs.axes;  // the run's first axis
  int64_t run = t.run;
  for (int a = outer - 1; a >= 0; --a) {
    fixed[a] = run % s.lanes[a];
    run /= s.lanes[a];
  }
  const int64_t end = t.lane + t.n;
  for (int64_t lane = t.lane; lane < end;) {
    int64_t o[kAxes], rest = lane, next = -1;
    for (int a = 0; a < kAxes && next < 0; ++a) {
      o[a] = a < outer ? fixed[a] : rest / s.pitch[a];
      if (a >= outer) rest %= s.pitch[a];
      if (o[a] < s.lanes[a]) continue;
      if (a == outer) return;                                     // past the run's last output
      next = lane - (o[a] * s.pitch[a] + rest) + s.pitch[a - 1];  // on to the next line
    }
    if (next >= 0) {
      lane = next;
      continue;
    }
    const int64_t n_pixels = std::min(s.lanes[2] - o[2], (end - lane) / s.images);
    U* pixels = y.data + t.b * y.batch_stride + c_begin * y.channel_stride;
    for (int a = 0; a < kAxes; ++a) {
      const int64_t at = o[a] + (a == s.band_axis ? s.band_begin : 0);
      pixels += (at * t.map.out_step[a] + t.map.out_start[a]) * y.stride[a];
    }
    f(Line<U>{pixels, y.stride[2] * t.map.out_step[2], y.batch_stride, y.channel_stride, n_pixels,
              t.n_images, c_end - c_begin, s.images, ld},
      lane - t.lane);
    lane += n_pixels * s.images;
  }
}

}  // namespace

template <class T>
void tile_to_image(const TileLanes<T>& t, const T* tile, int64_t ld, int64_t c_begin, int64_t c_end,
                   const Image<T>& y) {
  for_lines(t, y, c_begin, c_end, ld,
            [&](const Line<T>& line, int64_t lane) { lanes_to_line(tile + lane, line); });
}

template <class T>
void image_to_tile(const TileLanes<T>& t, const Image<const T>& y, int64_t c_begin, int64_t c_end,
                   T* tile, int64_t ld) {
  zero_lanes(tile, c_end - c_begin, ld, t.n);
  for_lines(t, y, c_begin, c_end, ld,
            [&](const Line<const T>& line, int64_t lane) { line_to_lanes(line, tile + lane); });
}

#define DS_INSTANTIATE(T)                                                                          \
  template void fill_images<T>(const Image<const T>&, const LaneMap&, const Phases&,               \
                               const PanelShape&, int64_t, int64_t, int64_t, int64_t, T*);         \
  template void tile_to_image<T>(const TileLanes<T>&, const T*, int64_t, int64_t, int64_t,         \
                                 const Image<T>&);                                                 \
  template void image_to_tile<T>(const TileLanes<T>&, const Image<const T>&, int64_t, int64_t, T*, \
                                 int64_t);
DS_INSTANTIATE(float)
DS_INSTANTIATE(double)
#undef DS_INSTANTIATE

}  // namespace ds
