"""SparseTensor and Sites: constructors, order, repeats, conversions, what one reads off them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import doublesparse as ds
from checks import densify, expanded
from inputs import make_input, site_set

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def build(features, coords, **options):
    return ds.SparseTensor(torch.tensor(features), torch.tensor(coords), (4, 5), 2, **options)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_order_and_any_integer_type(dtype, rng):
    coords = site_set(rng, 2, (4, 5))
    features = torch.randn(len(coords), 3)
    shuffle = torch.from_numpy(rng.permutation(len(coords)))
    x = ds.SparseTensor(features[shuffle], coords[shuffle].to(dtype), (4, 5), 2)
    assert x.coords.dtype == torch.int32
    assert torch.equal(x.coords, coords) and torch.equal(x.features, features)


def test_gradients_pass_through_sorting(rng):
    coords = site_set(rng, 2, (4, 5))
    shuffle = torch.from_numpy(rng.permutation(len(coords)))
    leaf = torch.randn(len(coords), 2, requires_grad=True)
    x = ds.SparseTensor(leaf, coords[shuffle], (4, 5), 2)
    w = torch.randn(len(coords), 2)
    (x.features * w).sum().backward()
    assert torch.equal(leaf.grad, w[shuffle])


def test_repeated_coordinates():
    rows, at = [[1.0], [5.0], [-2.0], [4.0]], [[0, 1, 1], [1, 0, 0], [0, 1, 1], [0, 1, 1]]
    for rule, value in {"sum": 3.0, "mean": 1.0, "max": 4.0, "first": 1.0}.items():
        x = build(rows, at, duplicates=rule)
        assert x.features[:, 0].tolist() == [value, 5.0], rule
        assert x.coords.tolist() == [[0, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"\[0, 1, 1\]"):
        build(rows, at)
    for rule in ("sum", "mean", "max", "first"):
        leaf = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
        x = ds.SparseTensor(leaf, torch.tensor(at), (4, 5), 2, duplicates=rule)
        x.features.sum().backward()
        want = {"sum": [1, 1, 1, 1], "mean": [1 / 3, 1, 1 / 3, 1 / 3]}
        want |= {"max": [0, 1, 0, 1], "first": [1, 1, 0, 0]}
        assert torch.allclose(leaf.grad[:, 0], torch.tensor(want[rule], dtype=torch.float64)), rule


def test_the_callers_coordinates_stay_their_own():
    """Writing to the tensor that was passed must not move a site."""
    coords = torch.tensor([[0, 1, 1], [0, 2, 2]], dtype=torch.int32)
    x = ds.SparseTensor(torch.ones(2, 1), coords, (4, 5), 1)
    coords[0, 1] = 3
    assert x.coords.tolist() == [[0, 1, 1], [0, 2, 2]]


@pytest.mark.parametrize("ground", ("zero", "number", "channels", "image", "none"))
@pytest.mark.parametrize("n_axes", (1, 2, 3, 4))
def test_to_dense_and_back(ground, n_axes, rng):
    x = make_input(rng, n_axes, dict(c_in=3), ground=ground, dtype=torch.float64)
    s = x.sparse(ds)
    assert torch.equal(s.to_dense(), x.dense())
    if ground == "none":
        return
    g = 0.0 if x.ground is None else x.ground
    back = ds.SparseTensor.from_dense(x.dense(), ground=g)
    assert torch.equal(back.to_dense(), x.dense())
    gap = (x.dense() != x.apply(lambda t: t * 0).dense() + expanded(s.ground)).any(1)
    assert torch.equal(back.coords.long(), gap.nonzero())


def test_from_dense_is_differentiable_at_active_sites(rng):
    image = torch.zeros(1, 2, 4, 4, requires_grad=True)
    with torch.no_grad():
        image[0, :, 1, 2] = 1.0
    ds.SparseTensor.from_dense(image).to_dense().sum().backward()
    assert float(image.grad.sum()) == 2.0 and float(image.grad[0, 0, 1, 2]) == 1.0


def test_minus_zero_is_the_ground_and_nan_is_not():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 0], image[0, 0, 1, 1] = -0.0, float("nan")
    assert ds.SparseTensor.from_dense(image).coords.tolist() == [[0, 1, 1]]


def test_what_one_reads_off_it(rng):
    coords = torch.tensor([[0, 1, 1], [1, 2, 2]])
    x = ds.SparseTensor(torch.ones(2, 16), coords, (64, 64))
    assert x.batch_size == 2 and x.shape == (2, 16, 64, 64) and x.size(1) == 16 and len(x) == 2
    assert x.dim() == x.ndim == 4 and x.spatial_shape == (64, 64) and not x.saturated
    assert x.density == 2 / (2 * 64 * 64)
    text = repr(x)
    for part in ("sites=2", "batch=2", "spatial=(64, 64)", "channels=16", "float32", "cpu", "%"):
        assert part in text, text
    for other in (x.half(), x.to(torch.float16), x.to(dtype=torch.float16)):
        assert other.dtype == torch.float16 and torch.equal(other.coords, x.coords)
    assert x.to("cpu").device.type == "cpu" and x.cpu().features.shape == (2, 16)
    x.requires_grad_()
    assert x.features.requires_grad and x.requires_grad and not x.detach().requires_grad


def test_replace(rng):
    x = make_input(rng, 2, dict(c_in=2), ground="channels", dtype=torch.float64).sparse(ds)
    f = torch.zeros(len(x.coords), 2, dtype=torch.float64)
    assert torch.equal(x.replace(features=f).features, f)
    assert torch.equal(x.replace(features=f).ground.values, x.ground.values)
    assert x.replace(ground=None).ground is None
    moved = x.replace(ground=3.0)
    assert torch.equal(moved.features, x.features)
    assert torch.equal(expanded(moved.ground).unique(), torch.tensor([3.0], dtype=torch.float64))
    for bad in (f[:-1], f[:, 0], None.__class__, "x"):
        with pytest.raises((ValueError, TypeError)):
            x.replace(features=bad)


def test_no_site_and_no_sample():
    for batch in (0, 1, 3):
        coords = torch.zeros(0, 3, dtype=torch.int64)
        x = ds.SparseTensor(torch.zeros(0, 2), coords, (4, 5), batch, ground=1.5)
        assert x.shape == (batch, 2, 4, 5) and len(x.coords) == 0
        assert torch.equal(x.to_dense(), torch.full((batch, 2, 4, 5), 1.5))
        y = ds.functional.conv2d(x, torch.ones(3, 2, 3, 3), torch.ones(3), padding=1)
        want = torch.nn.functional.conv2d(x.to_dense(), torch.ones(3, 2, 3, 3), torch.ones(3), 1, 1)
        assert torch.equal(y.to_dense(), want)
        assert densify(torch.relu(y)).shape == (batch, 3, 4, 5)
        assert y.density >= 0 and isinstance(repr(y), str)


def test_a_full_grid_is_saturated(rng):
    dense = torch.randn(2, 3, 4, 5)
    x = ds.SparseTensor.from_dense(dense)
    assert x.saturated and x.density == 1.0
    assert torch.equal(x.to_dense(), dense)
    coords = torch.from_numpy(np.argwhere(np.ones((2, 4, 5), bool)))
    assert torch.equal(x.coords.long(), coords)
    assert ds.SparseTensor(x.features, x.coords, (4, 5), 2, ground=7.0).saturated


def test_sites_are_shared_by_layers_that_keep_them(rng):
    """No copy and no second rulebook where sites stay: elementwise, norms, submanifold."""
    x = make_input(rng, 2, dict(c_in=2)).sparse(ds)
    assert torch.relu(x).sites is x.sites
    assert ds.functional.batch_norm(x, None, None, training=True).sites is x.sites
    y = ds.functional.submanifold_conv2d(x, torch.ones(3, 2, 3, 3))
    assert y.sites is x.sites
    again = ds.functional.conv2d(x, torch.ones(1, 2, 3, 3), padding=1)
    once = ds.functional.conv2d(x, torch.zeros(1, 2, 3, 3), padding=1)
    assert again.sites is once.sites, "the rulebook of one geometry is built once"
