"""Rows of the operator table: products with pruned matrices, and dense products sampled at them.

The tiles are laid out here by the words of csrc/cpu/spmm/spmm.h, entry by entry, and read back by
the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from inputs import numbers
from op_case import OpCase, Rng, Sample


def layout(mask: np.ndarray, block: int, unit: int) -> tuple[dict, list[tuple[int, int]]]:
    """The tensors of `Tiles`, and (row, column) of every value in their order."""
    n_rows, n_columns = mask.shape
    starts, columns, places = [0], [], []
    for first in range(0, n_columns, block):
        for row in range(0, n_rows, unit):
            for column in np.flatnonzero(mask[row, first : first + block]):
                columns.append(column)
                places += [(row + r, first + column) for r in range(unit)]
            starts.append(len(columns))
    tiles = dict(
        starts=torch.tensor(starts, dtype=torch.int64),
        columns=torch.tensor(columns, dtype=torch.int16),
        n_rows=n_rows,
        n_columns=n_columns,
        block_columns=block,
        unit_rows=unit,
    )
    return tiles, places


def places_of(starts, columns, n_rows, n_columns, block_columns, unit_rows) -> list:
    n_units, places = n_rows // unit_rows, []
    for segment in range(len(starts) - 1):
        first, unit = segment // n_units * block_columns, segment % n_units
        for entry in range(starts[segment], starts[segment + 1]):
            column = first + columns[entry]
            places += [(unit * unit_rows + r, column) for r in range(unit_rows)]
    return places


def random_tiles(rng: Rng, shape, density: float, block: int, unit: int):
    n_rows, n_columns = shape
    mask = (rng.random((n_rows // unit, n_columns)) < density).repeat(unit, 0)
    if n_rows > 2 * unit:
        mask[unit : 2 * unit] = False
    return layout(mask, block, unit)


SHAPES = (
    # rows of x, (rows, columns) of W, columns of a block, rows of a unit
    (5, (7, 13), 13, 1),
    (1, (48, 70), 32, 1),
    (2, (32, 70), 32, 4),
    (3, (9, 1), 1, 1),
    (8, (20, 33), 16, 1),
    (16, (16, 40), 64, 16),
    (17, (24, 50), 20, 8),
    (33, (40, 90), 30, 1),
    (70, (64, 30), 30, 4),
    (150, (37, 65), 64, 1),
    (0, (5, 6), 6, 1),
    (9, (0, 6), 6, 1),
)
DENSITIES = (0.3, 0.0, 0.08, 1.0)


def spmm_sample(rng: Rng, dtype, shape, density: float, integers: bool, bias: bool) -> Sample:
    m, matrix, block, unit = shape
    tiles, places = random_tiles(rng, matrix, density, block, unit)
    args = dict(x=numbers(rng, (m, matrix[1]), dtype, integers)) | tiles
    args["values"] = numbers(rng, (len(places),), dtype, integers)
    args["bias"] = numbers(rng, (matrix[0],), dtype, integers) if bias else None
    return Sample(args, integers, f"{shape} density={density} bias={bias}")


def spmm_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for i, shape in enumerate(SHAPES):
        for density in DENSITIES[: 2 + i % 3]:
            yield spmm_sample(rng, dtype, shape, density, integers, i % 2 == 0)
    if not integers or dtype == torch.float64:
        return
    for shape in SHAPES[:8]:  # int8 values, scales that are powers of two
        sample = spmm_sample(rng, dtype, shape, 0.4, True, True)
        sample.args["values"] = sample.args["values"].to(torch.int8)
        sample.args["scales"] = torch.exp2(numbers(rng, (shape[1][0],), torch.float32, True))
        yield sample


def spmm_oracle(
    x, starts, columns, n_rows, n_columns, block_columns, unit_rows, values, bias, scales=None
):
    weight = np.zeros((n_rows, n_columns), np.longdouble)
    tiles = (starts, columns, n_rows, n_columns, block_columns, unit_rows)
    for place, value in zip(places_of(*tiles), values, strict=True):
        weight[place] = value
    if scales is not None:
        weight *= scales[:, None]
    return (x @ weight.T + (0 if bias is None else bias),)


def spmm_large(rng: Rng, dtype) -> Sample:
    """Several waves of panels, several chunks of rows."""
    return spmm_sample(rng, dtype, (700, (560, 300), 256, 1), 0.2, False, True)


def sddmm_sample(rng: Rng, dtype, shape, density: float, integers: bool) -> Sample:
    m, matrix, block, _ = shape
    tiles, _ = random_tiles(rng, matrix, density, block, 1)
    dy = numbers(rng, (m, matrix[0]), dtype, integers)
    x = numbers(rng, (m, matrix[1]), dtype, integers)
    return Sample(dict(dy=dy, x=x) | tiles, integers, f"{shape} density={density}")


def sddmm_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for i, shape in enumerate(SHAPES):
        for density in DENSITIES[: 2 + i % 3]:
            yield sddmm_sample(rng, dtype, shape, density, integers)


def sddmm_oracle(dy, x, *tiles, **named):
    product = dy.T @ x
    places = places_of(*tiles, **named)
    return (np.array([product[place] for place in places], product.dtype),)


def sddmm_large(rng: Rng, dtype) -> Sample:
    return sddmm_sample(rng, dtype, (700, (300, 260), 128, 1), 0.2, False)


SPMM_CASES = [
    OpCase("spmm", spmm_samples, spmm_oracle, spmm_large),
    OpCase("sddmm", sddmm_samples, sddmm_oracle, sddmm_large),
]
