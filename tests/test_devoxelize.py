"""devoxelize against a dictionary of cells, dense torch, and finite differences."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import doublesparse as ds
from doublesparse.functional import devoxelize, voxelize
from points import SHAPES, quarters

GROUNDS = ("zero", "none", "number", "channels", "image", "per sample")


# ---------------------------------------------------------------- oracles in plain Python and torch
def interpolated(grid, exists, point, sample, shape):
    """Sum over the 2^D corners; `grid(key)` a row of numbers, `exists(key)` whether it counts."""
    base, shares = [], []
    for p, n in zip(point, shape):
        u = min(max(Fraction(p) - Fraction(1, 2), 0), n - 1)
        base.append(math.floor(u))
        shares.append(u - math.floor(u))
    total, weights = 0, 0
    for corner in itertools.product((0, 1), repeat=len(shape)):
        weight = math.prod(s if c else 1 - s for c, s in zip(corner, shares))
        key = (sample, *(b + c for b, c in zip(base, corner)))
        if weight and exists(key):
            total = total + weight * np.array([Fraction(v) for v in grid(key)])
            weights += weight
    return total, weights


def make_x(rng, shape, ground, batch=2, share=0.5, channels=3, dtype=torch.float64):
    """A tensor with small integers, and the same as a dense image."""
    active = torch.from_numpy(rng.random((batch, *shape)) < share)
    coords = active.nonzero()
    features = torch.from_numpy(rng.integers(-8, 9, (len(coords), channels))).to(dtype)
    ones = (1,) * len(shape)
    values = {
        "zero": 0.0,
        "none": None,
        "number": 3.0,
        "channels": torch.arange(1.0, channels + 1, dtype=dtype),
        "image": torch.from_numpy(rng.integers(-4, 5, (1, channels, *shape))).to(dtype),
        "per sample": torch.from_numpy(rng.integers(1, 5, (batch, channels, *ones))).to(dtype),
    }[ground]
    if isinstance(values, torch.Tensor):
        values.requires_grad_()
    features.requires_grad_()
    x = ds.SparseTensor(features, coords, shape, batch, ground=values)
    return x, features, values, active


def as_dense(features, values, active):
    """The dense tensor, in torch, differentiable."""
    shape = (active.shape[0], features.shape[1], *active.shape[1:])
    back = 0.0 if values is None else values
    if isinstance(back, torch.Tensor) and back.dim() == 1:
        back = back.view(1, -1, *[1] * (len(shape) - 2))
    dense = torch.zeros(shape, dtype=features.dtype) + back
    rows = torch.zeros(active.shape + (features.shape[1],), dtype=features.dtype)
    rows = rows.index_put(tuple(active.nonzero().T), features).movedim(-1, 1)
    return torch.where(active[:, None], rows, dense)


# ---------------------------------------------------------------- devoxelize
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**16), n_axes=st.integers(1, 4), share=st.sampled_from([0, 0.4, 1]))
def test_devoxelize_equals_a_dictionary(ground, dtype, seed, n_axes, share):
    """Exact: quarters of cells and small integers; where the ground is None, one division."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[n_axes]
    x, features, values, active = make_x(rng, shape, ground, share=share, dtype=dtype)
    dense = as_dense(features, values, active).detach().tolist()
    points, batch = quarters(rng, 25, shape), rng.integers(0, 2, 25)

    def grid(key):
        rows = [channel for channel in dense[key[0]]]
        for i in key[1:]:
            rows = [row[i] for row in rows]
        return rows

    def exists(key):
        return ground != "none" or bool(active[key])

    options = dict(batch=torch.from_numpy(batch), voxel_size=0.5, origin=-2.0)
    given_points = torch.from_numpy(points / 2 - 2).to(dtype)
    nearest = devoxelize(x, given_points, mode="nearest", **options)
    linear = devoxelize(x, given_points, mode="trilinear", **options)
    for i, (point, b) in enumerate(zip(points.tolist(), batch.tolist())):
        assert nearest[i].tolist() == grid((b, *map(math.floor, point)))
        total, weights = interpolated(grid, exists, point, b, shape)
        if weights == 0:
            assert not linear[i].any()
        elif ground == "none":
            wanted = torch.tensor([float(t / weights) for t in total], dtype=dtype)
            assert torch.equal(linear[i], wanted)  # exact sums, one rounding
        else:
            assert linear[i].tolist() == [float(t) for t in total]


@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("ground", [g for g in GROUNDS if g != "none"])
def test_devoxelize_equals_grid_sample(n_axes, ground):
    """Values and gradients of the dense network's own operation; ground gradients summed."""
    rng = np.random.default_rng(n_axes)
    shape = SHAPES[n_axes]
    x, features, values, active = make_x(rng, shape, ground, batch=1, share=0.4)
    points = torch.from_numpy(rng.random((40, n_axes)) * shape)
    weight = torch.from_numpy(rng.integers(-3, 4, (40, 3))).double()
    leaves = [features] + ([values] if isinstance(values, torch.Tensor) else [])
    got = devoxelize(x, points, mode="trilinear")
    normal = (points / torch.tensor(shape) * 2 - 1).flip(1).view(1, *[1] * (n_axes - 1), -1, n_axes)
    dense = as_dense(features, values, active)
    wanted = F.grid_sample(dense, normal, padding_mode="border", align_corners=False)
    wanted = wanted.reshape(3, 40).T
    # The normalised coordinates of grid_sample carry a few roundings of numbers up to 5.
    assert (got - wanted).abs().max() <= 1e-13 * 8
    for a, b in zip(
        torch.autograd.grad(got, leaves, weight), torch.autograd.grad(wanted, leaves, weight)
    ):
        assert (a - b).abs().max() <= 1e-12


def test_a_linear_function_is_reproduced():
    centres = torch.tensor(list(itertools.product(range(4), range(5)))) * 0.5 + 0.25
    plane = 3 * centres[:, :1] - 2 * centres[:, 1:] + 1
    x, _ = voxelize(centres, plane, 0.5, (4, 5))
    points = torch.rand(30, 2) * torch.tensor([1.5, 2.0]) + 0.25
    got = devoxelize(x, points, 0.5, mode="trilinear")
    assert (got - (3 * points[:, :1] - 2 * points[:, 1:] + 1)).abs().max() <= 2**-24 * 64


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_dense_tensors_are_taken(mode):
    rng = np.random.default_rng(0)
    x, features, values, active = make_x(rng, (5, 4), "image")
    dense = as_dense(features, values, active).detach()
    points, batch = torch.from_numpy(quarters(rng, 20, (5, 4))), torch.arange(20) % 2
    got = devoxelize(dense, points, batch=batch, mode=mode)
    assert torch.equal(got, devoxelize(x, points, batch=batch, mode=mode))


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("n_axes", [1, 3])
def test_gradients_of_devoxelize(mode, ground, n_axes):
    rng = np.random.default_rng(2)
    x, features, values, active = make_x(rng, SHAPES[n_axes], ground, share=0.3, channels=2)
    points = torch.from_numpy(rng.random((9, n_axes)) * SHAPES[n_axes])
    batch = torch.arange(9) % 2
    learnt = isinstance(values, torch.Tensor)

    def out(features, *rest):
        grounds = rest[0] if learnt else values
        x = ds.SparseTensor(features, active.nonzero(), SHAPES[n_axes], 2, ground=grounds)
        return devoxelize(x, points, batch=batch, mode=mode)

    assert torch.autograd.gradcheck(out, (features, *([values] if learnt else [])))


def test_points_get_no_gradient():
    points = torch.rand(5, 2, requires_grad=True)
    x, _ = voxelize(points, torch.rand(5, 1), 0.5, (2, 2))
    assert not x.requires_grad
    assert not devoxelize(x, points, 0.5, mode="trilinear").requires_grad


def test_same_bits_for_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20000, 3, generator=generator) * 8
    features = torch.randn(20000, 5, generator=generator)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = features.clone().requires_grad_()
            x, _ = voxelize(points, leaf, 1.0, (8, 8, 8))
            y = devoxelize(x, points.flip(0), mode="trilinear")
            (y * features).sum().backward()
            results.append((x.features.detach(), y.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_a_network_between():
    """Every point gets what the network says of its voxel."""
    points = torch.rand(200, 3) * 4
    x, site = voxelize(points, torch.rand(200, 2), 0.25, (16, 16, 16))
    y = ds.nn.SubmanifoldConv3d(2, 4, 3)(x)
    assert torch.equal(devoxelize(y, points, 0.25), y.features[site])


# ---------------------------------------------------------------- wrong input
X = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 1, 1]]), (4, 4))


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        (dict(x=[1]), TypeError, "x must be"),
        (dict(x=torch.ones(3, 2)), ValueError, "x must"),
        (dict(points=torch.zeros(3, 3)), ValueError, "2 columns"),
        (dict(points=torch.zeros(3, 2).int()), TypeError, "points"),
        (dict(voxel_size=0), ValueError, "voxel_size"),
        (dict(batch=torch.ones(3, dtype=torch.int64)), ValueError, r"\[0, 1\), got 1"),
        (dict(mode="cubic"), ValueError, "mode"),
        (dict(outside="zero"), ValueError, "outside"),
        (dict(x=X.to(torch.float8_e5m2)), NotImplementedError, "features"),
    ],
)
def test_devoxelize_refuses(changes, error, word):
    with pytest.raises(error, match=word) as caught:
        devoxelize(**{**dict(x=X, points=torch.zeros(3, 2)), **changes})
    assert str(caught.value).startswith("devoxelize: ") and "; " in str(caught.value)
