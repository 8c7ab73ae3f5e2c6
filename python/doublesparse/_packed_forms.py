"""What the kernels make of a `PackedWeight`: built on first use, then all that is in memory.

The forward form holds the values in the tiles' order; the canonical tensors, those of
`PackedWeight.tensors`, are let go and made again when somebody asks for them.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _C, ops
from ._masked_conv import Geometry
from ._packed_weight import PackedWeight
from ._patterns import Block, Pattern
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
        if on_matrix_tiles(x.dtype, self.values.dtype):
            return ops.tile_spmm(x, self._on_tiles(), bias)
        values, scales = self.operands(x.dtype)
        return ops.spmm(x, self.tiles, values, bias, scales)

    def operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Values that go with activations of this dtype, and their scales."""
        values, scales = self.values, self.scales
        if dtype == torch.float64 and values.dtype != torch.float64:
            return self._wide(dtype), None
        if dtype != torch.float64 and values.dtype == torch.float64:
            return values.float(), None
        return values, scales if scales is None else scales.float()

    def _on_tiles(self) -> _C.TileBlocks:
        """In blocks of 32 x 32, for matrix tiles; built on first use."""
        if self._blocks is None:
            matrix, keep = self.dense()
            row_start = torch.zeros(len(keep) + 1, dtype=torch.int64, device="cpu")
            torch.cumsum(keep.sum(1), 0, out=row_start[1:])
            columns = keep.nonzero()[:, 1].int()
            self._blocks = ops.tile_blocks(row_start, columns, matrix[keep], keep.shape[1])
        return self._blocks

    def dense(self) -> tuple[Tensor, Tensor]:
        """The matrix of the stored values, and of the mask."""
        index = index_of_tiles(self.tiles)
        matrix = self.values.new_zeros(self.tiles.n_rows, self.tiles.n_columns)
        keep = torch.zeros(matrix.shape, dtype=torch.bool, device="cpu")
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

    def __init__(self, forward: Form) -> None:
        self.forward = forward
        self._backward: Form | None = None
        self._sampled: _C.Tiles | None = None

    @property
    def sampled(self) -> _C.Tiles:
        """Tiles of the same entries in units of one row, in which a gradient is sampled."""
        if self._sampled is None:
            tiles = self.forward.tiles
            plain = tiles.unit_rows == 1
            self._sampled = tiles if plain else Structure(self.forward.dense()[1]).tiles
        return self._sampled

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


def _forward_form(packed: PackedWeight) -> Form:
    matrix, keep, scales = packed.stored_matrix()
    unit = unit_rows_of(keep)
    bitmask = takes_bitmask(packed, unit)
    structure = Structure(keep, unit, bitmask)
    values = matrix.reshape(-1).index_select(0, structure.index)
    if bitmask:
        values = F.pad(values, (0, BITMASK_PADDING))
    return Form(structure.tiles, values, scales)


def sampled(dy: Tensor, x: Tensor, tiles: _C.Tiles, pattern: Pattern) -> PackedWeight:
    """`dy.T @ x` at the entries of tiles with units of one row: dy (m, c_out), x (m, c_in)."""
    form = Form(tiles, ops.sddmm(dy, x, tiles).to(x.dtype), None)
    packed = PackedWeight.of_form((tiles.n_rows, tiles.n_columns), pattern, form)
    packed._forms["spmm"] = Forms(form)
    return packed


# ------------------------------------------------------------------ in traced graphs
@torch.compiler.assume_constant_result
def _constants(packed: PackedWeight, dtype: torch.dtype) -> list[Any]:
    """What the operator `spmm` reads beside x and bias."""
    form = forms_of(packed).forward
    t, (values, scales) = form.tiles, form.operands(dtype)
    sizes = [t.n_rows, t.n_columns, t.block_columns, t.unit_rows]
    return [t.starts, t.columns, *sizes, values, scales, t.bits]


@torch.compiler.assume_constant_result
def _dense(packed: PackedWeight, dtype: torch.dtype) -> list[Tensor]:
    """The dense weight, in a list: lone tensors of two layers would get one name in the graph."""
    return [packed.unpack().to(dtype)]


def traced_weight(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The dense weight as a constant of a traced graph."""
    return _dense(packed, dtype)[0]


def traced_product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ W.T + bias` in a graph; the weight is a constant of it, dense where gradients go by."""
    needed = [t for t in (x, bias) if t is not None and t.requires_grad]
    if x.is_cuda or (torch.is_grad_enabled() and needed):
        return F.linear(x, traced_weight(packed, x.dtype), bias)
    *tiles, values, scales, bits = _constants(packed, x.dtype)
    if bias is not None and x.dtype != torch.float64:
        bias = bias.float()
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.ops.doublesparse.spmm(rows, *tiles, values, bias, scales, bits)
    return cast("Tensor", y).view(*x.shape[:-1], y.shape[-1])


def forms_of(packed: PackedWeight) -> Forms:
    """The kernel forms of a packed weight (c_out, c_in)."""
    found: Forms | None = packed._forms.get("spmm")
    if found is None:
        with _lock:
            found = packed._forms.get("spmm")
            if found is None:
                found = Forms(_forward_form(packed))
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
