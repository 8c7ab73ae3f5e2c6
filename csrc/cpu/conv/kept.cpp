#include "cpu/conv/kept.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/conv/depthwise.h"
#include "cpu/conv/kept_columns.h"
#include "cpu/conv/tiles.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// A multiply-add of panels one vector wide over one of two: 9 loads for 8 of them instead of 8 for
// 12, and twice as many lists.
constexpr double kThinCost = 1.15;

// Up to here the unpruned kernel keeps a panel's weights in registers; lists would only slow it.
constexpr int64_t kThinChannels = 4;

int64_t panel_width_of(bool is_double) {
  return is_double ? kernels<double>().panel_width : kernels<float>().panel_width;
}

// The columns that are kept, one word per [offset][panel][channel] of a group.
std::vector<uint32_t> columns_of(const int32_t* mask, const KeptLists& lists, int64_t width,
                                 int64_t group) {
  const int64_t c_in = lists.c_in / lists.groups, c_out = lists.c_out / lists.groups;
  const int64_t n_panels = ceil_div(c_out, width), n_offsets = lists.n_offsets;
  const int64_t d0 = lists.transposed ? c_in : c_out, d1 = lists.transposed ? c_out : c_in;
  std::vector<uint32_t> columns(n_offsets * n_panels * c_in, 0);
  mask += group * d0 * d1 * n_offsets;
  for (int64_t i0 = 0; i0 < d0; ++i0)
    for (int64_t i1 = 0; i1 < d1; ++i1) {
      const int64_t o = lists.transposed ? i1 : i0, c = lists.transposed ? i0 : i1;
      uint32_t* word = &columns[o / width * c_in + c];
      for (int64_t k = 0; k < n_offsets; ++k, ++mask)
        word[k * n_panels * c_in] |= static_cast<uint32_t>(*mask != 0) << (o % width);
    }
  return columns;
}

void append_lists(KeptLists* lists, const std::vector<uint32_t>& columns) {
  const int64_t c_in = lists->c_in / lists->groups;
  for (size_t list = 0; list < columns.size() / c_in; ++list) {
    for (int64_t c = 0; c < c_in; ++c)
      if (const uint32_t word = columns[list * c_in + c]) {
        lists->channels.push_back(static_cast<int32_t>(c));
        lists->columns.push_back(word);
      }
    lists->start.push_back(lists->n_entries());
  }
}

KeptLists lists_of(const int32_t* mask, KeptLists lists, int64_t width) {
  lists.width = width;
  lists.n_panels = ceil_div(lists.c_out / lists.groups, width);
  lists.start.push_back(0);
  for (int64_t g = 0; g < lists.groups; ++g)
    append_lists(&lists, columns_of(mask, lists, width, g));
  return lists;
}

}  // namespace

KeptLists make_kept_lists(const int32_t* mask, int64_t c_in, int64_t c_out, int64_t n_offsets,
                          int64_t groups, bool transposed, bool is_double) {
  const KeptLists shape{c_in, c_out, groups, n_offsets, transposed, is_double, 0, 0, 0, {}, {}, {}};
  const int64_t wide = panel_width_of(is_double), thin = std::max<int64_t>(1, wide / 2);
  const double dense = static_cast<double>(c_in * n_offsets * ceil_div(c_out / groups, wide));
  KeptLists lists = lists_of(mask, shape, wide);
  lists.share = static_cast<double>(lists.n_entries()) / dense;
  if (thin < wide) {
    KeptLists other = lists_of(mask, shape, thin);
    other.share = kThinCost * 0.5 * static_cast<double>(other.n_entries()) / dense;
    if (other.share < lists.share) lists = std::move(other);
  }
  if (c_in / groups <= kThinChannels || c_out / groups <= kNarrowColumns) lists.share = 1.0;
  return lists;
}

template <class T>
void kept_pack(const KeptLists& lists, const T* weight, bool channels_last, T* values,
               int n_threads) {
  const WeightSteps steps(lists, channels_last);
  parallel_for(lists.groups * lists.n_panels, n_threads, [&](int64_t job) {
    for_panel_values(lists, job / lists.n_panels, job % lists.n_panels, steps,
                     [&](int64_t value, int64_t at, bool kept) {
                       const T w = weight[at];
                       values[value] = kept ? w : T(0);
                     });
  });
}

template <class T>
void kept_conv(const ConvArgs<T>& a, const KeptLists& lists, int n_threads) {
  const int64_t tile_rows = conv_tile_rows(a);
  parallel_for(ceil_div(a.n_dst, tile_rows), n_threads, [&](int64_t tile) {
    for (int64_t g = 0; g < a.groups; ++g) {
      KeptTile<T> t;
      static_cast<GemmTile<T>&>(t) = tile_of(a, g, 0, a.c_out / a.groups, a.workspace);
      t.row_begin = tile * tile_rows;
      t.row_end = std::min(a.n_dst, t.row_begin + tile_rows);
      t.start = lists.start.data() + lists.list_of(g, 0, 0);
      t.channels = lists.channels.data();
      t.width = lists.width;
      t.n_panels = lists.n_panels;
      kernels<T>().kept_tile(t);
    }
  });
}

template void kept_pack<float>(const KeptLists&, const float*, bool, float*, int);
template void kept_pack<double>(const KeptLists&, const double*, bool, double*, int);
template void kept_conv<float>(const ConvArgs<float>&, const KeptLists&, int);
template void kept_conv<double>(const ConvArgs<double>&, const KeptLists&, int);

}  // namespace ds
