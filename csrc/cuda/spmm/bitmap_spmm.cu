#include "cuda/spmm/bitmap_spmm.h"

#include "cuda/async_copy.h"
#include "cuda/mma.h"

namespace ds::gpu {
namespace {

// Rows of x in a block, and values that a stage has room for: tiles of sparse weights leave room
// for more blocks.
template <class T_, int kBatch_, int kRoom_>
struct Config : BitmapTiling {
  using T = T_;
  static constexpr int kBatch = kBatch_, kRoom = kRoom_;
  static constexpr int kThreads = kStrips * kWarp;
  static constexpr int kStages = kBatch == 64 && kRoom == kValues ? 2 : 3;  // at most 87 KB
  static constexpr int kBlocks = 4;                 // a multiprocessor, at least
  static constexpr int kGroups = kBatch / 8;        // of 8 rows of x: columns of an mma
  static constexpr int kStride = kColumns + 8;      // ldmatrix: 8 rows, 8 different 16 bytes
  static constexpr int kChunks = kColumns / kUnit;  // 16 bytes of a row of x
  static constexpr int kSlack = 2 * kWarp + kUnit;  // a lane may read that far behind the last
  static_assert(kBatch % 16 == 0 && kRoom % kUnit == 0 && kRoom <= kValues);
  static_assert(kStride * 2 % 16 == 0 && kStride * 2 / 16 % 2 == 1);

  struct Stage {
    uint32_t words[kStrips][2][kSubtiles];
    uint16_t values[kRoom + kSlack];
    uint16_t x[kBatch][kStride];
  };
  struct Shared {
    alignas(16) Stage stage[kStages];
    alignas(16) uint32_t starts[kStrips][2][kSubtiles];  // of values, in bytes from here on
  };
  static_assert(sizeof(Stage) % 16 == 0 && kSlack * 2 % 16 == 0);
};

// Which part of which tiles a block works on.
struct Work {
  int64_t row_tile, first_x;  // x: rows from here on
  int64_t column_tile;        // the first of this part
  int n_tiles;
  int64_t tile;  // number of its first
};

template <class C>
DS_DEVICE Work work_of_block(const BitmapProduct& p) {
  const int64_t n_row_tiles = ceil_div(p.n_rows, C::kRows);
  const int64_t n_column_tiles = ceil_div(p.n_columns, C::kColumns);
  const int64_t each = ceil_div(n_column_tiles, p.n_parts), first = each * blockIdx.y;
  const int64_t left = n_column_tiles - first;
  Work w;
  w.row_tile = blockIdx.x % n_row_tiles;
  w.first_x = blockIdx.x / n_row_tiles * C::kBatch;
  w.column_tile = first;
  w.n_tiles = static_cast<int>(left < 0 ? 0 : left < each ? left : each);
  w.tile = w.row_tile * n_column_tiles + first;
  return w;
}

// Streams tiles into stages; where the next one begins is read one tile ahead. A thread copies the
// same 16 bytes of the same rows of x from every tile.
template <class C>
class Loader {
 public:
  DS_DEVICE Loader(const BitmapProduct& p, const Work& w, typename C::Shared& s)
      : p_(p), w_(w), s_(s), begin_(p.starts[w.n_tiles > 0 ? w.tile : 0]), end_(start(1)) {
    const int64_t row = w.first_x + row_of_thread();
    column_ = w.column_tile * C::kColumns + column_of_thread();
    rows_left_ = p.m - row;
    x_ = static_cast<const uint16_t*>(p.x) + row * p.n_columns + column_;
    words_ = p.words + w.tile * C::kWords + threadIdx.x * 4;
  }

  // Starts the copies of the next tile, if there is one; a group either way.
  DS_DEVICE void next() {
    if (done_ < w_.n_tiles) {
      typename C::Stage& stage = s_.stage[slot_];
      load_words(stage);
      load_values(stage);
      load_x(stage);
      begin_ = end_;
      end_ = start(++done_ + 1);
      slot_ = slot_ + 1 < C::kStages ? slot_ + 1 : 0;
    }
    commit_copies();
  }

 private:
  DS_DEVICE static int row_of_thread() { return static_cast<int>(threadIdx.x) / C::kChunks; }
  DS_DEVICE static int column_of_thread() {
    return static_cast<int>(threadIdx.x) % C::kChunks * C::kUnit;
  }
  DS_DEVICE int32_t start(int i) const {
    return p_.starts[w_.tile + (i < w_.n_tiles ? i : w_.n_tiles)];
  }
  DS_DEVICE void load_words(typename C::Stage& stage) {
    const int i = static_cast<int>(threadIdx.x) * 4;
    if (i < C::kWords) copy_async<16>(&stage.words[0][0][0] + i, words_);
    words_ += C::kWords;
  }
  DS_DEVICE void load_values(typename C::Stage& stage) const {
    constexpr int kMost = C::kRoom / C::kUnit;
    if (begin_ < 0 || end_ > p_.n_units || end_ - int64_t{begin_} > kMost) return;
    const int thread = static_cast<int>(threadIdx.x), left = end_ - begin_ - thread;
    const int64_t unit = int64_t{begin_} + thread;
    const auto* from = static_cast<const uint16_t*>(p_.values) + unit * C::kUnit;
    uint16_t* to = stage.values + thread * C::kUnit;
#pragma unroll
    for (int i = 0; i < kMost; i += C::kThreads)
      if (i < left) copy_async<16>(to + i * C::kUnit, from + i * C::kUnit);
  }
  DS_DEVICE void load_x(typename C::Stage& stage) {
    constexpr int kRowsAtOnce = C::kThreads / C::kChunks;
    static_assert(C::kBatch % kRowsAtOnce == 0);
    const bool inside = column_ < p_.n_columns;
#pragma unroll
    for (int i = 0; i < C::kBatch; i += kRowsAtOnce) {
      const bool valid = inside && i < rows_left_;
      copy_async<16>(&stage.x[i + row_of_thread()][column_of_thread()],
                     valid ? x_ + i * p_.n_columns : p_.x, valid);
    }
    x_ += C::kColumns;
    column_ += C::kColumns;
  }

  const BitmapProduct& p_;
  const Work& w_;
  typename C::Shared& s_;
  const uint16_t* x_;
  const uint32_t* words_;
  int64_t column_, rows_left_;
  int done_ = 0, slot_ = 0;
  int32_t begin_, end_;
};

// Bytes of a (0-3) and b (4-7), one per nibble (0-7) of the selector's lower half.
DS_DEVICE uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef DS_EMULATED
  const uint64_t all = a | static_cast<uint64_t>(b) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(all >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
  return result;
#else
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
#endif
}

// Where the values of each half sub-tile of this warp's strip begin: the bits before it, of earlier
// strips as well. One scan serves both, the earlier ones' in the upper half of the number.
template <class C>
DS_DEVICE void find_starts(const typename C::Stage& stage, typename C::Shared& s) {
  static_assert(C::kSubtiles == kWarp);
  const int warp = warp_index(), lane = lane_index();
  const uint32_t low = count_bits(stage.words[warp][0][lane]);
  const uint32_t own = low + count_bits(stage.words[warp][1][lane]);
  uint32_t sum = own;
#pragma unroll
  for (int earlier = 0; earlier < C::kStrips - 1; ++earlier) {
    const auto& words = stage.words[earlier];
    const uint32_t bits = count_bits(words[0][lane]) + count_bits(words[1][lane]);
    sum += earlier < warp ? bits << 16 : 0;
  }
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const uint32_t below = shuffle_up(sum, delta);
    sum += lane >= delta ? below : 0;
  }
  const uint32_t before = (sum & 0xffff) - own + (shuffle(sum, kWarp - 1) >> 16);
  const auto place = [&](uint32_t values) {
    // Words that are not those of the values lead no further than the stage.
    const uint16_t* at = stage.values + (values < C::kRoom ? values : C::kRoom);
    return static_cast<uint32_t>(reinterpret_cast<const unsigned char*>(at) -
                                 reinterpret_cast<const unsigned char*>(&s));
  };
  s.starts[warp][0][lane] = place(before);
  s.starts[warp][1][lane] = place(before + low);
  sync_warp();
}

// A lane's two values of a sub-tile, zeros for those not kept.
template <class C>
DS_DEVICE uint32_t decode(const typename C::Shared& s, uint32_t word, uint32_t start) {
  const int shift = lane_index() % 16 * 2;
  const uint32_t offset = start + count_bits(word & ((1u << shift) - 1)) * 2u;
  const auto* at =
      reinterpret_cast<const uint16_t*>(reinterpret_cast<const unsigned char*>(&s) + offset);
  const uint32_t first = at[0], second = at[1];
  // Bits 0 .. 3 choose (zero, zero), (first, zero), (zero, first), (first, second); bytes 2 and 3
  // of `first` are zeros. The selectors' bytes are chosen the same way: byte `bits` of each table.
  const uint32_t bits = word >> shift & 3;
  const uint32_t selector = choose_bytes(0x10321032, 0x54103232, bits * 0x11 + 0x40);
  return choose_bytes(first, second, selector);
}

template <class C>
DS_DEVICE void multiply_tile(const typename C::Stage& stage, typename C::Shared& s,
                             float (&sums)[C::kGroups][4]) {
  using T = typename C::T;
  const int warp = warp_index(), lane = lane_index(), half = lane / 16;
  find_starts<C>(stage, s);
  const int x_row = lane / 16 * 8 + lane % 8, x_column = lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < C::kSteps; ++step) {
    const Pack<uint32_t, 4> words = load_pack<4>(&stage.words[warp][half][step * 4]);
    const Pack<uint32_t, 4> starts = load_pack<4>(&s.starts[warp][half][step * 4]);
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = decode<C>(s, words.v[i], starts.v[i]);
#pragma unroll
    for (int group = 0; group < C::kGroups; group += 2) {
      uint32_t b[4];
      load_matrices(b, &stage.x[group * 8 + x_row][step * 16 + x_column]);
      mma<T>(sums[group], a, {b[0], b[1]});
      mma<T>(sums[group + 1], a, {b[2], b[3]});
    }
  }
}

template <class C>
DS_DEVICE void store_partial(const BitmapProduct& p, const Work& w,
                             const float (&sums)[C::kGroups][4]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int group = 0; group < C::kGroups; ++group)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = w.row_tile * C::kRows + warp_index() * C::kStripRows + g + i / 2 * 8;
      const int64_t batch = w.first_x + group * 8 + 2 * t + i % 2;
      if (row < p.n_rows && batch < p.m)
        p.partial[(blockIdx.y * p.m + batch) * p.n_rows + row] = sums[group][i];
    }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks) bitmap_kernel(BitmapProduct p) {
  auto& s = shared<typename C::Shared>();
  const Work w = work_of_block<C>(p);
  Loader<C> loader(p, w, s);
  float sums[C::kGroups][4] = {};
  for (int i = 0; i < C::kStages - 1; ++i) loader.next();
  int slot = 0;
  for (int i = 0; i < w.n_tiles; ++i) {
    wait_copies<C::kStages - 2>();
    sync_block();
    loader.next();  // into the stage that all have read
    multiply_tile<C>(s.stage[slot], s, sums);
    slot = slot + 1 < C::kStages ? slot + 1 : 0;
  }
  store_partial<C>(p, w, sums);
}

constexpr int kSumThreads = 256;

template <class T>
__global__ void sum_kernel(BitmapProduct p) {
  const int64_t n = p.m * p.n_rows;
  auto* y = static_cast<T*>(p.y);
  for (int64_t i = thread_index(); i < n; i += n_threads()) {
    float sum = p.bias != nullptr ? p.bias[i % p.n_rows] : 0;
    for (int part = 0; part < p.n_parts; ++part) sum += p.partial[part * n + i];
    y[i] = rounded<T>(sum);
  }
}

template <class T, int kBatch, int kRoom>
Status launch_product(const Stream& stream, const BitmapProduct& p) {
  using C = Config<T, kBatch, kRoom>;
  const Grid grid{ceil_div(p.n_rows, C::kRows) * ceil_div(p.m, C::kBatch), p.n_parts};
  const Status status =
      launch(stream, grid, C::kThreads, sizeof(typename C::Shared), bitmap_kernel<C>, p);
  if (status != 0) return status;
  return launch(stream, {blocks_for(p.m * p.n_rows, kSumThreads)}, kSumThreads, 0, sum_kernel<T>,
                p);
}

template <class T, int kBatch>
Status with_room(const Stream& stream, const BitmapProduct& p) {
  constexpr int kAll = BitmapTiling::kValues;
  if (p.most_values <= kAll / 4) return launch_product<T, kBatch, kAll / 4>(stream, p);
  if (p.most_values <= kAll / 8 * 5) return launch_product<T, kBatch, kAll / 8 * 5>(stream, p);
  return launch_product<T, kBatch, kAll>(stream, p);
}

int batch_of(int64_t m) {
  return m <= 16 ? 16 : m <= 32 ? 32 : 64;
}

}  // namespace

int bitmap_parts(const Stream& stream, int64_t m, int64_t n_rows, int64_t n_columns) {
  constexpr int64_t kBlocksEach = 4, kMost = 32;
  const int64_t blocks = ceil_div(n_rows, BitmapTiling::kRows) * ceil_div(m, batch_of(m));
  const int64_t tiles = ceil_div(n_columns, BitmapTiling::kColumns);
  int64_t parts = blocks > 0 ? n_multiprocessors(stream) * kBlocksEach / blocks : 1;
  parts = parts < kMost ? parts : kMost;
  parts = parts < tiles / 2 ? parts : tiles / 2;  // two tiles each at least
  return static_cast<int>(parts > 1 ? parts : 1);
}

template <class T>
Status bitmap_spmm(const Stream& stream, const BitmapProduct& p) {
  switch (batch_of(p.m)) {
    case 16:
      return with_room<T, 16>(stream, p);
    case 32:
      return with_room<T, 32>(stream, p);
    default:
      return with_room<T, 64>(stream, p);
  }
}

template Status bitmap_spmm<bf16>(const Stream&, const BitmapProduct&);
template Status bitmap_spmm<f16>(const Stream&, const BitmapProduct&);

}  // namespace ds::gpu
