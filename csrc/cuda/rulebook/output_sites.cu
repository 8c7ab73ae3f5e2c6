#include "cuda/rulebook/output_sites.h"

#include <numeric>

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

// The output of number i that cell c meets, or -1.
DS_DEVICE int64_t output_of(const AxisFan& a, bool transposed, int64_t c, int64_t i) {
  int64_t o;
  if (transposed) {
    o = c * a.stride - a.padding + i * a.dilation;
  } else {
    int64_t rest = (c + a.padding) % a.stride;  // of t * dilation, modulo stride
    if (rest < 0) rest += a.stride;
    if (rest % a.divisor != 0) return -1;
    const int64_t t = rest / a.divisor * a.inverse % a.period + i * a.period;
    const int64_t scaled = c + a.padding - t * a.dilation;
    if (t >= a.kernel || scaled < 0) return -1;
    o = scaled / a.stride;
  }
  return o >= 0 && o < a.next ? o : -1;
}

// Entry f * n_keys + i: what number f makes of key i. Where that is nothing: `none`, beyond all
// keys.
__global__ void __launch_bounds__(kThreads) expand_kernel(DilateProblem p, int64_t none) {
  for (int64_t i = thread_index(); i < p.n_expanded; i += n_threads()) {
    int64_t number = i / p.n_keys, key = p.keys[i - number * p.n_keys];
    int64_t made = 0, scale = 1;
    bool inside = key >= 0;
    for (int a = p.n_axes - 1; a >= 0; --a) {
      const AxisFan& axis = p.axis[a];
      int64_t c = key % axis.now;
      key /= axis.now;
      if (axis.n_outputs > 0) {
        c = output_of(axis, p.transposed, c, number % axis.n_outputs);
        number /= axis.n_outputs;
        inside &= c >= 0;
      }
      made += inside ? c * scale : 0;
      scale *= axis.next;
    }
    inside &= key < p.n_samples;
    p.expanded[i] = inside ? made + key * scale : none;
  }
}

__global__ void forget_none_kernel(const int64_t* keys, int64_t none, int64_t* n) {
  if (thread_index() == 0 && *n > 0 && keys[*n - 1] == none) *n -= 1;
}

// x with x * v == 1 modulo m; v and m have no common divisor.
int64_t inverse_of(int64_t v, int64_t m) {
  int64_t a = v % m, b = m, x = 1, y = 0;  // a == x * v, b == y * v, modulo m
  while (a > 1) {
    const int64_t q = b / a;
    const int64_t rest = b - q * a, z = y - q * x;
    b = a, y = x;
    a = rest, x = z;
  }
  return m == 1 ? 0 : (x % m + m) % m;
}

int bits_of(int64_t v) {
  int n = 0;
  for (; v > 0; v >>= 1) ++n;
  return n;
}

}  // namespace

AxisFan axis_fan(int64_t now, int64_t next, int64_t kernel, int64_t stride, int64_t padding,
                 int64_t dilation, bool transposed) {
  AxisFan a{now, next, kernel, stride, padding, dilation, kernel, 1, 1, 0};
  if (transposed) return a;
  a.divisor = std::gcd(stride, dilation);
  a.period = stride / a.divisor;
  a.inverse = inverse_of(dilation / a.divisor, a.period);
  a.n_outputs = ceil_div(kernel, a.period);
  return a;
}

Status dilate_keys(const Stream& stream, const DilateProblem& p) {
  int64_t none = p.n_samples;
  for (int a = 0; a < p.n_axes; ++a) none *= p.axis[a].next;
  Status status =
      launch(stream, {blocks_for(p.n_expanded, kThreads)}, kThreads, 0, expand_kernel, p, none);
  if (status != 0) return status;
  // Not negative, so the order of uint64_t is theirs.
  status = sort_keys(stream, p.workspace, reinterpret_cast<const uint64_t*>(p.expanded),
                     reinterpret_cast<uint64_t*>(p.sorted), p.n_expanded, bits_of(none));
  if (status != 0) return status;
  status = unique(stream, p.workspace, reinterpret_cast<const uint64_t*>(p.sorted),
                  reinterpret_cast<uint64_t*>(p.expanded), p.n_out, p.n_expanded);
  if (status != 0) return status;
  return launch(stream, {1}, kWarp, 0, forget_none_kernel, p.expanded, none, p.n_out);
}

}  // namespace ds::gpu
