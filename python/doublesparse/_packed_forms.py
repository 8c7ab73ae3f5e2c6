"""What the kernels make of a `PackedWeight`: built on first use, then all that is in memory.

The forward form holds the values in the tiles' order; the canonical tensors, those of
`PackedWeight.tensors`, are let go and made again when somebody asks for them.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from . import _C, ops
from ._masked_conv import Geometry
from ._packed_weight import PackedWeight
from ._patterns import Block
from ._spmm_costs import BITMASK_DENSITY, on_matrix_tiles
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

    __slots__ = ("_blocks", "scales", "tiles", "values")

    def __init__(self, tiles: _C.Tiles, values: Tensor, scales: Tensor | None) -> None:
        self.tiles, self.values, self.scales = tiles, values, scales
        self._blocks: _C.TileBlocks | None = None

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ W.T + bias`: (m, n_rows), the dtype of x."""
        values = self.values
        if on_matrix_tiles(x.dtype, values.dtype):
            return ops.tile_spmm(x, self._on_tiles(), bias)
        if x.dtype == torch.float64 and values.dtype != torch.float64:
            values = self._wide(x.dtype)
        elif x.dtype != torch.float64 and values.dtype == torch.float64:
            values = values.float()
        scales = None
        if values.dtype == torch.int8 and self.scales is not None:
            scales = self.scales.float()
        return ops.spmm(x, self.tiles, values, bias, scales)

    def _on_tiles(self) -> _C.TileBlocks:
        """In blocks of 32 x 32, for matrix tiles; built on first use."""
        if self._blocks is None:
            matrix, keep = self.dense()
            row_start = torch.zeros(len(keep) + 1, dtype=torch.int64)
            torch.cumsum(keep.sum(1), 0, out=row_start[1:])
            columns = keep.nonzero()[:, 1].int()
            self._blocks = ops.tile_blocks(row_start, columns, matrix[keep], keep.shape[1])
        return self._blocks

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


@torch.compiler.assume_constant_result
def traced_operands(packed: PackedWeight) -> list[Tensor | int | None]:
    """For a traced graph, which holds them as constants: what `ops.spmm` reads, tiles unfolded."""
    form = forms_of(packed).forward
    t, values = form.tiles, form.values
    if values.dtype == torch.float64:
        scales = None
    else:
        scales = None if form.scales is None else form.scales.float()
    sizes = [t.n_rows, t.n_columns, t.block_columns, t.unit_rows]
    return [t.starts, t.columns, *sizes, values, scales, t.bits]


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


# ------------------------------------------------------------------ convolutions on matrix tiles
def takes_tile_conv(packed: PackedWeight, x: Tensor, g: Geometry) -> bool:
    """Whether a convolution runs on matrix tiles: bfloat16, and whole blocks of 32 x 32 pruned."""
    pattern = packed.pattern
    whole = isinstance(pattern, Block) and pattern.r % 32 == 0 and pattern.c % 32 == 0
    return (
        whole and on_matrix_tiles(x.dtype, packed.dtype) and g.groups == 1 and g.before == g.after
    )


def tile_conv(packed: PackedWeight, x: Tensor, g: Geometry, bias: Tensor | None) -> Tensor:
    """The convolution of x (B, c_in, *spatial), channels last; no gradient."""
    blocks = packed._forms.get("tile_conv")
    if blocks is None:
        n_in = packed.numel() // max(1, packed.shape[0])
        blocks = ops.tile_blocks(*packed.csr(), n_in, channels=packed.shape[1])
        packed._forms["tile_conv"] = blocks
    kernel = tuple(packed.shape[2:])
    return ops.tile_conv(x, blocks, kernel, g.stride, g.before, g.dilation, bias)
