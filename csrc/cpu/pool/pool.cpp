#include "cpu/pool/pool.h"

#include <algorithm>

#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/rows/segments.h"

namespace ds {
namespace {

// Values read by one job: enough to be worth a thread, few enough that jobs outnumber threads.
constexpr int64_t kJobValues = 256 * 1024;

template <class T, class Kernel>
void for_row_blocks(const WindowArgs<T>& a, int n_threads, Kernel kernel) {
  const int64_t row_values = std::max<int64_t>(1, a.n_offsets) * std::max<int64_t>(1, a.n_channels);
  const int64_t block = std::max<int64_t>(1, kJobValues / row_values);
  parallel_for((a.n_out + block - 1) / block, n_threads,
               [&](int64_t b) { kernel(a, b * block, std::min(a.n_out, (b + 1) * block)); });
}

}  // namespace

template <class T>
void window_max(const WindowArgs<T>& a, int n_threads) {
  for_row_blocks(a, n_threads, kernels<T>().window_max);
}

template <class T>
void window_sum(const WindowArgs<T>& a, int n_threads) {
  for_row_blocks(a, n_threads, kernels<T>().window_sum);
}

template <class T>
void window_max_grad(const WindowMaxGradArgs<T>& a, int64_t* workspace, int n_threads) {
  const auto piece = [&](int64_t, int64_t n, const int64_t* start, const T*, T* out,
                         Acc<T>* partial) {
    WindowMaxGradArgs<T> part = a;
    part.start = start;
    part.n_rows = n;
    part.dx = out;
    part.partial = partial;
    kernels<T>().window_max_grad(part);
  };
  reduce_segments<T>(a.start, a.n_rows, a.n_channels, nullptr, a.dx, workspace, n_threads, piece);
}

template void window_max<float>(const WindowArgs<float>&, int);
template void window_sum<float>(const WindowArgs<float>&, int);
template void window_max_grad<float>(const WindowMaxGradArgs<float>&, int64_t*, int);
template void window_max<double>(const WindowArgs<double>&, int);
template void window_sum<double>(const WindowArgs<double>&, int);
template void window_max_grad<double>(const WindowMaxGradArgs<double>&, int64_t*, int);
template void window_max<bf16>(const WindowArgs<bf16>&, int);
template void window_sum<bf16>(const WindowArgs<bf16>&, int);
template void window_max_grad<bf16>(const WindowMaxGradArgs<bf16>&, int64_t*, int);
template void window_max<f16>(const WindowArgs<f16>&, int);
template void window_sum<f16>(const WindowArgs<f16>&, int);
template void window_max_grad<f16>(const WindowMaxGradArgs<f16>&, int64_t*, int);

}  // namespace ds
