// The driver of every reduction over segments (CSR ranges of positions): a segment of at most
// kSegmentChunk positions is one chain of additions, a longer one is cut into chunks of as many,
// whose sums are added pairwise, neighbours first. Same cuts and same order as on the CPU
// (cpu/rows/segments.h), so the same sums, and nothing depends on the order of threads.
//
// Three launches, and nothing read back. Chunk sums need places before anybody knows which segments
// are long: chunk j of the segment that begins at position p has slot ceil(p / 512) + j. A long
// segment (n > 1024) has ceil(n / 1024) <= n / 512 chunks, rounded down, so that the slots of
// segments never meet; and the segment of slot t is the last that begins at or before 512 t.
//
// Tile     one thread has a pack of channels of a segment and kAhead rows in flight: 8 x 16 bytes a
//          thread cover the latency of memory with a few warps per multiprocessor. There are fewer
//          chunks, 1024 rows each: 256 or 512 bytes a thread.
// Bound    bytes: every row that is named is read once.
#pragma once
#include "cuda/rows/row_packs.h"

namespace ds::gpu {

constexpr int64_t kSegmentChunk = 1024;
constexpr int64_t kSlotPositions = kSegmentChunk / 2;
constexpr int kAhead = 8;
constexpr int64_t kManyThreads = 65536;
constexpr int kTreeThreads = 512;
constexpr int kTreeChannels = 8;

struct Segments {
  const int64_t* start;  // (n_segments + 1)
  int64_t n_segments, n_positions, n_channels;
};

// Chunk sums that any cut of so many positions may need.
DS_HOST_DEVICE int64_t segment_slots(int64_t n_positions) {
  return n_positions <= kSegmentChunk ? 0 : ceil_div(n_positions, kSlotPositions) + 1;
}

struct Range {
  int64_t begin, end;
};
DS_DEVICE Range range_of(const Segments& s, int64_t segment) {
  int64_t begin = s.start[segment], end = s.start[segment + 1];
  begin = begin < 0 ? 0 : begin > s.n_positions ? s.n_positions : begin;
  end = end < begin ? begin : end > s.n_positions ? s.n_positions : end;
  return {begin, end};
}

struct Chunk {
  int64_t segment, number, n_chunks;  // segment -1: the slot is nobody's
  Range range;                        // of the segment
};
DS_DEVICE Chunk chunk_of(const Segments& s, int64_t slot) {
  int64_t low = 0, high = s.n_segments;  // segments [0, low) begin at or before the slot's position
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (s.start[middle] <= slot * kSlotPositions)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == 0) return {-1, 0, 0, {0, 0}};
  const Range range = range_of(s, low - 1);
  const int64_t n = range.end - range.begin, n_chunks = ceil_div(n, kSegmentChunk);
  const int64_t number = slot - ceil_div(range.begin, kSlotPositions);
  const bool used = n > kSegmentChunk && number >= 0 && number < n_chunks;
  return {used ? low - 1 : -1, number, n_chunks, range};
}

// Source::add<N, kFar>(segment, range, channel, sums): adds the range's positions to the sums in
// order, as many as kFar in flight.
// Source::begin<N>(channel, sums): what a sum starts from (the bias, or zero).
template <class T, int N, class Source>
__global__ void short_segments_kernel(Segments s, Source source, T* out) {
  const int64_t per_row = s.n_channels / N;
  for (int64_t i = thread_index(); i < s.n_segments * per_row; i += n_threads()) {
    const PackPlace at = pack_place(i, per_row, N);
    const Range range = range_of(s, at.row);
    if (range.end - range.begin > kSegmentChunk) continue;
    Acc<T> sums[N];
    source.template begin<N>(at.channel, sums);
    source.template add<N, kAhead>(at.row, range, at.channel, sums);
    store_sums(out + at.row * s.n_channels + at.channel, sums);
  }
}

template <class T, int N, class Source>
__global__ void chunks_kernel(Segments s, Source source, int64_t n_slots, Acc<T>* slots) {
  constexpr int kFar = N * sizeof(T) < 16 ? 32 : 16;  // few threads, with registers to spare
  const int64_t per_row = s.n_channels / N;
  for (int64_t i = thread_index(); i < n_slots * per_row; i += n_threads()) {
    const PackPlace at = pack_place(i, per_row, N);
    const Chunk chunk = chunk_of(s, at.row);
    if (chunk.segment < 0) continue;
    const int64_t begin = chunk.range.begin + chunk.number * kSegmentChunk;
    const int64_t end = begin + kSegmentChunk;
    Acc<T> sums[N] = {};
    const Range range{begin, end < chunk.range.end ? end : chunk.range.end};
    source.template add<N, kFar>(chunk.segment, range, at.channel, sums);
#pragma unroll
    for (int e = 0; e < N; ++e) slots[at.row * s.n_channels + at.channel + e] = sums[e];
  }
}

// Block (slot, kTreeChannels channels): the tree of the segment whose first slot it is.
template <class T, class Source>
__global__ void trees_kernel(Segments s, Source source, Acc<T>* slots, T* out) {
  const auto across = static_cast<uint32_t>(ceil_div(s.n_channels, kTreeChannels));
  const int64_t slot = blockIdx.x / across;
  const Chunk chunk = chunk_of(s, slot);
  if (chunk.segment < 0 || chunk.number != 0) return;  // the whole block
  const int64_t channel = static_cast<int64_t>(blockIdx.x % across) * kTreeChannels +
                          static_cast<int>(threadIdx.x) % kTreeChannels;
  const int first_pair = static_cast<int>(threadIdx.x) / kTreeChannels;
  constexpr int kPairs = kTreeThreads / kTreeChannels;
  Acc<T>* column = slots + slot * s.n_channels + channel;
  for (int64_t step = 1; step < chunk.n_chunks; step *= 2) {
    for (int64_t i = first_pair * 2 * step; i + step < chunk.n_chunks; i += kPairs * 2 * step)
      if (channel < s.n_channels) column[i * s.n_channels] += column[(i + step) * s.n_channels];
    sync_block();
  }
  if (first_pair > 0 || channel >= s.n_channels) return;
  Acc<T> sum[1];
  source.template begin<1>(channel, sum);
  out[chunk.segment * s.n_channels + channel] = narrow<T>(sum[0] + column[0]);
}

// slots: (segment_slots(n_positions), n_channels). `places`: what the source reads in packs.
template <class T, class Source>
Status reduce_segments(const Stream& stream, const Segments& s, const Source& source,
                       std::initializer_list<const void*> places, Acc<T>* slots, T* out) {
  const auto run = [&](auto width) {
    constexpr int N = decltype(width)::value;
    const int64_t per_row = s.n_channels / N, n_slots = segment_slots(s.n_positions);
    const Status status =
        launch(stream, {blocks_for(s.n_segments * per_row, kPackThreads)}, kPackThreads, 0,
               short_segments_kernel<T, N, Source>, s, source, out);
    if (status != 0 || n_slots == 0) return status;
    // Few threads: a warp or two for each of many multiprocessors.
    const int threads = n_slots * per_row < kManyThreads ? 2 * kWarp : kPackThreads;
    return launch(stream, {blocks_for(n_slots * per_row, threads)}, threads, 0,
                  chunks_kernel<T, N, Source>, s, source, n_slots, slots);
  };
  if (s.n_segments == 0 || s.n_channels == 0) return 0;
  const Status status = with_packs<T>(s.n_channels, places, run);
  if (status != 0) return status;
  return launch(stream, {segment_slots(s.n_positions) * ceil_div(s.n_channels, kTreeChannels)},
                kTreeThreads, 0, trees_kernel<T, Source>, s, source, slots, out);
}

}  // namespace ds::gpu
