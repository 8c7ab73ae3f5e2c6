"""Products with pruned matrices: the front of `ops` for csrc/cpu/spmm."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._scratch import scratch

Tiles = _C.Tiles
"""``Tiles(starts, columns, n_rows, n_columns, block_columns, unit_rows, bits)``, checked once.

The matrix is cut into blocks of ``block_columns`` columns and units of ``unit_rows`` rows (1, 4, 8
or 16). ``starts``: int64 (n_blocks * n_units + 1,), where the entries of (block, unit) begin.
``columns``: int16, the kept columns of the unit in the block, ascending, from the block's first.
``bits``: int16 (n_entries,), which of the 16 rows of an entry are kept, or None for all; with bits
there is a value for every one of them, then 16 numbers that do not matter. The tensors must not be
written to afterwards.
"""

_PLAIN = (torch.float32, torch.float64)


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def spmm(
    x: Tensor,
    tiles: _C.Tiles,
    values: Tensor,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """``x @ W.T + bias``: (m, n_rows), the dtype of x.

    Args:
        x: (m, n_columns), contiguous; float32, float64, bfloat16 or float16.
        tiles: of W (n_rows, n_columns).
        values: (n_entries * unit_rows,): those of entry i from ``i * unit_rows`` on. The dtype that
            sums have (float32, or float64 for float64); or, where that is float32, bfloat16,
            float16 or int8.
        bias: (n_rows,), the dtype of the sums or of x, or None.
        scales: float32 (n_rows,), what int8 values are multiplied by.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    acc = _acc(x.dtype)
    y = x.new_empty(x.shape[0], tiles.n_rows)
    bias = bias if bias is None or bias.dtype == acc else bias.to(acc)
    threads = torch.get_num_threads()
    is_double, plain = acc == torch.float64, values.dtype in _PLAIN and tiles.bits is None
    size = _C.spmm_workspace(tiles, is_double, plain, x.shape[0], threads)
    _C.spmm(tiles, values, scales, x, bias, scratch(size, acc), y, threads)
    return y


def sddmm(dy: Tensor, x: Tensor, tiles: _C.Tiles) -> Tensor:
    """``dy.T @ x`` at the entries of W: (n_entries,), float32 or, for float64, float64.

    Args:
        dy: (m, n_rows), contiguous.
        x: (m, n_columns), contiguous, the dtype of dy.
        tiles: of W, with units of one row.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit, or units have more rows.
    """
    acc = _acc(x.dtype)
    values = torch.empty(tiles.n_entries, dtype=acc, device="cpu")
    workspace = scratch(_C.sddmm_workspace(tiles, acc == torch.float64, x.shape[0]), acc)
    _C.sddmm(tiles, dy, x, workspace, values, torch.get_num_threads())
    return values
