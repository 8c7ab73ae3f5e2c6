"""`nearest_centers`: the nearest centre of a point in some of the features.

The oracle is plain numpy: int64 where sums are exact, and for floats an emulation of the chain of
fused multiply-adds in float64 (a product of two float32 is exact there; the sum is rounded to odd,
so that rounding it to float32 rounds once).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from doublesparse import _C
from doublesparse._code_ops import nearest_centers


def sparse_integers(rng, n: int, d: int, density: float) -> np.ndarray:
    return rng.integers(-9, 10, (n, d)) * (rng.random((n, d)) < density)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fma(a, b, c) of float32 arrays, rounded once."""
    product, other = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + other
    rest = total - product
    error = (product - (total - rest)) + (other - rest)  # total + error is the exact sum
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return odd.astype(np.float32)


def scores(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(n, k) float32: the chains of the contract, every feature in turn."""
    dots = np.zeros((len(points), len(centers)), np.float32)
    norms = np.zeros(len(centers), np.float32)
    for x, c in zip(points.T, centers.T, strict=True):
        dots = fused(np.broadcast_to(x[:, None], dots.shape), c[None, :], dots)
        norms = fused(c, c, norms)
    return dots - np.float32(0.5) * norms


def nearest(points: np.ndarray, centers: np.ndarray, **options) -> np.ndarray:
    return nearest_centers(
        torch.from_numpy(np.ascontiguousarray(points, np.float32)),
        torch.from_numpy(np.ascontiguousarray(centers, np.float32)),
        **options,
    ).numpy()


# ------------------------------------------------------------------ results
@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (300, 24, 25), (517, 40, 300)])
def test_integers_are_exact(shape, density, rng):
    n, d, k = shape
    points, centers = sparse_integers(rng, n, d, density), sparse_integers(rng, k, d, density)
    distance = ((points[:, None, :] - centers[None, :, :]) ** 2).sum(-1)
    got = nearest(points, centers)
    assert got.dtype == (np.uint8 if k <= 256 else np.uint16)
    assert np.array_equal(got, distance.argmin(1))  # argmin takes the lowest index


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_columns_take_part_and_no_others(density, rng):
    points, columns = sparse_integers(rng, 200, 50, density), np.sort(rng.permutation(50)[:23])
    centers = points[rng.permutation(200)[:37]][:, columns]
    want = ((points[:, None, columns] - centers) ** 2).sum(-1).argmin(1)
    rest = np.setdiff1d(np.arange(50), columns)
    points = points.astype(np.float64)
    points[:, rest] = np.nan  # is not looked at
    assert np.array_equal(nearest(points, centers, columns=torch.from_numpy(columns)), want)


@pytest.mark.skipif(_C.isa_chosen() == "baseline", reason="x86 baseline rounds products")
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_every_score_is_the_chain_of_the_contract(density, rng):
    """Centres that differ by rounding only: a wrong order of sums chooses another one."""
    base = rng.random(61).astype(np.float32)
    centers = np.stack([base[rng.permutation(61)] for _ in range(90)])
    centers = (centers * np.float32(1 + 2**-23)).astype(np.float32)
    points = (np.ones((130, 61)) * (rng.random((130, 61)) < density)).astype(np.float32)
    points *= rng.random((130, 1)).astype(np.float32)
    assert np.array_equal(nearest(points, centers), scores(points, centers).argmax(1))


def test_every_center_can_win(rng):
    """k = 65536, the most: every centre is the nearest of itself."""
    corners = (np.arange(65536)[:, None] >> np.arange(16)) & 1
    some = rng.permutation(65536)[:300]
    some[:3] = 0, 65535, 255
    got = nearest(corners[some], corners)
    assert got.dtype == np.uint16 and np.array_equal(got, some)


def test_lowest_index_on_ties(rng):
    centers = np.repeat(sparse_integers(rng, 13, 6, 0.8), 20, axis=0)
    points = sparse_integers(rng, 90, 6, 0.5)
    got = nearest(points, centers)
    want = ((points[:, None, :] - centers) ** 2).sum(-1).argmin(1)
    assert np.array_equal(got, want) and (nearest(points, centers * 0) == 0).all()


def test_out_is_written_and_returned(rng):
    points, centers = sparse_integers(rng, 30, 6, 0.5), sparse_integers(rng, 9, 6, 0.5)
    codes = torch.full((3, 30), 77, dtype=torch.uint16)
    got = nearest(points, centers, out=codes[1])
    assert np.array_equal(got, nearest(points, centers))
    assert np.array_equal(codes[1].numpy(), got)
    assert (codes.numpy()[[0, 2]] == 77).all()


def test_no_points():
    assert nearest(np.zeros((0, 4)), np.ones((2, 4))).shape == (0,)


# ------------------------------------------------------------------ the same bits
def mixed(rng, n: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Dense points beside sparse ones, and centres that are nearly ties."""
    points = rng.standard_normal((n, 67)) * (rng.random((n, 67)) < rng.choice([0.1, 1.0], (n, 1)))
    centers = points[rng.permutation(n)[:111]] + 1e-7 * rng.standard_normal((111, 67))
    return points.astype(np.float32), np.repeat(centers, 2, axis=0).astype(np.float32)


def test_bits_do_not_depend_on_the_batch(rng):
    """One by one a sparse point is a list; among dense ones it is multiplied densely."""
    points, centers = mixed(rng)
    whole = nearest(points, centers)
    singly = np.concatenate([nearest(points[i : i + 1], centers) for i in range(len(points))])
    parts = np.concatenate([nearest(part, centers) for part in np.split(points, [3, 250, 511])])
    by_count = np.argsort((points != 0).sum(1), kind="stable")
    sorted_whole = nearest(points[by_count], centers)
    assert np.array_equal(whole, singly) and np.array_equal(whole, parts)
    assert np.array_equal(whole[by_count], sorted_whole)


def test_bits_do_not_depend_on_threads(rng):
    points, centers = mixed(rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(nearest(points, centers))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


# ------------------------------------------------------------------ wrong calls
def good() -> dict:
    columns = torch.tensor([1, 3])
    return {"points": torch.ones(5, 4), "centers": torch.ones(3, 2), "columns": columns}


WRONG = [
    (TypeError, "float32", {"points": torch.ones(5, 4).double()}),
    (TypeError, "float32", {"centers": torch.ones(3, 2).half()}),
    (TypeError, "torch.Tensor", {"points": [[1.0]]}),
    (TypeError, "int64", {"columns": torch.tensor([1, 3], dtype=torch.int32)}),
    (TypeError, "uint8 or uint16", {"out": torch.zeros(5, dtype=torch.int64)}),
    (TypeError, "uint8 or uint16", {"out": np.zeros(5, np.uint8)}),
    (ValueError, "2 dimensions", {"points": torch.ones(5)}),
    (ValueError, "2 dimensions", {"centers": torch.ones(3, 2, 1)}),
    (ValueError, "contiguous", {"points": torch.ones(4, 5).T}),
    (ValueError, "contiguous", {"out": torch.zeros(10, dtype=torch.uint8)[::2]}),
    (ValueError, "k must be at least 1", {"centers": torch.ones(0, 2)}),
    (ValueError, "d_sub must be at least 1", {"centers": torch.ones(3, 0), "columns": None}),
    (ValueError, "columns", {"columns": None}),
    (ValueError, "shape", {"columns": torch.tensor([1, 2, 3])}),
    (ValueError, "got 4", {"columns": torch.tensor([1, 4])}),
    (ValueError, "got -1", {"columns": torch.tensor([-1, 3])}),
    (ValueError, "must ascend", {"columns": torch.tensor([3, 1])}),
    (ValueError, "must ascend", {"columns": torch.tensor([3, 3])}),
    (ValueError, "shape", {"out": torch.zeros(6, dtype=torch.uint8)}),
    (ValueError, "uint16", {"out": torch.empty(5).byte(), "centers": torch.ones(257, 2)}),
    (ValueError, "2\\^16", {"centers": torch.ones(65537, 2)}),
    (RuntimeError, "CPU", {"points": torch.ones(5, 4, device="meta")}),
]


@pytest.mark.parametrize(("error", "text", "change"), WRONG)
def test_wrong_calls(error, text, change):
    arguments = {**good(), **change}
    with pytest.raises(error, match=text):
        nearest_centers(**arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_are_no_numbers_are_named(value):
    points, centers = torch.ones(600, 4), torch.ones(3, 4)
    points[577, 2] = points[599, 0] = value
    with pytest.raises(ValueError, match=r"points must be finite .* \(577, 2\)"):
        nearest_centers(points, centers)
    centers[1, 3] = value
    with pytest.raises(ValueError, match=r"centers must be finite .* \(1, 3\)"):
        nearest_centers(points, centers)


def test_large_values_do_not_overflow():
    """Up to the documented size nothing overflows, and the distances still order the centres."""
    big = 0.9 * (3.4e38 / 2) ** 0.5
    corners = np.array([[big, big], [-big, big], [big, -big], [-big, -big]])
    assert nearest(corners, corners).tolist() == [0, 1, 2, 3]
