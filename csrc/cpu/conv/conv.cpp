#include "cpu/conv/conv.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/conv/depthwise.h"
#include "cpu/conv/pack.h"
#include "cpu/conv/tiles.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Few output rows and a large weight (the last layers of a network at batch 1): a panel is packed
// right before its use and stays in L2, instead of a pass over the whole weight that memory bounds
// before the pass that multiplies. Two thirds of the time at 49 rows and 512 -> 512 channels.
constexpr int64_t kFewRows = 256;

template <class T>
bool packs_by_panel(const ConvArgs<T>& a) {
  const int64_t c_out = a.c_out / a.groups, width = packed_width<T>(c_out);
  // one panel's columns alone must not be few enough for a kernel, and a width, of their own
  const bool alike = width > kNarrowColumns && c_out % width == 0;
  return a.weight != nullptr && a.n_dst <= kFewRows && c_out > width && alike;
}

template <class T>
void conv_by_panel(const ConvArgs<T>& a, int n_threads) {
  const int64_t c_out = a.c_out / a.groups, width = packed_width<T>(c_out);
  const int64_t n_panels = c_out / width, panel_size = a.c_in / a.groups * width;
  parallel_for_workers(a.groups * n_panels, n_threads, [&](int64_t job, int worker) {
    const int64_t group = job / n_panels, panel = job % n_panels;
    T* packed = a.workspace + worker * a.pairs.n_offsets * panel_size;
    pack_panel(a, group, panel, panel_size, packed);
    kernels<T>().gemm_tile(tile_of(a, group, panel * width, width, packed));
  });
}

}  // namespace

template <class T>
int64_t conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups) {
  if (is_depthwise(c_in, c_out, groups)) return n_offsets * c_in;
  return packed_size<T>(c_in, c_out, n_offsets, groups);
}

template <class T>
void conv_pack(const ConvArgs<T>& a, int n_threads) {
  if (is_depthwise(a.c_in, a.c_out, a.groups)) return depthwise_pack(a);
  pack_weight(a, n_threads);
}

template <class T>
void conv(const ConvArgs<T>& a, int n_threads) {
  const bool depthwise = is_depthwise(a.c_in, a.c_out, a.groups);
  if (!depthwise && packs_by_panel(a)) return conv_by_panel(a, n_threads);
  if (a.weight != nullptr) conv_pack(a, n_threads);
  if (depthwise) return depthwise_conv(a, n_threads);
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const int64_t width = packed_width<T>(c_out), n_panels = ceil_div(c_out, width);
  const int64_t group_stride = a.pairs.n_offsets * n_panels * c_in * width;
  const int64_t tile_rows = conv_tile_rows(a);
  parallel_for(ceil_div(a.n_dst, tile_rows), n_threads, [&](int64_t tile) {
    for (int64_t g = 0; g < a.groups; ++g) {
      GemmTile<T> t = tile_of(a, g, 0, c_out, a.workspace + g * group_stride);
      t.row_begin = tile * tile_rows;
      t.row_end = std::min(a.n_dst, t.row_begin + tile_rows);
      kernels<T>().gemm_tile(t);
    }
  });
}

template int64_t conv_workspace<float>(int64_t, int64_t, int64_t, int64_t);
template int64_t conv_workspace<double>(int64_t, int64_t, int64_t, int64_t);
template void conv_pack<float>(const ConvArgs<float>&, int);
template void conv_pack<double>(const ConvArgs<double>&, int);
template void conv<float>(const ConvArgs<float>&, int);
template void conv<double>(const ConvArgs<double>&, int);

}  // namespace ds
