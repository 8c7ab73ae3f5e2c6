// bfloat16 and float16 convolutions. Matrix tiles where they are taken (group_conv.h); otherwise
// operands are widened into the workspace once, the float32 kernels run, the result is rounded
// once. Widened where it is gathered instead, a row would be widened once for every offset that
// reads it.
#include <algorithm>

#include "core/parallel.h"
#include "cpu/conv/conv.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int64_t kJobValues = 64 * 1024;

template <class From, class Into, class Convert>
void convert_all(const From* from, int64_t n, Into* into, int n_threads, Convert convert) {
  parallel_for((n + kJobValues - 1) / kJobValues, n_threads, [&](int64_t job) {
    const int64_t begin = job * kJobValues;
    convert(from + begin, std::min(kJobValues, n - begin), into + begin);
  });
}

// Parts of the workspace, each on a cache line of its own.
int64_t padded(int64_t n) {
  return (n + 15) / 16 * 16;
}

struct Parts {
  float* next;
  float* take(int64_t n) {
    float* part = next;
    next += padded(n);
    return part;
  }
};

template <class S>
float* widen_into(Parts* parts, const S* from, int64_t n, int n_threads) {
  float* wide = parts->take(n);
  convert_all(from, n, wide, n_threads, kernels<S>().widen);
  return wide;
}

}  // namespace

int64_t half_conv_workspace(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups,
                            int64_t n_src, int64_t n_dst) {
  return padded(n_src * c_in) + padded(n_offsets * (c_in / groups) * c_out) +
         padded(n_dst * c_out) + conv_workspace<float>(c_in, c_out, n_offsets, groups);
}

template <class S>
void half_conv(const ConvArgs<S>& a, int n_threads) {
  Parts parts{a.workspace};
  const int64_t n_weights = a.pairs.n_offsets * (a.c_in / a.groups) * a.c_out;
  ConvArgs<float> wide{};
  wide.x = widen_into(&parts, a.x, a.n_src * a.c_in, n_threads);
  wide.weight = widen_into(&parts, a.weight, n_weights, n_threads);
  wide.bias = a.bias;
  wide.u = a.u;
  wide.u_start = a.u_start;
  wide.u_rows = a.u_rows;
  wide.y = parts.take(a.n_dst * a.c_out);
  wide.workspace = parts.next;
  wide.pairs = a.pairs;
  wide.n_dst = a.n_dst;
  wide.c_in = a.c_in;
  wide.c_out = a.c_out;
  wide.groups = a.groups;
  wide.transposed = a.transposed;
  wide.n_src = a.n_src;
  conv(wide, n_threads);
  convert_all(wide.y, a.n_dst * a.c_out, a.y, n_threads, kernels<S>().round);
}

int64_t half_weight_grad_workspace(int64_t c_in, int64_t c_out, const PairList& pairs,
                                   int64_t n_src, int64_t n_dst, int64_t groups) {
  return padded(n_src * c_in) + padded(n_dst * c_out) +
         padded(pairs.n_offsets * (c_in / groups) * c_out) +
         weight_grad_workspace<float>(c_in, c_out, pairs, n_dst, groups);
}

template <class S>
void half_weight_grad(const WeightGradArgs<S>& a, int n_threads) {
  Parts parts{a.workspace};
  const int64_t n_weights = a.pairs.n_offsets * (a.c_in / a.groups) * a.c_out;
  WeightGradArgs<float> wide{};
  wide.x = widen_into(&parts, a.x, a.n_src * a.c_in, n_threads);
  wide.dy = widen_into(&parts, a.dy, a.n_dst * a.c_out, n_threads);
  wide.dw = parts.take(n_weights);
  wide.workspace = parts.next;
  wide.pairs = a.pairs;
  wide.n_dst = a.n_dst;
  wide.c_in = a.c_in;
  wide.c_out = a.c_out;
  wide.groups = a.groups;
  wide.n_src = a.n_src;
  weight_grad(wide, n_threads);
  convert_all(wide.dw, n_weights, a.dw, n_threads, kernels<S>().round);
}

template void half_conv<bf16>(const ConvArgs<bf16>&, int);
template void half_conv<f16>(const ConvArgs<f16>&, int);
template void half_weight_grad<bf16>(const WeightGradArgs<bf16>&, int);
template void half_weight_grad<f16>(const WeightGradArgs<f16>&, int);

}  // namespace ds
