// The weight of a convolution in the order its kernels read: [group][offset][panel][c_in][width],
// width = packed_width() output channels side by side, columns past c_out zero. Once a call, or
// once for many where the caller keeps it. Half a nanosecond a weight.
#pragma once
#include "cpu/conv/conv.h"

namespace ds {

// In elements, of all groups.
template <class T>
int64_t packed_size(int64_t c_in, int64_t c_out, int64_t n_offsets, int64_t groups);

// One panel of one group to `packed`; `next_offset` elements lie between two offsets' panels.
template <class T>
void pack_panel(const ConvArgs<T>& args, int64_t group, int64_t panel, int64_t next_offset,
                T* packed);

// args.weight into args.workspace; the other operands are not read.
template <class T>
void pack_weight(const ConvArgs<T>& args, int n_threads);

}  // namespace ds
