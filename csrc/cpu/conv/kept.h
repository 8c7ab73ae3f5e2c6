// Convolution with a pruned weight: of every (kernel offset, panel of output channels) only the
// input channels that some column of the panel keeps are multiplied, and a panel that keeps none is
// skipped before anything is loaded.
//
// Lists    [group][offset][panel] -> ascending input channels of the group, one *entry* each.
// Values   [entry][width] floats: the weights of one input channel for the panel's columns side by
//          side; a pruned one, and a column past c_out, is zero, whatever the weight holds there.
// Width    2 vectors of output channels, or 1 where that leaves so much less work that it wins
//          (blocks lower than a panel, unstructured masks).
// Order    for every output offsets, then channels, ascending in one chain, as in the unpruned
//          kernel: what is left out are products with zero, so finite values have the same bits
//          (but for the sign of a zero), and the width changes nothing.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/conv/conv.h"

namespace ds {

struct KeptLists {
  int64_t c_in, c_out, groups, n_offsets;  // channels of all groups
  bool transposed;                         // the weight is (c_in, c_out / groups, n_offsets)
  bool is_double;
  int64_t width, n_panels;        // of one group
  double share;                   // of the unpruned kernel's multiply-adds, as this one's time
  std::vector<int64_t> start;     // (groups * n_offsets * n_panels + 1)
  std::vector<int32_t> channels;  // (n_entries)
  std::vector<uint32_t> columns;  // (n_entries): bit j of an entry: column j of the panel is kept

  int64_t n_entries() const { return static_cast<int64_t>(channels.size()); }
  int64_t n_values() const { return n_entries() * width; }
  int64_t list_of(int64_t group, int64_t k, int64_t panel) const {
    return (group * n_offsets + k) * n_panels + panel;
  }
};

// mask: 1 where the weight is kept, else 0, in the weight's layout, contiguous.
KeptLists make_kept_lists(const int32_t* mask, int64_t c_in, int64_t c_out, int64_t n_offsets,
                          int64_t groups, bool transposed, bool is_double);

// The kept weights in the lists' order; `channels_last` as in ConvArgs.
template <class T>
void kept_pack(const KeptLists& lists, const T* weight, bool channels_last, T* values,
               int n_threads);

// conv() of args whose workspace holds the values; its weight is not read. float and double.
template <class T>
void kept_conv(const ConvArgs<T>& args, const KeptLists& lists, int n_threads);

// dw (c_out, c_in / groups, n_offsets): the weight gradient where it is kept, zero elsewhere. The
// lists are those of the weight as it lies there: not transposed.
template <class T>
int64_t kept_grad_workspace(const KeptLists& lists, const PairList& pairs, int64_t n_dst);
template <class T>
void kept_weight_grad(const WeightGradArgs<T>& args, const KeptLists& lists, int n_threads);

}  // namespace ds
