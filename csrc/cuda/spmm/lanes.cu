// What a product needs before it starts: activations transposed, values in the order of a plan.
// Both are bound by the bytes they move.
#include "cuda/spmm/spmm.h"

namespace ds::gpu {
namespace {

constexpr int kTile = 32, kTileWarps = 8;

template <class T>
struct TileMemory {
  T at[kTile][kTile + 1];
};

// A block: 32 x 32 of x, rows read and columns written 32 at a time.
template <class S>
__global__ void __launch_bounds__(kWarp* kTileWarps)
    lanes_kernel(const S* x, int64_t m, int64_t n_columns, Acc<S>* out) {
  using T = Acc<S>;
  auto& tile = shared<TileMemory<T>>();
  const int64_t n_padded = padded_rows(m), n_across = n_padded / kTile;
  const int64_t m_first = blockIdx.x % n_across * kTile, first = blockIdx.x / n_across * kTile;
  for (int i = warp_index(); i < kTile; i += kTileWarps) {
    const bool valid = m_first + i < m && first + lane_index() < n_columns;
    tile.at[i][lane_index()] =
        valid ? widened(x[(m_first + i) * n_columns + first + lane_index()]) : T(0);
  }
  sync_block();
  for (int i = warp_index(); i < kTile; i += kTileWarps)
    if (first + i < n_columns)
      out[(first + i) * n_padded + m_first + lane_index()] = tile.at[lane_index()][i];
}

template <class S>
Status launch_lanes(const Stream& stream, const void* x, int64_t m, int64_t n_columns, void* out) {
  const int64_t n_blocks = padded_rows(m) / kTile * ceil_div(n_columns, kTile);
  return launch(stream, {n_blocks}, kWarp * kTileWarps, sizeof(TileMemory<Acc<S>>), lanes_kernel<S>,
                static_cast<const S*>(x), m, n_columns, static_cast<Acc<S>*>(out));
}

constexpr int kThreads = 256;

template <class Bits>
__global__ void pack_kernel(PackArgs args) {
  for (int64_t i = thread_index(); i < args.n_entries; i += n_threads()) {
    Bits value = 0;
    const int64_t k = args.source[i];
    if (k >= 0 && k < args.n_kept) {
      const int64_t at = args.kept == nullptr ? k : args.kept[k];
      if (at >= 0 && at < args.n_values) value = static_cast<const Bits*>(args.values)[at];
    }
    static_cast<Bits*>(args.packed)[i] = value;
  }
}

template <class Bits>
Status launch_pack(const Stream& stream, const PackArgs& args) {
  return launch(stream, {blocks_for(args.n_entries, kThreads)}, kThreads, 0, pack_kernel<Bits>,
                args);
}

}  // namespace

Status to_lanes(const Stream& stream, const void* x, DType dtype, int64_t m, int64_t n_columns,
                void* out) {
  switch (dtype) {
    case DType::kFloat64:
      return launch_lanes<double>(stream, x, m, n_columns, out);
    case DType::kBFloat16:
      return launch_lanes<bf16>(stream, x, m, n_columns, out);
    case DType::kFloat16:
      return launch_lanes<f16>(stream, x, m, n_columns, out);
    default:
      return launch_lanes<float>(stream, x, m, n_columns, out);
  }
}

Status pack_values(const Stream& stream, const PackArgs& args, int64_t bytes_of_value) {
  switch (bytes_of_value) {
    case 1:
      return launch_pack<uint8_t>(stream, args);
    case 2:
      return launch_pack<uint16_t>(stream, args);
    case 4:
      return launch_pack<uint32_t>(stream, args);
    default:
      return launch_pack<uint64_t>(stream, args);
  }
}

}  // namespace ds::gpu
