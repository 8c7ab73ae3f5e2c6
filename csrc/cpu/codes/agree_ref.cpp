#include "cpu/reference.h"

namespace ds {

template <class Code>
void agree_compare_ref(const CompareTile<Code>& t) {
  for (int i = 0; i < kRefLanes; ++i) {
    int64_t most = 0;
    t.best[i] = 0;
    for (int64_t c = 0; c < t.k; ++c) {
      const uint32_t* center = t.centers + c / kCompareCenters * kCompareCenters * t.s;
      int64_t equal = 0;
      for (int64_t v = 0; v < t.s; ++v)
        equal += t.points[v * kRefLanes + i] ==
                 static_cast<Code>(center[v * kCompareCenters + c % kCompareCenters]);
      if (equal <= most) continue;
      most = equal;
      t.best[i] = static_cast<uint16_t>(c);
    }
  }
}

template <class Code, class Count>
void lists_of_ref(const ListTile<Code>& t) {
  for (int64_t i = 0; i < t.n_points; ++i) {
    Count* counts = static_cast<Count*>(t.counters) + i * t.counter_stride;
    for (int64_t v = 0; v < t.s; ++v) {
      const int64_t code = t.codes[t.columns[v] * t.code_stride + i];
      const uint32_t head = t.heads[v * t.n_values + (code < t.n_values ? code : t.n_values - 1)];
      if (head >> 16 == kLongList) {
        const uint16_t* list = t.rest + v * t.rest_stride + 2 * (head & 0xffff);
        for (int64_t j = 1; j <= list[0]; ++j) ++counts[list[j]];
      } else {
        for (int slot = 0; slot < kListSlots; ++slot) ++counts[head >> 16 * slot & 0xffff];
      }
    }
    int64_t best = 0;
    for (int64_t c = 1; c < t.k; ++c)
      if (counts[c] > counts[best]) best = c;
    t.best[i] = static_cast<uint16_t>(best);
    for (int64_t c = 0; c < t.counter_stride; ++c) counts[c] = 0;
  }
}

template <class Code>
void agree_lists_ref(const ListTile<Code>& t) {
  const int bytes = counter_bytes(t.s);
  if (bytes == 1)
    lists_of_ref<Code, uint8_t>(t);
  else if (bytes == 2)
    lists_of_ref<Code, uint16_t>(t);
  else
    lists_of_ref<Code, uint32_t>(t);
}

template void agree_compare_ref<uint8_t>(const CompareTile<uint8_t>&);
template void agree_compare_ref<uint16_t>(const CompareTile<uint16_t>&);
template void agree_lists_ref<uint8_t>(const ListTile<uint8_t>&);
template void agree_lists_ref<uint16_t>(const ListTile<uint16_t>&);

}  // namespace ds
