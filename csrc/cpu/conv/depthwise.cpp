#include "cpu/conv/depthwise.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// A job's output rows. The kernel walks them in smaller steps of its own, so this only has to be
// worth a thread and to leave enough jobs.
constexpr int64_t kJobBytes = 256 * 1024;

// A weight gradient is cut into chunks of output rows with partial sums of their own, added up in
// order: by the sizes alone, so that the bits do not depend on the number of threads.
constexpr int64_t kMaxChunks = 64, kMinChunkProducts = 1 << 20;

int64_t n_chunks_of(int64_t n_channels, const PairList& pairs) {
  return std::clamp<int64_t>(pairs.offset_start[pairs.n_offsets] * n_channels / kMinChunkProducts,
                             1, kMaxChunks);
}

}  // namespace

template <class T>
void depthwise_pack(const ConvArgs<T>& a) {
  const int64_t n_channels = a.c_out, n_offsets = a.pairs.n_offsets;
  for (int64_t c = 0; c < n_channels; ++c)
    for (int64_t k = 0; k < n_offsets; ++k)
      a.workspace[k * n_channels + c] = a.weight[c * n_offsets + k];
}

template <class T>
void depthwise_conv(const ConvArgs<T>& a, int n_threads) {
  const int64_t n_channels = a.c_out, n_offsets = a.pairs.n_offsets;
  const int64_t row_bytes = n_channels * static_cast<int64_t>(sizeof(T));
  const int64_t job_rows = std::max<int64_t>(1, kJobBytes / row_bytes);
  parallel_for(ceil_div(a.n_dst, job_rows), n_threads, [&](int64_t job) {
    const int64_t row_begin = job * job_rows;
    kernels<T>().depthwise_tile({a.x, n_channels, a.workspace, n_offsets, n_channels, n_channels,
                                 a.y, n_channels, a.bias, a.u, a.u_start, a.u_rows, a.pairs.src,
                                 a.pairs.dst, a.pairs.offset_start, row_begin,
                                 std::min(a.n_dst, row_begin + job_rows)});
  });
}

int64_t depthwise_grad_workspace(int64_t n_channels, const PairList& pairs) {
  return n_chunks_of(n_channels, pairs) * pairs.n_offsets * n_channels;
}

template <class T>
void depthwise_weight_grad(const WeightGradArgs<T>& a, int n_threads) {
  const int64_t n_channels = a.c_out, n_offsets = a.pairs.n_offsets;
  const int64_t n_chunks = n_chunks_of(n_channels, a.pairs), slot = n_offsets * n_channels;
  const int64_t chunk_rows = ceil_div(a.n_dst, n_chunks);
  parallel_for(n_chunks, n_threads, [&](int64_t chunk) {
    T* partial = a.workspace + chunk * slot;
    std::fill(partial, partial + slot, T(0));
    kernels<T>().depthwise_grad_chunk({a.x, a.dy, a.pairs, n_channels,
                                       std::min(a.n_dst, chunk * chunk_rows),
                                       std::min(a.n_dst, (chunk + 1) * chunk_rows), partial});
  });
  for (int64_t chunk = 1; chunk < n_chunks; ++chunk)
    for (int64_t i = 0; i < slot; ++i) a.workspace[i] += a.workspace[chunk * slot + i];
  for (int64_t c = 0; c < n_channels; ++c)
    for (int64_t k = 0; k < n_offsets; ++k)
      a.dw[c * n_offsets + k] = a.workspace[k * n_channels + c];
}

template void depthwise_pack<float>(const ConvArgs<float>&);
template void depthwise_pack<double>(const ConvArgs<double>&);
template void depthwise_conv<float>(const ConvArgs<float>&, int);
template void depthwise_conv<double>(const ConvArgs<double>&, int);
template void depthwise_weight_grad<float>(const WeightGradArgs<float>&, int);
template void depthwise_weight_grad<double>(const WeightGradArgs<double>&, int);

}  // namespace ds
