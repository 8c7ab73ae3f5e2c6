"""Packed weights and their masks, for several test modules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

import doublesparse as ds

PATTERNS = [
    ds.Unstructured(),
    ds.Block(2, 2),
    ds.Block(1, 3),
    ds.Block(4, 1),
    ds.Block(64, 64),
    ds.NM(1, 2),
    ds.NM(2, 4),
    ds.TopKRows(3),
    ds.TopKColumns(2),
]
SHAPES = [(8, 16), (7, 13), (1, 1), (6, 4, 3, 3), (5, 3, 2), (4, 3, 1, 2, 3), (0, 4), (4, 0)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rows_of(weight: Tensor) -> list[list[int]]:
    """The matrix view, from its definition: flat indices of the weight, row by row."""
    c_out, c_in, *kernel = weight.shape
    flat = np.arange(weight.numel()).reshape(weight.shape)
    return [
        [int(flat[(o, i, *k)]) for k in itertools.product(*map(range, kernel)) for i in range(c_in)]
        for o in range(c_out)
    ]


def mask_of(shape: tuple[int, ...], pattern, share: float) -> Tensor:
    """A random mask that follows a pattern, made by loops."""
    mask = torch.zeros(shape, dtype=torch.bool)
    rows, flat, c_in = rows_of(mask), mask.view(-1), shape[1]
    n_columns = math.prod(shape[1:])
    rand = lambda: float(torch.rand(())) < share
    if isinstance(pattern, ds.Block):
        for top in range(0, shape[0], pattern.r):
            for offset in range(0, n_columns, max(c_in, 1)):
                for left in range(0, c_in, pattern.c):
                    if rand():
                        for row in rows[top : top + pattern.r]:
                            for column in range(left, min(left + pattern.c, c_in)):
                                flat[row[offset + column]] = True
        return mask
    lines = [[index for index in row if rand()] for row in rows]
    if isinstance(pattern, ds.NM):
        for row in rows:
            for offset in range(0, n_columns, max(c_in, 1)):
                for left in range(0, c_in, pattern.m):
                    run = row[offset : offset + c_in][left : left + pattern.m]
                    flat[run[-pattern.n :] if rand() else run[: pattern.n - 1]] = True
        return mask
    if isinstance(pattern, ds.TopKRows):
        lines = [line[-pattern.s :] for line in lines]
    elif isinstance(pattern, ds.TopKColumns):
        lines = [[row[c] for row in rows if rand()][: pattern.s] for c in range(n_columns)]
        lines = lines if shape[0] else []
    for line in lines:
        flat[line] = True
    return mask


def same(a: Tensor, b: Tensor) -> bool:
    """Equal with NaN equal to itself, dtypes included."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and (torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))
    )


def examples() -> list[ds.PackedWeight]:
    found = []
    for pattern, dtype in itertools.product(PATTERNS, (torch.float32, torch.bfloat16, torch.int8)):
        mask = mask_of((6, 5, 3), pattern, 0.3)
        found.append(ds.PackedWeight.pack(torch.randn(6, 5, 3), mask, pattern, dtype))
    empty = torch.zeros(9, 70)
    return [*found, ds.PackedWeight.pack(empty), ds.PackedWeight.pack(empty + 1)]
