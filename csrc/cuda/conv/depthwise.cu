// Lanes lie along channels, a pack of up to 16 bytes each, so that a warp reads pieces of rows that
// lie together; a row of few packs shares its warp with the next rows. One multiply-add for each
// value that is read: bound by reading x through the table, for which kAhead rows are under way at
// a time. Offsets are added in ascending order, rows of a chunk in an order of sizes alone.
#include "cuda/conv/depthwise.h"

#include <initializer_list>

#include "cuda/conv/weight_grad.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;
constexpr int kGradBlocks = 1056;  // as weight_grad.cu
constexpr int kLeastRows = 256;

template <class T>
constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

// kPack values of channels, summed.
template <class T, int kPack>
struct Sums {
  Acc<T> of[kPack] = {};

  DS_DEVICE void add(const Acc<T>* values) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) of[i] += values[i];
  }
  DS_DEVICE void add_product(const Pack<T, kPack>& a, const Pack<T, kPack>& b) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) of[i] = fused(widened(a.v[i]), widened(b.v[i]), of[i]);
  }
};

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) depthwise_kernel(const DepthwiseArgs<T> args) {
  const int64_t packs = args.channels / kPack;
  for (int64_t i = thread_index(); i < args.n_dst * packs; i += n_threads()) {
    const int64_t row = i / packs, c = i % packs * kPack;
    Sums<T, kPack> sums;
    if (args.bias != nullptr) sums.add(args.bias + c);
    if (args.u != nullptr) {
      const int64_t first = args.u_start[row], last = args.u_start[row + 1];
      for (int64_t j = first < 0 ? 0 : first; j < last && j < args.n_u_rows; ++j) {
        const int32_t from = args.u_rows[j];
        if (from >= 0 && from < args.n_u) sums.add(args.u + from * args.channels + c);
      }
    }
    for (int64_t k = 0; k < args.n_offsets; k += kAhead) {
      Pack<T, kPack> x[kAhead];
      bool there[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int32_t from =
            k + j < args.n_offsets ? read_only(args.table + (k + j) * args.n_dst + row) : -1;
        there[j] = from >= 0 && from < args.n_src;
        if (there[j]) x[j] = load_pack<kPack>(args.x + from * args.channels + c);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (there[j])
          sums.add_product(x[j], load_pack<kPack>(args.weight + (k + j) * args.channels + c));
    }
    Pack<T, kPack> y;
#pragma unroll
    for (int j = 0; j < kPack; ++j) y.v[j] = rounded<T>(sums.of[j]);
    store_pack(args.y + row * args.channels + c, y);
  }
}

// A block has `lanes` packs of channels (a power of two, at most a warp) and kThreads / lanes rows
// at a time; what its rows sum up to is added through shared memory, in order.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    depthwise_grad_kernel(const DepthwiseGradArgs<T> args, int lanes) {
  struct Memory {
    Acc<T> of[kPack][kThreads];
  };
  auto& memory = shared<Memory>();
  const int64_t packs = args.channels / kPack, tiles = ceil_div(packs, lanes);
  const int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
  const int64_t offset = part % args.n_offsets, chunk = part / args.n_offsets;
  const int64_t chunk_rows = ceil_div(args.n_dst, args.n_chunks), first = chunk * chunk_rows;
  const int64_t last = first + chunk_rows < args.n_dst ? first + chunk_rows : args.n_dst;
  const int lane = static_cast<int>(threadIdx.x) % lanes, rows = kThreads / lanes;
  const int64_t c = (tile * lanes + lane) * kPack;
  const int32_t* const table = args.table + offset * args.n_dst;

  Sums<T, kPack> sums;
  if (c < args.channels) {
    for (int64_t d = first + threadIdx.x / lanes; d < last; d += int64_t{kAhead} * rows) {
      Pack<T, kPack> x[kAhead], dy[kAhead];
      bool there[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int64_t row = d + j * rows;
        const int32_t from = row < last ? read_only(table + row) : -1;
        there[j] = from >= 0 && from < args.n_src;
        if (there[j]) {
          x[j] = load_pack<kPack>(args.x + from * args.channels + c);
          dy[j] = load_pack<kPack>(args.dy + row * args.channels + c);
        }
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (there[j]) sums.add_product(x[j], dy[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) memory.of[i][threadIdx.x] = sums.of[i];
  sync_block();
  for (int i = static_cast<int>(threadIdx.x); i < lanes * kPack; i += kThreads) {
    const int value = i % kPack, of_lane = i / kPack;
    const int64_t channel = (tile * lanes + of_lane) * kPack + value;
    if (channel >= args.channels) continue;
    Acc<T> sum = 0;
    for (int row = 0; row < rows; ++row) sum += memory.of[value][row * lanes + of_lane];
    args.partial[part * args.channels + channel] = sum;
  }
}

bool fits_packs(int64_t channels, int64_t pack, std::initializer_list<const void*> rows) {
  uintptr_t address = 0;
  for (const void* at : rows) address |= reinterpret_cast<uintptr_t>(at);
  return channels % pack == 0 && address % 16 == 0;
}

template <class T, int kPack>
Status run(const Stream& stream, const DepthwiseArgs<T>& args) {
  const int64_t n = args.n_dst * (args.channels / kPack);
  return launch(stream, {blocks_for(n, kThreads)}, kThreads, 0, depthwise_kernel<T, kPack>, args);
}

template <class T, int kPack>
Status run_grad(const Stream& stream, const DepthwiseGradArgs<T>& args) {
  const int64_t packs = args.channels / kPack;
  int lanes = 1;
  while (lanes < packs && lanes < kWarp) lanes *= 2;
  const int64_t blocks = ceil_div(packs, lanes) * args.n_offsets * args.n_chunks;
  return launch(stream, {blocks}, kThreads, kPack * kThreads * sizeof(Acc<T>),
                depthwise_grad_kernel<T, kPack>, args, lanes);
}

}  // namespace

template <class T>
Status depthwise(const Stream& stream, const DepthwiseArgs<T>& args) {
  return fits_packs(args.channels, kWidest<T>, {args.x, args.weight, args.y})
             ? run<T, kWidest<T>>(stream, args)
             : run<T, 1>(stream, args);
}

int64_t depthwise_grad_chunks(int64_t n_dst, int64_t channels, int64_t n_offsets) {
  const int64_t tiles = n_offsets * ceil_div(channels, 2 * kWarp);
  const int64_t wanted = ceil_div(kGradBlocks, tiles), most = ceil_div(n_dst, kLeastRows);
  return most < 1 ? 1 : wanted < most ? wanted : most;
}

template <class T>
Status depthwise_weight_grad(const Stream& stream, const DepthwiseGradArgs<T>& args) {
  const Status status = fits_packs(args.channels, kWidest<T>, {args.x, args.dy})
                            ? run_grad<T, kWidest<T>>(stream, args)
                            : run_grad<T, 1>(stream, args);
  if (status != 0) return status;
  return add_partials<T>(stream, args.partial, args.n_chunks, args.n_offsets, args.channels, 1,
                         args.dw);
}

#define DS_DEPTHWISE(T)                                                 \
  template Status depthwise<T>(const Stream&, const DepthwiseArgs<T>&); \
  template Status depthwise_weight_grad<T>(const Stream&, const DepthwiseGradArgs<T>&);
DS_DEPTHWISE(float)
DS_DEPTHWISE(double)
DS_DEPTHWISE(bf16)
DS_DEPTHWISE(f16)
#undef DS_DEPTHWISE

}  // namespace ds::gpu
