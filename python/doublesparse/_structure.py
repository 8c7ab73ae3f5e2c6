"""What the kernels need of a mask: its *tiles*, made once for every mask.

A matrix of n_rows x n_columns weights is cut into blocks of columns, so that a block's part of the
activations stays in L1, and its rows into units (of one row, or of 4, 8 or 16 where a pattern keeps
whole columns of them). See csrc/cpu/spmm/spmm.h.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _C

Matrix = Tensor
"""bool (n_rows, n_columns): which weights are kept."""

_UNITS = (16, 8, 4)
_WIDE_BLOCK, _BLOCK = 512, 256  # columns; a block of 256 and 4 vectors of lanes fill 32 KiB
_FEW = 0.15  # density below which a segment of a block is short enough to be widened
_MADE = TypeVar("_MADE")


class Structure:
    """Tiles of a matrix, with the place of every value in it.

    Attributes:
        tiles: what kernels read.
        index: int64 (n_entries * unit_rows,): row * n_columns + column of every value, in the
            tiles' order.
        shape: of the matrix.
    """

    __slots__ = ("index", "shape", "tiles")

    def __init__(self, matrix: Matrix, unit_rows: int = 1) -> None:
        n_rows, n_columns = self.shape = tuple(matrix.shape)
        matrix = matrix.contiguous()
        kept = matrix[::unit_rows]  # the first row speaks for its unit
        block = block_columns(n_columns, _density(kept))
        n_blocks = -(-n_columns // block)
        padded = torch.nn.functional.pad(kept, (0, n_blocks * block - n_columns))
        segments = padded.view(len(kept), n_blocks, block).transpose(0, 1)
        starts = torch.zeros(n_blocks * len(kept) + 1, dtype=torch.int64)
        torch.cumsum(segments.sum(-1).flatten(), 0, out=starts[1:])
        at = segments.flatten().nonzero().view(-1)
        in_block = at % block
        segment = at.div_(block, rounding_mode="floor")
        unit = segment % max(1, len(kept))
        column = segment.div_(max(1, len(kept)), rounding_mode="floor").mul_(block).add_(in_block)
        first = column.add_(unit.mul_(unit_rows * n_columns))
        rows = torch.arange(unit_rows) * n_columns
        self.index = first if unit_rows == 1 else (first[:, None] + rows).flatten()
        columns = in_block.to(torch.int16)
        self.tiles = _C.Tiles(starts, columns, n_rows, n_columns, block, unit_rows)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tiles and the index."""
        return sum(t.nbytes for t in (self.tiles.starts, self.tiles.columns, self.index))


def _density(kept: Tensor) -> float:
    return float(kept.sum()) / max(1, kept.numel())


def block_columns(n_columns: int, density: float) -> int:
    """Columns of a block: a pure function, so that the bits of a product are."""
    return min(max(1, n_columns), _WIDE_BLOCK if density < _FEW else _BLOCK)


def unit_rows_of(matrix: Matrix) -> int:
    """The most rows, 16, 8 or 4, of which every unit keeps whole columns; else 1."""
    n_rows = matrix.shape[0]
    for unit in _UNITS:
        if n_rows % unit == 0 and n_rows:
            units = matrix.view(n_rows // unit, unit, -1)
            if bool((units == units[:, :1]).all()):
                return unit
    return 1


class MaskStructures:
    """The structures of one mask, each made on first use."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = weakref.ref(mask)
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[Tensor], _MADE]) -> _MADE:
        """What `make` makes of the mask, remembered under `key`."""
        if key not in self._made:
            mask = self._mask()
            assert mask is not None  # the caller holds it
            self._made[key] = make(mask)
        made: _MADE = self._made[key]
        return made


_of_mask: dict[int, tuple[weakref.ref[Tensor], int, MaskStructures]] = {}


def structures_of(mask: Tensor) -> MaskStructures:
    """The structures of a mask, forgotten with the tensor or when it is written to."""
    key = id(mask)
    found = _of_mask.get(key)
    if found is not None and found[0]() is mask and found[1] == mask._version:
        return found[2]
    made = MaskStructures(mask)
    _of_mask[key] = weakref.ref(mask, lambda _: _of_mask.pop(key, None)), mask._version, made
    return made
