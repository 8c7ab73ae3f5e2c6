// A block sums one tile of dw: kOut output by kIn input channels of one group and offset, over one
// chunk of destination rows. It walks its piece of the table, puts the rows that have the offset in
// a queue (ascending), and gathers kRows of them at a time from dy and x into one of kStages stages
// while it multiplies an earlier one. The tiles of all chunks go to `partial`, which a second
// kernel adds in order and writes in torch's layout: no atomics, the same bits in every run.
//
// Per pair and tile kOut + kIn values are read for 2 kOut kIn operations: bound by the gather (from
// L2, where chunks before offsets in the grid keep dy), which is why wide layers have wide tiles:
// 128 x 128 reads each row of 256 channels twice, 64 x 64 four times. 128 x 128 of float32 sums are
// 64 registers of 256 threads; three stages of 32 rows of 16-bit values are 52 KB of shared memory.
#include "cuda/conv/weight_grad.h"

#include "cuda/async_copy.h"
#include "cuda/conv/weight_tiles.h"

namespace ds::gpu {
namespace {

constexpr int kStages = 3;
constexpr int kScan = 512;       // entries of the table that are looked at at a time
constexpr int kQueue = 1024;     // a power of two, at least what one scan and one stage hold
constexpr int kBlocks = 1056;    // on 132 multiprocessors, 4 to 8 each
constexpr int kLeastRows = 512;  // in a chunk: a tile costs as much to write as 30 rows to read
constexpr int kWide = 64, kNarrow = 32;
static_assert((kQueue & (kQueue - 1)) == 0 && kQueue >= kScan + 64);

template <int kThreads>
struct RowQueue {
  int32_t src[kQueue], dst[kQueue];
  int32_t found[kThreads / kWarp];
};

template <class Tile>
struct GradShared {
  typename Tile::Stage stage[kStages];
  RowQueue<Tile::kThreads> queue;
};

// The rows of a chunk that have the offset, in order. All threads call, and hold, the same.
template <int kThreads>
struct RowFeed {
  static constexpr int kPer = kScan / kThreads;
  static_assert(kScan % kThreads == 0);

  RowQueue<kThreads>& queue;
  const int32_t* table;  // of the offset
  uint32_t n_src;
  int64_t next, end;            // what is still to be looked at
  uint32_t head = 0, tail = 0;  // what of the queue is full

  DS_DEVICE void scan() {
    const int lane = lane_index(), warp = warp_index();
    const int64_t first = next + warp * (kScan / kThreads * kWarp) + lane;
    int32_t source[kPer];
    uint32_t votes[kPer];
    int n_found = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      source[i] = first + i * kWarp < end ? read_only(table + first + i * kWarp) : -1;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      votes[i] = ballot(static_cast<uint32_t>(source[i]) < n_src);
      n_found += count_bits(votes[i]);
    }
    if (lane == 0) queue.found[warp] = n_found;
    sync_block();
    uint32_t at = tail;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      const int32_t of_warp = queue.found[w];
      at += w < warp ? of_warp : 0;
      tail += of_warp;
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (votes[i] >> lane & 1) {
        const uint32_t to = (at + count_bits(votes[i] & ((1u << lane) - 1))) % kQueue;
        queue.src[to] = source[i];
        queue.dst[to] = static_cast<int32_t>(first + i * kWarp);
      }
      at += count_bits(votes[i]);
    }
    next += kScan;
    sync_block();
  }

  // How many of at most `wanted` rows there are, from `head` on.
  DS_DEVICE int prepare(int wanted) {
    while (static_cast<int>(tail - head) < wanted && next < end) scan();
    const int n = static_cast<int>(tail - head);
    return n < wanted ? n : wanted;
  }
};

// One operand's part of a stage: rows of kWidth channels, zeros past n rows and n_channels.
template <bool kVector, int kThreads, class T, int kRows, int kPitch, int kWidth>
DS_DEVICE void gather(T (&to)[kRows][kPitch], const T* from, int64_t pitch, int n_channels,
                      const int32_t* rows, uint32_t head, int n) {
  constexpr int kPack = kVector ? 16 / sizeof(T) : 1, kPacks = kWidth / kPack;
  static_assert(kRows * kPacks % kThreads == 0);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPacks; i += kThreads) {
    const int r = i / kPacks, c = i % kPacks * kPack;
    const bool valid = r < n && c < n_channels;
    const T* at = valid ? from + rows[(head + r) % kQueue] * pitch + c : from;
    if constexpr (sizeof(T) * kPack >= 4)
      copy_async<sizeof(T) * kPack>(&to[r][c], at, valid);
    else
      to[r][c] = valid ? *at : T{};
  }
}

template <class Tile, bool kVector>
__global__ void __launch_bounds__(Tile::kThreads)
    weight_grad_kernel(const WeightGradArgs<typename Tile::T> args) {
  using T = typename Tile::T;
  constexpr int kRows = Tile::kRows;
  auto& memory = shared<GradShared<Tile>>();
  const int64_t per_out = args.c_out / args.groups, per_in = args.c_in / args.groups;
  const int64_t tiles_in = ceil_div(per_in, Tile::kIn), tiles_out = ceil_div(per_out, Tile::kOut);
  int64_t block = blockIdx.x;
  const int64_t first_in = block % tiles_in * Tile::kIn;
  block /= tiles_in;
  const int64_t first_out = block % tiles_out * Tile::kOut;
  block /= tiles_out;
  const int64_t group = block % args.groups, part = block / args.groups;
  const int64_t offset = part % args.n_offsets, chunk = part / args.n_offsets;
  const int n_out = static_cast<int>(per_out - first_out),
            n_in = static_cast<int>(per_in - first_in);
  const T* const dy = args.dy + group * per_out + first_out;
  const T* const x = args.x + group * per_in + first_in;

  const int64_t chunk_rows = ceil_div(args.n_dst, args.n_chunks);
  const int64_t first = chunk * chunk_rows, last = first + chunk_rows;
  RowFeed<Tile::kThreads> feed{memory.queue, args.table + offset * args.n_dst,
                               static_cast<uint32_t>(args.n_src), first,
                               last < args.n_dst ? last : args.n_dst};
  int n_gathered = 0;
  const auto gather_stage = [&](int number) {
    const int n = feed.prepare(kRows);
    if (n > 0) {
      auto& stage = memory.stage[number % kStages];
      gather<kVector, Tile::kThreads, T, kRows, sizeof stage.dy[0] / sizeof(T), Tile::kOut>(
          stage.dy, dy, args.c_out, n_out, memory.queue.dst, feed.head, n);
      gather<kVector, Tile::kThreads, T, kRows, sizeof stage.x[0] / sizeof(T), Tile::kIn>(
          stage.x, x, args.c_in, n_in, memory.queue.src, feed.head, n);
      feed.head += n;
      ++n_gathered;
    }
    commit_copies();
  };

  Tile tile;
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) gather_stage(i);
  for (int step = 0; step < n_gathered; ++step) {
    wait_copies<kStages - 2>();
    sync_block();  // all have this stage's copies, and are done with the one before
    gather_stage(step + kStages - 1);
    tile.multiply(memory.stage[step % kStages]);
  }

  Acc<T>* const to =
      args.partial + (part * args.c_out + group * per_out + first_out) * per_in + first_in;
  tile.each([&](int o, int i, Acc<T> sum) {
    if (o < n_out && i < n_in) to[o * per_in + i] = sum;
  });
}

// ------------------------------------------------------------------ the sum of the chunks
constexpr int kAddThreads = 256;

// kSlices threads for each value, each with a slice of the chunks; then their sums in order.
template <class T, int kSlices>
__global__ void __launch_bounds__(kAddThreads)
    add_partials_kernel(const Acc<T>* partial, int64_t n_chunks, int64_t n_offsets, int64_t c_out,
                        int64_t width, T* dw) {
  constexpr int kValues = kAddThreads / kSlices;
  struct Sums {
    Acc<T> of[kSlices][kValues];
  };
  const int value = static_cast<int>(threadIdx.x) % kValues;
  const int slice = static_cast<int>(threadIdx.x) / kValues;
  const int64_t n = n_offsets * c_out * width;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kValues + value;
  const int64_t first = n_chunks * slice / kSlices, last = n_chunks * (slice + 1) / kSlices;
  Acc<T> sum = 0;
  if (at < n) {
#pragma unroll 4
    for (int64_t chunk = first; chunk < last; ++chunk) sum += partial[chunk * n + at];
  }
  if constexpr (kSlices > 1) {
    Sums& sums = shared<Sums>();
    sums.of[slice][value] = sum;
    sync_block();
    sum = 0;
    for (int i = 0; i < kSlices; ++i) sum += sums.of[i][value];
  }
  if (at < n && slice == 0) {
    const int64_t offset = at / (c_out * width), rest = at % (c_out * width);
    dw[rest * n_offsets + offset] = rounded<T>(sum);
  }
}

template <class Tile, bool kVector>
Status run(const Stream& stream, const WeightGradArgs<typename Tile::T>& args) {
  const int64_t tiles =
      ceil_div(args.c_out / args.groups, Tile::kOut) * ceil_div(args.c_in / args.groups, Tile::kIn);
  const int64_t n_blocks = tiles * args.groups * args.n_offsets * args.n_chunks;
  return launch(stream, {n_blocks}, Tile::kThreads, sizeof(GradShared<Tile>),
                weight_grad_kernel<Tile, kVector>, args);
}

// The smallest tile that holds a group's channels, or the widest; rows that cannot be read 16 bytes
// at a time are read value by value.
template <class Narrow, class Middle, class Wide>
Status run_fitting(const Stream& stream, const WeightGradArgs<typename Middle::T>& args) {
  constexpr int64_t kPack = 16 / sizeof(typename Middle::T);
  const int64_t per_out = args.c_out / args.groups, per_in = args.c_in / args.groups;
  const auto address = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.dy);
  if (per_out % kPack != 0 || per_in % kPack != 0 || address % 16 != 0)
    return run<Middle, false>(stream, args);
  if (per_out <= kNarrow && per_in <= kNarrow) return run<Narrow, true>(stream, args);
  if (per_out <= kWide || per_in <= kWide) return run<Middle, true>(stream, args);
  return run<Wide, true>(stream, args);
}

template <class T>
Status run_typed(const Stream& stream, const WeightGradArgs<T>& args) {
  if constexpr (kIsHalf<T>)
    return run_fitting<HalfTile<T, 32, 32, 2, 2>, HalfTile<T, 64, 64, 2, 2>,
                       HalfTile<T, 128, 128, 2, 4>>(stream, args);
  else if constexpr (sizeof(T) == 8)
    return run_fitting<ThreadTile<T, 32, 32, 4, 4>, ThreadTile<T, 64, 64, 4, 4>,
                       ThreadTile<T, 64, 64, 4, 4>>(stream, args);
  else if (args.tf32)
    return run_fitting<Tf32Tile<32, 32, 2, 2>, Tf32Tile<64, 64, 2, 2>, Tf32Tile<128, 128, 2, 4>>(
        stream, args);
  else
    return run_fitting<ThreadTile<T, 32, 32, 4, 4>, ThreadTile<T, 64, 64, 8, 4>,
                       ThreadTile<T, 128, 128, 8, 8>>(stream, args);
}

}  // namespace

int64_t weight_grad_chunks(int64_t n_dst, int64_t c_in, int64_t c_out, int64_t n_offsets,
                           int64_t groups) {
  const int64_t tiles = weight_grad_blocks(c_in, c_out, n_offsets, groups, 1);
  const int64_t wanted = ceil_div(kBlocks, tiles), most = ceil_div(n_dst, kLeastRows);
  return most < 1 ? 1 : wanted < most ? wanted : most;
}

int64_t weight_grad_blocks(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups,
                           int64_t n_chunks) {
  const int64_t per_out = c_out / groups, per_in = c_in / groups;
  return ceil_div(per_out, kWide) * ceil_div(per_in, kWide) * groups * n_offsets * n_chunks;
}

template <class T>
Status add_partials(const Stream& stream, const Acc<T>* partial, int64_t n_chunks,
                    int64_t n_offsets, int64_t c_out, int64_t width, T* dw) {
  constexpr int kSlices = 8;
  const int64_t n = n_offsets * c_out * width;
  if (n_chunks >= 2 * kSlices)
    return launch(stream, {ceil_div(n, kAddThreads / kSlices)}, kAddThreads,
                  kAddThreads * sizeof(Acc<T>), add_partials_kernel<T, kSlices>, partial, n_chunks,
                  n_offsets, c_out, width, dw);
  return launch(stream, {ceil_div(n, kAddThreads)}, kAddThreads, 0, add_partials_kernel<T, 1>,
                partial, n_chunks, n_offsets, c_out, width, dw);
}

template <class T>
Status weight_grad(const Stream& stream, const WeightGradArgs<T>& args) {
  const Status status = run_typed<T>(stream, args);
  if (status != 0) return status;
  return add_partials<T>(stream, args.partial, args.n_chunks, args.n_offsets, args.c_out,
                         args.c_in / args.groups, args.dw);
}

#define DS_WEIGHT_GRAD(T)                                                                  \
  template Status weight_grad<T>(const Stream&, const WeightGradArgs<T>&);                 \
  template Status add_partials<T>(const Stream&, const Acc<T>*, int64_t, int64_t, int64_t, \
                                  int64_t, T*);
DS_WEIGHT_GRAD(float)
DS_WEIGHT_GRAD(double)
DS_WEIGHT_GRAD(bf16)
DS_WEIGHT_GRAD(f16)
#undef DS_WEIGHT_GRAD

}  // namespace ds::gpu
