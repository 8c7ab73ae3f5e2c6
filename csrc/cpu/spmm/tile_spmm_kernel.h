// y = x W^T + bias on matrix tiles, W in pruned 32 x 32 blocks, for a panel of rows of x and a
// range of block rows of W (tile_spmm.h, tile_blocks.h).
//
// Layout   x and y row-major bfloat16: a tile of x is loaded from where it lies, 16 rows of 64
//          bytes each.
//          A whole block of W is two tiles as they are; a packed one is spread out first, a mask
//          word and its values into one row of a tile (vpexpandw).
// Tile     2 x 2 accumulators (32 rows of x, 32 outputs), 2 tiles of x, 2 of W: 4 loads feed 4
//          products of 16 cycles; a load takes 8 cycles of a load port's.
// Chunks   Up to 16 blocks of a block row, 32 KiB, are multiplied with every 32 rows of the panel
//          before the next ones: W comes from L1 from the second on, only x (32 lines for 64
//          cycles) from L2, and the accumulators are moved once a chunk (8 tiles for 64
//          products). While a chunk is multiplied the next is spread out into the other buffer, 8
//          mask words at a time, and the sums that were finished before are rounded: the products
//          wait for neither.
// Bound    16 rows: decoding, 32 mask words a block at 3 cycles of port 5 each (2 of vpexpandw, one
//          of kmov), 96 cycles; behind it hide the two products (32) and the bytes of a block (128
//          and 2 a kept value: 742 at 70 %, 333 at 90 % sparse, where all 2048 take 200 to 450
//          cycles from L3 or memory). Chunks are 4 blocks then, and the sums stay in registers.
//          Many rows: the products, 64 cycles for 32 rows and a kept block; in a panel of 192 rows
//          a block's decoding is 96 cycles of another port beside 384, its bytes at most 5 a cycle.
// Order    an output starts at its bias and sums over its block row's kept blocks, ascending;
//          within one as the instruction does: even inputs, odd inputs, their sum. So its bits
//          depend on no other row, nor on how the work is cut up. Pruned values inside a
//          kept block count as zeros.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/spmm/tile_spmm.h"

namespace ds {
namespace {

constexpr int64_t kManyBlocks = 16, kFewBlocks = 4;
constexpr int64_t kUnitWords = 8, kBlockUnits = kMaskWords / kUnitWords;
constexpr int64_t kPairFloats = kGroupRows * kBlockColumns;
// Values and masks are asked for so far before they are read: 8 blocks of masks; of values 6,
// at 70 % sparse, so 600 cycles or more, twice the latency of memory.
constexpr int64_t kValuesAhead = 2048, kMasksAhead = 8 * kMaskWords;
constexpr int64_t kLineValues = 32;

// Consecutive blocks of a block row.
struct BlockChunk {
  int64_t row, begin, end;
  bool is_first, is_last;  // of the row
};

struct BlockWalk {
  const TileSpmmPart& part;
  int64_t most;

  BlockChunk at(int64_t row, int64_t begin) const {
    if (row >= part.row_end) return {row, 0, 0, false, false};
    const int64_t* start = part.all.weight.start;
    const int64_t n = start[row + 1] - start[row], n_chunks = (n + most - 1) / most;
    const int64_t size = n_chunks > 0 ? (n + n_chunks - 1) / n_chunks : 0;
    const int64_t end = least(start[row + 1], begin + size);
    return {row, begin, end, begin == start[row], end == start[row + 1]};
  }
  BlockChunk first() const { return at(part.row_begin, part.all.weight.start[part.row_begin]); }
  BlockChunk after(const BlockChunk& c) const { return at(c.row + c.is_last, c.end); }
};

// A chunk as products read it.
struct ChunkTiles {
  const bf16* blocks[kManyBlocks];  // two weight tiles each
  int64_t x_offset[kManyBlocks];
};

// Makes a chunk ready, a unit at a time.
template <class Tiles>
struct Spreader {
  const TileSpmm& t;
  const BlockChunk chunk;
  ChunkTiles* tiles;
  bf16* room;  // for kManyBlocks blocks
  int64_t block, word = 0;
  const bf16* values = nullptr;

  Spreader(const TileSpmm& spmm, const BlockChunk& next, ChunkTiles* into, bf16* buffer)
      : t(spmm), chunk(next), tiles(into), room(buffer), block(next.begin) {
    for (int64_t b = chunk.begin; b < chunk.end; ++b)
      tiles->x_offset[b - chunk.begin] = t.rows.block(t.weight.columns[b]);
  }

  int64_t n_units() const { return (chunk.end - chunk.begin) * kBlockUnits; }

  // Not inlined: it needs the registers that the caller's loops hold.
  [[gnu::noinline]] void spread_unit() {
    const int64_t place = t.weight.place[block], number = block - chunk.begin;
    if (place < 0) {
      const bf16* whole = t.weight.values + ~place;
      for (int64_t i = 0; i < kBlockValues; i += kLineValues) __builtin_prefetch(whole + i, 0, 2);
      tiles->blocks[number] = whole;
      ++block;
      return;
    }
    const uint32_t* masks = t.weight.masks + block * kMaskWords + word;
    bf16* into = room + number * kBlockValues;
    if (word == 0) {
      values = t.weight.values + place;
      tiles->blocks[number] = into;
    }
    const bf16* begin = values;
    values = Tiles::spread(begin, masks, into + word * kTileDepth);
    for (; begin < values; begin += kLineValues) __builtin_prefetch(begin + kValuesAhead);
    __builtin_prefetch(masks + kMasksAhead);
    word += kUnitWords;
    if (word == kMaskWords) {
      word = 0;
      ++block;
    }
  }
  [[gnu::always_inline]] void advance() {
    if (block < chunk.end) spread_unit();
  }
  void finish() {
    while (block < chunk.end) spread_unit();
  }
};

// Rounds the finished sums of a pair of halves into y, a row at a time.
template <class Tiles>
struct SumWriter {
  const TileSpmm* t;
  int64_t row, half, n_slots;
  const float* sums;  // [half][2 tiles][16 rows][16 outputs]
  int64_t slot;

  [[gnu::noinline]] void write_slot() {
    const int64_t n_out = t->weight.n_out, first = row * kBlockColumns;
    const int64_t to = t->rows.out_row(half + slot / kHalfRows, slot % kHalfRows, t->n_rows);
    const float* from = sums + slot / kHalfRows * 2 * kTileSums + slot % kHalfRows * kTileColumns;
    const int64_t n = least(kBlockColumns, n_out - first);
    ++slot;
    if (to < 0) return;
    bf16* y = t->y + to * n_out + first;
    if (n == kBlockColumns) return Tiles::round(from, from + kTileSums, y);
    bf16 part[kBlockColumns];
    Tiles::round(from, from + kTileSums, part);
    for (int64_t c = 0; c < n; ++c) y[c] = part[c];
  }
  void advance(int64_t n) {
    for (; n > 0 && slot < n_slots; --n) write_slot();
  }
  void finish() { advance(kGroupRows); }
};

// What is done between the products of two blocks; units evenly over all of a chunk's steps.
template <class Tiles>
struct SpmmBeside {
  Spreader<Tiles>* spreader;
  SumWriter<Tiles>* writer;
  int64_t n_units, n_steps, slots;
  int64_t credit = 0;

  [[gnu::always_inline]] void step() {
    for (credit += n_units; credit >= n_steps; credit -= n_steps) spreader->advance();
    writer->advance(slots);
  }
};

// The products of a chunk with the rows of one half, or of two.
template <class Tiles, bool kBoth>
[[gnu::always_inline]] inline void multiply_halves(Tiles& tiles, const ChunkTiles& w, int64_t n,
                                                   const bf16* x, const bf16* second,
                                                   int64_t stride, SpmmBeside<Tiles>* beside) {
  for (int64_t i = 0; i < n; ++i) {
    const bf16* block = w.blocks[i];
    tiles.template load<4>(x + w.x_offset[i], stride);
    tiles.template load<6>(block);
    if constexpr (kBoth) tiles.template load<5>(second + w.x_offset[i], stride);
    tiles.template load<7>(block + kTileValues);
    tiles.template multiply<0, 4, 6>();
    if constexpr (kBoth) tiles.template multiply<2, 5, 6>();
    tiles.template multiply<1, 4, 7>();
    if constexpr (kBoth) tiles.template multiply<3, 5, 7>();
    beside->step();
  }
}

// `from`: sums stored before; or null: `bias`, the same 32 numbers for every row.
template <class Tiles>
[[gnu::always_inline]] inline void load_sums(Tiles& tiles, const float* from, const float* bias,
                                             bool both) {
  const int64_t stride = from != nullptr ? 64 : 0, half = from != nullptr ? 2 * kTileSums : 0;
  const float* left = from != nullptr ? from : bias;
  const float* right = from != nullptr ? from + kTileSums : bias + kTileColumns;
  tiles.template load<0>(left, stride);
  tiles.template load<1>(right, stride);
  if (!both) return;
  tiles.template load<2>(left + half, stride);
  tiles.template load<3>(right + half, stride);
}
template <class Tiles>
[[gnu::always_inline]] inline void store_sums(Tiles& tiles, float* to, bool both) {
  tiles.template store<0>(to);
  tiles.template store<1>(to + kTileSums);
  if (!both) return;
  tiles.template store<2>(to + 2 * kTileSums);
  tiles.template store<3>(to + 3 * kTileSums);
}

template <class Tiles>
void multiply_blocks(Tiles& tiles, const TileSpmmPart& part, const BlockChunk& chunk,
                     const ChunkTiles& w, const float* bias, float* sums, Spreader<Tiles>* spreader,
                     SumWriter<Tiles>* writer) {
  const TileRows& rows = part.all.rows;
  const int64_t n = chunk.end - chunk.begin, n_pairs = (part.half_end - part.half_begin + 1) / 2;
  const int64_t stride = rows.row_stride * static_cast<int64_t>(sizeof(bf16));
  SpmmBeside<Tiles> beside{spreader, writer, spreader->n_units(), n * n_pairs,
                           (kGroupRows + n - 1) / n};
  for (int64_t half = part.half_begin; half < part.half_end; half += 2, sums += kPairFloats) {
    const bool both = half + 1 < part.half_end;
    // The sums of a single pair stay in registers from chunk to chunk.
    if (chunk.is_first || n_pairs > 1)
      load_sums(tiles, chunk.is_first ? nullptr : sums, bias, both);
    if (both)
      multiply_halves<Tiles, true>(tiles, w, n, rows.half(half), rows.half(half + 1), stride,
                                   &beside);
    else
      multiply_halves<Tiles, false>(tiles, w, n, rows.half(half), nullptr, stride, &beside);
    if (!chunk.is_last && n_pairs == 1) return;
    writer->finish();  // it may read what is overwritten now
    store_sums(tiles, sums, both);
    tiles.order_memory();
    if (chunk.is_last)
      *writer = {&part.all, chunk.row, half, both ? kGroupRows : kHalfRows, sums, 0};
  }
}

// 32 outputs' bias, zeros past the last.
inline void copy_bias(const TileSpmm& t, int64_t row, float* bias) {
  const int64_t first = row * kBlockColumns, n = least(kBlockColumns, t.weight.n_out - first);
  for (int64_t c = 0; c < kBlockColumns; ++c)
    bias[c] = t.bias != nullptr && c < n ? t.bias[first + c] : 0;
}

// A block row without blocks.
inline void write_bias(const TileSpmmPart& part, int64_t row, const float* bias) {
  const TileSpmm& t = part.all;
  const int64_t first = row * kBlockColumns, n = least(kBlockColumns, t.weight.n_out - first);
  for (int64_t slot = part.half_begin * kHalfRows; slot < part.half_end * kHalfRows; ++slot) {
    const int64_t to = t.rows.out_row(slot / kHalfRows, slot % kHalfRows, t.n_rows);
    if (to >= 0) round_row(bias, n, t.y + to * t.weight.n_out + first);
  }
}

template <class Tiles>
void tile_spmm_part(const TileSpmmPart& part) {
  alignas(64) bf16 room[2][kManyBlocks * kBlockValues];
  alignas(64) float sums[kPanelPairs * kPairFloats];
  alignas(64) float bias[kBlockColumns];
  ChunkTiles weights[2];
  Tiles tiles;
  tiles.configure();
  const BlockWalk walk{part, part.half_end - part.half_begin > 2 ? kManyBlocks : kFewBlocks};
  BlockChunk now = walk.first();
  Spreader<Tiles>(part.all, now, &weights[0], room[0]).finish();
  SumWriter<Tiles> writer{&part.all, 0, 0, 0, sums, 0};  // nothing to write yet
  for (int side = 0; now.row < part.row_end; side ^= 1) {
    const BlockChunk next = walk.after(now);
    Spreader<Tiles> spreader(part.all, next, &weights[side ^ 1], room[side ^ 1]);
    if (now.is_first) copy_bias(part.all, now.row, bias);
    tiles.order_memory();
    if (now.begin < now.end)
      multiply_blocks(tiles, part, now, weights[side], bias, sums, &spreader, &writer);
    else
      write_bias(part, now.row, bias);
    spreader.finish();
    now = next;
  }
  writer.finish();
  tiles.release();
}

}  // namespace
}  // namespace ds
