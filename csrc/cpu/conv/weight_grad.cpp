#include <algorithm>

#include "core/parallel.h"
#include "cpu/conv/conv.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The lists are cut into chunks, each a job with its own partial sum; the partial sums of an offset are added in
// order. How they are cut depends on the lists alone, so the bits do not depend on the number of threads.
// About kMinJobs jobs in all keep many threads busy while the partial sums stay a few times the weight's size.
constexpr int64_t kMinJobs = 64;
constexpr int64_t kMinChunk = 4096;

int64_t chunk_pairs(const PairList& p) {
  return std::max(kMinChunk, ceil_div(p.offset_start[p.n_offsets], kMinJobs));
}

int64_t n_chunks(const PairList& p, int64_t k, int64_t chunk) {
  return std::max<int64_t>(1, ceil_div(p.offset_start[k + 1] - p.offset_start[k], chunk));
}

int64_t count_jobs(const PairList& p) {
  int64_t jobs = 0;
  for (int64_t k = 0; k < p.n_offsets; ++k) jobs += n_chunks(p, k, chunk_pairs(p));
  return jobs;
}

}  // namespace

template <class T>
int64_t weight_grad_workspace(int64_t c_in, int64_t c_out, const PairList& pairs, int64_t groups) {
  const int64_t width = kernels<T>().panel_width;
  return count_jobs(pairs) * groups * (c_in / groups) * ceil_div(c_out / groups, width) * width;
}

template <class T>
void weight_grad(const WeightGradArgs<T>& a, int n_threads) {
  const KernelSet<T>& kernel = kernels<T>();
  const PairList& p = a.pairs;
  const int64_t width = kernel.panel_width;
  const int64_t c_in = a.c_in / a.groups, c_out = a.c_out / a.groups;
  const int64_t ldw = ceil_div(c_out, width) * width, slot = c_in * ldw;
  const int64_t chunk = chunk_pairs(p), jobs = count_jobs(p);
  parallel_for(jobs * a.groups, n_threads, [&](int64_t i) {
    const int64_t g = i / jobs;
    int64_t job = i % jobs, k = 0;
    for (int64_t n; job >= (n = n_chunks(p, k, chunk)); ++k) job -= n;
    const int64_t begin = p.offset_start[k] + job * chunk;
    const int64_t end = std::min(p.offset_start[k + 1], begin + chunk);
    kernel.weight_grad_block({a.x + g * c_in, a.c_in, a.dy + g * c_out, a.c_out, p.src + begin,
                              p.dst + begin, end - begin, c_in, c_out, a.workspace + i * slot, ldw});
  });
  parallel_for(c_in * a.groups, n_threads, [&](int64_t i) {
    const int64_t g = i / c_in, c = i % c_in;
    const T* partial = a.workspace + g * jobs * slot + c * ldw;
    for (int64_t k = 0; k < p.n_offsets; ++k) {
      const int64_t n = n_chunks(p, k, chunk);
      for (int64_t o = 0; o < c_out; ++o) {
        T sum = partial[o];
        for (int64_t j = 1; j < n; ++j) sum += partial[j * slot + o];
        a.dw[((g * c_out + o) * c_in + c) * p.n_offsets + k] = sum;
      }
      partial += n * slot;
    }
  });
}

template int64_t weight_grad_workspace<float>(int64_t, int64_t, const PairList&, int64_t);
template int64_t weight_grad_workspace<double>(int64_t, int64_t, const PairList&, int64_t);
template void weight_grad<float>(const WeightGradArgs<float>&, int);
template void weight_grad<double>(const WeightGradArgs<double>&, int);

}  // namespace ds
