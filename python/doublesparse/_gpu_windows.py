"""Windows and segments on a CUDA device: the front of csrc/cuda/{windows,pool,rows}.

Where a size has to be read back, errors in the data are raised with it, as on the CPU. Elsewhere an
index out of range reads nothing: `window_table`, `window_max`, `window_sum`, `window_max_grad`,
`segment_sum`, `segment_sum_sq`, `add_rows`, `scatter_rows` do not look for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._device import gpu

_MOST_ROWS = 2**31 - 1


def _workspace(like: Tensor, n: int) -> Tensor:
    """For the algorithms on n items."""
    return like.new_empty(gpu().algorithm_workspace(like, n), dtype=torch.int8)


# ------------------------------------------------------------------ rows
def _slots(values: Tensor, n_positions: int) -> Tensor:
    """Where chunks of long segments leave their sums."""
    sums = torch.float64 if values.dtype == torch.float64 else torch.float32
    return values.new_empty(gpu().segment_slots(n_positions), values.shape[1], dtype=sums)


def segment_sum(
    values: Tensor, rows: Tensor | None, start: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`ops.segment_sum`."""
    out = values.new_empty(max(len(start) - 1, 0), values.shape[1])
    slots = _slots(values, len(values) if rows is None else len(rows))
    gpu().segment_sum(values, rows, start, bias, slots, out)
    return out


def segment_sum_sq(values: Tensor, start: Tensor, mean: Tensor) -> Tensor:
    """`ops.segment_sum_sq`."""
    out = values.new_empty(max(len(start) - 1, 0), values.shape[1])
    gpu().segment_sum_sq(values, start, mean, _slots(values, len(values)), out)
    return out


def join_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.join_rows`: one read, the number of keys."""
    most = len(a) + len(b)
    rank, shared, before = a.new_empty(3, len(a) + 1, dtype=torch.int32)
    keys = a.new_empty(most, dtype=torch.int64)
    from_a, from_b = (a.new_empty(most, dtype=torch.int32) for _ in range(2))
    workspace = _workspace(a, len(a) + 1)
    gpu().join_rows(a, b, workspace, rank[:-1], shared, before, keys, from_a, from_b)
    n = most - int(before[-1])
    return keys[:n], from_a[:n], from_b[:n]


def add_rows(
    a: Tensor,
    ground_a: Tensor | None,
    from_a: Tensor,
    b: Tensor,
    ground_b: Tensor | None,
    from_b: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """`ops.add_rows`."""
    y = a.new_empty(len(from_a), a.shape[1])
    gpu().add_rows(a, ground_a, from_a, b, ground_b, from_b, scale, y)
    return y


def scatter_rows(rows: Tensor, place: Tensor, n_out: int) -> Tensor:
    """`ops.scatter_rows`."""
    out = rows.new_empty(n_out, rows.shape[1])
    gpu().scatter_rows(rows, place, out)
    return out


# ------------------------------------------------------------------ index work
def window_table(
    pairs: Any,
    n_out: int,
    out_class: Tensor | None = None,
    tap_class: Tensor | None = None,
    rows_per_sample: int = 0,
    out_batch: Tensor | None = None,
) -> Tensor:
    """`ops.window_table`: the pairs' table, turned; taps that are out of range read nothing."""
    neighbours = pairs.table(_MOST_ROWS, n_out)
    table = neighbours.new_empty(n_out, pairs.n_offsets)
    gpu().window_table(neighbours, out_class, tap_class, rows_per_sample, out_batch, table)
    return table


def _start_of(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Workspace for the counts of rows, `start`, and what is read back."""
    n_starts = len(table) + 1
    counts = table.new_empty(n_starts, dtype=torch.int32)
    start, found = (table.new_empty(n, dtype=torch.int64) for n in (n_starts, 3))
    return counts, start, found


def _read_taps(operation: str, found: Tensor, n_class_rows: int) -> tuple[int, int]:
    """The one read: numbers of taps and of u rows."""
    n_taps, n_u, bad = found.tolist()
    if bad:
        raise ValueError(
            f"{operation}: table must lie in [{-1 - n_class_rows}, 2147483648), an entry is below"
        )
    return n_taps, n_u


def ground_taps(table: Tensor, n_class_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ops.ground_taps`: one read."""
    n_out, n_offsets = table.shape
    n_flags = 1 + n_offsets * n_class_rows
    counts, start, found = _start_of(table)
    flags = table.new_empty(n_flags, dtype=torch.int32)
    numbers = table.new_empty(n_flags, dtype=torch.int64)
    u_offset_start = table.new_empty(n_offsets + 1, dtype=torch.int64)
    marks = (counts, start, found, flags, numbers, u_offset_start)
    workspace = _workspace(table, max(n_flags, n_out + 1))
    gpu().plan_ground_taps(table, n_class_rows, workspace, *marks)
    n_taps, n_u = _read_taps("ground_taps", found, n_class_rows)
    if n_u > _MOST_ROWS:
        raise ValueError(
            f"ground_taps: {n_u} (offset, class row) products, at most 2^31 - 1 fit int32"
        )
    u_rows, class_rows = (table.new_empty(n, dtype=torch.int32) for n in (n_taps, n_u))
    gpu().fill_ground_taps(table, n_class_rows, *marks, u_rows, class_rows)
    return start, u_rows, class_rows, u_offset_start


def every_tap(table: Tensor, n_class_rows: int) -> tuple[Tensor, Tensor]:
    """`ops.every_tap`: one read."""
    counts, start, found = _start_of(table)
    workspace = _workspace(table, len(table) + 1)
    gpu().plan_every_tap(table, n_class_rows, workspace, counts, start, found)
    n_taps, _ = _read_taps("every_tap", found, n_class_rows)
    u_rows = table.new_empty(n_taps, dtype=torch.int32)
    gpu().fill_every_tap(table, n_class_rows, counts, start, found, u_rows)
    return start, u_rows


def invert_rows(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`ops.invert_rows`: one read, the number of positions."""
    keys, positions = (rows.new_empty(2, len(rows), dtype=torch.int32) for _ in range(2))
    start, found = (rows.new_empty(size, dtype=torch.int64) for size in (n + 1, 2))
    workspace = _workspace(rows, len(rows))
    gpu().invert_rows(rows, workspace, keys, positions, start, found)
    n_positions, bad = found.tolist()
    if bad:
        raise ValueError(f"invert_rows: rows must be below {n}, one is not")
    return start, positions[0, :n_positions].long()


# ------------------------------------------------------------------ reductions over windows
def window_max(x: Tensor, ground_rows: Tensor | None, table: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.window_max`."""
    y = x.new_empty(len(table), x.shape[1])
    arg = x.new_empty(len(table), x.shape[1], dtype=torch.int32)
    gpu().window_max(x, ground_rows, table, y, arg)
    return y, arg


def window_sum(x: Tensor, ground_rows: Tensor | None, table: Tensor) -> Tensor:
    """`ops.window_sum`."""
    y = x.new_empty(len(table), x.shape[1])
    gpu().window_sum(x, ground_rows, table, y)
    return y


def window_max_grad(
    dy: Tensor,
    arg: Tensor,
    start: Tensor,
    index: Tensor,
    K: int,  # noqa: N803 - the formula's own name
    n_rows: int,
) -> Tensor:
    """`ops.window_max_grad`."""
    dx = dy.new_empty(n_rows, dy.shape[1])
    gpu().window_max_grad(dy, arg, start, index, K, _slots(dy, len(index)), dx)
    return dx
