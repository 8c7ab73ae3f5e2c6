"""Whether a pruned layer runs its sparse kernel: a shipped model, a pure function of counts.

As in `_costs`: nanoseconds on one core, of which only ratios decide anything. Neither a clock nor a
thread count has a say, so the bits of a result do not depend on them. `bench/calibrate.py` measures
and fits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from . import _C
from ._crossover import get_crossover
from ._packed_weight import PackedWeight
from ._patterns import Block, Pattern

MARGIN = 0.10
"""How much less the sparse kernel must be predicted to take."""

BITMASK_DENSITY = 0.65
"""Share of kept weights above which a frozen weight is a bitmask, decoded for a dense product."""

_LANES = {"baseline": 4, "avx2": 8, "avx512": 16, "amx": 16}
_SINGLE = 2  # rows up to which they are multiplied one by one: csrc/cpu/spmm/spmm.cpp


class Product(NamedTuple):
    """Counts of one product x W^T.

    Attributes:
        rows: of x; columns: of x; outputs: rows of W.
        kept: weights; unit: rows of W that keep whole columns together.
    """

    rows: int
    columns: int
    outputs: int
    kept: int
    unit: int = 1


class Costs(NamedTuple):
    """Costs in ns of one core.

    Attributes:
        call: of a product; dense_call: of torch's.
        mac: of a kept weight and a row; unit_mac: in units of several rows; dense_mac: torch's.
        single: of a kept weight and a row that is alone.
        weight: of a kept weight, read once; dense_weight: of any weight, by torch.
        segment: of a row of W and a block of its columns, per vector of rows.
        moved: of a value of x or y, transposed; dense_moved: by torch.
        sampled: a multiply-add of a kept weight's gradient.
        gathered: a kept weight that is taken out of a dense parameter, or its gradient put there.
        zeroed: any weight of a gradient that is zero elsewhere.
        masked: any weight of a copy with zeros.
        unpacked: any weight of a packed one that is made dense.
    """

    call: float = 4e3
    dense_call: float = 2e3
    mac: float = 0.036
    unit_mac: float = 0.026
    dense_mac: float = 0.0205
    single: float = 0.40
    weight: float = 0.15
    dense_weight: float = 0.09
    segment: float = 4.0
    moved: float = 0.4
    dense_moved: float = 0.1
    sampled: float = 0.055
    gathered: float = 1.5
    zeroed: float = 0.2
    masked: float = 0.5
    unpacked: float = 3.0


_AVX2 = Costs()
# Not measured: vectors of twice the width, everything else as on AVX2.
_AVX512 = _AVX2._replace(mac=0.018, unit_mac=0.013, dense_mac=0.0103, sampled=0.028)
_BASELINE = _AVX2._replace(mac=0.1, unit_mac=0.09, dense_mac=0.08, sampled=0.12)
_MACHINES = {"baseline": _BASELINE, "avx2": _AVX2, "avx512": _AVX512, "amx": _AVX512}
_AMX_DENSE_MAC = 0.0017  # torch's bfloat16 on matrix tiles; not measured by us
# On matrix tiles, by counted cycles at 2.5 GHz: a block of 32 x 32 weights is decoded once for 16
# rows, or met by 32 rows at a time; a row of blocks begins and ends its sums.
_TILE_DECODE, _TILE_BLOCK, _TILE_ROW, _TILE = 40.0, 29.0, 40.0, 32


def counts_of(packed: PackedWeight, rows: int, transposed: bool = False) -> Product:
    """The counts of a product with a packed weight, of a convolution as the matrix that it is."""
    outputs = packed.shape[0]
    columns = packed.numel() // max(1, outputs)
    unit = _unit(packed.pattern, transposed)
    if transposed:
        outputs, columns = columns, outputs
    return Product(rows, columns, outputs, packed.n_kept, unit)


def _unit(pattern: Pattern, transposed: bool) -> int:
    """Rows that surely keep whole columns together."""
    rows = (pattern.c if transposed else pattern.r) if isinstance(pattern, Block) else 1
    return next((unit for unit in (_TILE, 16, 8, 4) if rows % unit == 0), 1)


@cache
def _has_matrix_tiles() -> bool:
    return _C.isa_chosen().startswith("amx")


def on_matrix_tiles(x: torch.dtype, values: torch.dtype) -> bool:
    """Whether products of these dtypes run on matrix tiles."""
    return x == values == torch.bfloat16 and _has_matrix_tiles()


def machine() -> Costs:
    """Of the chosen instruction set."""
    return _MACHINES.get(_C.isa_chosen(), _AVX512)


def _tile_ns(p: Product) -> float:
    """Predicted time on matrix tiles, if whole blocks are kept or else every block has a weight."""
    n_blocks = p.kept / _TILE**2 if p.unit == _TILE else p.columns * p.outputs / _TILE**2
    strips = -(-p.rows // _TILE)
    if p.rows <= _TILE // 2:
        return machine().call + n_blocks * _TILE_DECODE
    return machine().call + strips * (n_blocks * _TILE_BLOCK + p.outputs / _TILE * _TILE_ROW)


def sparse_ns(p: Product, dtype: torch.dtype = torch.float32) -> float:
    """Predicted time of our product; `dtype`: of x, and of bfloat16 weights."""
    if on_matrix_tiles(dtype, dtype):
        return _tile_ns(p)
    c = machine()
    if p.rows <= _SINGLE:
        return c.call + p.rows * p.kept * c.single
    lanes = _LANES.get(_C.isa_chosen(), 8)
    vectors = -(-p.rows // lanes)
    segments = vectors * (p.outputs // p.unit) * -(-p.columns // 256)
    mac = c.mac if p.unit == 1 else c.unit_mac
    return (
        c.call
        + vectors * lanes * p.kept * mac
        + p.kept * c.weight
        + segments * c.segment
        + p.rows * (p.columns + p.outputs) * c.moved
    )


def dense_ns(p: Product, dtype: torch.dtype) -> float:
    """Predicted time of torch's product."""
    c = machine()
    weights = p.columns * p.outputs
    mac, weight = c.dense_mac, c.dense_weight
    if dtype == torch.bfloat16 and _C.isa_chosen() == "amx":
        mac, weight = _AMX_DENSE_MAC, weight / 2
    elif dtype == torch.float64:
        mac, weight = 2 * mac, 2 * weight
    elif dtype in (torch.bfloat16, torch.float16):
        mac = 5 * mac  # converted value by value
    moved = p.rows * (p.columns + p.outputs) * c.dense_moved
    return c.dense_call + max(p.rows * weights * mac, weights * weight) + moved


def sampled_ns(p: Product) -> float:
    """Predicted time of `dy.T @ x` at the kept weights of W."""
    c = machine()
    lanes = _LANES.get(_C.isa_chosen(), 8)
    vectors = -(-p.rows // lanes)
    return (
        c.call
        + vectors * lanes * p.kept * c.sampled
        + p.kept * c.weight
        + p.rows * (p.columns + p.outputs) * c.moved
    )


def runs_sparse(p: Product, dtype: torch.dtype, trained: bool = False) -> bool:
    """Whether `x W^T` runs our kernel; `set_crossover(None)` keeps everything on ours.

    Args:
        p: its counts.
        dtype: of x.
        trained: the weight is a dense parameter with a mask: its kept values are gathered for our
            kernel, and the others set to zero for torch's.
    """
    if get_crossover() is None:
        return True
    c, weights = machine(), p.columns * p.outputs
    sparse = sparse_ns(p, dtype if not trained else torch.float32)
    sparse += trained * p.kept * c.gathered
    return sparse < (1 - MARGIN) * (dense_ns(p, dtype) + trained * weights * c.masked)


def samples(p: Product, dtype: torch.dtype) -> bool:
    """Whether the weight's gradient is formed at kept weights only, by our kernel.

    Args:
        p: the counts of the forward product.
        dtype: of x.
    """
    if get_crossover() is None:
        return True
    c, weights = machine(), p.columns * p.outputs
    sparse = sampled_ns(p) + p.kept * c.gathered + weights * c.zeroed
    return sparse < (1 - MARGIN) * (dense_ns(p, dtype) + weights * c.masked)


def runs_packed(p: Product, dtype: torch.dtype) -> bool:
    """Whether a product with a `PackedWeight` runs our kernel: otherwise it is unpacked first.

    Args:
        p: its counts.
        dtype: of x.
    """
    if get_crossover() is None:
        return True
    weights = p.columns * p.outputs
    if p.unit == 1 and p.kept > BITMASK_DENSITY * weights and p.outputs % 16 == 0:
        return p.rows > _SINGLE
    return sparse_ns(p, dtype) < dense_ns(p, dtype) + weights * machine().unpacked
