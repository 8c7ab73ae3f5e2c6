// What spmm and sddmm share: a block of warps that walks over the panels of W, a panel of
// activations and every warp's entries of it in shared memory, the next ones on their way.
//
// A block has kWarps slabs (every n_blocks-th of the sorted ones: long and short ones are dealt
// evenly) and kM rows of activations, of which a lane has kVec neighbours. Per entry a warp reads
// 16 bytes a lane (4 cycles of shared memory for 128 multiply-adds of float32) and half a
// broadcast, so shared memory is what bounds it: 28 useful TFLOP/s on an H100, whatever the
// density. Two stages, or one where a block has too little shared memory: nothing is multiplied
// while a panel comes then, but all sums have the same terms in the same order.
#pragma once
#include "cuda/async_copy.h"
#include "cuda/spmm/plan.h"

namespace ds::gpu {

template <class T_, class V_, int kVec_, int kWarps_, int kStages_ = 2>
struct PanelTile {
  using T = T_;  // of activations and sums
  using V = V_;  // of stored values
  static constexpr int kVec = kVec_, kWarps = kWarps_, kStages = kStages_;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kM = kWarp * kVec;
  static constexpr int kBuffered = 48;  // chunks of a warp that are brought with its panel
  static constexpr int kCopy = kM * static_cast<int>(sizeof(T)) / 16;  // of 16 bytes, a column
  static_assert(kVec * sizeof(T) <= 16 && kM * sizeof(T) % 16 == 0);

  struct Entries {
    alignas(16) V values[kBuffered][kChunk];
    alignas(16) uint16_t columns[kBuffered][kChunk];
  };
  struct Panel {
    alignas(16) T x[kPanelColumns + 1][kM];  // the last column is zeros
  };
  struct Shared {
    Panel panels[kStages];
    Entries entries[kStages][kWarps];
  };
  static_assert(sizeof(Shared) <= (kStages > 1 ? 163 : 99) * 1024, "of blocks of sm_80, sm_86");
};

// Calls run(C{}), C the tile with as many stages as fit into a block of this device.
template <class T, class V, int kVec, int kWarps, class Run>
Status with_panel_tile(const Stream& stream, const Run& run) {
  using Two = PanelTile<T, V, kVec, kWarps>;
  if constexpr (sizeof(typename Two::Shared) > 99 * 1024)
    if (sizeof(typename Two::Shared) > most_shared_bytes(stream))
      return run(PanelTile<T, V, kVec, kWarps, 1>{});
  return run(Two{});
}

// Activations with rows side by side: element (column, row) at column * n_padded + row, zeros from
// the last row to n_padded, a multiple of kM.
template <class T>
struct Lanes {
  const T* at;
  int64_t n_padded;
};

// A warp's place in W, and its 8 segments of one panel: lane i <= 8 holds the first chunk of
// segment i, that is the end of segment i - 1.
struct WarpSlab {
  int64_t slab;  // -1: none
  DS_DEVICE int32_t starts(const SpmmPlan& plan, int64_t panel) const {
    if (slab < 0 || panel >= n_panels_of(plan) || lane_index() > kSlabRows) return 0;
    const int64_t first = (slab * n_panels_of(plan) + panel) * kSlabRows;
    const int64_t chunk = plan.starts[first + lane_index()];
    return static_cast<int32_t>(chunk < 0 ? 0 : chunk < plan.n_chunks ? chunk : plan.n_chunks);
  }
};

template <class C>
DS_DEVICE WarpSlab warp_slab(const SpmmPlan& plan, int64_t block) {
  const int64_t n_slabs = n_slabs_of(plan), n_blocks = ceil_div(n_slabs, C::kWarps);
  const int64_t position = warp_index() * n_blocks + block;
  const int64_t slab = position < n_slabs ? plan.slabs[position] : -1;
  return {slab < n_slabs ? slab : -1};
}

template <class C>
DS_DEVICE void clear_last_column(typename C::Panel& panel) {
  for (int i = static_cast<int>(threadIdx.x); i < C::kM; i += C::kThreads)
    panel.x[kPanelColumns][i] = typename C::T(0);
}

template <class C>
DS_DEVICE void copy_panel(typename C::Panel& panel, const Lanes<typename C::T>& x, int64_t m_first,
                          int64_t index, int64_t n_columns) {
  constexpr int kOf16 = 16 / sizeof(typename C::T);
  for (int i = static_cast<int>(threadIdx.x); i < kPanelColumns * C::kCopy; i += C::kThreads) {
    const int column = i / C::kCopy, part = i % C::kCopy * kOf16;
    const int64_t from = index * kPanelColumns + column;
    const bool valid = from < n_columns;
    copy_async<16>(&panel.x[column][part], x.at + (valid ? from : 0) * x.n_padded + m_first + part,
                   valid);
  }
}

// Chunks [first, min(last, first + kBuffered)) for this warp; values may be null.
template <class C>
DS_DEVICE void copy_entries(typename C::Entries& entries, const SpmmPlan& plan,
                            const typename C::V* values, int64_t first, int64_t last) {
  constexpr int kBytes = kChunk * sizeof(typename C::V);
  for (int i = lane_index(); i < C::kBuffered && first + i < last; i += kWarp) {
    const int64_t from = (first + i) * kChunk;
    copy_async<8>(entries.columns[i], plan.columns + from);
    if (values == nullptr) continue;
    if constexpr (kBytes > 16) {
      copy_async<16>(entries.values[i], values + from);
      copy_async<16>(entries.values[i] + 16 / sizeof(typename C::V),
                     values + from + 16 / sizeof(typename C::V));
    } else {
      copy_async<kBytes>(entries.values[i], values + from);
    }
  }
}

// Walks over the panels: chunk(row of the slab, panel, entries, i, chunk of the plan) for all of a
// warp's chunks, row by row, columns ascending. kRow is a constant there (sums stay in registers).
template <class C, class Chunk>
DS_DEVICE void walk_panels(const SpmmPlan& plan, const Lanes<typename C::T>& x,
                           const typename C::V* values, int64_t block, int64_t m_first,
                           const Chunk& chunk) {
  auto& memory = shared<typename C::Shared>();
  const WarpSlab mine = warp_slab<C>(plan, block);
  const int64_t n_panels = n_panels_of(plan);
  const auto bring = [&](int64_t p, int32_t starts) {
    const int64_t first = shuffle(starts, 0), last = shuffle(starts, kSlabRows);
    if (p < n_panels) {
      copy_panel<C>(memory.panels[p % C::kStages], x, m_first, p, plan.n_columns);
      copy_entries<C>(memory.entries[p % C::kStages][warp_index()], plan, values, first, last);
    }
    commit_copies();
  };
  for (int i = 0; i < C::kStages; ++i) clear_last_column<C>(memory.panels[i]);
  int32_t starts = mine.starts(plan, 0), next = mine.starts(plan, 1);
  bring(0, starts);
  for (int64_t p = 0; p < n_panels; ++p) {
    if constexpr (C::kStages > 1) bring(p + 1, next);
    const int32_t after = mine.starts(plan, p + 2);  // on its way while this panel is multiplied
    wait_copies<C::kStages - 1>();
    sync_block();
    const auto& panel = memory.panels[p % C::kStages];
    auto& entries = memory.entries[p % C::kStages][warp_index()];
    const int32_t first = shuffle(starts, 0), last = shuffle(starts, kSlabRows);
    for (int32_t base = first; base < last; base += C::kBuffered) {
      if (base != first) {  // a panel with more than its share: the rest comes bit by bit
        sync_warp();
        copy_entries<C>(entries, plan, values, base, last);
        commit_copies();
        wait_copies<0>();
        sync_warp();
      }
      const int32_t limit = base + C::kBuffered;
#pragma unroll
      for (int row = 0; row < kSlabRows; ++row) {
        const int32_t from = shuffle(starts, row), to = shuffle(starts, row + 1);
        const int32_t end = to < limit ? to : limit;
        for (int32_t c = from > base ? from : base; c < end; ++c)
          chunk(row, panel, entries, c - base, c);
      }
    }
    sync_block();
    if constexpr (C::kStages == 1) bring(p + 1, next);  // what all have read may go
    starts = next;
    next = after;
  }
}

// A lane's activations of an entry's column.
template <class C>
DS_DEVICE Pack<typename C::T, C::kVec> lane_values(const typename C::Panel& panel, int column) {
  const int safe = column < kPanelColumns ? column : kPanelColumns;
  return load_pack<C::kVec>(&panel.x[safe][lane_index() * C::kVec]);
}

}  // namespace ds::gpu
