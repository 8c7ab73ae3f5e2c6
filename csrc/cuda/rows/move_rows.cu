// Rows of two tensors added on the union of their keys, and rows set into a larger tensor.
//
// Bound    bytes of the rows read and written; the union's keys by binary search, twice a key, in
//          lists that stay in L2.
#include "cuda/rows/row_packs.h"
#include "cuda/rows/rows.h"

namespace ds::gpu {
namespace {

// ------------------------------------------------------------------ union of keys
// The first place of a sorted list that is not below the key.
DS_DEVICE int64_t lower_bound(const int64_t* list, int64_t n, int64_t key) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (list[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__global__ void rank_kernel(JoinRows j) {
  for (int64_t i = thread_index(); i <= j.n_a; i += n_threads()) {
    if (i == j.n_a) {
      j.shared[i] = 0;
      continue;
    }
    const int64_t rank = lower_bound(j.b, j.n_b, j.a[i]);
    j.rank[i] = static_cast<int32_t>(rank);
    j.shared[i] = rank < j.n_b && j.b[rank] == j.a[i];
  }
}

DS_DEVICE void put_key(const JoinRows& j, int64_t at, int64_t key, int64_t from_a, int64_t from_b) {
  if (at < 0 || at >= j.n_a + j.n_b) return;  // only where a list does not ascend
  j.keys[at] = key;
  j.from_a[at] = static_cast<int32_t>(from_a);
  j.from_b[at] = static_cast<int32_t>(from_b);
}

__global__ void place_kernel(JoinRows j) {
  for (int64_t i = thread_index(); i < j.n_a + j.n_b; i += n_threads()) {
    if (i < j.n_a) {
      const int64_t rank = j.rank[i];
      put_key(j, i + rank - j.before[i], j.a[i], i, j.shared[i] ? rank : -1);
      continue;
    }
    const int64_t row = i - j.n_a, key = j.b[row];
    const int64_t rank = lower_bound(j.a, j.n_a, key);
    if (rank < j.n_a && j.a[rank] == key) continue;  // a has put it
    put_key(j, row + rank - j.before[rank], key, -1, row);
  }
}

// ------------------------------------------------------------------ sums of rows
template <class T>
DS_DEVICE const T* row_of(const typename AddRows<T>::Operand& o, int64_t i, int64_t n_channels) {
  const int64_t from = o.from[i], ground = -2 - from;
  if (from >= 0) return from < o.n_rows ? o.rows + from * n_channels : nullptr;
  return ground >= 0 && ground < o.n_ground ? o.ground + ground * n_channels : nullptr;
}

template <class T, int N>
__global__ void add_kernel(AddRows<T> p) {
  const int64_t per_row = p.n_channels / N;
  for (int64_t i = thread_index(); i < p.n_out * per_row; i += n_threads()) {
    const PackPlace at = pack_place(i, per_row, N);
    const T* a = row_of<T>(p.a, at.row, p.n_channels);
    const T* b = row_of<T>(p.b, at.row, p.n_channels);
    Pack<T, N> of_a = {}, of_b = {};
    if (a) of_a = load_pack<N>(a + at.channel);
    if (b) of_b = load_pack<N>(b + at.channel);
    Pack<T, N> y;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const T sum = a ? fused(p.scale, of_b.v[e], of_a.v[e]) : p.scale * of_b.v[e];
      y.v[e] = b ? sum : of_a.v[e];  // an absent row is no 0 * scale, which may be NaN
    }
    store_pack(p.y + at.row * p.n_channels + at.channel, y);
  }
}

// ------------------------------------------------------------------ rows at places
template <class Word, int N>
__global__ void scatter_kernel(ScatterRows p) {
  const int64_t per_row = p.row_bytes / static_cast<int64_t>(sizeof(Word)) / N;
  const Word* rows = reinterpret_cast<const Word*>(p.rows);
  Word* out = reinterpret_cast<Word*>(p.out);
  for (int64_t i = thread_index(); i < p.n_rows * per_row; i += n_threads()) {
    const PackPlace at = pack_place(i, per_row, N);
    const int64_t place = p.place[at.row], before = at.row > 0 ? p.place[at.row - 1] : -1;
    if (place <= before || place < 0 || place >= p.n_out) continue;
    store_pack(out + place * per_row * N + at.channel, load_pack<N>(rows + i * N));
  }
}

template <class Word>
Status scatter_words(const Stream& stream, const ScatterRows& p) {
  const int64_t n_words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  return with_packs<Word>(n_words, {p.rows, p.out}, [&](auto width) {
    constexpr int N = decltype(width)::value;
    return launch(stream, {blocks_for(p.n_rows * (n_words / N), kPackThreads)}, kPackThreads, 0,
                  scatter_kernel<Word, N>, p);
  });
}

}  // namespace

Status join_rows(const Stream& stream, const Workspace& workspace, const JoinRows& j) {
  Status status =
      launch(stream, {blocks_for(j.n_a + 1, kPackThreads)}, kPackThreads, 0, rank_kernel, j);
  if (status == 0) status = exclusive_sum(stream, workspace, j.shared, j.before, j.n_a + 1);
  if (status != 0) return status;
  return launch(stream, {blocks_for(j.n_a + j.n_b, kPackThreads)}, kPackThreads, 0, place_kernel,
                j);
}

template <class T>
Status add_rows(const Stream& stream, const AddRows<T>& p) {
  return with_packs<T>(
      p.n_channels, {p.a.rows, p.a.ground, p.b.rows, p.b.ground, p.y}, [&](auto width) {
        constexpr int N = decltype(width)::value;
        return launch(stream, {blocks_for(p.n_out * (p.n_channels / N), kPackThreads)},
                      kPackThreads, 0, add_kernel<T, N>, p);
      });
}

Status scatter_rows(const Stream& stream, const ScatterRows& p) {
  const Status status = fill_bytes(stream, p.out, 0, p.n_out * p.row_bytes);
  if (status != 0) return status;
  return p.row_bytes % 4 == 0 ? scatter_words<uint32_t>(stream, p)
                              : scatter_words<uint16_t>(stream, p);
}

template Status add_rows<float>(const Stream&, const AddRows<float>&);
template Status add_rows<double>(const Stream&, const AddRows<double>&);

}  // namespace ds::gpu
