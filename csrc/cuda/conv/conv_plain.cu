// Tiles of 64 x 64 (or 32) with 8 x 4 sums a thread. Both operands are read from shared memory by
// 16 bytes: for float a thread's 4 steps of depth are 8 + 4 reads for 128 fused multiply-adds,
// about half of what the shared memory could give in that time. Lanes of a warp differ in 2 (or 4)
// rows and all columns, so that reads of `a` are broadcasts.
#include "cuda/conv/conv_plain.h"

#include "cuda/conv/conv_tile.h"

namespace ds::gpu {
namespace {

template <class Config>
struct PlainSums {
  using T = typename Config::T;
  using Stage = ConvStage<T, Config::kRows, Config::kColumns>;
  static constexpr int kValues = kPiece<T>, kRowsEach = 8, kColumnsEach = 4;
  static constexpr int kAcross = Config::kColumns / kColumnsEach;  // threads
  static constexpr int kDown = Config::kThreads / kAcross;
  static_assert(kDown * kRowsEach == Config::kRows && kColumnsEach % kValues == 0);

  T v[kRowsEach][kColumnsEach];

  DS_DEVICE static int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kDown; }
  DS_DEVICE static int column(int j) {  // a piece of 16 bytes of every kAcross of them
    const int thread = static_cast<int>(threadIdx.x) % kAcross;
    return (j / kValues * kAcross + thread) * kValues + j % kValues;
  }

  DS_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i)
#pragma unroll
      for (int j = 0; j < kColumnsEach; ++j) v[i][j] = 0;
  }

  DS_DEVICE void add(const Stage& stage) {
#pragma unroll
    for (int k = 0; k < Stage::kStep; k += kValues) {
      Pack<T, kValues> a[kRowsEach];
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) a[i] = load_pack<kValues>(&stage.a[row(i)][k]);
#pragma unroll
      for (int l = 0; l < kValues; ++l) {
        T b[kColumnsEach];
#pragma unroll
        for (int j = 0; j < kColumnsEach; j += kValues) {
          const Pack<T, kValues> piece = load_pack<kValues>(&stage.b[k + l][column(j)]);
#pragma unroll
          for (int m = 0; m < kValues; ++m) b[j + m] = piece.v[m];
        }
#pragma unroll
        for (int i = 0; i < kRowsEach; ++i)
#pragma unroll
          for (int j = 0; j < kColumnsEach; ++j) v[i][j] = fused(a[i].v[l], b[j], v[i][j]);
      }
    }
  }

  template <class Rows>
  DS_DEVICE void put(Rows& sums) const {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i)
#pragma unroll
      for (int j = 0; j < kColumnsEach; ++j) sums[row(i)][column(j)] = v[i][j];
  }
};

template <class Value, int kColumns_, int kBytes_>
struct PlainConfig {
  using T = Value;
  static constexpr int kRows = 64, kColumns = kColumns_, kThreads = kColumns * 2, kStages = 4;
  static constexpr int kBytes = kBytes_;
  static constexpr int kBlocks = sizeof(T) == 8 ? 3 : 4;  // of 8-byte values, more registers
  using Sums = PlainSums<PlainConfig>;
};

}  // namespace

template <class T>
Status conv_plain(const Stream& stream, const ConvArgs<T>& args) {
  constexpr int kOne = sizeof(T);
  const bool wide = args.shape.c_out_padded > 32;
  if (rows_divide(args, 16))
    return wide ? launch_conv<PlainConfig<T, 64, 16>>(stream, args)
                : launch_conv<PlainConfig<T, 32, 16>>(stream, args);
  return wide ? launch_conv<PlainConfig<T, 64, kOne>>(stream, args)
              : launch_conv<PlainConfig<T, 32, kOne>>(stream, args);
}

template Status conv_plain(const Stream&, const ConvArgs<float>&);
template Status conv_plain(const Stream&, const ConvArgs<double>&);

}  // namespace ds::gpu
