// The centre with the most equal codes, by compares or by lists (cpu/codes/agree.h).
//
// Compare  Layout  points are lanes, kPointVectors of them; a centre's code stands in memory as
//                  32 bits of copies, so that a broadcast is one plain load.
//          Tile    2 vectors of points x 5 centres: 10 counters, 2 vectors of codes, a centre and a
//                  mask are 14 of 16 registers. 7 loads for 20 vector operations.
//          Bound   two integer operations (equal, subtract) a vector of compares; four pipes make
//                  it two vectors a cycle.
//          Exact   counters are as wide as codes: votes run in chunks that cannot overflow them.
//                  Where there is more than one chunk the sums are kept in 32 bits.
// Lists    Tile    kListTilePoints points vote by vote: increments that follow each other hit
//                  different counters, and the tile's counters stay in L1.
//          Bound   heads come from L3 in no order: they are fetched some votes ahead, and two slots
//                  keep the table small. kListSlots increments a vote without a branch (an empty
//                  slot has a counter that nobody reads), only long lists take one.
#pragma once
#include "cpu/codes/agree.h"
#include "cpu/isa/vec.h"

namespace ds {
namespace {

constexpr int kPointVectors = 2;

template <class T>
struct CodeVecOf;
template <>
struct CodeVecOf<uint8_t> {
  typedef uint8_t type __attribute__((vector_size(DS_VEC_BYTES)));
};
template <>
struct CodeVecOf<uint16_t> {
  typedef uint16_t type __attribute__((vector_size(DS_VEC_BYTES)));
};
template <>
struct CodeVecOf<uint32_t> {
  typedef uint32_t type __attribute__((vector_size(DS_VEC_BYTES)));
};
template <class T>
using CodeVec = typename CodeVecOf<T>::type;
template <class T>
constexpr int kCodeLanes = DS_VEC_BYTES / sizeof(T);

template <class T>
[[gnu::always_inline]] inline CodeVec<T> load_codes(const T* p) {
  CodeVec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// ------------------------------------------------------------------ compare
template <class Code>
using CompareCounts = CodeVec<Code>[kCompareCenters][kPointVectors];

// counts[q][p] += votes [begin, end) in which point p and centre q are equal.
template <class Code>
[[gnu::always_inline]] inline void count_votes(const Code* points, const uint32_t* centers,
                                               int64_t n_votes, CompareCounts<Code>& counts) {
  using V = CodeVec<Code>;
  constexpr int kTile = kPointVectors * kCodeLanes<Code>;
  for (int64_t v = 0; v < n_votes; ++v, points += kTile, centers += kCompareCenters) {
    V point[kPointVectors];
#pragma GCC unroll 2
    for (int p = 0; p < kPointVectors; ++p) point[p] = load_codes(points + p * kCodeLanes<Code>);
#pragma GCC unroll 5
    for (int q = 0; q < kCompareCenters; ++q) {
      const V center = (V)(centers[q] - CodeVec<uint32_t>{});
#pragma GCC unroll 2
      for (int p = 0; p < kPointVectors; ++p) counts[q][p] -= (V)(point[p] == center);
    }
  }
}

// The index is kept in as many lanes of the codes' width as 16 bits need.
template <class Code>
struct BestCenters {
  CodeVec<Code> count, low, high;  // high: of 8-bit codes only

  [[gnu::always_inline]] void offer(CodeVec<Code> n, int64_t index) {
    const CodeVec<Code> more = (CodeVec<Code>)(n > count);
    count = n > count ? n : count;
    low = (low & ~more) | (static_cast<Code>(index) & more);
    if constexpr (sizeof(Code) == 1) high = (high & ~more) | (static_cast<Code>(index >> 8) & more);
  }
  [[gnu::always_inline]] void store(uint16_t* to) const {
    for (int i = 0; i < kCodeLanes<Code>; ++i) {
      to[i] = low[i];
      if constexpr (sizeof(Code) == 1) to[i] = static_cast<uint16_t>(low[i] | high[i] << 8);
    }
  }
};

template <class Code>
[[gnu::always_inline]] inline void compare_few_votes(const CompareTile<Code>& t) {
  BestCenters<Code> best[kPointVectors] = {};
  const uint32_t* centers = t.centers;
  for (int64_t c = 0; c < t.k; c += kCompareCenters, centers += t.s * kCompareCenters) {
    CompareCounts<Code> counts = {};
    count_votes(t.points, centers, t.s, counts);
    // Behind the last centre come copies of it, which do not have more.
#pragma GCC unroll 5
    for (int q = 0; q < kCompareCenters; ++q)
#pragma GCC unroll 2
      for (int p = 0; p < kPointVectors; ++p) best[p].offer(counts[q][p], c + q);
  }
  for (int p = 0; p < kPointVectors; ++p) best[p].store(t.best + p * kCodeLanes<Code>);
}

template <class Code>
void compare_many_votes(const CompareTile<Code>& t, int64_t most) {
  constexpr int kTile = kPointVectors * kCodeLanes<Code>;
  uint32_t best[kTile] = {};
  for (int i = 0; i < kTile; ++i) t.best[i] = 0;
  const uint32_t* centers = t.centers;
  for (int64_t c = 0; c < t.k; c += kCompareCenters) {
    uint32_t sums[kCompareCenters * kTile] = {};
    for (int64_t v = 0; v < t.s; v += most) {
      const int64_t n_votes = least(most, t.s - v);
      CompareCounts<Code> counts = {};
      count_votes(t.points + v * kTile, centers, n_votes, counts);
      centers += n_votes * kCompareCenters;
      Code narrow[kCompareCenters * kTile];
      __builtin_memcpy(narrow, counts, sizeof narrow);
      for (int i = 0; i < kCompareCenters * kTile; ++i) sums[i] += narrow[i];
    }
    for (int q = 0; q < kCompareCenters; ++q) {
      for (int i = 0; i < kTile; ++i) {
        const uint32_t sum = sums[q * kTile + i];
        t.best[i] = sum > best[i] ? static_cast<uint16_t>(c + q) : t.best[i];
        best[i] = sum > best[i] ? sum : best[i];
      }
    }
  }
}

template <class Code>
void agree_compare(const CompareTile<Code>& t) {
  constexpr int64_t most = static_cast<Code>(-1);
  if (t.s <= most)
    compare_few_votes(t);
  else
    compare_many_votes(t, most);
}

// ------------------------------------------------------------------ lists
constexpr int64_t kVotesAhead = 3;  // how early heads are fetched

// Adds the tile's votes to its counters.
template <class Code, class Count>
[[gnu::always_inline]] inline void count_lists(const ListTile<Code>& t, Count* counters) {
  const uint64_t last = static_cast<uint64_t>(t.n_values - 1);
  for (int64_t v = 0; v < t.s; ++v) {
    const Code* codes = t.codes + t.columns[v] * t.code_stride;
    const uint32_t* heads = t.heads + v * t.n_values;
    Count* row = counters;
    if (v + kVotesAhead < t.s) {
      const Code* soon = t.codes + t.columns[v + kVotesAhead] * t.code_stride;
      const uint32_t* there = heads + kVotesAhead * t.n_values;
      for (int64_t i = 0; i < t.n_points; ++i) {
        const uint64_t code = soon[i];
        __builtin_prefetch(there + (code < last ? code : last));
      }
    }
    for (int64_t i = 0; i < t.n_points; ++i, row += t.counter_stride) {
      const uint64_t code = codes[i];
      const uint32_t head = heads[code < last ? code : last];
      if (__builtin_expect(head >> 16 == kLongList, 0)) {
        const uint16_t* list = t.rest + v * t.rest_stride + 2 * (head & 0xffff);
        const int64_t length = *list++;
        for (int64_t j = 0; j < length; ++j) ++row[list[j]];
      } else {
        ++row[head & 0xffff];
        ++row[head >> 16];
      }
    }
  }
}

template <class V>
[[gnu::always_inline]] inline bool any_lane(V mask) {
  typedef uint64_t Words __attribute__((vector_size(DS_VEC_BYTES)));
  const Words words = (Words)mask;
  uint64_t any = 0;
  for (int i = 0; i < DS_VEC_BYTES / 8; ++i) any |= words[i];
  return any != 0;
}

// The first of the largest of k counts; behind them are zeros up to a whole vector.
template <class Count>
[[gnu::always_inline]] inline uint16_t first_largest(const Count* counts, int64_t k) {
  using V = CodeVec<Count>;
  constexpr int kLane = kCodeLanes<Count>;
  V most = load_codes(counts);
  for (int64_t c = kLane; c < k; c += kLane) {
    const V next = load_codes(counts + c);
    most = next > most ? next : most;
  }
  Count largest = 0;
  for (int i = 0; i < kLane; ++i) largest = most[i] > largest ? most[i] : largest;
  const V wanted = largest - V{};
  int64_t c = 0;
  while (!any_lane(load_codes(counts + c) == wanted)) c += kLane;
  while (counts[c] != largest) ++c;
  return static_cast<uint16_t>(c);
}

template <class Code, class Count>
[[gnu::always_inline]] inline void lists_of(const ListTile<Code>& t) {
  Count* counters = static_cast<Count*>(t.counters);
  count_lists(t, counters);
  for (int64_t i = 0; i < t.n_points; ++i) {
    Count* row = counters + i * t.counter_stride;
    // Counters of empty slots lie in the stride's last kCounterPadding, past any vector of counts.
    t.best[i] = first_largest(row, t.k);
    for (int64_t c = 0; c < t.counter_stride; c += kCodeLanes<Count>) {
      const CodeVec<Count> zero = {};
      __builtin_memcpy(row + c, &zero, sizeof zero);
    }
  }
}

template <class Code>
void agree_lists(const ListTile<Code>& t) {
  if (t.s <= 0xff)
    lists_of<Code, uint8_t>(t);
  else if (t.s <= 0xffff)
    lists_of<Code, uint16_t>(t);
  else
    lists_of<Code, uint32_t>(t);
}

template <class Code>
constexpr AgreeKernels<Code> agree_kernels() {
  return {kPointVectors * kCodeLanes<Code>, agree_compare<Code>, agree_lists<Code>};
}

}  // namespace
}  // namespace ds
