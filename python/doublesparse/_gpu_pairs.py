"""The pairs of a rulebook on a CUDA device: a neighbour table, and lists where somebody looks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._device import capturing, gpu


class _Table(NamedTuple):
    n_src: int
    n_dst: int
    rows: Tensor


class _Store:
    """What both directions of one rulebook share; side 0 is how it was made."""

    __slots__ = ("lists", "memos", "n_offsets", "rows", "tables")

    def __init__(self, n_offsets: int) -> None:
        self.n_offsets = n_offsets
        self.rows: tuple[int, int] | None = None  # source and destination rows, of a table
        self.lists: tuple[Tensor, Tensor, Tensor] | None = None  # source, destination, offset_start
        self.tables: list[_Table | None] = [None, None]
        self.memos: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})


class GpuPairs:
    """`_C.Pairs` on a CUDA device: same names, and `table`.

    Rows of every list must be strictly ascending, as there; their values are in device memory and
    not looked at: a pair that names no row of its operands is left out. What is made on first use
    is remembered, by both directions in one place, and belongs to the stream that was current then.

    Attributes:
        n_offsets: kernel volume.
        memo: what callers remember of this direction; sizes of operands belong into the keys.
    """

    __slots__ = ("_side", "_store")

    def __init__(self, src_rows: Tensor, dst_rows: Tensor, offset_start: Tensor) -> None:
        """Lists sorted by (offset, row): int32 (n_pairs,) twice, int64 (n_offsets + 1,).

        Raises:
            TypeError: another dtype.
            ValueError: another rank, lists of two lengths, no start.
        """
        lists = {"src_rows": src_rows, "dst_rows": dst_rows, "offset_start": offset_start}
        for name, given in lists.items():
            dtype = torch.int64 if name == "offset_start" else torch.int32
            if given.dtype != dtype:
                raise TypeError(f"Pairs: {name} must be {dtype}, got {given.dtype}; convert it")
            if given.ndim != 1:
                raise ValueError(f"Pairs: {name} must have 1 axis, got {given.ndim}; flatten it")
        if len(src_rows) != len(dst_rows) or len(offset_start) == 0:
            raise ValueError(
                f"Pairs: src_rows, dst_rows and offset_start must have n, n and n_offsets + 1 "
                f"elements, got {len(src_rows)}, {len(dst_rows)} and {len(offset_start)}; pass "
                "lists of one rulebook"
            )
        store = _Store(len(offset_start) - 1)
        device = src_rows.device
        src, dst, start = (t.to(device).contiguous() for t in lists.values())
        store.lists = (src, dst, start)
        self._store, self._side = store, 0

    @staticmethod
    def of_table(table: Tensor, n_src: int) -> GpuPairs:
        """From int32 (n_offsets, n_dst): the source row of each destination row, or -1."""
        store = _Store(table.shape[0])
        store.rows = (n_src, table.shape[1])
        store.tables[0] = _Table(n_src, table.shape[1], table)
        return GpuPairs._of(store, 0)

    @staticmethod
    def _of(store: _Store, side: int) -> GpuPairs:
        pairs = object.__new__(GpuPairs)
        pairs._store, pairs._side = store, side
        return pairs

    def reversed(self) -> GpuPairs:
        """Source and destination swapped."""
        return GpuPairs._of(self._store, 1 - self._side)

    @property
    def n_offsets(self) -> int:
        """Kernel volume."""
        return self._store.n_offsets

    @property
    def n_pairs(self) -> int:
        """Number of pairs: read back from the device where the lists are not made yet."""
        return len(self._lists()[0])

    @property
    def src_rows(self) -> Tensor:
        """int32 (n_pairs,): sorted by (offset, row)."""
        return self._lists()[self._side]

    @property
    def dst_rows(self) -> Tensor:
        """int32 (n_pairs,): sorted by (offset, row)."""
        return self._lists()[1 - self._side]

    @property
    def offset_start(self) -> Tensor:
        """int64 (n_offsets + 1,): the list of offset k is [start[k], start[k + 1])."""
        return self._lists()[2]

    @property
    def memo(self) -> dict[Any, Any]:
        """What callers remember of this direction."""
        return self._store.memos[self._side]

    @property
    def n_bytes(self) -> int:
        """Bytes held once both tables are made, or those of the lists."""
        store = self._store
        if store.rows is not None:
            return 4 * store.n_offsets * sum(store.rows)
        return 8 * self.n_pairs + 8 * self.n_offsets

    def table(self, n_src: int, n_dst: int) -> Tensor:
        """int32 (n_offsets, n_dst): the source row of each destination row, or -1.

        Raises:
            ValueError: there are pairs of more rows than that.
        """
        store, side = self._store, self._side
        kept = store.tables[side]
        if kept is not None and kept[:2] == (n_src, n_dst):
            return kept.rows
        if store.rows is None:
            # Kernels compare what they read with n_src, so one table does for every bound above it.
            if kept is not None and kept[1] == n_dst and kept[0] <= n_src:
                return kept.rows
            return self._keep(_Table(n_src, n_dst, self._table_of_lists(n_src, n_dst))).rows
        known = store.rows if side == 0 else store.rows[::-1]
        if n_src < known[0] or n_dst < known[1]:
            raise ValueError(
                f"Pairs: pairs join {known[0]} to {known[1]} rows, got operands with {n_src} and "
                f"{n_dst}; pass those of this rulebook"
            )
        if kept is None:
            kept = self._keep(self._turned(*known))
        if n_dst == known[1]:
            return kept.rows
        return torch.nn.functional.pad(kept.rows, (0, n_dst - known[1]), value=-1)

    def remember(self, key: Any, value: Any, device: torch.device) -> None:
        """Keep what a caller made on the device in `memo`, unless it is `capturing`."""
        if not capturing(device):
            self.memo[key] = value

    def _keep(self, table: _Table) -> _Table:
        if not capturing(table.rows.device):
            self._store.tables[self._side] = table
        return table

    def _table_of_lists(self, n_src: int, n_dst: int) -> Tensor:
        src, dst, start = self.src_rows, self.dst_rows, self.offset_start
        table = src.new_empty(self.n_offsets, n_dst)
        gpu().table_of_lists(src, dst, start, n_src, table)
        return table

    def _turned(self, n_src: int, n_dst: int) -> _Table:
        """The table of this direction, from the other one's."""
        other = self._store.tables[1 - self._side]
        assert other is not None  # a store has lists, or a table of side 0
        table = other.rows.new_empty(self.n_offsets, n_dst)
        gpu().reverse_table(other.rows, table)
        return _Table(n_src, n_dst, table)

    def _lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of side 0: source, destination, offset_start."""
        store = self._store
        if store.lists is None:
            made = store.tables[0]
            assert made is not None  # see `_turned`
            store.lists = _lists_of(made.rows)
        return store.lists

    def __repr__(self) -> str:
        """Nothing that would have to be read back."""
        return f"GpuPairs(offsets={self.n_offsets})"


def _lists_of(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n_offsets, n_dst = table.shape
    tiles = -(-n_dst // gpu().kTileRows)  # of an offset
    counts = table.new_empty(n_offsets * tiles + 1)
    tile_start = counts.new_empty(len(counts), dtype=torch.int64)
    room = gpu().algorithm_workspace(table, len(counts))
    workspace = tile_start.new_empty(-(-room // 8))
    gpu().count_pairs(table, workspace, counts, tile_start)
    n_pairs = int(tile_start[-1])  # the one read back
    src, dst = table.new_empty(n_pairs), table.new_empty(n_pairs)
    gpu().fill_pairs(table, tile_start, src, dst)
    start = tile_start[::tiles].contiguous() if tiles else tile_start.new_zeros(n_offsets + 1)
    return src, dst, start
