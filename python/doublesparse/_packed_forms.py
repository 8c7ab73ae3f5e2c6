"""What the kernels make of a `PackedWeight`: built on first use, then all that is in memory.

The forward form holds the values in the tiles' order; the canonical tensors, those of
`PackedWeight.tensors`, are let go and made again when somebody asks for them.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from . import _C, ops
from ._packed_weight import PackedWeight
from ._spmm_costs import BITMASK_DENSITY
from ._structure import Structure, index_of_tiles, unit_rows_of

_lock = Lock()


BITMASK_PADDING = 16
"""Values behind the last one of tiles with bits, which a vector may read."""


def takes_bitmask(packed: PackedWeight, unit_rows: int) -> bool:
    """Whether so much is kept that a dense product, whose weight is decoded on its way, is best."""
    fits = packed.dtype in (torch.float32, torch.float64) and packed.shape[0] % 16 == 0
    return fits and unit_rows == 1 and packed.density > BITMASK_DENSITY


class Form:
    """Tiles and their values, as stored.

    Attributes:
        tiles: of the matrix, or of its transpose.
        values: (n_entries * unit_rows,): float32, float64, bfloat16, float16 or int8.
        scales: float32 (n_rows,) of int8 values, or None.
    """

    __slots__ = ("scales", "tiles", "values")

    def __init__(self, tiles: _C.Tiles, values: Tensor, scales: Tensor | None) -> None:
        self.tiles, self.values, self.scales = tiles, values, scales

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ W.T + bias`: (m, n_rows), the dtype of x."""
        values = self.values
        if x.dtype == torch.float64 and values.dtype != torch.float64:
            values = self._wide(x.dtype)
        elif x.dtype != torch.float64 and values.dtype == torch.float64:
            values = values.float()
        scales = None
        if values.dtype == torch.int8 and self.scales is not None:
            scales = self.scales.float()
        return ops.spmm(x, self.tiles, values, bias, scales)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The matrix of the stored values, and of the mask."""
        index = index_of_tiles(self.tiles)
        matrix = self.values.new_zeros(self.tiles.n_rows, self.tiles.n_columns)
        keep = torch.zeros(matrix.shape, dtype=torch.bool)
        matrix.view(-1)[index] = self.values[: len(index)]
        keep.view(-1)[index] = True
        return matrix, keep

    def _wide(self, dtype: torch.dtype) -> Tensor:
        values = self.values.to(dtype)
        if self.scales is None:
            return values
        rows = index_of_tiles(self.tiles) // max(1, self.tiles.n_columns)
        return values * self.scales.to(dtype)[rows]


class Forms:
    """The forward form of a packed weight, and that of its transpose where gradients want it."""

    def __init__(self, packed: PackedWeight) -> None:
        matrix, keep, scales = packed.stored_matrix()
        unit = unit_rows_of(keep)
        bitmask = takes_bitmask(packed, unit)
        structure = Structure(keep, unit, bitmask)
        values = matrix.reshape(-1).index_select(0, structure.index)
        if bitmask:
            values = torch.nn.functional.pad(values, (0, BITMASK_PADDING))
        self.forward = Form(structure.tiles, values, scales)
        self._backward: Form | None = None

    @property
    def backward(self) -> Form:
        """Of the transpose; int8 values are float32 there, as their scales go by column."""
        if self._backward is None:
            matrix, keep = self.forward.dense()
            if self.forward.scales is not None:
                matrix = matrix * self.forward.scales[:, None]
            matrix, keep = matrix.t().contiguous(), keep.t().contiguous()
            structure = Structure(keep, unit_rows_of(keep))
            self._backward = Form(structure.tiles, matrix.view(-1)[structure.index], None)
        return self._backward


def forms_of(packed: PackedWeight) -> Forms:
    """The kernel forms of a packed weight (c_out, c_in)."""
    found: Forms | None = packed._forms.get("spmm")
    if found is None:
        with _lock:
            found = packed._forms.get("spmm")
            if found is None:
                found = Forms(packed)
                packed.keep_form(found.forward)
                packed._forms["spmm"] = found
    return found
