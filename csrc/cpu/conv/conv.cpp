#include "cpu/conv/conv.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/conv/depthwise.h"
#include "cpu/conv/pack.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

// A tile of output rows: small enough to stay in L2 while all offsets pass over it, large enough
// that streaming all weights past it once (they are shared by its rows) is a small part of the
// work.
constexpr int64_t kTileBytes = 128 * 1024;
constexpr int64_t kMinTileRows = 64, kMaxTileRows = 4096;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
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
  if (a.weight != nullptr) conv_pack(a, n_threads);
  if (is_depthwise(a.c_in, a.c_out, a.groups)) return depthwise_conv(a, n_threads);
  const KernelSet<T>& kernel = kernels<T>();
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const int64_t width = packed_width<T>(c_out), n_panels = ceil_div(c_out, width);
  const int64_t group_stride = a.pairs.n_offsets * n_panels * c_in * width;
  const int64_t tile_rows = std::clamp<int64_t>(
      kTileBytes / static_cast<int64_t>(a.c_out * sizeof(T)), kMinTileRows, kMaxTileRows);
  parallel_for(ceil_div(a.n_dst, tile_rows), n_threads, [&](int64_t tile) {
    for (int64_t g = 0; g < a.groups; ++g) {
      GemmTile<T> t;
      t.x = a.x + g * c_in;
      t.ldx = a.c_in;
      t.w = a.workspace + g * group_stride;
      t.n_offsets = a.pairs.n_offsets;
      t.c_in = c_in;
      t.c_out = c_out;
      t.y = a.y + g * c_out;
      t.ldy = a.c_out;
      t.bias = a.bias ? a.bias + g * c_out : nullptr;
      t.u = a.u ? a.u + g * c_out : nullptr;
      t.u_start = a.u_start;
      t.u_rows = a.u_rows;
      t.src = a.pairs.src;
      t.dst = a.pairs.dst;
      t.offset_start = a.pairs.offset_start;
      t.row_begin = tile * tile_rows;
      t.row_end = std::min(a.n_dst, t.row_begin + tile_rows);
      kernel.gemm_tile(t);
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
