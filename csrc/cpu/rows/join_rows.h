// Two sets of rows on the union of their sorted keys, and their sum there.
#pragma once
#include <cstdint>

namespace ds {

struct JoinArgs {
  const int64_t* a;  // (n_a), strictly ascending
  const int64_t* b;  // (n_b), strictly ascending
  int64_t n_a, n_b;
  int64_t* keys;    // (n_a + n_b): the union, ascending
  int32_t* from_a;  // (n_a + n_b): the row of a with that key, or -1
  int32_t* from_b;
};
// Returns the number of keys.
int64_t join_rows(const JoinArgs& args);

// y[i] = value of a + scale * value of b; a value is a row where from >= 0, row -2 - from of the
// ground where from <= -2, and zero where it is -1.
template <class T>
struct AddRowsArgs {
  struct Operand {
    const T* rows;        // (n, n_channels)
    const T* ground;      // (n_ground, n_channels) or null
    const int32_t* from;  // (n_out)
  } a, b;
  T scale;
  int64_t n_out, n_channels;
  T* y;
};
template <class T>
void add_rows(const AddRowsArgs<T>& args, int n_threads);

}  // namespace ds
