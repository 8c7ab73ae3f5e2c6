// For each point the centre that agrees with it in the most clusterings: the upper layers of a
// multilayer bootstrap network. Torch-free; the caller allocates everything.
//
// codes (V, n) are clustering-major: row v holds each point's centre in clustering v. `columns`
// names the s clusterings that vote; center_codes (s, k) holds the codes of the k centres there.
// The answer is the lowest index among the centres with the largest count of equal codes: integers
// only, hence the same for any number of threads and for both ways of counting:
//
// compare   every point against every centre: s * k compares a point, lanes are points.
// lists     for each vote the list of centres with each code; a point adds 1 to the counters of the
//           centres in its s lists, then looks for the largest of its k counters.
#pragma once
#include <cstdint>

namespace ds {

enum class AgreeWay : uint8_t { kCompare, kLists };

constexpr int64_t kMostAgreeCenters = 65536;
// Of the lists: an index of a centre, or of a counter that nobody reads, is 16 bits and not 0xffff.
constexpr int64_t kMostListedCenters = 65280;
constexpr int kListSlots = 2;              // centres in a list's head
constexpr uint32_t kLongList = 0xffff;     // in a head's last slot: the list is elsewhere
constexpr int64_t kCounterPadding = 64;    // counters behind the last centre's: slots left empty
constexpr int64_t kListTilePoints = 8;     // points whose counters are in L1 together
constexpr int kMostCompareLanes = 2 * 64;  // points of one tile of compares

template <class Code>
struct AgreeArgs {
  const Code* codes;  // (V, n)
  int64_t n;
  const int64_t* columns;    // (s), within [0, V)
  const Code* center_codes;  // (s, k)
  int64_t s, k;              // at least 1; k up to kMostAgreeCenters
  void* out;                 // (n) uint8 or uint16
  bool wide_out;             // uint16
  uint8_t* workspace;        // agree_workspace() bytes, aligned to 64
};

// What the choice is made from; `histogram` holds 65536 counts.
struct AgreePlan {
  int64_t n_values;   // largest code of a centre + 2: the last stands for all that no centre has
  double increments;  // of a point that is spread over the codes as the centres are
};
template <class Code>
AgreePlan agree_plan(const Code* center_codes, int64_t s, int64_t k, int64_t* histogram);

// A function of the operands alone.
AgreeWay agree_way(const AgreePlan& plan, int64_t n, int64_t s, int64_t k, int code_bytes);
int64_t agree_workspace(AgreeWay way, int64_t n_values, int64_t s, int64_t k, int code_bytes,
                        int n_threads);
template <class Code>
void most_agreeing(const AgreeArgs<Code>& args, AgreeWay way, int64_t n_values, int n_threads);

// ------------------------------------------------------------------ the kernels' operands
template <class Code>
struct CompareTile {
  const Code* points;       // (s, lanes)
  const uint32_t* centers;  // (blocks of kCompareCenters, s, kCompareCenters): copies of one code
  int64_t s, k;
  uint16_t* best;  // (lanes)
};

// Counters are the narrowest unsigned integers that hold s.
template <class Code>
struct ListTile {
  const Code* codes;       // of the tile's first point
  int64_t code_stride;     // between clusterings
  const int64_t* columns;  // (s)
  const uint32_t* heads;   // (s, n_values): kListSlots 16-bit centres, or above half of the
                           // place of the list, which is even, kLongList
  const uint16_t* rest;    // (s, rest_stride): lists too long for a head, their length first
  int64_t n_values, rest_stride;
  int64_t s, k, n_points;  // n_points <= kListTilePoints
  void* counters;          // (kListTilePoints, counter_stride), zeros before and after
  int64_t counter_stride;
  uint16_t* best;  // (n_points)
};

constexpr int kCompareCenters = 5;  // centres in registers together

inline int counter_bytes(int64_t s) {
  return s <= 0xff ? 1 : s <= 0xffff ? 2 : 4;
}

template <class Code>
struct AgreeKernels {
  int compare_lanes;  // points of a CompareTile
  void (*compare)(const CompareTile<Code>&);
  void (*lists)(const ListTile<Code>&);
};

}  // namespace ds
