"""Random points, and cells and voxels in plain Python and exact numbers; nothing of ours."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

SHAPES = {1: (7,), 2: (5, 4), 3: (4, 3, 5), 4: (3, 2, 4, 3)}


def quarters(rng, n, shape, low=0.0, high=1.0):
    """Points on quarters of cells, inside the grid: every weight is exact."""
    return np.stack([rng.integers(low * 4 * e, high * 4 * e, n) / 4 for e in shape], 1)


def cell_of(point, size, origin):
    """Exact: the numbers of these tests are binary fractions."""
    return tuple(
        math.floor((Fraction(p) - Fraction(o)) / Fraction(s))
        for p, s, o in zip(point, size, origin)
    )


def reduced(rows, how):
    if how == "first":
        return rows[0]
    columns = zip(*rows)
    if how == "max":
        return [max(c) for c in columns]
    return [sum(c) / (len(rows) if how == "mean" else 1) for c in columns]


def voxels(points, features, size, origin, batch, how):
    """{(sample, *cell): reduced features}, and the key of each point."""
    keys = [(b, *cell_of(p, size, origin)) for p, b in zip(points, batch)]
    rows = {key: [f for f, k in zip(features, keys) if k == key] for key in keys}
    return {key: reduced(rows[key], how) for key in rows}, keys
