#include "cpu/spmm/tile_blocks.h"

#include <algorithm>
#include <atomic>

#include "core/parallel.h"

namespace ds {
namespace {

int64_t whole_vectors(int64_t n) {
  return (n + kTileDepth - 1) / kTileDepth * kTileDepth;
}

// Where a block's values start, and `next`: where the block behind it may.
int64_t place_of(int64_t count, int64_t* next) {
  if (count <= kMostPacked) {
    const int64_t at = *next;
    *next += count;
    return at;
  }
  const int64_t at = whole_vectors(*next);
  *next = at + kBlockValues;
  return ~at;
}

// A value's number in its block; see TileBlocks.
int64_t index_in_block(int64_t output, int64_t input) {
  return output / kTileColumns * kTileValues + input / 2 * 2 * kTileColumns +
         output % kTileColumns * 2 + input % 2;
}

// The 32 rows of a block row, each list read once, block by block.
template <class T>
class BlockRow {
 public:
  BlockRow(const CsrWeight& w, const T* values, int64_t row) : w_(w), values_(values) {
    first_ = row * kBlockColumns;
    n_rows_ = std::min(kBlockColumns, w.n_out - first_);
    for (int64_t r = 0; r < n_rows_; ++r) at_[r] = w.row_start[first_ + r];
  }

  // Every value of one block column at its place, zeros between; false if a list does not ascend.
  bool gather(int64_t column, uint32_t* mask, bf16* block) {
    std::fill(mask, mask + kMaskWords, 0);
    std::fill(block, block + kBlockValues, bf16{0});
    const int64_t begin = column * kTileDepth, end = begin + kTileDepth;
    bool good = true;
    for (int64_t r = 0; r < n_rows_; ++r) {
      int64_t i = at_[r], previous = begin - 1;
      for (; i < w_.row_start[first_ + r + 1] && w_.columns[i] < end; ++i) {
        const int64_t input = w_.columns[i];
        good &= input > previous;
        previous = std::max(previous, input);
        const int64_t bit = index_in_block(r, previous >= begin ? previous - begin : 0);
        mask[bit / 32] |= uint32_t{1} << bit % 32;
        block[bit] = rounded<bf16>(widened(values_[i]));
      }
      at_[r] = i;
    }
    return good;
  }

  bool is_finished() const {
    bool finished = true;
    for (int64_t r = 0; r < n_rows_; ++r) finished &= at_[r] == w_.row_start[first_ + r + 1];
    return finished;
  }

 private:
  const CsrWeight& w_;
  const T* values_;
  int64_t first_, n_rows_, at_[kBlockColumns];
};

// Returns whether the block holds as many values as were counted, and only then writes them.
bool write_block(const bf16* block, const uint32_t* mask, int64_t count, int64_t place,
                 bf16* values) {
  int64_t found = 0;
  for (int64_t word = 0; word < kMaskWords; ++word) found += __builtin_popcount(mask[word]);
  if (found != count) return false;
  if (place < 0) {
    std::copy(block, block + kBlockValues, values + ~place);
    return true;
  }
  bf16* into = values + place;
  for (int64_t bit = 0; bit < kBlockValues; ++bit)
    if (mask[bit / 32] >> bit % 32 & 1) *into++ = block[bit];
  return true;
}

// visit(row, column, count, end, place) for every block that holds something, in order; `end`:
// where the values before it end. Returns where the last one's do.
template <class Visit>
int64_t for_each_block(const CsrWeight& w, const int32_t* counts, const Visit& visit) {
  const int64_t n_rows = n_tile_blocks(w.n_out), n_columns = n_tile_blocks(w.n_in);
  int64_t next = 0;
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t column = 0; column < n_columns; ++column) {
      const int32_t count = counts[row * n_columns + column];
      if (count == 0) continue;
      const int64_t end = next;
      visit(row, column, count, end, place_of(count, &next));
    }
  }
  return next;
}

}  // namespace

TilePlan plan_tile_blocks(const CsrWeight& w, int32_t* counts, int64_t* start, int n_threads) {
  const int64_t n_rows = n_tile_blocks(w.n_out), n_columns = n_tile_blocks(w.n_in);
  parallel_for(n_rows, n_threads, [&](int64_t row) {
    int32_t* of_row = counts + row * n_columns;
    std::fill(of_row, of_row + n_columns, 0);
    const int64_t begin = w.row_start[row * kBlockColumns];
    const int64_t end = w.row_start[std::min(w.n_out, (row + 1) * kBlockColumns)];
    for (int64_t i = begin; i < end; ++i) ++of_row[w.columns[i] / kTileDepth];
  });
  std::fill(start, start + n_rows + 1, 0);
  const int64_t end = for_each_block(
      w, counts, [&](int64_t row, int64_t, int32_t, int64_t, int64_t) { ++start[row + 1]; });
  for (int64_t row = 0; row < n_rows; ++row) start[row + 1] += start[row];
  return {start[n_rows], end + kValuesSlack};
}

template <class T>
bool fill_tile_blocks(const CsrWeight& w, const T* values, const int32_t* counts,
                      const int64_t* start, const FilledBlocks& out, int n_threads) {
  const int64_t n_rows = n_tile_blocks(w.n_out), n_columns = n_tile_blocks(w.n_in);
  int64_t n_found = 0;
  bool same = true;
  const int64_t n_values =
      for_each_block(w, counts, [&](int64_t row, int64_t, int32_t, int64_t, int64_t) {
        same &= n_found >= start[row] && n_found < start[row + 1];
        ++n_found;
      });
  if (!same || n_found != start[n_rows] || n_values + kValuesSlack != out.n_values) return false;
  int64_t block = 0;
  for_each_block(w, counts, [&](int64_t, int64_t column, int32_t, int64_t end, int64_t place) {
    out.columns[block] = static_cast<int32_t>(column);
    out.place[block++] = place;
    // what alignment leaves free
    if (place < 0) std::fill(out.values + end, out.values + ~place, bf16{0});
  });
  std::fill(out.values + n_values, out.values + out.n_values, bf16{0});
  std::atomic<bool> is_good{true};
  parallel_for(n_rows, n_threads, [&](int64_t row) {
    BlockRow<T> lists(w, values, row);
    bf16 whole[kBlockValues];
    bool good = true;
    for (int64_t b = start[row]; b < start[row + 1]; ++b) {
      uint32_t* mask = out.masks + b * kMaskWords;
      good &= lists.gather(out.columns[b], mask, whole);
      const int64_t count = counts[row * n_columns + out.columns[b]];
      good &= write_block(whole, mask, count, out.place[b], out.values);
    }
    if (!good || !lists.is_finished()) is_good = false;
  });
  return is_good;
}

template bool fill_tile_blocks<float>(const CsrWeight&, const float*, const int32_t*,
                                      const int64_t*, const FilledBlocks&, int);
template bool fill_tile_blocks<bf16>(const CsrWeight&, const bf16*, const int32_t*, const int64_t*,
                                     const FilledBlocks&, int);

}  // namespace ds
