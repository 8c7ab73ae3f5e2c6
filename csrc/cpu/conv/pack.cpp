#include "cpu/conv/pack.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// Channels whose weights of one panel and all offsets of a 3x3 kernel stay in L1: 16 x 32 x 9
// floats. Every offset passes over them again.
constexpr int64_t kBlock = 32;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// One panel of one group: `w` points at its first column; steps are in elements.
template <class T>
struct Panel {
  const T* w;
  int64_t column_step, channel_step, offset_step;
  int64_t columns, width, c_in, n_offsets;
  T* packed;            // of offset 0
  int64_t next_offset;  // elements from one offset's panel to the next one's

  T* row(int64_t k, int64_t c) const { return packed + k * next_offset + c * width; }

  // Neighbouring columns lie together in memory: row by row.
  void by_rows() const {
    for (int64_t c = 0; c < c_in; ++c)
      for (int64_t k = 0; k < n_offsets; ++k) {
        const T* from = w + c * channel_step + k * offset_step;
        T* to = row(k, c);
        for (int64_t j = 0; j < columns; ++j) to[j] = from[j * column_step];
      }
  }

  // Neighbouring channels do: column by column, so that memory is read in order. (Row by row, 512
  // channels of a 3x3 kernel read 16 lines that fall into two sets of L1: six times slower.)
  void by_columns() const {
    for (int64_t first = 0; first < c_in; first += kBlock)
      for (int64_t k = 0; k < n_offsets; ++k)
        for (int64_t j = 0; j < columns; ++j) {
          const T* from = w + j * column_step + k * offset_step;
          for (int64_t c = first; c < std::min(c_in, first + kBlock); ++c)
            row(k, c)[j] = from[c * channel_step];
        }
  }

  void pack() const {
    column_step > channel_step ? by_columns() : by_rows();
    for (int64_t k = 0; k < n_offsets && columns < width; ++k)
      for (int64_t c = 0; c < c_in; ++c) std::fill(row(k, c) + columns, row(k, c) + width, T(0));
  }
};

}  // namespace

template <class T>
int64_t packed_size(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups) {
  const int64_t width = packed_width<T>(c_out / groups);
  return n_offsets * c_in * ceil_div(c_out / groups, width) * width;
}

template <class T>
void pack_panel(const ConvArgs<T>& a, int64_t group, int64_t panel, int64_t next_offset,
                T* packed) {
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const int64_t n_offsets = a.pairs.n_offsets, width = packed_width<T>(c_out);
  // weight (d0 of all groups, d1, n_offsets): d0 is c_out, or c_in where transposed
  const int64_t d0 = a.transposed ? c_in : c_out, d1 = a.transposed ? c_out : c_in;
  const int64_t step0 = d1 * n_offsets, step1 = a.channels_last ? 1 : n_offsets;
  Panel<T> p;
  p.column_step = a.transposed ? step1 : step0;
  p.channel_step = a.transposed ? step0 : step1;
  p.offset_step = a.channels_last ? d1 : 1;
  p.w = a.weight + group * d0 * step0 + panel * width * p.column_step;
  p.columns = std::min(width, c_out - panel * width);
  p.width = width;
  p.c_in = c_in;
  p.n_offsets = n_offsets;
  p.packed = packed;
  p.next_offset = next_offset;
  p.pack();
}

template <class T>
void pack_weight(const ConvArgs<T>& a, int n_threads) {
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const int64_t width = packed_width<T>(c_out), n_panels = ceil_div(c_out, width);
  const int64_t panel_size = c_in * width;
  parallel_for(a.groups * n_panels, n_threads, [&](int64_t job) {
    const int64_t group = job / n_panels, panel = job % n_panels;
    T* packed = a.workspace + (group * a.pairs.n_offsets * n_panels + panel) * panel_size;
    pack_panel(a, group, panel, n_panels * panel_size, packed);
  });
}

template int64_t packed_size<float>(int64_t, int64_t, int64_t, int64_t);
template int64_t packed_size<double>(int64_t, int64_t, int64_t, int64_t);
template void pack_panel<float>(const ConvArgs<float>&, int64_t, int64_t, int64_t, float*);
template void pack_panel<double>(const ConvArgs<double>&, int64_t, int64_t, int64_t, double*);
template void pack_weight<float>(const ConvArgs<float>&, int);
template void pack_weight<double>(const ConvArgs<double>&, int);

}  // namespace ds
