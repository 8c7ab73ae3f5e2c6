// y = x W^T + bias for 1 to 4 rows of x, where W keeps so little that its places weigh more than
// its values: a place is a byte.
//
// Layout. A row of W is a list of entries by ascending column, in units of four so that a lane
// loads whole words; rows begin at whole units.
//   gaps    uint8 (n_units, 4): how many columns of the row are left out before this one, 0 to 254;
//           255: leaves out 255 columns and keeps none, also what fills the row's last unit
//   values  (n_units, 4); what stands at a gap of 255 is never looked at
//   starts  int32 (n_rows + 1): where a row's entries begin, in units
// 3 bytes a kept weight of 16 bits, and on average 4.5 + 4 a row. A bitmap is 2 bytes and 1/8 of
// every weight: more, where less than an eighth is kept.
//
// Only kept entries count, like in gemv: what x has at a pruned column has no effect, not even inf.
#pragma once
#include "cuda/device.h"

namespace ds::gpu {

struct DeltaTiling {
  static constexpr int kUnit = 4;      // entries that a lane loads together
  static constexpr int kFiller = 255;  // a gap that keeps nothing
  static constexpr int kMostRows = 4;  // of x
};

// T (bf16 or f16) for x, values and y.
struct DeltaProduct {
  const uint8_t* gaps;  // 4-byte aligned
  const void* values;   // 8-byte aligned
  const int32_t* starts;
  const void* x;      // (m, n_columns)
  const float* bias;  // (n_rows), or null
  void* y;            // (m, n_rows)
  int64_t m, n_rows, n_columns, n_units;
};

template <class T>
Status delta_gemv(const Stream& stream, const DeltaProduct& p);

}  // namespace ds::gpu
