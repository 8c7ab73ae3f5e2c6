// The weight gradient where a mask keeps it: as weight_grad.cpp, products of kept entries only.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/conv/kept.h"
#include "cpu/conv/kept_columns.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Chunks of output rows times bundles of offsets, as in weight_grad.cpp; by sizes and the mask
// alone, so that the bits do not depend on the number of threads.
constexpr int64_t kTileBytes = 256 * 1024, kBundleBytes = 160 * 1024;
constexpr int64_t kMinTileRows = 128, kMaxTileRows = 8192;
constexpr int64_t kJobs = 64, kMinChunkPairs = 16384, kMaxPartialBytes = 64 << 20;

struct Cut {
  int64_t n_chunks, chunk_rows, tile_rows, bundle, n_bundles;
};

template <class T>
Cut cut_of(const KeptLists& lists, const PairList& p, int64_t n_dst) {
  const int64_t bytes = std::max<int64_t>(1, lists.n_values() * static_cast<int64_t>(sizeof(T)));
  const int64_t row_bytes =
      (lists.c_in + lists.c_out) / lists.groups * static_cast<int64_t>(sizeof(T));
  Cut c;
  c.bundle = std::clamp<int64_t>(kBundleBytes * p.n_offsets * lists.groups / bytes, 1, p.n_offsets);
  c.n_bundles = ceil_div(p.n_offsets, c.bundle);
  const int64_t wanted =
      std::min({ceil_div(kJobs, c.n_bundles * lists.groups),
                p.offset_start[p.n_offsets] / kMinChunkPairs, kMaxPartialBytes / bytes});
  c.chunk_rows = std::max<int64_t>(1, ceil_div(n_dst, std::max<int64_t>(1, wanted)));
  c.n_chunks = std::max<int64_t>(1, ceil_div(n_dst, c.chunk_rows));
  c.tile_rows = std::clamp(kTileBytes / row_bytes, kMinTileRows, kMaxTileRows);
  return c;
}

// Output rows [begin, end) and offsets [k_begin, k_end) of one group into its chunk's sums.
template <class T>
void add_chunk(const WeightGradArgs<T>& a, const KeptLists& lists, int64_t group, int64_t k_begin,
               int64_t k_end, int64_t begin, int64_t end, int64_t tile_rows, T* sums) {
  const PairList& p = a.pairs;
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  KeptGradBlock<T> b{};
  b.x = a.x + group * c_in;
  b.ldx = a.c_in;
  b.dy = a.dy + group * c_out;
  b.ldy = a.c_out;
  b.c_in = c_in;
  b.c_out = c_out;
  b.dw = sums;
  b.channels = lists.channels.data();
  b.width = lists.width;
  b.n_panels = lists.n_panels;
  for (int64_t row = begin; row < end; row += tile_rows)
    for (int64_t k = k_begin; k < k_end; ++k) {
      const int32_t* dst_end = p.dst + p.offset_start[k + 1];
      const int32_t* first = std::lower_bound(p.dst + p.offset_start[k], dst_end, row);
      b.dst = first;
      b.src = p.src + (first - p.dst);
      b.n_pairs = std::lower_bound(first, dst_end, std::min(end, row + tile_rows)) - first;
      b.start = lists.start.data() + lists.list_of(group, k, 0);
      kernels<T>().kept_grad(b);
    }
}

}  // namespace

template <class T>
int64_t kept_grad_workspace(const KeptLists& lists, const PairList& pairs, int64_t n_dst) {
  return cut_of<T>(lists, pairs, n_dst).n_chunks * lists.n_values();
}

template <class T>
void kept_weight_grad(const WeightGradArgs<T>& a, const KeptLists& lists, int n_threads) {
  const Cut cut = cut_of<T>(lists, a.pairs, a.n_dst);
  const int64_t n_values = lists.n_values(), n_offsets = a.pairs.n_offsets;
  // workspace: [chunk][entry][width]; a job's entries lie together
  parallel_for(cut.n_chunks * a.groups * cut.n_bundles, n_threads, [&](int64_t job) {
    const int64_t bundle = job % cut.n_bundles, g = job / cut.n_bundles % a.groups,
                  chunk = job / cut.n_bundles / a.groups;
    const int64_t k_begin = bundle * cut.bundle, k_end = std::min(n_offsets, k_begin + cut.bundle);
    const int64_t first = lists.start[lists.list_of(g, k_begin, 0)];
    const int64_t last = lists.start[lists.list_of(g, k_end, 0)];
    T* sums = a.workspace + chunk * n_values;
    std::memset(sums + first * lists.width, 0, (last - first) * lists.width * sizeof(T));
    add_chunk(a, lists, g, k_begin, k_end, chunk * cut.chunk_rows,
              std::min(a.n_dst, (chunk + 1) * cut.chunk_rows), cut.tile_rows, sums);
  });
  const int64_t n_weights = n_offsets * (a.c_in / a.groups) * a.c_out;
  std::memset(a.dw, 0, n_weights * sizeof(T));
  const WeightSteps steps(lists, false);
  parallel_for(a.groups * lists.n_panels, n_threads, [&](int64_t job) {
    for_panel_values(lists, job / lists.n_panels, job % lists.n_panels, steps,
                     [&](int64_t value, int64_t at, bool kept) {
                       if (!kept) return;
                       T sum = a.workspace[value];
                       for (int64_t j = 1; j < cut.n_chunks; ++j)
                         sum += a.workspace[j * n_values + value];
                       a.dw[at] = sum;
                     });
  });
}

template int64_t kept_grad_workspace<float>(const KeptLists&, const PairList&, int64_t);
template int64_t kept_grad_workspace<double>(const KeptLists&, const PairList&, int64_t);
template void kept_weight_grad<float>(const WeightGradArgs<float>&, const KeptLists&, int);
template void kept_weight_grad<double>(const WeightGradArgs<double>&, const KeptLists&, int);

}  // namespace ds
