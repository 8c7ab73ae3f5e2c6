// The one walk over the kept weights of a panel, by which they are gathered and scattered.
#pragma once
#include "cpu/conv/kept.h"

namespace ds {

// Elements from one weight to the next along each dimension of a (d0, d1, n_offsets) tensor.
struct WeightSteps {
  int64_t column, channel, offset, group;

  WeightSteps(const KeptLists& lists, bool channels_last) {
    const int64_t c_in = lists.c_in / lists.groups, c_out = lists.c_out / lists.groups;
    const int64_t d0 = lists.transposed ? c_in : c_out, d1 = lists.transposed ? c_out : c_in;
    const int64_t step0 = d1 * lists.n_offsets, step1 = channels_last ? 1 : lists.n_offsets;
    column = lists.transposed ? step1 : step0;
    channel = lists.transposed ? step0 : step1;
    offset = channels_last ? d1 : 1;
    group = d0 * step0;
  }
};

// f(value, weight, is_kept) for every value of one panel, all offsets: `value` counts in the lists'
// order, `weight` in the tensor's and is 0 where nothing is kept. Neighbours in the weight's memory
// come one after the other.
template <class F>
void for_panel_values(const KeptLists& lists, int64_t group, int64_t panel,
                      const WeightSteps& steps, const F& f) {
  const int64_t first = group * steps.group + panel * lists.width * steps.column;
  const auto visit = [&](int64_t k, int64_t e, int64_t j) {
    const bool kept = lists.columns[e] >> j & 1;
    const int64_t at =
        first + j * steps.column + lists.channels[e] * steps.channel + k * steps.offset;
    f(e * lists.width + j, kept ? at : 0, kept);
  };
  const int64_t outer = steps.column > steps.channel ? lists.width : 1;
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t k = 0; k < lists.n_offsets; ++k) {
      const int64_t list = lists.list_of(group, k, panel);
      for (int64_t e = lists.start[list]; e < lists.start[list + 1]; ++e) {
        if (outer > 1) {
          visit(k, e, o);
        } else {
          for (int64_t j = 0; j < lists.width; ++j) visit(k, e, j);
        }
      }
    }
}

}  // namespace ds
