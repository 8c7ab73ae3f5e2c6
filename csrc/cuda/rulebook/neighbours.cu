#include "cuda/rulebook/neighbours.h"

namespace ds::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostRows = 65535;  // of a grid's y: kernel rows beyond it are looped over
constexpr int kCellsShift = 5;        // 32 cells a bitmap entry

// Whether the bitmap has room for every sample: the same answer in all kernels of a call.
DS_DEVICE bool on_bitmap(const NeighbourProblem& p, int64_t* n_entries) {
  *n_entries = 0;
  if (p.n_bitmap == 0 || p.n_target == 0) return false;
  const int64_t last = p.target[(p.n_target - 1) * (1 + p.shape.n_axes)];
  int64_t cells = 1;  // of a sample: with n_bitmap > 0 the host saw that this is small
  for (int a = 0; a < p.shape.n_axes; ++a) cells *= p.shape.extent[a];
  if (last < 0 || (last + 1) * cells > p.n_bitmap << kCellsShift) return false;
  *n_entries = ceil_div((last + 1) * cells, int64_t{1} << kCellsShift);
  return true;
}

template <int kAxes>
DS_DEVICE int64_t key_of(const NeighbourProblem& p, int64_t row) {
  const int32_t* site = p.target + row * (1 + kAxes);
  int64_t key = site[0];
  for (int a = 0; a < kAxes; ++a) key = key * p.shape.extent[a] + site[1 + a];
  return key;
}

// Zeros for the bitmap, or the keys.
template <int kAxes>
__global__ void __launch_bounds__(kThreads) prepare_kernel(NeighbourProblem p) {
  int64_t n_entries;
  if (on_bitmap(p, &n_entries)) {
    for (int64_t i = thread_index(); i < n_entries; i += n_threads()) p.bitmap[i] = {0, 0};
  } else {
    for (int64_t i = thread_index(); i < p.n_target; i += n_threads())
      p.keys[i] = key_of<kAxes>(p, i);
  }
}

// The first site of an entry writes it, with the bits of all that follow it there: sites are
// sorted, so there is one such thread per entry, and nothing to add up.
template <int kAxes>
__global__ void __launch_bounds__(kThreads) mark_kernel(NeighbourProblem p) {
  int64_t n_entries;
  if (!on_bitmap(p, &n_entries)) return;
  for (int64_t i = thread_index(); i < p.n_target; i += n_threads()) {
    int64_t key = key_of<kAxes>(p, i);
    const int64_t entry = key >> kCellsShift;
    if (static_cast<uint64_t>(entry) >= static_cast<uint64_t>(n_entries)) continue;
    if (i > 0 && key_of<kAxes>(p, i - 1) >> kCellsShift == entry) continue;
    uint32_t bits = 0;
    for (int64_t next = i; key >> kCellsShift == entry;) {
      bits |= uint32_t{1} << (key & 31);
      if (++next == p.n_target) break;
      key = key_of<kAxes>(p, next);
    }
    p.bitmap[entry] = {bits, static_cast<int32_t>(i)};
  }
}

// Two ways from the ascending cells of a kernel row to target rows.
struct BitmapLookup {
  const Cells* bitmap;
  int64_t n_entries;

  DS_DEVICE int64_t row_of(int64_t cell) const {
    const int64_t entry = cell >> kCellsShift;
    if (static_cast<uint64_t>(entry) >= static_cast<uint64_t>(n_entries)) return -1;
    const Cells cells = bitmap[entry];
    const uint32_t bit = uint32_t{1} << (cell & 31);
    return cells.bits & bit ? int64_t{cells.first_row} + count_bits(cells.bits & (bit - 1)) : -1;
  }
};

struct SearchLookup {
  const int64_t* keys;
  int64_t n;
  int64_t at = 0, end;  // where the next cell can be: first key >= it is in [at, end]

  DS_DEVICE SearchLookup(const int64_t* keys_, int64_t n_) : keys(keys_), n(n_), end(n_) {}

  DS_DEVICE int64_t row_of(int64_t cell) {
    while (at < end) {
      const int64_t middle = at + (end - at) / 2;
      if (keys[middle] < cell)
        at = middle + 1;
      else
        end = middle;
    }
    end = n;
    return at < n && keys[at] == cell ? at : -1;
  }
  // The next cell is `ahead` further: keys are unique, so not more than that many rows on.
  DS_DEVICE void step(int64_t ahead) { end = n - at < ahead ? n : at + ahead; }
};

DS_DEVICE void step(const BitmapLookup&, int64_t) {}
DS_DEVICE void step(SearchLookup& lookup, int64_t ahead) {
  lookup.step(ahead);
}

// The taps of the last axis, for one query site and one kernel row whose line of the grid starts at
// cell `line`.
template <class Lookup>
DS_DEVICE void row_of_taps(const NeighbourProblem& p, int axis, bool inside, int64_t line,
                           int64_t first, int32_t* out, Lookup lookup) {
  const int64_t extent = p.shape.extent[axis], dilation = p.taps.dilation[axis];
  for (int64_t t = 0; t < p.taps.kernel[axis]; ++t, out += p.n_query) {
    const int64_t position = first + t * dilation;
    int64_t row = -1;
    if (inside && position >= 0 && position < extent) {
      row = lookup.row_of(line + position);
      step(lookup, dilation);
    }
    *out = row >= 0 && row < p.n_target ? static_cast<int32_t>(row) : -1;
  }
}

// A thread per (query site, kernel row); neighbouring threads have neighbouring sites, so that they
// write next to each other and read what is close together.
template <int kAxes>
__global__ void __launch_bounds__(kThreads) table_kernel(NeighbourProblem p) {
  constexpr int kLast = kAxes - 1;
  int64_t n_entries;
  const bool use_bitmap = on_bitmap(p, &n_entries);
  for (uint32_t row = blockIdx.y; row < p.n_rows; row += gridDim.y) {
    int64_t shift[kAxes];  // of this row's taps
    uint32_t rest = row;
    for (int a = kLast - 1; a >= 0; --a) {
      const uint32_t extent = static_cast<uint32_t>(p.taps.kernel[a]);
      shift[a] = (rest % extent) * p.taps.dilation[a] - p.taps.padding[a];
      rest /= extent;
    }
    for (int64_t q = thread_index(); q < p.n_query; q += n_threads()) {
      const int32_t* site = p.query + q * (1 + kAxes);
      int64_t line = site[0];
      bool inside = line >= 0;
      for (int a = 0; a < kLast; ++a) {
        const int64_t position = site[1 + a] * p.taps.stride[a] + shift[a];
        inside &= position >= 0 && position < p.shape.extent[a];
        line = line * p.shape.extent[a] + (inside ? position : 0);
      }
      line *= p.shape.extent[kLast];
      const int64_t first = site[1 + kLast] * p.taps.stride[kLast] - p.taps.padding[kLast];
      int32_t* out = p.table + row * p.taps.kernel[kLast] * p.n_query + q;
      if (use_bitmap)
        row_of_taps(p, kLast, inside, line, first, out, BitmapLookup{p.bitmap, n_entries});
      else
        row_of_taps(p, kLast, inside, line, first, out, SearchLookup(p.keys, p.n_target));
    }
  }
}

template <int kAxes>
Status run(const Stream& stream, const NeighbourProblem& p) {
  const int64_t most = p.n_bitmap > p.n_target ? p.n_bitmap : p.n_target;
  Status status =
      launch(stream, {blocks_for(most, kThreads)}, kThreads, 0, prepare_kernel<kAxes>, p);
  if (status == 0 && p.n_bitmap > 0)
    status = launch(stream, {blocks_for(p.n_target, kThreads)}, kThreads, 0, mark_kernel<kAxes>, p);
  if (status != 0) return status;
  const Grid grid{blocks_for(p.n_query, kThreads), p.n_rows < kMostRows ? p.n_rows : kMostRows};
  return launch(stream, grid, kThreads, 0, table_kernel<kAxes>, p);
}

}  // namespace

Status neighbour_table(const Stream& stream, const NeighbourProblem& problem) {
  switch (problem.shape.n_axes) {
    case 1:
      return run<1>(stream, problem);
    case 2:
      return run<2>(stream, problem);
    case 3:
      return run<3>(stream, problem);
    default:
      return run<4>(stream, problem);
  }
}

}  // namespace ds::gpu
