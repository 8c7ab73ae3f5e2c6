// A warp has 32 or 64 rows times 32 columns of the sums. A step of 64 bytes of depth is two matrix
// instructions deep in 16-bit values, and in float32. Tiles: 128 x 128 where that fills the device
// (64 flops a byte that enters shared memory), else 128 x 64 or 64 x 64; 64 x 32 for at most 32
// channels.
#include "cuda/conv/conv_tensor.h"

#include "cuda/conv/conv_tile.h"
#include "cuda/mma.h"

namespace ds::gpu {
namespace {

template <class Config>
struct TensorSums {
  using T = typename Config::T;
  using Stage = ConvStage<T, Config::kRows, Config::kColumns>;
  static constexpr int kDeep = kIsHalf<T> ? 16 : 8;  // of one instruction
  static constexpr int kDown = Config::kWarpRows / 16, kAcross = Config::kWarpColumns / 8;
  static constexpr int kWarpsAcross = Config::kColumns / Config::kWarpColumns;
  static_assert(kAcross % 2 == 0 && Stage::kStep % kDeep == 0);

  float v[kDown][kAcross][4];

  DS_DEVICE static int first_row() { return warp_index() / kWarpsAcross * Config::kWarpRows; }
  DS_DEVICE static int first_column() { return warp_index() % kWarpsAcross * Config::kWarpColumns; }

  DS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) v[i][j][e] = 0;
  }

  // 16 rows times 16 or 8 of depth: lanes point at rows of 16 bytes.
  DS_DEVICE static void load_rows(uint32_t (&a)[4], const Stage& stage, int i, int k) {
    const int lane = lane_index();
    load_matrices(a, &stage.a[first_row() + i * 16 + lane % 16][k + lane / 16 * (kDeep / 2)]);
    if constexpr (!kIsHalf<T>)
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = tf32_bits(float_of_bits(a[e]));
  }

  DS_DEVICE static void load_columns(uint32_t (&b)[kAcross][2], const Stage& stage, int k) {
    const int lane = lane_index();
    if constexpr (kIsHalf<T>) {
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t both[4];
        load_matrices<true>(both, &stage.b[k + lane % 16][first_column() + j * 8 + lane / 16 * 8]);
        b[j][0] = both[0], b[j][1] = both[1];
        b[j + 1][0] = both[2], b[j + 1][1] = both[3];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          b[j][e] = tf32_bits(stage.b[k + e * 4 + lane % 4][first_column() + j * 8 + lane / 4]);
    }
  }

  DS_DEVICE void add(const Stage& stage) {
#pragma unroll
    for (int k = 0; k < Stage::kStep; k += kDeep) {
      uint32_t a[kDown][4], b[kAcross][2];
#pragma unroll
      for (int i = 0; i < kDown; ++i) load_rows(a[i], stage, i, k);
      load_columns(b, stage, k);
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j) mma<T>(v[i][j], a[i], b[j]);
    }
  }

  template <class Rows>
  DS_DEVICE void put(Rows& sums) const {
    const int row = first_row() + lane_index() / 4, column = first_column() + lane_index() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int high = 0; high < 2; ++high)
          store_pack(&sums[row + i * 16 + high * 8][column + j * 8],
                     Pack<float, 2>{{v[i][j][high * 2], v[i][j][high * 2 + 1]}});
  }
};

template <class Value, int kRows_, int kColumns_, int kWarpRows_, int kBytes_>
struct TensorConfig {
  using T = Value;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kBytes = kBytes_, kStages = 4;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = 32;
  static constexpr int kThreads = kRows / kWarpRows * (kColumns / kWarpColumns) * kWarp;
  // 128 registers a thread, or 168 where addresses of parts and conversions need some.
  static constexpr bool kMore = kThreads < 256 && (kBytes == 2 || !kIsHalf<T>);
  static constexpr int kBlocks = (kMore ? 384 : 512) / kThreads;
  using Sums = TensorSums<TensorConfig>;
};

template <class T, int kBytes>
Status conv_by_parts(const Stream& stream, const ConvArgs<T>& args) {
  if (args.shape.c_out_padded == 32)
    return launch_conv<TensorConfig<T, 64, 32, 32, kBytes>>(stream, args);
  return launch_conv<TensorConfig<T, 64, 64, 32, kBytes>>(stream, args);
}

template <class T>
Status conv_by_pieces(const Stream& stream, const ConvArgs<T>& args) {
  const ConvShape& s = args.shape;
  const int64_t full = 2 * n_multiprocessors(stream);  // blocks
  if (s.c_out_padded % 128 == 0 && n_tiles(s, 128, 128) >= full)
    return launch_conv<TensorConfig<T, 128, 128, 64, 16>>(stream, args);
  if (s.c_out_padded % 64 == 0 && n_tiles(s, 128, 64) >= full)
    return launch_conv<TensorConfig<T, 128, 64, 64, 16>>(stream, args);
  return conv_by_parts<T, 16>(stream, args);
}

}  // namespace

template <class T>
Status conv_tensor(const Stream& stream, const ConvArgs<T>& args) {
  if (rows_divide(args, 16)) return conv_by_pieces(stream, args);
  if (rows_divide(args, 4)) return conv_by_parts<T, 4>(stream, args);
  return conv_by_parts<T, sizeof(T)>(stream, args);
}

template Status conv_tensor(const Stream&, const ConvArgs<bf16>&);
template Status conv_tensor(const Stream&, const ConvArgs<f16>&);
template Status conv_tensor(const Stream&, const ConvArgs<float>&);

}  // namespace ds::gpu
