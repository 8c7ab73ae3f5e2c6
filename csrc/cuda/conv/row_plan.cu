#include "cuda/conv/row_plan.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;

// One thread a row: reads of a column of the table are coalesced over rows.
__global__ void key_kernel(RowPlanArgs a) {
  for (int64_t d = thread_index(); d < a.n_dst; d += n_threads()) {
    uint64_t key = 0;
    for (int64_t k = 0; k < a.n_offsets; ++k)
      key |= static_cast<uint64_t>(a.table[k * a.n_dst + d] >= 0) << (k % 64);
    a.keys[d] = key;
    a.rows[d] = static_cast<int32_t>(d);
  }
}

// One warp a group of 32 sorted rows, a lane a row.
__global__ void mask_kernel(RowPlanArgs a) {
  const int64_t n_groups = plan_groups(a.n_dst), n_words = mask_words(a.n_offsets);
  const int64_t step = n_threads() / kWarp;
  for (int64_t group = thread_index() / kWarp; group < n_groups; group += step) {
    const int64_t i = group * kPlanRows + lane_index();
    const int64_t d = i < a.n_dst ? a.order[i] : -1;
    for (int64_t w = 0; w < n_words; ++w) {
      uint32_t word = 0;
      const int n = static_cast<int>(a.n_offsets - w * 32 < 32 ? a.n_offsets - w * 32 : 32);
      for (int b = 0; b < n; ++b) {
        const bool has = d >= 0 && a.table[(w * 32 + b) * a.n_dst + d] >= 0;
        word |= static_cast<uint32_t>(ballot(has) != 0) << b;
      }
      if (lane_index() == 0) a.masks[group * n_words + w] = word;
    }
  }
}

}  // namespace

Status plan_rows(const Stream& stream, const Workspace& workspace, const RowPlanArgs& args) {
  if (args.n_dst == 0) return 0;
  Status status = launch(stream, {blocks_for(args.n_dst, kThreads)}, kThreads, 0, key_kernel, args);
  if (status != 0) return status;
  const int n_bits = static_cast<int>(args.n_offsets < 64 ? args.n_offsets : 64);
  status =
      sort_pairs(stream, workspace, static_cast<const uint64_t*>(args.keys), args.keys + args.n_dst,
                 static_cast<const int32_t*>(args.rows), args.order, args.n_dst, n_bits);
  if (status != 0) return status;
  const int64_t blocks = blocks_for(plan_groups(args.n_dst) * kWarp, kThreads);
  return launch(stream, {blocks}, kThreads, 0, mask_kernel, args);
}

}  // namespace ds::gpu
