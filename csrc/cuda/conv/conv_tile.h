// One block's tile of a sparse convolution: the pipeline that all kernels share. A config says the
// types, the tile (kRows sorted rows, kColumns output channels), kThreads, kStages, kBytes (of one
// copy of gathered values: 16, or less where rows are not aligned) and how a stage is multiplied:
//
//   struct Config::Sums { clear(); add(stage) for one step; put(sums) into shared memory; }
//
// Rows of both operands are padded by 16 bytes in shared memory, so that 8 rows read at once lie in
// different banks. Three copies are under way while one stage is multiplied; the neighbour's row
// number for a copy is read one step earlier.
#pragma once
#include "cuda/async_copy.h"
#include "cuda/conv/conv.h"
#include "cuda/conv/row_plan.h"

namespace ds::gpu {

template <class T, int kRows, int kColumns>
struct alignas(16) ConvStage {
  static constexpr int kStep = kDepthStep<T>;
  static constexpr int kPadding =
      sizeof(T) == 4 ? 8 : kPiece<T>;  // float: 8 k * 8 n are read at once
  T a[kRows][kStep + kPiece<T>];
  T b[kStep][kColumns + kPadding];
};

template <class Config>
struct ConvShared {
  using T = typename Config::T;
  using Stage = ConvStage<T, Config::kRows, Config::kColumns>;
  union {
    Stage stages[Config::kStages];
    Acc<T> sums[Config::kRows][Config::kColumns + 8];
  };
  int32_t rows[Config::kRows];  // of the result, -1 behind the last one
};

// Where a block's tile lies.
struct ConvPlace {
  int64_t first_row;  // among sorted rows
  int group, first_column;
};

// The steps that a block's rows need, in order. Uniform over the block.
class ConvSteps {
 public:
  DS_DEVICE ConvSteps(const uint32_t* masks, int n_groups, const ConvShape& s, int step)
      : masks_(masks),
        n_groups_(n_groups),
        n_words_(static_cast<int>(mask_words(s.n_offsets))),
        n_chunks_(s.c_in_padded > step ? s.c_in_padded / step : 1),
        n_together_(s.c_in_padded < step ? step / s.c_in_padded : 1),
        last_bits_(s.n_offsets % 32 ? (1u << (s.n_offsets % 32)) - 1 : 0xffffffffu) {
    find_word();
  }
  DS_DEVICE bool any() const { return bits_ != 0; }
  // The first of the step's offsets, and the number of the step within it.
  DS_DEVICE int offset() const { return word_ * 32 + (first_bit(bits_) & -n_together_); }
  DS_DEVICE int chunk() const { return chunk_; }
  DS_DEVICE void next() {
    if (++chunk_ < n_chunks_) return;
    chunk_ = 0;
    const uint32_t together = 0xffffffffu >> (32 - n_together_);
    bits_ &= ~(together << (first_bit(bits_) & -n_together_));
    find_word();
  }

 private:
  DS_DEVICE void find_word() {
    while (bits_ == 0 && ++word_ < n_words_) {
      for (int g = 0; g < n_groups_; ++g)
        bits_ |= masks_[static_cast<int64_t>(g) * n_words_ + word_];
      if (word_ == n_words_ - 1) bits_ &= last_bits_;
    }
  }

  const uint32_t* masks_;
  int n_groups_, n_words_, n_chunks_, n_together_;
  uint32_t last_bits_, bits_ = 0;
  int word_ = -1, chunk_ = 0;
};

// Source row that an offset joins to a row of the result, or -1.
template <class T>
DS_DEVICE int32_t source_row(const ConvArgs<T>& args, int64_t offset, int32_t row) {
  if (row < 0 || offset >= args.shape.n_offsets) return -1;
  const int32_t source = args.table[offset * args.shape.n_dst + row];
  return source >= 0 && source < args.shape.n_src ? source : -1;
}

// A thread's part of filling a stage: 16-byte pieces of gathered rows, and of the weight.
template <class Config>
class ConvLoader {
  using T = typename Config::T;
  using Shared = ConvShared<Config>;
  static constexpr int kStep = kDepthStep<T>, kValues = kPiece<T>;
  static constexpr int kPieces = Config::kRows * 4 / Config::kThreads;  // a step of a row has 4
  static constexpr int kColumnPieces = Config::kColumns / kValues;
  static constexpr int kWeightPieces = kStep * kColumnPieces / Config::kThreads;
  static_assert(kPieces * Config::kThreads == Config::kRows * 4);
  static_assert(kWeightPieces * Config::kThreads == kStep * kColumnPieces);
  static_assert(Config::kThreads % 4 == 0);
  // Whole pieces belong to one offset, whose row number is read ahead.
  static constexpr bool kWhole = Config::kBytes == 16;

 public:
  DS_DEVICE ConvLoader(const ConvArgs<T>& args, const ConvPlace& place, Shared& sh)
      : args_(args), sh_(sh), first_(static_cast<int>(threadIdx.x) % 4 * kValues) {
    const ConvShape& s = args.shape;
    x_ = args.x + static_cast<int64_t>(place.group) * s.c_in;
    weight_ = args.packed + place.group * s.depth * s.c_out_padded + place.first_column;
    if (s.c_in_padded < kStep) shift_ = first_bit(static_cast<uint32_t>(s.c_in_padded));
  }

  // Reads the row numbers for the next load().
  DS_DEVICE void look_up(const ConvSteps& steps) {
    if constexpr (kWhole) {
      if (!steps.any()) return;
      const int64_t offset = steps.offset() + (first_ >> shift_);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) sources_[i] = source_row(args_, offset, row_of(i));
    }
  }

  // Starts the copies of one step.
  DS_DEVICE void load(const ConvSteps& steps, typename Shared::Stage& stage) {
    const int64_t first_channel = static_cast<int64_t>(steps.chunk()) * kStep;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      T* to = &stage.a[piece_row(i)][first_];
      if constexpr (kWhole)
        load_whole(to, sources_[i], first_channel);
      else
        load_parts(to, steps.offset(), row_of(i), first_channel);
    }
    const ConvShape& s = args_.shape;
    const int64_t depth = static_cast<int64_t>(steps.offset()) * s.c_in_padded + first_channel;
#pragma unroll
    for (int i = 0; i < kWeightPieces; ++i) {
      const int p = static_cast<int>(threadIdx.x) + i * Config::kThreads;
      const int row = p / kColumnPieces, column = p % kColumnPieces * kValues;
      copy_async<16>(&stage.b[row][column], weight_ + (depth + row) * s.c_out_padded + column);
    }
  }

 private:
  DS_DEVICE int piece_row(int i) const {
    return (static_cast<int>(threadIdx.x) + i * Config::kThreads) / 4;
  }
  DS_DEVICE int32_t row_of(int i) const { return sh_.rows[piece_row(i)]; }
  DS_DEVICE const T* address(int32_t source, int64_t channel) const {
    return x_ + static_cast<int64_t>(source) * args_.shape.groups * args_.shape.c_in + channel;
  }
  DS_DEVICE int within_offset(int value) const { return value & ((1 << shift_) - 1); }

  DS_DEVICE void load_whole(T* to, int32_t source, int64_t first_channel) {
    const int64_t channel = first_channel + within_offset(first_);
    const bool valid = source >= 0 && channel < args_.shape.c_in;
    copy_async<16>(to, valid ? address(source, channel) : args_.packed, valid);
  }

  // Pieces of which parts may belong to different offsets, or be padding.
  DS_DEVICE void load_parts(T* to, int offset, int32_t row, int64_t first_channel) {
    constexpr int kPart = Config::kBytes / static_cast<int>(sizeof(T));
    int32_t sources[kValues / kPart];
#pragma unroll
    for (int j = 0; j < kValues / kPart; ++j)
      sources[j] = source_row(args_, offset + ((first_ + j * kPart) >> shift_), row);
    Pack<T, kValues> values{};
#pragma unroll
    for (int j = 0; j < kValues / kPart; ++j) {
      const int64_t channel = first_channel + within_offset(first_ + j * kPart);
      const bool valid = sources[j] >= 0 && channel < args_.shape.c_in;
      if constexpr (Config::kBytes >= 4)
        copy_async<Config::kBytes>(to + j * kPart,
                                   valid ? address(sources[j], channel) : args_.packed, valid);
      else if (valid)
        values.v[j] = *address(sources[j], channel);
    }
    if constexpr (Config::kBytes < 4) store_pack(to, values);
  }

  const ConvArgs<T>& args_;
  Shared& sh_;
  const T *x_, *weight_;
  int first_;      // of the values of a step, this thread's
  int shift_ = 6;  // value >> shift_: which of the step's offsets
  int32_t sources_[kPieces];
};

// The tile's sums into sh.sums: steps pass through the stages in turn.
template <class Config>
DS_DEVICE void multiply_tile(const ConvArgs<typename Config::T>& args, const ConvPlace& place,
                             ConvShared<Config>& sh) {
  using T = typename Config::T;
  constexpr int kStages = Config::kStages, kGroups = Config::kRows / kPlanRows;
  const int64_t first = place.first_row / kPlanRows, left = plan_groups(args.shape.n_dst) - first;
  const uint32_t* masks = args.masks + first * mask_words(args.shape.n_offsets);
  ConvSteps steps(masks, static_cast<int>(left < kGroups ? left : kGroups), args.shape,
                  kDepthStep<T>);
  ConvLoader<Config> loader(args, place, sh);
  int n_loaded = 0;
  const auto load_next = [&] {
    if (steps.any()) {
      loader.load(steps, sh.stages[n_loaded % kStages]);
      ++n_loaded;
      steps.next();
      loader.look_up(steps);
    }
    commit_copies();
  };
  typename Config::Sums sums;
  sums.clear();
  loader.look_up(steps);
  for (int i = 0; i < kStages - 1; ++i) load_next();
  for (int i = 0; i < n_loaded; ++i) {
    wait_copies<kStages - 2>();
    sync_block();  // the stage is there for all, and the one before it is read by nobody
    load_next();
    sums.add(sh.stages[i % kStages]);
  }
  wait_copies<0>();
  sync_block();
  sums.put(sh.sums);
}

// The same one value at a time, past missing rows: for weights that are not finite.
template <class Config>
DS_DEVICE void plain_tile(const ConvArgs<typename Config::T>& args, const ConvPlace& place,
                          ConvShared<Config>& sh) {
  using T = typename Config::T;
  const ConvShape& s = args.shape;
  for (int p = static_cast<int>(threadIdx.x); p < Config::kRows * Config::kColumns;
       p += Config::kThreads) {
    const int row = p / Config::kColumns, column = p % Config::kColumns;
    Acc<T> sum = 0;
    for (int k = 0; k < s.n_offsets; ++k) {
      const int64_t source = source_row(args, k, sh.rows[row]);
      if (source < 0) continue;
      const T* x = args.x + (source * s.groups + place.group) * s.c_in;
      const T* w =
          args.packed + place.first_column + column +
          (place.group * s.depth + static_cast<int64_t>(k) * s.c_in_padded) * s.c_out_padded;
      for (int c = 0; c < s.c_in; ++c)
        sum = fused(widened(x[c]), widened(w[static_cast<int64_t>(c) * s.c_out_padded]), sum);
    }
    sh.sums[row][column] = sum;
  }
}

// sums + bias + u rows, rounded once, to the rows of the result: 16 bytes a thread.
template <class Config>
DS_DEVICE void finish_tile(const ConvArgs<typename Config::T>& args, const ConvPlace& place,
                           const ConvShared<Config>& sh) {
  using T = typename Config::T;
  constexpr int kValues = kPiece<T>, kAcross = Config::kColumns / kValues;
  const ConvShape& s = args.shape;
  const int64_t width = static_cast<int64_t>(s.groups) * s.c_out;
  for (int p = static_cast<int>(threadIdx.x); p < Config::kRows * kAcross; p += Config::kThreads) {
    const int row = p / kAcross, column = p % kAcross * kValues;
    const int64_t d = sh.rows[row];
    const int left = s.c_out - place.first_column - column;
    if (d < 0 || left <= 0) continue;
    const int n = left < kValues ? left : kValues;
    const int64_t channel =
        static_cast<int64_t>(place.group) * s.c_out + place.first_column + column;
    Acc<T> v[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = sh.sums[row][column + i];
    const auto add = [&](const Acc<T>* from) {
#pragma unroll
      for (int i = 0; i < kValues; ++i)
        if (i < n) v[i] += from[channel + i];
    };
    if (args.bias != nullptr) add(args.bias);
    if (args.u != nullptr) {
      const int64_t start = args.u_start[d], end = args.u_start[d + 1];
      for (int64_t j = start < 0 ? 0 : start; j < end && j < args.n_u_rows; ++j) {
        const int64_t r = args.u_rows[j];
        if (r >= 0 && r < args.n_u) add(args.u + r * width);
      }
    }
    Pack<T, kValues> result;
#pragma unroll
    for (int i = 0; i < kValues; ++i) result.v[i] = rounded<T>(v[i]);
    T* y = args.y + d * width + channel;
    if (s.c_out % kValues == 0) {
      store_pack(y, result);
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i)
        if (i < n) y[i] = result.v[i];
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocks)
    conv_kernel(ConvArgs<typename Config::T> args) {
  ConvShared<Config>& sh = shared<ConvShared<Config>>();
  const ConvShape& s = args.shape;
  const int64_t n_across = s.c_out_padded / Config::kColumns, block = blockIdx.x;
  const ConvPlace place{block / n_across / s.groups * Config::kRows,
                        static_cast<int>(block / n_across % s.groups),
                        static_cast<int>(block % n_across) * Config::kColumns};
  for (int i = static_cast<int>(threadIdx.x); i < Config::kRows; i += Config::kThreads) {
    const int64_t row = place.first_row + i < s.n_dst ? args.order[place.first_row + i] : -1;
    sh.rows[i] = row < s.n_dst ? static_cast<int32_t>(row) : -1;
  }
  sync_block();
  const bool is_finite =
      *reinterpret_cast<const uint32_t*>(args.packed + s.groups * s.depth * s.c_out_padded) == 0;
  if (is_finite)
    multiply_tile<Config>(args, place, sh);
  else
    plain_tile<Config>(args, place, sh);
  sync_block();
  finish_tile<Config>(args, place, sh);
}

inline int64_t n_tiles(const ConvShape& s, int n_rows, int n_columns) {
  return ceil_div(s.n_dst, n_rows) * s.groups * (s.c_out_padded / n_columns);
}

template <class Config>
Status launch_conv(const Stream& stream, const ConvArgs<typename Config::T>& args) {
  static_assert(sizeof(ConvShared<Config>) <= 99 * 1024);
  return launch(stream, {n_tiles(args.shape, Config::kRows, Config::kColumns)}, Config::kThreads,
                sizeof(ConvShared<Config>), conv_kernel<Config>, args);
}

// Whether pieces of that many bytes of rows of x are aligned and within one offset.
template <class T>
bool rows_divide(const ConvArgs<T>& args, int n_bytes) {
  return args.shape.c_in * sizeof(T) % n_bytes == 0 &&
         reinterpret_cast<uintptr_t>(args.x) % n_bytes == 0;
}

}  // namespace ds::gpu
