"""Windows and segments on a CUDA device: the front of csrc/cuda/{windows,pool,rows}.

Where a size has to be read back, errors in the data are raised with it, as on the CPU. Elsewhere an
index out of range reads nothing: `window_table`, `window_max`, `window_sum`, `window_max_grad`,
`segment_sum`, `segment_sum_sq`, `add_rows`, `scatter_rows` do not look for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._device import gpu


def _workspace(like: Tensor, n: int) -> Tensor:
    """For the algorithms on n items."""
    return like.new_empty(gpu().algorithm_workspace(n), dtype=torch.int8)


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
