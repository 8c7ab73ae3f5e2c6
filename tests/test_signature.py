"""Path signatures against exact polynomial integration, and against what is known of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublesparse.data import pen
from strokes import random_strokes, walk


# ---------------------------------------------------------------- an oracle in plain Python
def words(level):
    """Words of two axes, shortest first, in lexicographic order."""
    return [w for k in range(level + 1) for w in itertools.product((0, 1), repeat=k)]


def iterated_integrals(points, level):
    """Every S(w), exact in the numbers given: on a segment each is a polynomial of time in [0, 1].

    S(w a)(t) = S(w a)(0) + integral from 0 to t of S(w)(s) v_a ds: no exponential, no product.
    """
    value = {w: 0 * points[0][0] for w in words(level)}
    value[()] = value[()] + 1
    for p, q in zip(points[:-1], points[1:], strict=True):
        v = [q[a] - p[a] for a in range(2)]
        polynomial = {(): [value[()]]}
        for w in words(level)[1:]:
            inner = polynomial[w[:-1]]
            polynomial[w] = [value[w]] + [c * v[w[-1]] / (n + 1) for n, c in enumerate(inner)]
        value = {w: sum(c) for w, c in polynomial.items()}
    return [value[w] for w in words(level)]


def integer_path(seed, n):
    return np.random.default_rng(seed).integers(-8, 9, (n, 2))


def as_words(features, level):
    return dict(zip(words(level), features.tolist(), strict=True))


def path_signature_sizes(points):
    """Length of the path: |S(w)| <= length^k / k! for a word of k axes."""
    return np.hypot(*np.diff(np.asarray(points, float), axis=0).T).sum()


def bound(points, level, n_operations):
    """Rounding of that many operations on numbers no larger than the path allows."""
    length = path_signature_sizes(points)
    sizes = [max(length ** len(w) / math.factorial(len(w)), 1) for w in words(level)]
    return n_operations * 2.0**-52 * np.array(sizes)


# ---------------------------------------------------------------- one path
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), level=st.integers(0, 4))
def test_signature_equals_exact_integration(seed, n, level):
    points = integer_path(seed, n)
    exact = iterated_integrals([[Fraction(int(c)) for c in p] for p in points], level)
    got = pen.signature(points, level)
    assert got.dtype == np.float64 and got.shape == (2 ** (level + 1) - 1,)
    error = np.abs([float(Fraction(g) - e) for g, e in zip(got, exact, strict=True)])
    # Each level takes at most 2^4 products in each of the 2 log2(40) products of signatures.
    assert (error <= bound(points, level, 16 * 12)).all()
    if level <= 2:  # halves of integers below 2^52: every operation is exact
        assert not error.any()


def test_straight_line_is_an_exponential():
    v = np.array([3.0, -2.0])
    got = as_words(pen.signature([[1, 1], [1, 1] + v], 4), 4)
    for w, s in got.items():
        wanted = math.prod(v[a] for a in w) / math.factorial(len(w))
        assert s == pytest.approx(wanted, rel=1e-15, abs=0)


def tensor_product(a, b, level):
    return {w: sum(a[w[:i]] * b[w[i:]] for i in range(len(w) + 1)) for w in words(level)}


def test_chen_identity():
    first, second = integer_path(1, 9), integer_path(2, 7)
    second = second + (first[-1] - second[0])
    whole = np.concatenate([first, second[1:]])
    parts = (as_words(pen.signature(p, 3), 3) for p in (first, second))
    wanted = tensor_product(*parts, 3)
    error = np.abs(pen.signature(whole, 3) - [wanted[w] for w in words(3)])
    assert (error <= bound(whole, 3, 200)).all()


def test_there_and_back_is_nothing():
    path = integer_path(3, 20)
    got = pen.signature(np.concatenate([path, path[-2::-1]]), 2)
    assert got.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_shuffle_product():
    s = as_words(pen.signature(integer_path(4, 30), 2), 2)
    for a, b in itertools.product((0, 1), repeat=2):
        assert s[a,] * s[b,] == s[a, b] + s[b, a]


def test_area_of_a_polygon():
    polygon = np.array([[0, 0], [4, 0], [5, 3], [1, 5], [0, 0]])
    x, y = polygon.T
    shoelace = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
    s = as_words(pen.signature(polygon, 2), 2)
    assert (s[0, 1] - s[1, 0]) / 2 == shoelace and s[0,] == s[1,] == 0


def test_points_on_the_way_change_nothing():
    path = integer_path(5, 6).astype(float)
    halves = np.stack([path[:-1], (path[:-1] + path[1:]) / 2], 1).reshape(-1, 2)
    finer = np.concatenate([halves, path[-1:], path[-1:]])
    difference = np.abs(pen.signature(finer, 4) - pen.signature(path, 4))
    assert (difference <= bound(path, 4, 200)).all()


def test_riemann_sums_converge_to_it():
    """The definition itself: sums over s_1 < s_2 of products of small steps of a circle's arc."""
    t = np.linspace(0, 2, 20001)
    d = np.diff(np.stack([np.cos(t), np.sin(t)], 1), axis=0)
    before = np.cumsum(d, axis=0) - d / 2
    double = before.T @ d
    assert (
        np.abs(pen.signature(np.stack([np.cos(t), np.sin(t)], 1))[3:] - double.ravel()).max() < 1e-8
    )
    assert double[0, 1] - double[1, 0] == pytest.approx(2 - math.sin(2), abs=1e-8)  # twice the area


@pytest.mark.parametrize("stroke", [[], [[5, 5]], [[5, 5]] * 3])
def test_no_movement(stroke):
    assert pen.signature(stroke).tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_signature_refuses():
    with pytest.raises(ValueError, match="signature: level"):
        pen.signature([[0, 0]], 5)
    with pytest.raises(ValueError, match=r"signature: .*\(n, 2\)"):
        pen.signature([[0, 0, 0]])


# ---------------------------------------------------------------- cells
def first_visits(strokes, size, scale, level, density=0.1):
    """{cell: signature of the window around the first sample in it}, point by point."""
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    factor = scale / max(*(high - low), 1e-4)
    window = scale / 5
    reach = max(1, round(window / density))
    cells = {}
    for stroke in strokes:
        path = walk(((stroke - (low + high) / 2) * factor).tolist(), density)
        for i, p in enumerate(path):
            cell = tuple(max(0, min(size - 1, int(c + size / 2))) for c in p)
            if cell not in cells:
                near = path[max(0, i - reach) : i + reach + 1]
                near = [[c / window for c in q] for q in near]
                cells[cell] = iterated_integrals(near, level)
    return cells


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(5, 40),
    share=st.floats(0.1, 1.5),
    level=st.integers(0, 4),
)
def test_rasterize_equals_the_oracle(seed, size, share, level):
    strokes = random_strokes(seed)
    scale = size * share
    coords, features = pen.rasterize(strokes, size, "signature", scale, level=level)
    expected = first_visits(strokes, size, scale, level)
    assert [tuple(c) for c in coords.tolist()] == sorted(expected)
    wanted = np.array([expected[cell] for cell in sorted(expected)], float)
    # Points of the path agree to 1e-12 of its unit; at most 2^4 of them multiply; float32 rounds.
    assert (np.abs(features - wanted) <= 2.0**-24 * np.abs(wanted) + 1e-9).all()


def test_straight_stroke_and_dot():
    coords, features = pen.rasterize([[[0, 0], [0, 1]]], 48, "signature", 20)
    inside = np.abs(coords[:, 1] - 24) <= 5  # a window reaches 4 cells from the first visit
    assert inside.sum() >= 10
    wanted = np.array([1, 0, 2, 0, 0, 0, 2], np.float32)
    assert np.abs(features[inside] - wanted).max() <= 2.0**-20
    assert features[coords[:, 1] == 14].tolist() == [[1, 0, 1, 0, 0, 0, 0.5]]  # nothing before it
    assert pen.rasterize([[[5, 5]]], 9, "signature")[1].tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    assert pen.rasterize([], 9, "signature", level=4)[1].shape == (0, 31)


def test_levels_are_prefixes():
    strokes = random_strokes(7)
    deep = pen.rasterize(strokes, 48, "signature", level=4)[1]
    for level in range(4):
        features = pen.rasterize(strokes, 48, "signature", level=level)[1]
        assert np.array_equal(features, deep[:, : 2 ** (level + 1) - 1])
    assert (pen.rasterize(strokes, 48, "signature", level=0)[1] == 1).all()


def test_strokes_do_not_see_each_other():
    a, b = [[-9.0, -9.0], [-3.0, -7.0]], [[3.0, 6.0], [9.0, 9.0]]
    both = pen.rasterize([a, b], 40, "signature", 15, fitted=False)
    for one, part in ((a, both[0][:, 0] < 20), (b, both[0][:, 0] >= 20)):
        coords, features = pen.rasterize([one], 40, "signature", 15, fitted=False)
        assert np.array_equal(coords, both[0][part])
        assert np.array_equal(features, both[1][part])


def test_long_paths_lose_no_digits():
    """Windows far along a staircase of 20000 cells have the bits of the same windows alone."""
    turns = np.arange(20001)
    path = np.stack([turns // 2, (turns + 1) // 2], 1) - 5000.0
    options = dict(encoding="signature", scale=10, density=0.5, fitted=False, level=4)
    coords, features = pen.rasterize([path], 1 << 14, **options)
    tail, alone = pen.rasterize([path[-41:]], 1 << 14, **options)
    row = {tuple(c): i for i, c in enumerate(coords.tolist())}
    picked = features[[row[tuple(c)] for c in tail.tolist()]]
    assert len(tail) == 41 and np.array_equal(picked[4:], alone[4:])
    assert not np.array_equal(picked[:2], alone[:2])  # there the stroke begins
