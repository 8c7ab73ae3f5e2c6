"""Whether a pruned layer runs its sparse kernel: a shipped model, a pure function of counts.

As in `_costs`: nanoseconds on one core, of which only ratios decide anything. Neither a clock nor a
thread count has a say, so the bits of a result do not depend on them. `bench/calibrate.py` measures
and fits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from . import _C
from ._crossover import get_crossover
from ._patterns import Block, Pattern

if TYPE_CHECKING:
    from ._packed_weight import PackedWeight

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


Costs = dict[str, dict[str, float]]
"""Nanoseconds of one core: kind of product -> count of `features` -> cost of one."""

# Fitted by bench/calibrate.py, through the public functions, on a busy machine; ratios matter only:
# 97.9 % of the choices on other shapes, rows and densities cost at most 1.15 of the better way.
_AVX2: Costs = {
    "dense": {"call": 8.4e3, "mac": 0.0430, "weight": 0.214, "moved": 0.097},
    "rows": {"call": 79e3, "mac": 0.0675, "weight": 0.509, "moved": 0.556, "segment": 4.7},
    "units": {"call": 73e3, "mac": 0.0498, "weight": 0.420, "moved": 0.810, "segment": 34.0},
    "single": {"call": 78e3, "mac": 0.857},
    "sampled": {"call": 133e3, "mac": 0.0834, "weight": 1.32, "moved": 1.80},
}
# A weight that is a dense parameter: a kept value taken out of it or put into its gradient, any
# weight of a gradient's zeros, of a copy with zeros, of a packed one made dense.
GATHERED, ZEROED, MASKED, UNPACKED, UNPACK_CALL = 3.0, 0.4, 1.0, 6.0, 400e3


def _scaled(factor: float) -> Costs:
    return {kind: costs | {"mac": factor * costs["mac"]} for kind, costs in _AVX2.items()}


# Not measured: multiply-adds at twice the rate, and at a quarter of it, the rest as on AVX2.
_MACHINES = {"baseline": _scaled(4.0), "avx2": _AVX2, "avx512": _scaled(0.5), "amx": _scaled(0.5)}
_AMX_DENSE_MAC = 0.0035  # torch's bfloat16 on matrix tiles; not measured by us
# On matrix tiles, by counted cycles, at the pace of the numbers above: a block of 32 x 32 weights
# is decoded once for 16 rows, or met by 32 rows at a time; rows of blocks begin and end sums.
_TILE_DECODE, _TILE_BLOCK, _TILE_ROW, _TILE = 80.0, 58.0, 80.0, 32


def counts_of(packed: PackedWeight, rows: int, transposed: bool = False) -> Product:
    """The counts of a product with a packed weight, of a convolution as the matrix that it is."""
    key = "counts", transposed
    counts: Product | None = packed._forms.get(key)
    if counts is None:
        outputs = packed.shape[0]
        columns = packed.numel() // max(1, outputs)
        if transposed:
            outputs, columns = columns, outputs
        counts = Product(0, columns, outputs, packed.n_kept, _unit(packed.pattern, transposed))
        packed._forms[key] = counts
    return counts._replace(rows=rows)


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


def features(kind: str, p: Product) -> dict[str, float]:
    """What the cost of a product depends on.

    Args:
        kind: "dense"; "rows" and "units", our products with units of one and of several rows;
            "single", with one or two rows of activations; "sampled", the weight's gradient.
        p: its counts; of a gradient those of the product whose weight it is.
    """
    moved = p.rows * (p.columns + p.outputs)
    if kind == "dense":
        weights = p.columns * p.outputs
        return {"call": 1, "mac": p.rows * weights, "weight": weights, "moved": moved}
    if kind == "single":
        return {"call": 1, "mac": p.rows * p.kept}
    lanes = _LANES.get(_C.isa_chosen(), 8)
    vectors = -(-p.rows // lanes)
    macs = vectors * lanes * p.kept
    counts: dict[str, float] = {"call": 1, "mac": macs, "weight": p.kept, "moved": moved}
    if kind != "sampled":
        counts["segment"] = vectors * (p.outputs // min(p.unit, 16)) * -(-p.columns // 256)
    return counts


def kind_of(p: Product) -> str:
    """Which of our products this is."""
    return "single" if p.rows <= _SINGLE else "rows" if p.unit == 1 else "units"


def shipped() -> Costs:
    """Of the chosen instruction set."""
    return _MACHINES.get(_C.isa_chosen(), _MACHINES["avx512"])


def _costs(kind: str) -> dict[str, float]:
    return shipped()[kind]


def _ns(kind: str, p: Product) -> float:
    costs = _costs(kind)
    return sum(costs[name] * count for name, count in features(kind, p).items())


def _tile_ns(p: Product) -> float:
    """Predicted time on matrix tiles, if whole blocks are kept or else every block has a weight."""
    n_blocks = p.kept / _TILE**2 if p.unit == _TILE else p.columns * p.outputs / _TILE**2
    strips = -(-p.rows // _TILE)
    call = _costs("rows")["call"]
    if p.rows <= _TILE // 2:
        return call + n_blocks * _TILE_DECODE
    return call + strips * (n_blocks * _TILE_BLOCK + p.outputs / _TILE * _TILE_ROW)


def sparse_ns(p: Product, dtype: torch.dtype = torch.float32) -> float:
    """Predicted time of our product; `dtype`: of x, and of bfloat16 weights."""
    return _tile_ns(p) if on_matrix_tiles(dtype, dtype) else _ns(kind_of(p), p)


def dense_ns(p: Product, dtype: torch.dtype = torch.float32) -> float:
    """Predicted time of torch's product."""
    if dtype == torch.bfloat16 and _C.isa_chosen() == "amx":
        return _costs("dense")["call"] + p.rows * p.columns * p.outputs * _AMX_DENSE_MAC
    slower = 2 if dtype == torch.float64 else 1 if dtype == torch.float32 else 5  # 16 bits: widened
    return slower * _ns("dense", p)


def sampled_ns(p: Product) -> float:
    """Predicted time of `dy.T @ x` at the kept weights of W."""
    return _ns("sampled", p)


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
    sparse = sparse_ns(p, torch.float32 if trained else dtype) + trained * p.kept * GATHERED
    dense = dense_ns(p, dtype) + trained * p.columns * p.outputs * MASKED
    return sparse < (1 - MARGIN) * dense


def samples(p: Product, dtype: torch.dtype) -> bool:
    """Whether the weight's gradient is formed at kept weights only, by our kernel.

    Args:
        p: the counts of the forward product.
        dtype: of x.
    """
    if get_crossover() is None:
        return True
    weights = p.columns * p.outputs
    sparse = sampled_ns(p) + p.kept * GATHERED + weights * ZEROED
    return sparse < (1 - MARGIN) * (dense_ns(p, dtype) + weights * MASKED)


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
    return sparse_ns(p, dtype) < dense_ns(p, dtype) + weights * UNPACKED + UNPACK_CALL


# A convolution, by a few measurements: of our kernel a call, a kept weight and pixel, a value of
# the input (of a strided one: it is reordered one by one), a value of the output; of torch's a
# call, a weight and pixel, a weight.
_CONV = {"call": 150e3, "mac": 0.13, "input": 1.0, "strided": 10.0, "output": 1.0}
_DENSE_CONV = {"call": 20e3, "mac": 0.043, "weight": 0.7}


def runs_conv(
    weights: int, density: float, pixels: int, inputs: int, outputs: int, stride: int
) -> bool:
    """Whether a convolution with a pruned weight runs our kernel.

    Args:
        weights: number of them, kept or not.
        density: share that is kept.
        pixels: of the output, in all images.
        inputs: values of the input.
        outputs: channels.
        stride: the largest.
    """
    if get_crossover() is None:
        return True
    ours, dense = _CONV, _DENSE_CONV
    moved = inputs * ours["input" if stride == 1 else "strided"] + pixels * outputs * ours["output"]
    sparse_time = ours["call"] + weights * density * pixels * ours["mac"] + moved
    dense_time = dense["call"] + weights * (pixels * dense["mac"] + dense["weight"])
    return sparse_time < (1 - MARGIN) * dense_time
