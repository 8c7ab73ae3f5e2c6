#include "cuda/spmm/block_spmm.h"

#include "cuda/async_copy.h"
#include "cuda/mma.h"

namespace ds::gpu {
namespace {

template <class T_, int kSize_, bool kTransposed_>
struct Config {
  using T = T_;
  static constexpr int kSize = kSize_;
  static constexpr bool kTransposed = kTransposed_;
  static constexpr int kRows = 128;                     // of x
  static constexpr int kDepth = kSize == 64 ? 64 : 32;  // columns of x in a stage
  static constexpr int kStages = kSize == 64 ? 3 : 4;   // at most 84 KB: two blocks on an SM
  static constexpr int kSteps = kSize / kDepth;         // stages of a block of W
  static constexpr int kWarpRows = kSize == 32 ? 32 : 64, kWarpColumns = 32;
  static constexpr int kWarpsAlong = kSize / kWarpColumns;  // the columns of y
  static constexpr int kThreads = kRows / kWarpRows * kWarpsAlong * kWarp;
  static constexpr int kTall = kWarpRows / 16, kWide = kWarpColumns / 8;  // mma of a warp
  // What is stored of W in a stage: kSize rows and kDepth columns, or the other way round. Eight
  // rows in a row must lie in different banks, of 16 bytes, for ldmatrix.
  static constexpr int kBlockRows = kTransposed ? kDepth : kSize;
  static constexpr int kBlockColumns = kTransposed ? kSize : kDepth;
  static constexpr int kPad = 8;
  static_assert(kSize % kDepth == 0 && kDepth % 16 == 0 && kWide % 2 == 0);
  static_assert((kDepth + kPad) / 8 % 2 == 1 && (kBlockColumns + kPad) / 8 % 2 == 1);

  struct Stage {
    uint16_t x[kRows][kDepth + kPad];
    uint16_t block[kBlockRows][kBlockColumns + kPad];
  };
  struct Shared {
    alignas(16) Stage stage[kStages];
  };
  static_assert(sizeof(Stage) % 16 == 0);
};

// Where a block's part of y is, and the blocks of its line.
struct Work {
  int64_t first_row, line;
  int64_t begin, end;
};

template <class C>
DS_DEVICE Work work_of_block(const BlockProduct& p) {
  const int64_t n_tall = ceil_div(p.m, C::kRows);
  Work w;
  w.first_row = blockIdx.x % n_tall * C::kRows;  // neighbours share the blocks of W
  w.line = blockIdx.x / n_tall;
  w.begin = p.starts[w.line];
  w.end = p.starts[w.line + 1];
  if (w.begin < 0 || w.end > p.n_blocks) w.end = w.begin;
  return w;
}

// Streams x and the blocks of a line into stages; which block comes next is read one ahead.
template <class C>
class Loader {
 public:
  DS_DEVICE Loader(const BlockProduct& p, const Work& w, typename C::Shared& s)
      : p_(p), w_(w), s_(s), at_(w.begin) {
    if (at_ < w.end) read_entry(at_);
    take_entry();
  }

  // Starts the copies of the next stage, if there is one; a group either way.
  DS_DEVICE void next() {
    if (at_ < w_.end) {
      load_x(s_.stage[slot_]);
      load_block(s_.stage[slot_]);
      slot_ = slot_ + 1 < C::kStages ? slot_ + 1 : 0;
      if (++step_ == C::kSteps) {
        step_ = 0;
        ++at_;
        take_entry();
      }
    }
    commit_copies();
  }

 private:
  DS_DEVICE void read_entry(int64_t i) {
    coming_inner_ = p_.inner[i];
    coming_order_ = p_.order[i];
  }
  DS_DEVICE void take_entry() {
    inner_ = coming_inner_;
    order_ = coming_order_;
    if (at_ + 1 < w_.end) read_entry(at_ + 1);
  }
  // A thread copies 16 bytes at the same place of every kThreads / (chunks of a row)-th row.
  DS_DEVICE void load_x(typename C::Stage& stage) const {
    constexpr int kChunks = C::kDepth / kBlockUnit, kRowsAtOnce = C::kThreads / kChunks;
    static_assert(C::kRows % kRowsAtOnce == 0);
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    const int inside = static_cast<int>(threadIdx.x) % kChunks * kBlockUnit;
    const int64_t from = w_.first_row + row, rows_left = p_.m - from;
    const int64_t column = int64_t{inner_} * C::kSize + step_ * C::kDepth + inside;
    const bool known = inner_ >= 0 && column < p_.n_inner;
    const auto* x = static_cast<const uint16_t*>(p_.x);
    const uint16_t* at = known ? x + from * p_.n_inner + column : x;
#pragma unroll
    for (int i = 0; i < C::kRows; i += kRowsAtOnce) {
      const bool valid = known && i < rows_left;
      copy_async<16>(&stage.x[i + row][inside], valid ? at + i * p_.n_inner : x, valid);
    }
  }
  DS_DEVICE void load_block(typename C::Stage& stage) const {
    constexpr int kChunks = C::kBlockColumns / kBlockUnit, kRowsAtOnce = C::kThreads / kChunks;
    static_assert(C::kBlockRows % kRowsAtOnce == 0);
    const int row = static_cast<int>(threadIdx.x) / kChunks;
    const int inside = static_cast<int>(threadIdx.x) % kChunks * kBlockUnit;
    const bool valid = order_ >= 0 && order_ < p_.n_blocks;
    const uint16_t* at = static_cast<const uint16_t*>(p_.blocks) +
                         (valid ? int64_t{order_} : 0) * C::kSize * C::kSize +
                         step_ * C::kDepth * (C::kTransposed ? C::kSize : 1) + row * C::kSize +
                         inside;
#pragma unroll
    for (int i = 0; i < C::kBlockRows; i += kRowsAtOnce)
      copy_async<16>(&stage.block[i + row][inside], at + i * C::kSize, valid);
  }

  const BlockProduct& p_;
  const Work& w_;
  typename C::Shared& s_;
  int64_t at_;
  int slot_ = 0, step_ = 0;
  int32_t inner_ = 0, order_ = 0, coming_inner_ = 0, coming_order_ = 0;
};

// The B operands of columns j and j + 8 of y at this depth.
template <class C>
DS_DEVICE void load_columns(uint32_t (&b)[4], const typename C::Stage& stage, int j, int depth) {
  const int lane = lane_index(), low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;
  if constexpr (C::kTransposed)
    load_matrices<true>(b, &stage.block[depth + odd + low][j + high]);
  else
    load_matrices(b, &stage.block[j + high + low][depth + odd]);
}

template <class C>
DS_DEVICE void multiply_stage(const typename C::Stage& stage,
                              float (&sums)[C::kTall][C::kWide][4]) {
  using T = typename C::T;
  const int lane = lane_index();
  const int row0 = warp_index() / C::kWarpsAlong * C::kWarpRows;
  const int column0 = warp_index() % C::kWarpsAlong * C::kWarpColumns;
#pragma unroll
  for (int depth = 0; depth < C::kDepth; depth += 16) {
    uint32_t a[C::kTall][4];
#pragma unroll
    for (int i = 0; i < C::kTall; ++i)
      load_matrices(a[i], &stage.x[row0 + i * 16 + lane % 16][depth + lane / 16 * 8]);
#pragma unroll
    for (int j = 0; j < C::kWide; j += 2) {
      uint32_t b[4];
      load_columns<C>(b, stage, column0 + j * 8, depth);
#pragma unroll
      for (int i = 0; i < C::kTall; ++i) {
        mma<T>(sums[i][j], a[i], {b[0], b[1]});
        mma<T>(sums[i][j + 1], a[i], {b[2], b[3]});
      }
    }
  }
}

// Two neighbours of a row of y, as one where they may be.
template <class T>
DS_DEVICE void store_pair(const BlockProduct& p, int64_t row, int64_t column, float low,
                          float high) {
  if (row >= p.m || column >= p.n_outer) return;
  const bool both = column + 1 < p.n_outer;
  if (p.bias != nullptr) {
    low += p.bias[column];
    high += both ? p.bias[column + 1] : 0;
  }
  auto* y = static_cast<uint16_t*>(p.y) + row * p.n_outer + column;
  const uint32_t pair = packed_pair<T>(low, high);
  if (both && p.n_outer % 2 == 0) {
    *reinterpret_cast<uint32_t*>(y) = pair;
    return;
  }
  y[0] = static_cast<uint16_t>(pair);
  if (both) y[1] = static_cast<uint16_t>(pair >> 16);
}

template <class C>
DS_DEVICE void store_sums(const BlockProduct& p, const Work& w,
                          const float (&sums)[C::kTall][C::kWide][4]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int64_t row0 = w.first_row + warp_index() / C::kWarpsAlong * C::kWarpRows + g;
  const int64_t column0 =
      w.line * C::kSize + warp_index() % C::kWarpsAlong * C::kWarpColumns + 2 * t;
#pragma unroll
  for (int i = 0; i < C::kTall; ++i)
#pragma unroll
    for (int j = 0; j < C::kWide; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_pair<typename C::T>(p, row0 + i * 16 + half * 8, column0 + j * 8,
                                  sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 2) block_kernel(BlockProduct p) {
  auto& s = shared<typename C::Shared>();
  const Work w = work_of_block<C>(p);
  Loader<C> loader(p, w, s);
  float sums[C::kTall][C::kWide][4] = {};
  for (int i = 0; i < C::kStages - 1; ++i) loader.next();
  const int64_t n_stages = (w.end - w.begin) * C::kSteps;
  int slot = 0;
  for (int64_t i = 0; i < n_stages; ++i) {
    wait_copies<C::kStages - 2>();
    sync_block();
    loader.next();  // into the stage that all have read
    multiply_stage<C>(s.stage[slot], sums);
    slot = slot + 1 < C::kStages ? slot + 1 : 0;
  }
  store_sums<C>(p, w, sums);
}

template <class T, int kSize>
Status launch_product(const Stream& stream, const BlockProduct& p, bool transposed) {
  const auto run = [&](auto config, auto kernel) {
    using C = decltype(config);
    const Grid grid{ceil_div(p.m, C::kRows) * ceil_div(p.n_outer, kSize)};
    return launch(stream, grid, C::kThreads, sizeof(typename C::Shared), kernel, p);
  };
  using Plain = Config<T, kSize, false>;
  using Transposed = Config<T, kSize, true>;
  return transposed ? run(Transposed{}, block_kernel<Transposed>)
                    : run(Plain{}, block_kernel<Plain>);
}

}  // namespace

template <class T>
Status block_spmm(const Stream& stream, const BlockProduct& p, int size, bool transposed) {
  switch (size) {
    case 32:
      return launch_product<T, 32>(stream, p, transposed);
    case 64:
      return launch_product<T, 64>(stream, p, transposed);
    default:
      return launch_product<T, 128>(stream, p, transposed);
  }
}

template Status block_spmm<bf16>(const Stream&, const BlockProduct&, int, bool);
template Status block_spmm<f16>(const Stream&, const BlockProduct&, int, bool);

}  // namespace ds::gpu
