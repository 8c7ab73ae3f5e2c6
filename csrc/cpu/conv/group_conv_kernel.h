// bfloat16 convolution with matrix tiles: y[order[slot]] = bias + u rows + sum over the group's
// entries of x[rows[slot]] . W_k, over groups of 32 output rows (row_groups.h).
//
// Layout   x, y row-major; w packed by group_conv.cpp into the tiles' own order; sums of a group in
//          float32 on the stack, tile by tile: [column block][half][2 tiles][16 rows][16 columns].
// Tile     2 x 2 accumulators (32 rows x 32 columns), 2 tiles of gathered rows, 2 of weights: all 8
//          registers. 4 loads feed 4 products of 16 cycles; a load takes 8 of a load port's, so
//          products are the bound while rows come from L1 and weights from L1 or L2. Where only one
//          half reads an offset: 3 loads, 2 products.
// Chunks   The entries of a group whose rows fill 16 KiB: their rows are gathered once into a
//          buffer that stays in L1 for all columns, and the accumulators of a column block are
//          loaded and stored at most once a chunk (8 tiles moved for 32 products). While a
//          chunk is multiplied the rows of the next are copied into the other buffer, a few between
//          the products of two entries, those of the one after that are asked for, and the sums
//          of the group before are rounded: neither latency nor copying has the products wait.
// Bound    flops 2 * 16 * c_in * c_out a half and entry (1.5 of the pairs' own, see kSortRows);
//          bytes from L2 or beyond: 2 c_in a pair, 2 c_in * c_out an entry (the weights), which is
//          32 a cycle at the full rate of the products.
// Order    an output sums over ranges of 256 channels, offsets, blocks of 32 channels, all
//          ascending; within a block as the instruction does: even channels, odd channels, their
//          sum. What missing rows add is zero, so its bits depend on neither the group nor its
//          other rows.
#pragma once
#include "cpu/conv/group_conv.h"
#include "cpu/isa/vec.h"

namespace ds {
namespace {

constexpr int64_t kChunkDepth = 256;    // channels of a chunk's rows together: 32 x 512 bytes
constexpr int64_t kChunkColumns = 256;  // columns whose sums are on the stack: 32 x 1 KiB
constexpr int kUnitRows = 8;            // rows copied at a time
constexpr int64_t kTileFloats = kHalfRows * kTileColumns;

alignas(64) const bf16 kZeroRow[kChunkDepth] = {};

// Consecutive entries of a group, of a range of its channels, for a range of its columns.
struct Chunk {
  int64_t group, column, depth, entry, entry_end;
  bool is_first, is_last;  // of the group and its columns
};

struct Cut {
  const GroupConvTile& t;
  int64_t depth_blocks;   // of 32 channels, of all of c_in
  int64_t chunk_entries;  // so many entries' rows fill the buffer

  explicit Cut(const GroupConvTile& tile)
      : t(tile),
        depth_blocks((tile.c_in + kTileDepth - 1) / kTileDepth),
        chunk_entries(tile.c_in >= kChunkDepth ? 1 : kChunkDepth / (depth_blocks * kTileDepth)) {}

  int64_t depth_of(const Chunk& c) const { return least(kChunkDepth, t.c_in - c.depth); }
  int64_t blocks_of(const Chunk& c) const { return (depth_of(c) + kTileDepth - 1) / kTileDepth; }
  int64_t columns_of(const Chunk& c) const { return least(kChunkColumns, t.c_out - c.column); }

  Chunk at(int64_t group, int64_t column, int64_t depth, int64_t entry) const {
    Chunk c{group, column, depth, entry, entry, false, false};
    if (group >= t.end) return c;
    const int64_t begin = t.groups.start[group], end = t.groups.start[group + 1];
    c.entry_end = least(end, entry + chunk_entries);
    c.is_first = entry == begin && depth == 0;
    c.is_last = c.entry_end == end && (depth + kChunkDepth >= t.c_in || begin == end);
    return c;
  }
  Chunk first() const { return at(t.begin, 0, 0, t.groups.start[t.begin]); }
  Chunk after(const Chunk& c) const {
    const int64_t begin = t.groups.start[c.group];
    if (!c.is_last) {
      if (c.entry_end < t.groups.start[c.group + 1])
        return at(c.group, c.column, c.depth, c.entry_end);
      return at(c.group, c.column, c.depth + kChunkDepth, begin);
    }
    if (c.column + kChunkColumns < t.c_out) return at(c.group, c.column + kChunkColumns, 0, begin);
    return at(c.group + 1, 0, 0, t.groups.start[c.group + 1]);
  }
};

// Without a branch: whether a row reads an offset is a coin toss.
[[gnu::always_inline]] inline const bf16* row_or_zeros(const bf16* x, int64_t row, int64_t ld) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(x + row * ld);
  const uintptr_t zeros = reinterpret_cast<uintptr_t>(kZeroRow);
  return reinterpret_cast<const bf16*>(at ^ ((at ^ zeros) & static_cast<uintptr_t>(row >> 63)));
}

// The first `n` < kTileDepth values, then zeros.
[[gnu::always_inline]] inline void copy_part(const bf16* from, int64_t n, bf16* to) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16((1u << n) - 1, from));
#else
  for (int64_t i = 0; i < kTileDepth; ++i) to[i] = i < n ? from[i] : bf16{0};
#endif
}

// `depth` channels of kUnitRows rows into the tiles of a half; the rows `ahead` are asked for. Not
// inlined: it needs the registers that the caller's loops hold.
[[gnu::noinline]] void copy_rows(const bf16* x, int64_t ld, const int32_t* rows,
                                 const int32_t* ahead, int64_t depth, bf16* to) {
  for (int r = 0; r < kUnitRows; ++r, to += kTileDepth) {
    const bf16* row = row_or_zeros(x, rows[r], ld);
    const bf16* next = row_or_zeros(x, ahead[r], ld);
    bf16* tile = to;
    int64_t c = 0;
    for (; c + kTileDepth <= depth; c += kTileDepth, tile += kTileValues) {
      __builtin_prefetch(next + c, 0, 2);
      __builtin_memcpy(tile, row + c, kTileDepth * sizeof(bf16));
    }
    if (c < depth) {
      __builtin_prefetch(next + c, 0, 2);
      copy_part(row + c, depth - c, tile);
    }
  }
}

// Copies the rows of a chunk, a unit at a time: [entry][half][depth block][16 rows][32 channels].
struct Loader {
  const Cut& cut;
  const Chunk chunk;
  bf16* into;
  int64_t entry;
  int slot = 0;

  Loader(const Cut& c, const Chunk& next, bf16* buffer)
      : cut(c), chunk(next), into(buffer), entry(next.entry) {}

  void copy_unit() const {
    const GroupConvTile& t = cut.t;
    const int32_t* rows = t.groups.rows + entry * kGroupRows + slot;
    const bool more = entry + cut.chunk_entries < t.groups.start[t.end];
    const int64_t half = (entry - chunk.entry) * 2 + slot / kHalfRows;
    copy_rows(t.x + chunk.depth, t.c_in, rows, rows + more * cut.chunk_entries * kGroupRows,
              cut.depth_of(chunk),
              into + half * cut.blocks_of(chunk) * kTileValues + slot % kHalfRows * kTileDepth);
  }

  void advance(int64_t n_units) {
    for (; n_units > 0 && entry < chunk.entry_end; --n_units) {
      if (cut.t.groups.taps[entry] & 1 << slot / kHalfRows) copy_unit();
      slot += kUnitRows;
      if (slot == kGroupRows) {
        slot = 0;
        ++entry;
      }
    }
  }
  void finish() { advance((chunk.entry_end - entry) * (kGroupRows / kUnitRows)); }
};

// The 16 sums of slot `slot` from column `column` on.
[[gnu::always_inline]] inline float* sums_of(float* sums, int slot, int64_t column) {
  const int64_t tile =
      column / kBlockColumns * 4 + slot / kHalfRows * 2 + column % kBlockColumns / kTileColumns;
  return sums + tile * kTileFloats + slot % kHalfRows * kTileColumns;
}

// sums += the u rows of output row `row`, in their order.
inline void add_u_rows(const Cut& cut, const Chunk& chunk, int32_t row, int slot, float* sums) {
  const GroupConvTile& t = cut.t;
  const int64_t n = cut.columns_of(chunk), begin = t.u_start[row], end = t.u_start[row + 1];
  if (begin == end) return;
  for (int64_t c = 0; c < n; c += kTileColumns) {
    float* into = sums_of(sums, slot, c);
    const float* u = t.u + chunk.column + c;
    if (n - c >= kTileColumns) {
      Vec<float> sum[kTileColumns / kLanes<float>];
      __builtin_memcpy(sum, into, sizeof sum);
      for (int64_t j = begin; j < end; ++j)
        for (int v = 0; v < kTileColumns / kLanes<float>; ++v)
          sum[v] += load(u + t.u_rows[j] * t.c_out + v * kLanes<float>);
      __builtin_memcpy(into, sum, sizeof sum);
    } else {
      for (int64_t j = begin; j < end; ++j)
        for (int64_t i = 0; i < n - c; ++i) into[i] += u[t.u_rows[j] * t.c_out + i];
    }
  }
}

// sums = bias + the u rows of each output row; columns that do not exist are zero.
inline void start_sums(const Cut& cut, const Chunk& chunk, float* sums) {
  const GroupConvTile& t = cut.t;
  const int64_t n = cut.columns_of(chunk), n_blocks = (n + kBlockColumns - 1) / kBlockColumns;
  for (int64_t c = 0; c < n_blocks * kBlockColumns; c += kTileColumns) {
    float bias[kTileColumns] = {};
    for (int64_t i = 0; t.bias && i < least(kTileColumns, n - c); ++i)
      bias[i] = t.bias[chunk.column + c + i];
    for (int slot = 0; slot < kGroupRows; ++slot)
      __builtin_memcpy(sums_of(sums, slot, c), bias, sizeof bias);
  }
  if (!t.u) return;
  for (int slot = 0; slot < kGroupRows; ++slot) {
    const int32_t row = t.groups.order[chunk.group * kGroupRows + slot];
    if (row >= 0) add_u_rows(cut, chunk, row, slot, sums);
  }
}

// Rounds the sums of a finished chunk into y, a slot at a time, beside the next group's products.
struct Writer {
  const Cut* cut;
  Chunk chunk;
  float* sums;
  int slot;  // the next one

  void write_slot() {
    const GroupConvTile& t = cut->t;
    const int32_t row = t.groups.order[chunk.group * kGroupRows + slot];
    const int64_t n = cut->columns_of(chunk);
    int64_t c = 0;
    if (row >= 0) {
      bf16* y = t.y + row * t.c_out + chunk.column;
      for (; c + kTileColumns <= n; c += kTileColumns)
        round_row(sums_of(sums, slot, c), kTileColumns, y + c);
      if (c < n) round_row(sums_of(sums, slot, c), n - c, y + c);
    }
    ++slot;
  }
  void advance(int64_t n_slots) {
    for (; n_slots > 0 && slot < kGroupRows; --n_slots) write_slot();
  }
};

// One entry's products with one block of columns; Halves as in RowGroups::taps.
template <class Tiles, int Halves>
[[gnu::always_inline]] inline void multiply_entry(Tiles& tiles, const bf16* rows, const bf16* w,
                                                  int64_t blocks) {
  const bf16* second = rows + blocks * kTileValues;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t at = b * kTileValues;
    if constexpr (Halves & 1) tiles.template load<4>(rows + at);
    tiles.template load<6>(w + 2 * at);
    if constexpr (Halves & 2) tiles.template load<5>(second + at);
    tiles.template load<7>(w + 2 * at + kTileValues);
    if constexpr (Halves & 1) tiles.template multiply<0, 4, 6>();
    if constexpr (Halves & 2) tiles.template multiply<2, 5, 6>();
    if constexpr (Halves & 1) tiles.template multiply<1, 4, 7>();
    if constexpr (Halves & 2) tiles.template multiply<3, 5, 7>();
  }
}

// What is done between the products of two entries.
struct Beside {
  Loader* loader;
  Writer* writer;
  int64_t units, slots;  // each time
};

// One chunk's products with one block of columns.
template <class Tiles>
[[gnu::always_inline]] inline void multiply_block(Tiles& tiles, const Cut& cut, const Chunk& chunk,
                                                  const bf16* rows, int64_t block,
                                                  const Beside& beside) {
  const GroupConvTile& t = cut.t;
  const int64_t blocks = cut.blocks_of(chunk);
  const int64_t first_place = (chunk.column / kBlockColumns + block) * t.n_offsets;
  for (int64_t entry = chunk.entry; entry < chunk.entry_end; ++entry) {
    const int32_t tap = t.groups.taps[entry];
    const bf16* w = t.w + ((first_place + tap / 4) * cut.depth_blocks + chunk.depth / kTileDepth) *
                              2 * kTileValues;
    if ((tap & 3) == 3)
      multiply_entry<Tiles, 3>(tiles, rows, w, blocks);
    else if (tap & 1)
      multiply_entry<Tiles, 1>(tiles, rows, w, blocks);
    else
      multiply_entry<Tiles, 2>(tiles, rows, w, blocks);
    rows += 2 * blocks * kTileValues;
    beside.loader->advance(beside.units);
    beside.writer->advance(beside.slots);
  }
}

// Blocks of columns one way in one chunk and the other way in the next: the sums of the block where
// two chunks of a group meet stay in registers.
template <class Tiles>
void multiply_chunk(Tiles& tiles, const Cut& cut, const Chunk& chunk, const bf16* rows, float* sums,
                    bool backwards, Loader* loader, Writer* writer) {
  const int64_t n_columns = (cut.columns_of(chunk) + kBlockColumns - 1) / kBlockColumns;
  const int64_t n_steps = n_columns * (chunk.entry_end - chunk.entry);
  const int64_t n_units =
      (loader->chunk.entry_end - loader->chunk.entry) * (kGroupRows / kUnitRows);
  const int64_t round_up = n_steps - 1;
  const Beside beside{loader, writer, n_steps ? (n_units + round_up) / n_steps : 0,
                      n_steps ? (kGroupRows + round_up) / n_steps : 0};
  for (int64_t i = 0; n_steps > 0 && i < n_columns; ++i) {
    const int64_t block = backwards ? n_columns - 1 - i : i;
    float* at = sums + block * 4 * kTileFloats;
    if (i > 0 || chunk.is_first) {
      tiles.template load<0>(at);
      tiles.template load<1>(at + kTileFloats);
      tiles.template load<2>(at + 2 * kTileFloats);
      tiles.template load<3>(at + 3 * kTileFloats);
    }
    multiply_block(tiles, cut, chunk, rows, block, beside);
    if (i < n_columns - 1 || chunk.is_last) {
      tiles.template store<0>(at);
      tiles.template store<1>(at + kTileFloats);
      tiles.template store<2>(at + 2 * kTileFloats);
      tiles.template store<3>(at + 3 * kTileFloats);
    }
  }
}

// The same for weights that are not all finite: only rows that exist meet them.
inline void multiply_plainly(const Cut& cut, const Chunk& chunk, const bf16* rows, float* sums) {
  const GroupConvTile& t = cut.t;
  const int64_t blocks = cut.blocks_of(chunk), depth = cut.depth_of(chunk);
  for (int64_t entry = chunk.entry; entry < chunk.entry_end; ++entry) {
    for (int slot = 0; slot < kGroupRows; ++slot) {
      if (t.groups.rows[entry * kGroupRows + slot] < 0) continue;
      const bf16* row = rows +
                        ((entry - chunk.entry) * 2 + slot / kHalfRows) * blocks * kTileValues +
                        slot % kHalfRows * kTileDepth;
      for (int64_t o = 0; o < cut.columns_of(chunk); ++o) {
        const int64_t place =
            (chunk.column + o) / kBlockColumns * t.n_offsets + t.groups.taps[entry] / 4;
        const bf16* w = t.w +
                        (place * cut.depth_blocks + chunk.depth / kTileDepth) * 2 * kTileValues +
                        o % kBlockColumns / kTileColumns * kTileValues + o % kTileColumns * 2;
        float* sum = sums_of(sums, slot, o) + o % kTileColumns;
        for (int64_t c = 0; c < depth; ++c)
          *sum += widened(row[c / kTileDepth * kTileValues + c % kTileDepth]) *
                  widened(w[c / kTileDepth * 2 * kTileValues +
                            c % kTileDepth / 2 * 2 * kTileColumns + c % 2]);
      }
    }
  }
}

template <class Tiles>
void group_conv_tile(const GroupConvTile& t) {
  alignas(64) bf16 rows[2][kGroupRows * kChunkDepth];
  alignas(64) float sums[2][kGroupRows * kChunkColumns];
  Tiles tiles;
  tiles.configure();
  const Cut cut(t);
  Chunk now = cut.first();
  Loader(cut, now, rows[0]).finish();
  Writer writer{&cut, now, sums[0], kGroupRows};  // nothing to write yet
  bool backwards = false;
  int side = 0;
  for (int buffer = 0; now.group < t.end; buffer ^= 1) {
    const Chunk next = cut.after(now);
    Loader loader(cut, next, rows[buffer ^ 1]);
    backwards = !now.is_first && !backwards;
    side ^= now.is_first;
    if (now.is_first) start_sums(cut, now, sums[side]);
    tiles.order_memory();
    if (t.is_finite)
      multiply_chunk(tiles, cut, now, rows[buffer], sums[side], backwards, &loader, &writer);
    else
      multiply_plainly(cut, now, rows[buffer], sums[side]);
    tiles.order_memory();
    loader.finish();
    writer.advance(kGroupRows);
    if (now.is_last) writer = {&cut, now, sums[side], 0};
    now = next;
  }
  writer.advance(kGroupRows);
  tiles.release();
}

}  // namespace
}  // namespace ds
