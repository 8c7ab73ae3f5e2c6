"""voxelize against a dictionary of cells, and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import doublesparse as ds
from doublesparse.functional import devoxelize, voxelize
from points import SHAPES, quarters, voxels


# ---------------------------------------------------------------- voxelize
@pytest.mark.parametrize("how", ["mean", "sum", "max", "first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**16), n_axes=st.integers(1, 4), n=st.integers(1, 60))
def test_voxelize_equals_a_dictionary(how, dtype, seed, n_axes, n):
    rng = np.random.default_rng(seed)
    shape, size = SHAPES[n_axes], [0.5, 2.0, 1.0, 0.25][:n_axes]
    origin = [-1.0, 0.5, 4.0, 0.0][:n_axes]
    points = quarters(rng, n, shape) * size + origin
    batch = rng.integers(0, 3, n)
    features = rng.integers(-8, 9, (n, 2))
    wanted, keys = voxels(points.tolist(), features.tolist(), size, origin, batch.tolist(), how)
    x, site = voxelize(
        torch.from_numpy(points).to(dtype),
        torch.from_numpy(features).to(dtype),
        size,
        shape,
        origin=origin,
        batch=torch.from_numpy(batch),
        batch_size=4,
        reduce=how,
    )
    assert tuple(x.shape) == (4, 2, *shape) and x.dtype == dtype
    rows = [tuple(c) for c in x.coords.tolist()]
    assert rows == sorted(wanted)
    expected = torch.tensor([wanted[key] for key in rows], dtype=dtype)
    assert torch.equal(x.features, expected)  # a mean is one rounding of an exact quotient
    assert [rows[i] for i in site.tolist()] == keys and site.dtype == torch.int64


def test_smallest_grid_and_defaults():
    points = torch.tensor([[3.5, -1.0], [0.25, 2.75]])
    x, site = voxelize(points, torch.ones(2, 1), 0.5, origin=(0, -1))
    assert tuple(x.shape) == (1, 1, 8, 8) and x.coords.tolist() == [[0, 0, 7], [0, 7, 0]]
    assert site.tolist() == [1, 0]
    x, site = voxelize(points, torch.ones(2, 1), 0.5, origin=points.amin(0))
    assert x.spatial_shape == (7, 8)
    x, _ = voxelize(points, torch.ones(2, 1), 9.0, origin=-1.0, ground=None)
    assert x.spatial_shape == (1, 1) and x.ground is None and x.features.tolist() == [[1.0]]


def test_voxelize_few_points():
    for points, features in [
        (torch.zeros(0, 3), torch.zeros(0, 2)),
        (torch.zeros(1, 3), torch.ones(1, 2)),
    ]:
        x, site = voxelize(points, features, 1.0, (4, 4, 4), batch_size=2)
        assert tuple(x.shape) == (2, 2, 4, 4, 4) and len(site) == len(x.features) == len(points)
        assert devoxelize(x, points).tolist() == features.tolist()
    assert voxelize(torch.zeros(0, 3), torch.zeros(0, 2), 1.0)[0].spatial_shape == (1, 1, 1)
    x, _ = voxelize(torch.rand(5, 1), torch.zeros(5, 0), 0.1, ground=2.0)  # no channels
    assert devoxelize(x, torch.rand(7, 1), 0.1, mode="trilinear", outside="drop").shape == (7, 0)


def test_voxelize_a_full_grid():
    points = torch.tensor(list(itertools.product(range(3), range(4)))) + 0.5
    x, _ = voxelize(points.flip(0), torch.arange(12.0)[:, None], 1.0, (3, 4), ground=5.0)
    assert x.saturated and x.features.flatten().tolist() == list(reversed(range(12)))
    assert torch.equal(devoxelize(x, points), x.features)


def test_orders_and_strides_do_not_matter():
    rng = np.random.default_rng(3)
    points = torch.from_numpy(quarters(rng, 50, (5, 4)))
    features = torch.from_numpy(rng.integers(-8, 9, (50, 3))).float()
    wanted = voxelize(points, features, 1.0, (5, 4), reduce="sum")[0]
    wide = torch.stack([features, features], 2)[:, :, 1]
    assert not wide.is_contiguous()
    columns = points.T.contiguous().T
    assert torch.equal(
        voxelize(columns, wide, 1.0, (5, 4), reduce="sum")[0].features, wanted.features
    )
    order = torch.from_numpy(rng.permutation(50))
    mixed, site = voxelize(points[order], features[order], 1.0, (5, 4), reduce="sum")
    assert torch.equal(mixed.features, wanted.features)  # sums of integers
    assert torch.equal(mixed.coords[site, 1:], points[order].long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype):
    features = torch.tensor([[1.0], [1.0 + 2**-7], [1.0 - 2**-8]], dtype=dtype)
    x, _ = voxelize(torch.zeros(3, 1), features, 1.0)
    assert torch.equal(x.features, features.double().mean(0, keepdim=True).float().to(dtype))
    assert devoxelize(x, torch.zeros(1, 1), mode="trilinear").dtype == dtype


def test_coordinates_of_huge_grids():
    n = 2**31 - 1
    points = torch.tensor([[n - 0.5, n - 0.5], [0.0, n - 0.25]], dtype=torch.float64)
    x, site = voxelize(points, torch.tensor([[1.0], [2.0]]), 1.0, (n, n))
    assert x.coords.tolist() == [[0, 0, n - 1], [0, n - 1, n - 1]] and site.tolist() == [1, 0]
    for mode in ("nearest", "trilinear"):
        assert devoxelize(x, points, mode=mode).tolist() == [[1], [2]]


BAD_ROWS = [[-0.25, 1.0], [math.nan, 1.0], [1.0, math.inf], [1.0, 4.0], [1e300, -1e300]]


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_points_outside(bad):
    points = torch.tensor([[1.0, 1.0], bad, [1.25, 1.5]], dtype=torch.float64)
    features = torch.tensor([[1.0], [100.0], [3.0]], requires_grad=True)
    with pytest.raises(ValueError, match=r"voxelize: points .* in row 1.*; pass outside="):
        voxelize(points, features, 1.0, (4, 4))
    x, site = voxelize(points, features, 1.0, (4, 4), outside="drop")
    assert x.features.tolist() == [[2.0]] and site.tolist() == [0, -1, 0]
    x.features.sum().backward()
    assert features.grad.flatten().tolist() == [0.5, 0, 0.5]
    for mode in ("nearest", "trilinear"):
        with pytest.raises(ValueError, match=r"devoxelize: points .* in row 1"):
            devoxelize(x, points, mode=mode)
        out = devoxelize(ds.SparseTensor.from_dense(torch.ones(1, 1, 4, 4)), points, outside="drop")
        assert out.flatten().tolist() == [1, 0, 1]


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "first"])
def test_gradients_of_voxelize(reduce):
    rng = np.random.default_rng(1)
    points = torch.from_numpy(quarters(rng, 30, (5, 4)))
    features = torch.from_numpy(rng.permutation(60).reshape(30, 2) / 7.0).requires_grad_()
    ground = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def dense(features, ground):
        return voxelize(points, features, 1.0, (5, 4), reduce=reduce, ground=ground)[0].to_dense()

    assert torch.autograd.gradcheck(dense, (features, ground))


def test_gradient_of_a_maximum():
    """Of zero too (what a ReLU leaves); ties share."""
    features = torch.tensor([[0.0], [-1.0], [-3.0], [2.0], [2.0]], requires_grad=True)
    points = torch.tensor([[0.0], [0.0], [1.0], [2.0], [2.0]])
    voxelize(points, features, 1.0, reduce="max")[0].features.sum().backward()
    assert features.grad.flatten().tolist() == [1, 0, 1, 0.5, 0.5]


# ---------------------------------------------------------------- wrong input
P, FEATURES = torch.zeros(3, 2), torch.ones(3, 1)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        (dict(points=None), TypeError, "points"),
        (dict(points=P.long()), TypeError, "points"),
        (dict(points=torch.zeros(3)), ValueError, "points"),
        (dict(points=torch.zeros(3, 5)), ValueError, "1 to 4 columns"),
        (dict(points=torch.zeros(3, 0)), ValueError, "1 to 4 columns"),
        (dict(points=P.to("meta")), NotImplementedError, "points"),
        (dict(features=FEATURES[:2]), ValueError, "one row per point"),
        (dict(features=FEATURES.long()), TypeError, "features"),
        (dict(voxel_size=0.0), ValueError, "voxel_size"),
        (dict(voxel_size=-1), ValueError, "voxel_size"),
        (dict(voxel_size=math.nan), ValueError, "voxel_size"),
        (dict(voxel_size=(1.0, 1.0, 1.0)), ValueError, "voxel_size"),
        (dict(voxel_size="1"), TypeError, "voxel_size"),
        (dict(origin=math.inf), ValueError, "origin"),
        (dict(origin=[[0.0, 0.0]]), ValueError, "origin"),
        (dict(spatial_shape=(4, 4, 4)), ValueError, "2 extents"),
        (dict(spatial_shape=(4, 0)), ValueError, "extents"),
        (dict(spatial_shape=4), TypeError, "spatial_shape"),
        (dict(points=P + 1e12, spatial_shape=None), ValueError, "extents"),
        (dict(batch=[0, 0, 0]), TypeError, "batch"),
        (dict(batch=torch.zeros(3)), TypeError, "batch"),
        (dict(batch=torch.zeros(3, dtype=torch.bool)), TypeError, "batch"),
        (dict(batch=torch.zeros(2, dtype=torch.int32)), ValueError, r"\(3,\)"),
        (dict(batch=torch.tensor([0, -1, 0])), ValueError, "-1"),
        (dict(batch=torch.tensor([0, 2, 0]), batch_size=2), ValueError, r"\[0, 2\), got 2"),
        (dict(batch_size=0), ValueError, "batch"),
        (dict(batch_size=-1), ValueError, "batch_size"),
        (dict(batch_size=1.0), TypeError, "batch_size"),
        (dict(batch=torch.tensor([0, 2**40, 0])), ValueError, "batch_size"),
        (dict(reduce="min"), ValueError, "reduce"),
        (dict(outside="clip"), ValueError, "outside"),
        (dict(ground=torch.ones(5)), ValueError, "ground"),
    ],
)
def test_voxelize_refuses(changes, error, word):
    arguments = dict(points=P, features=FEATURES, voxel_size=1.0, spatial_shape=(4, 4))
    with pytest.raises(error, match=word) as caught:
        voxelize(**{**arguments, **changes})
    assert str(caught.value).startswith("voxelize: ") and "; " in str(caught.value)
