// Rows to places of a larger array, the rest zero: one pass over the result. Any element type.
#pragma once
#include <cstdint>

namespace ds {

struct ScatterRowsArgs {
  const char* rows;      // (n_rows, row_bytes)
  const int64_t* place;  // (n_rows), strictly ascending, in [0, n_out)
  int64_t n_rows, n_out, row_bytes;
  char* out;  // (n_out, row_bytes)
};
void scatter_rows(const ScatterRowsArgs& args, int n_threads);

}  // namespace ds
