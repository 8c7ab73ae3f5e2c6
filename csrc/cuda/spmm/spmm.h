// Products with unstructured pruned matrices: y = x W^T + bias, and dy^T x at the kept entries.
#pragma once
#include "core/tensor_view.h"
#include "cuda/spmm/plan.h"

namespace ds::gpu {

// Columns of x side by side as the kernels want them: (n_columns, padded_rows(m)) of sums' type.
DS_HOST_DEVICE int64_t padded_rows(int64_t m) {
  return ceil_div(m, 128) * 128;
}

// out (n_columns, padded_rows(m)) = x (m, n_columns) transposed, zeros beyond m. dtype: of x.
Status to_lanes(const Stream& stream, const void* x, DType dtype, int64_t m, int64_t n_columns,
                void* out);

// packed[i] = values[kept ? kept[source[i]] : source[i]], 0 where source[i] < 0: values of the kept
// entries, or a dense weight with its kept places, in the order of a plan's entries.
struct PackArgs {
  const void* values;
  const int64_t* kept;  // (n_kept,) or null
  const int32_t* source;
  void* packed;
  int64_t n_entries, n_kept, n_values;
};
Status pack_values(const Stream& stream, const PackArgs& args, int64_t bytes_of_value);

struct SpmmArgs {
  SpmmPlan plan;
  const void* values;  // packed; double for sums in double, else float32, bf16, f16 or int8
  DType value_dtype;
  const float* scales;  // (n_rows,) of W, or null
  const void* lanes;    // to_lanes of x
  const void* bias;     // (n_rows,), sums' type, or null
  void* y;              // (m, n_rows)
  DType dtype;          // of y
  int64_t m;
};
Status spmm(const Stream& stream, const SpmmArgs& args);

// Sums over m go to `n_splits` arrays, added up in their order.
DS_HOST_DEVICE int64_t sddmm_splits(int64_t m) {
  const int64_t n = ceil_div(m, 128);
  return n < 1 ? 1 : n < 8 ? n : 8;
}
struct SddmmArgs {
  SpmmPlan plan;
  const int32_t* source;  // (n_entries of the plan,)
  const int64_t* kept;    // or null: out is (n_kept,), else a dense gradient, whose rest stays
  const void *dy, *x;     // to_lanes of both
  void* partial;          // (sddmm_splits(m), n_entries) of sums' type
  void* out;
  DType dtype;  // of out
  int64_t m, n_kept, n_out;
};
Status sddmm(const Stream& stream, const SddmmArgs& args);

// y = x W^T + bias for 1 to kMostGemvRows rows of x, W in CSR with 16-bit columns.
constexpr int kMostGemvRows = 4;
constexpr int64_t kMostGemvColumns = 65536;
struct GemvArgs {
  const int64_t* row_start;  // (n_rows + 1,)
  const uint16_t* columns;   // (n_kept,)
  const void* values;        // (n_kept,)
  DType value_dtype;
  const float* scales;  // or null
  const void* x;        // (m, n_columns)
  const void* bias;     // sums' type, or null
  void* y;              // (m, n_rows)
  DType dtype;          // of x and y
  int64_t m, n_rows, n_columns, n_kept;
};
Status gemv(const Stream& stream, const GemvArgs& args);

}  // namespace ds::gpu
