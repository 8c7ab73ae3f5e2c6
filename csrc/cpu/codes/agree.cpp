#include "cpu/codes/agree.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace ds {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kJobPoints = 1024;  // a multiple of every tile

int64_t rounded_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

template <class Code>
const AgreeKernels<Code>& agree_kernels_of() {
  if constexpr (sizeof(Code) == 1)
    return kernel_table().agree8;
  else
    return kernel_table().agree16;
}

// ------------------------------------------------------------------ workspaces
// Points are gathered into several tiles at once: their codes come from s places far apart, too far
// to read one cache line of each.
constexpr int64_t kGatherPoints = 256;

// One part that all workers read, then one for each worker.
struct CompareSpace {
  int64_t shared, own;
  CompareSpace(int64_t s, int64_t k, int code_bytes)
      : shared(rounded_up(rounded_up(k, kCompareCenters) * s * 4, kAlignment)),
        own(rounded_up(s * kGatherPoints * code_bytes, kAlignment)) {}
};

struct ListSpace {
  int64_t rest_stride, counter_stride, heads, rest, own;
  ListSpace(int64_t n_values, int64_t s, int64_t k)
      : rest_stride(k + 2 * (k / (kListSlots + 1))),
        counter_stride(rounded_up(k, kCounterPadding) + kCounterPadding),
        heads(rounded_up(s * n_values * 4, kAlignment)),
        rest(rounded_up(s * rest_stride * 2, kAlignment)),
        own(rounded_up(kListTilePoints * counter_stride * counter_bytes(s), kAlignment)) {}
};

// A row of a tile is too short for a call of memcpy.
void copy_row(const void* from, int64_t bytes, void* to) {
  const uint8_t* source = static_cast<const uint8_t*>(from);
  uint8_t* target = static_cast<uint8_t*>(to);
  constexpr int64_t kStep = 16;
  int64_t i = 0;
  for (; i + kStep <= bytes; i += kStep) std::memcpy(target + i, source + i, kStep);
  for (; i < bytes; ++i) target[i] = source[i];
}

void write_best(const uint16_t* best, int64_t n, bool wide, void* out, int64_t at) {
  if (wide) {
    std::memcpy(static_cast<uint16_t*>(out) + at, best, static_cast<size_t>(n) * 2);
  } else {
    uint8_t* to = static_cast<uint8_t*>(out) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(best[i]);
  }
}

// job(worker, first point, number of points), at most `tile` of them
template <class Job>
void for_tiles(int64_t n, int64_t tile, int n_threads, const Job& job) {
  parallel_for_workers((n + kJobPoints - 1) / kJobPoints, n_threads, [&](int64_t b, int worker) {
    const int64_t end = std::min(n, (b + 1) * kJobPoints);
    for (int64_t i = b * kJobPoints; i < end; i += tile) job(worker, i, std::min(tile, end - i));
  });
}

// ------------------------------------------------------------------ compare
// Four 8-bit or two 16-bit copies.
template <class Code>
uint32_t copies(Code code) {
  return sizeof(Code) == 1 ? code * 0x01010101u : code * 0x00010001u;
}

template <class Code>
void by_compares(const AgreeArgs<Code>& a, int n_threads) {
  const CompareSpace space(a.s, a.k, sizeof(Code));
  uint32_t* centers = reinterpret_cast<uint32_t*>(a.workspace);
  parallel_for((a.k + kCompareCenters - 1) / kCompareCenters, n_threads, [&](int64_t block) {
    uint32_t* to = centers + block * kCompareCenters * a.s;
    for (int q = 0; q < kCompareCenters; ++q) {
      const int64_t c = std::min(a.k - 1, block * kCompareCenters + q);
      for (int64_t v = 0; v < a.s; ++v)
        to[v * kCompareCenters + q] = copies(a.center_codes[v * a.k + c]);
    }
  });
  const AgreeKernels<Code>& kernels = agree_kernels_of<Code>();
  const int64_t lanes = kernels.compare_lanes;
  for_tiles(a.n, kGatherPoints, n_threads, [&](int worker, int64_t begin, int64_t n) {
    Code* points = reinterpret_cast<Code*>(a.workspace + space.shared + worker * space.own);
    for (int64_t v = 0; v < a.s; ++v) {
      const Code* from = a.codes + a.columns[v] * a.n + begin;
      Code* to = points + v * lanes;
      for (int64_t i = 0; i < n; i += lanes, to += a.s * lanes) {
        const int64_t here = std::min(lanes, n - i);
        copy_row(from + i, here * static_cast<int64_t>(sizeof(Code)), to);
        for (int64_t j = here; j < lanes; ++j) to[j] = 0;
      }
    }
    uint16_t best[kMostCompareLanes];
    for (int64_t i = 0; i < n; i += lanes) {
      kernels.compare({points + i * a.s, centers, a.s, a.k, best});
      write_best(best, std::min(lanes, n - i), a.wide_out, a.out, begin + i);
    }
  });
}

// ------------------------------------------------------------------ lists
// Where the centres with each code of one vote are.
struct VoteLists {
  uint32_t* heads;  // (n_values)
  uint16_t* rest;
  int64_t n_values, k;
};

// A counting sort: in `heads` first the lengths, then where a long list is, then the slots.
template <class Code>
void build_lists(const Code* center_codes, const VoteLists& lists) {
  const uint32_t nobody = static_cast<uint32_t>(rounded_up(lists.k, kCounterPadding));
  uint32_t* heads = lists.heads;
  std::fill(heads, heads + lists.n_values, uint32_t{0});
  for (int64_t c = 0; c < lists.k; ++c) ++heads[center_codes[c]];
  uint32_t used = 0;
  for (int64_t value = 0; value < lists.n_values; ++value) {
    const uint32_t length = heads[value];
    if (length > static_cast<uint32_t>(kListSlots)) {
      heads[value] = kLongList << 16 | used / 2;
      lists.rest[used] = 0;
      used += (length + 2) / 2 * 2;
    } else {
      heads[value] = (nobody + 1) << 16 | nobody;
    }
  }
  for (int64_t c = 0; c < lists.k; ++c) {
    uint32_t& head = heads[center_codes[c]];
    const uint32_t center = static_cast<uint32_t>(c);
    if (head >> 16 == kLongList) {
      uint16_t* list = lists.rest + 2 * (head & 0xffff);
      list[++list[0]] = static_cast<uint16_t>(c);
    } else if ((head & 0xffff) == nobody) {
      head = (head & 0xffff0000) | center;
    } else {
      head = (head & 0xffff) | center << 16;
    }
  }
}

template <class Code>
void by_lists(const AgreeArgs<Code>& a, int64_t n_values, int n_threads) {
  const ListSpace space(n_values, a.s, a.k);
  uint32_t* heads = reinterpret_cast<uint32_t*>(a.workspace);
  uint16_t* rest = reinterpret_cast<uint16_t*>(a.workspace + space.heads);
  uint8_t* own = a.workspace + space.heads + space.rest;
  parallel_for(a.s, n_threads, [&](int64_t v) {
    build_lists(a.center_codes + v * a.k,
                {heads + v * n_values, rest + v * space.rest_stride, n_values, a.k});
  });
  std::memset(own, 0, static_cast<size_t>(space.own) * static_cast<size_t>(n_threads));
  const AgreeKernels<Code>& kernels = agree_kernels_of<Code>();
  for_tiles(a.n, kListTilePoints, n_threads, [&](int worker, int64_t begin, int64_t n) {
    uint16_t best[kListTilePoints];
    kernels.lists({a.codes + begin, a.n, a.columns, heads, rest, n_values, space.rest_stride, a.s,
                   a.k, n, own + worker * space.own, space.counter_stride, best});
    write_best(best, n, a.wide_out, a.out, begin);
  });
}

}  // namespace

template <class Code>
AgreePlan agree_plan(const Code* center_codes, int64_t s, int64_t k, int64_t* histogram) {
  const int64_t n_values = int64_t{*std::max_element(center_codes, center_codes + s * k)} + 2;
  double pairs = 0;
  for (int64_t v = 0; v < s; ++v) {
    std::fill(histogram, histogram + n_values, int64_t{0});
    int64_t sum = 0;  // of the centres' pairs that share a code
    for (int64_t c = 0; c < k; ++c) sum += histogram[center_codes[v * k + c]]++;
    pairs += static_cast<double>(sum);
  }
  // Another point meets a centre as often as two centres meet.
  return {n_values, 2.0 * pairs / static_cast<double>(std::max<int64_t>(1, k - 1))};
}

AgreeWay agree_way(const AgreePlan& plan, int64_t n, int64_t s, int64_t k, int code_bytes) {
  if (k > kMostListedCenters) return AgreeWay::kCompare;
  const double votes = static_cast<double>(s), centers = static_cast<double>(k);
  const double points = static_cast<double>(n), values = static_cast<double>(plan.n_values);
  // Nanoseconds on Zen 3 with AVX2, fitted to upper layers of a network of MNIST (s = 200, codes
  // below 2 k, 20000 points, one thread of a machine with other work, minima): compares 57 a
  // nanosecond of 16-bit codes (k = 250 to 2000), 95 of 8-bit ones (k = 125); lists 1.0 us a point
  // at k = 125, 1.3 at 500, 1.6 at 1000, 2.4 at 2000. They meet near k = 300.
  const double compare = points * votes * centers * code_bytes / 110.0;
  const double lists = points * (4.0 * votes + 2.0 * plan.increments + 0.003 * votes * centers) +
                       votes * (4.0 * values + 8.0 * centers);
  return lists < compare ? AgreeWay::kLists : AgreeWay::kCompare;
}

int64_t agree_workspace(AgreeWay way, int64_t n_values, int64_t s, int64_t k, int code_bytes,
                        int n_threads) {
  if (way == AgreeWay::kCompare) {
    const CompareSpace space(s, k, code_bytes);
    return space.shared + n_threads * space.own;
  }
  const ListSpace space(n_values, s, k);
  return space.heads + space.rest + n_threads * space.own;
}

template <class Code>
void most_agreeing(const AgreeArgs<Code>& args, AgreeWay way, int64_t n_values, int n_threads) {
  if (way == AgreeWay::kCompare)
    by_compares(args, n_threads);
  else
    by_lists(args, n_values, n_threads);
}

template AgreePlan agree_plan<uint8_t>(const uint8_t*, int64_t, int64_t, int64_t*);
template AgreePlan agree_plan<uint16_t>(const uint16_t*, int64_t, int64_t, int64_t*);
template void most_agreeing<uint8_t>(const AgreeArgs<uint8_t>&, AgreeWay, int64_t, int);
template void most_agreeing<uint16_t>(const AgreeArgs<uint16_t>&, AgreeWay, int64_t, int);

}  // namespace ds
