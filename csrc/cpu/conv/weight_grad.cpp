#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/conv/conv.h"
#include "cpu/conv/depthwise.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// One product of an offset is rows x columns: c_in x c_out, or c_out x c_in where that wastes fewer
// lanes of the last panel (few output channels); `slot` elements in all.
struct Product {
  int64_t rows, columns, ld, slot;
  bool swapped;
};

template <class T>
Product product_of(int64_t c_in, int64_t c_out) {
  if constexpr (kIsHalf<T>) {  // matrix tiles: 32 x 32 at a time
    const int64_t rows = ceil_div(c_in, 32) * 32, ld = ceil_div(c_out, 32) * 32;
    return {c_in, c_out, ld, rows * ld, false};
  } else {
    const int64_t width = kernels<T>().panel_width;
    const int64_t ld_in = ceil_div(c_in, width) * width, ld_out = ceil_div(c_out, width) * width;
    if (c_out * ld_in < c_in * ld_out) return {c_out, c_in, ld_in, c_out * ld_in, true};
    return {c_in, c_out, ld_out, c_in * ld_out, false};
  }
}

// The work is cut into chunks of output rows times bundles of offsets. A job walks its chunk tile
// by tile: the tile's rows of x and dy (kTileBytes) and the products of its bundle (kBundleBytes)
// stay in L2 together, so x and dy come from memory once a bundle and not once an offset. Every
// chunk has its own partial products, added up in order. How the work is cut depends on sizes
// alone: the bits do not depend on the number of threads.
constexpr int64_t kTileBytes = 256 * 1024, kBundleBytes = 160 * 1024;
constexpr int64_t kMinTileRows = 128, kMaxTileRows = 8192;
constexpr int64_t kJobs = 64, kMinChunkPairs = 16384, kMaxPartialBytes = 64 << 20;

struct Cut {
  int64_t n_chunks, chunk_rows, tile_rows, bundle, n_bundles;
};

template <class T>
Cut cut_of(const PairList& p, int64_t n_dst, int64_t c_in, int64_t c_out, int64_t groups) {
  const int64_t slot_bytes = product_of<T>(c_in, c_out).slot * static_cast<int64_t>(sizeof(Acc<T>));
  const int64_t row_bytes = (c_in + c_out) * static_cast<int64_t>(sizeof(T));
  Cut c;
  c.bundle = std::clamp<int64_t>(kBundleBytes / slot_bytes, 1, p.n_offsets);
  c.n_bundles = ceil_div(p.n_offsets, c.bundle);
  const int64_t wanted =
      std::min({ceil_div(kJobs, c.n_bundles * groups), p.offset_start[p.n_offsets] / kMinChunkPairs,
                kMaxPartialBytes / (slot_bytes * p.n_offsets * groups)});
  c.chunk_rows = std::max<int64_t>(1, ceil_div(n_dst, std::max<int64_t>(1, wanted)));
  c.n_chunks = std::max<int64_t>(1, ceil_div(n_dst, c.chunk_rows));
  c.tile_rows = std::clamp(kTileBytes / row_bytes, kMinTileRows, kMaxTileRows);
  return c;
}

}  // namespace

template <class T>
int64_t weight_grad_workspace(int64_t c_in, int64_t c_out, const PairList& pairs, int64_t n_dst,
                              int64_t groups) {
  if (!kIsHalf<T> && is_depthwise(c_in, c_out, groups))
    return depthwise_grad_workspace(c_out, pairs);
  const Cut cut = cut_of<T>(pairs, n_dst, c_in / groups, c_out / groups, groups);
  return cut.n_chunks * pairs.n_offsets * groups *
         product_of<T>(c_in / groups, c_out / groups).slot;
}

template <class T>
void weight_grad(const WeightGradArgs<T>& a, int n_threads) {
  if constexpr (!kIsHalf<T>)
    if (is_depthwise(a.c_in, a.c_out, a.groups)) return depthwise_weight_grad(a, n_threads);
  const PairList& p = a.pairs;
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const Product m = product_of<T>(c_in, c_out);
  const Cut cut = cut_of<T>(p, a.n_dst, c_in, c_out, a.groups);
  // workspace: [chunk][group][offset][rows][ld]
  parallel_for(cut.n_chunks * a.groups * cut.n_bundles, n_threads, [&](int64_t job) {
    const int64_t bundle = job % cut.n_bundles, g = job / cut.n_bundles % a.groups,
                  chunk = job / cut.n_bundles / a.groups;
    const int64_t k_begin = bundle * cut.bundle,
                  k_end = std::min(p.n_offsets, k_begin + cut.bundle);
    Acc<T>* partial = a.workspace + (chunk * a.groups + g) * p.n_offsets * m.slot;
    std::memset(partial + k_begin * m.slot, 0, (k_end - k_begin) * m.slot * sizeof(Acc<T>));
    WeightGradBlock<T> b{a.x + g * c_in, a.c_in,    a.dy + g * c_out, a.c_out, nullptr, nullptr, 0,
                         m.rows,         m.columns, nullptr,          m.ld};
    if (m.swapped) {
      std::swap(b.x, b.dy);
      std::swap(b.ldx, b.ldy);
    }
    const int64_t end = std::min(a.n_dst, (chunk + 1) * cut.chunk_rows);
    for (int64_t row = chunk * cut.chunk_rows; row < end; row += cut.tile_rows) {
      for (int64_t k = k_begin; k < k_end; ++k) {
        const int32_t* dst = p.dst + p.offset_start[k];
        const int32_t* dst_end = p.dst + p.offset_start[k + 1];
        const int32_t* first = std::lower_bound(dst, dst_end, row);
        const int32_t* last = std::lower_bound(first, dst_end, std::min(end, row + cut.tile_rows));
        b.src = p.src + (first - p.dst);
        b.dst = first;
        if (m.swapped) std::swap(b.src, b.dst);
        b.n_pairs = last - first;
        b.dw = partial + k * m.slot;
        if constexpr (kIsHalf<T>)
          kernel_table().tile_weight_grad(b);
        else
          kernels<T>().weight_grad_block(b);
      }
    }
  });
  const int64_t chunk_stride = a.groups * p.n_offsets * m.slot;
  parallel_for(a.groups * p.n_offsets, n_threads, [&](int64_t job) {
    Acc<T>* sum = a.workspace + job * m.slot;
    for (int64_t j = 1; j < cut.n_chunks; ++j)
      for (int64_t i = 0; i < m.slot; ++i) sum[i] += sum[j * chunk_stride + i];
  });
  // [offset][rows][ld] to torch's (c_out, c_in, offset): kStrip output channels at a time share the
  // lines they read.
  constexpr int64_t kStrip = 16;
  parallel_for(a.groups * ceil_div(c_out, kStrip), n_threads, [&](int64_t job) {
    const int64_t n_strips = ceil_div(c_out, kStrip), g = job / n_strips,
                  o_begin = job % n_strips * kStrip;
    const int64_t o_end = std::min(c_out, o_begin + kStrip);
    const Acc<T>* sum = a.workspace + g * p.n_offsets * m.slot;
    for (int64_t c = 0; c < c_in; ++c)
      for (int64_t k = 0; k < p.n_offsets; ++k)
        for (int64_t o = o_begin; o < o_end; ++o)
          a.dw[((g * c_out + o) * c_in + c) * p.n_offsets + k] =
              rounded<T>(sum[k * m.slot + (m.swapped ? o * m.ld + c : c * m.ld + o)]);
  });
}

template int64_t weight_grad_workspace<float>(int64_t, int64_t, const PairList&, int64_t, int64_t);
template int64_t weight_grad_workspace<double>(int64_t, int64_t, const PairList&, int64_t, int64_t);
template void weight_grad<float>(const WeightGradArgs<float>&, int);
template void weight_grad<double>(const WeightGradArgs<double>&, int);
template int64_t weight_grad_workspace<bf16>(int64_t, int64_t, const PairList&, int64_t, int64_t);
template void weight_grad<bf16>(const WeightGradArgs<bf16>&, int);  // where takes_tiles()

}  // namespace ds
