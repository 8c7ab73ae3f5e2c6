"""Layers of low rank: exact at full energy, in error what was left out, whatever the layer is."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn as nn

import doublesparse as ds
from decomposing import METHODS, always, filled, randn, sparse_input


# ------------------------------------------------------------------ rank
def spectrum_rank(matrix: np.ndarray, energy: float) -> int:
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    for m in range(1, len(squares)):
        if squares[:m].sum() / squares.sum() >= energy:
            return m
    return len(squares)


@pytest.mark.parametrize("energy", [0.01, 0.3, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (20, 4), (4, 20), (5,)])
def test_rank_is_of_the_spectrum(shape, energy):
    weight = randn(*shape)
    want = spectrum_rank(weight.reshape(shape[0], -1).numpy(), energy)
    assert ds.lowrank.rank(weight, energy) == want
    assert ds.lowrank.rank(weight.float(), energy) == want


def test_rank_at_full_energy_and_ties():
    low = randn(12, 3) @ randn(3, 30, seed=1)
    assert ds.lowrank.rank(low, 1.0) == 3
    assert ds.lowrank.rank(low.float(), 1.0) == 3  # up to float32's rounding
    assert ds.lowrank.rank(torch.eye(10), 0.9) == 9  # 1 - 0.9 is not 0.1
    assert ds.lowrank.rank(torch.eye(10), 1.0) == 10
    assert ds.lowrank.rank(torch.eye(20), 0.95) == 19
    assert ds.lowrank.rank(torch.zeros(4, 3)) == 0
    assert ds.lowrank.rank(torch.ones(6, 3) + 5) == 1  # no mean is subtracted


def test_rank_of_groups():
    first, second = randn(4, 2) @ randn(2, 9, seed=1), randn(4, 9, seed=2)
    both = torch.cat([first, second])
    assert ds.lowrank.rank(both, 1.0, groups=2) == 2 + 4
    weight = both.reshape(2, 4, 9).transpose(1, 2).reshape(18, 4)  # c_in first
    assert ds.lowrank.rank(weight, 1.0, groups=2, transposed=True) == 2 + 4


# ------------------------------------------------------------------ every kind of layer
CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
GEOMETRIES = [
    {"stride": s, "padding": p, "dilation": d}
    for s, p, d in itertools.product((1, 2), (0, 1, "same"), (1, 2))
    if not (p == "same" and s == 2)
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_exactly(kind, groups, geometry):
    """M2: at energy 1 nothing changes, in any geometry; the error at less is what was left out."""
    layer = filled(kind(4, 6, 3, groups=groups, dtype=torch.float64, **geometry))
    n_axes = len(layer.kernel_size)
    x = randn(2, 4, *[7] * n_axes)
    for method in METHODS:
        exact = always(layer, method=method)
        torch.testing.assert_close(exact(x), layer(x), rtol=1e-10, atol=1e-10)
        assert exact.basis.bias is None and torch.equal(exact.combine.bias, layer.bias)
        for name in ("stride", "padding", "dilation", "groups", "kernel_size", "padding_mode"):
            assert getattr(exact.basis, name) == getattr(layer, name)
        assert exact.combine.kernel_size == (1,) * n_axes and exact.combine.groups == groups
        thin = always(layer, rank=2, method=method)
        assert thin.basis.out_channels == 2 * groups
        same = copy.deepcopy(layer)  # the product, in a layer of the old class
        same.weight.data = product(thin, groups).reshape(layer.weight.shape)
        torch.testing.assert_close(thin(x), same(x), rtol=1e-10, atol=1e-10)


def product(low, groups=1) -> torch.Tensor:
    """Of combine and basis, in numpy, group by group: rows of filters."""
    basis = low.basis.weight.detach().flatten(1).chunk(groups)
    combine = low.combine.weight.detach().flatten(1).chunk(groups)
    pairs = zip(combine, basis, strict=True)
    return torch.cat([torch.from_numpy(c.numpy() @ b.numpy()) for c, b in pairs])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    layer = filled(nn.Conv2d(3, 5, 3, padding=1, padding_mode=mode, dtype=torch.float64))
    x = randn(2, 3, 6, 6)
    torch.testing.assert_close(always(layer)(x), layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", TRANSPOSED)
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolutions(kind, groups, stride):
    options = {"stride": stride, "padding": 1, "output_padding": stride - 1, "groups": groups}
    layer = filled(kind(4, 6, 3, dtype=torch.float64, **options))
    x = randn(2, 4, *[5] * len(layer.kernel_size))
    for method in METHODS:
        low = always(layer, method=method)
        torch.testing.assert_close(low(x), layer(x), rtol=1e-10, atol=1e-10)
        assert always(layer, rank=1, method=method).basis.out_channels == groups
    if stride == 2:
        size = [9] * len(layer.kernel_size)
        torch.testing.assert_close(low(x, size), layer(x, size), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = filled(nn.Linear(7, 5, bias=bias, dtype=torch.float64))
    x = randn(2, 3, 7)
    for method in METHODS:
        low = always(layer, method=method)
        torch.testing.assert_close(low(x), layer(x), rtol=1e-12, atol=1e-12)
        assert (low.combine.bias is None) is not bias


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_sparse_convolutions_against_the_dense_layer(n_axes, groups):
    """Over a ground of 0.5, with a bias: sites and ground state, both halves sparse."""
    name = f"SparseConv{n_axes}d"
    layer = filled(
        getattr(ds.nn, name)(4, 6, 3, stride=2, padding=1, groups=groups, dtype=torch.float64)
    )
    x = sparse_input(n_axes, 4)
    dense = CONVOLUTIONS[n_axes - 1](
        4, 6, 3, stride=2, padding=1, groups=groups, dtype=torch.float64
    )
    dense.load_state_dict(layer.state_dict())
    low = always(layer)
    assert type(low.basis) is type(low.combine) is type(layer)
    y = low(x)
    assert y.sites.n_sites == layer(x).sites.n_sites
    torch.testing.assert_close(y.to_dense(), dense(x.to_dense()), rtol=1e-10, atol=1e-10)
    thin = always(layer, rank=1)
    dense.weight.data = product(thin, groups).reshape(layer.weight.shape)
    torch.testing.assert_close(thin(x).to_dense(), dense(x.to_dense()), rtol=1e-10, atol=1e-10)


def test_dense_convolutions_on_sparse_tensors():
    layer = filled(nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64))
    x = sparse_input(2, 4)
    torch.testing.assert_close(
        always(layer)(x).to_dense(), layer(x.to_dense()), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("n_axes", [1, 2, 3, 4])
def test_submanifold(n_axes):
    layer = filled(getattr(ds.nn, f"SubmanifoldConv{n_axes}d")(4, 6, 3, dtype=torch.float64))
    x = sparse_input(n_axes, 4, ground=0.0)
    y, want = always(layer)(x), layer(x)
    assert y.ground is None and torch.equal(y.coords, want.coords)
    torch.testing.assert_close(y.features, want.features, rtol=1e-10, atol=1e-10)
    dropping = filled(ds.nn.SubmanifoldConv2d(4, 6, 3, ground="drop", dtype=torch.float64))
    if n_axes == 2:
        x = sparse_input(2, 4)
        torch.testing.assert_close(always(dropping)(x).features, dropping(x).features)


def test_sparse_transposed_inverse_and_4d():
    x = sparse_input(2, 4)
    layer = filled(ds.nn.SparseConvTranspose2d(4, 6, 3, stride=2, dtype=torch.float64))
    torch.testing.assert_close(
        always(layer)(x).to_dense(), layer(x.to_dense()), rtol=1e-10, atol=1e-10
    )
    x = sparse_input(2, 3, ground=0.0)
    down = filled(ds.nn.SparseConv2d(3, 4, 2, stride=2, bias=False, dtype=torch.float64))(x)
    up = filled(ds.nn.SparseInverseConv2d(4, 6, 2, stride=2, dtype=torch.float64))
    y = always(up)(down, like=x)
    assert y.ground is None
    torch.testing.assert_close(y.features, up(down, like=x).features, rtol=1e-10, atol=1e-10)
    four = filled(ds.nn.SparseConv4d(2, 3, 3, padding=1, dtype=torch.float64))
    x = sparse_input(4, 2, extent=4)
    torch.testing.assert_close(
        always(four)(x).to_dense(), four(x).to_dense(), rtol=1e-10, atol=1e-10
    )


# ------------------------------------------------------------------ energy and error
@pytest.mark.parametrize("method", METHODS)
def test_output_error_is_the_energy_left_out(method):
    """M2: over orthonormal inputs, the squared error of the outputs is the energy left out."""
    layer = filled(nn.Conv2d(4, 12, 3, bias=False, dtype=torch.float64))
    low, report = always(layer, energy=0.7, method=method, return_report=True)
    (row,) = report.rows
    rows = layer.weight.detach().flatten(1)
    lost = (rows - product(low)).square().sum()
    total = rows.square().sum()
    assert math.isclose(row.energy, 1 - lost / total, abs_tol=1e-12) and row.energy >= 0.7
    assert math.isclose(row.error, (lost / total).sqrt(), abs_tol=1e-12)
    x = torch.eye(36, dtype=torch.float64).reshape(36, 4, 3, 3)  # white: every input once
    measured = (low(x) - layer(x)).detach().square().sum() / layer(x).detach().square().sum()
    assert math.isclose(measured, lost / total, rel_tol=1e-9)
    if method != "kmeans":
        s = np.linalg.svd(rows.numpy(), compute_uv=False)
        assert row.rank == spectrum_rank(rows.numpy(), 0.7)
        assert math.isclose(float(lost), (s[row.rank :] ** 2).sum(), rel_tol=1e-9)
    else:
        combine = low.combine.weight.detach().flatten(1)
        assert torch.equal(combine.sum(1), torch.ones(12, dtype=torch.float64))
        assert set(combine.unique().tolist()) == {0.0, 1.0}
        fewer = always(layer, rank=row.rank - 1, method=method, return_report=True)[1]
        assert fewer.rows[0].energy < 0.7


def test_svd_splits_evenly():
    layer = filled(nn.Linear(9, 6, dtype=torch.float64))
    low = always(layer, rank=3, method="svd")
    s = np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[:3]
    for gram in (low.basis.weight @ low.basis.weight.T, low.combine.weight.T @ low.combine.weight):
        torch.testing.assert_close(gram.detach(), torch.diag(torch.from_numpy(s)))
    pca = always(layer, rank=3)
    torch.testing.assert_close(product(pca), product(low))
    gram = (pca.combine.weight.T @ pca.combine.weight).detach()
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64))


def test_degenerate_weights():
    for layer in (nn.Linear(3, 4), nn.Linear(1, 4), nn.Linear(4, 1), nn.Conv2d(2, 2, 3, groups=2)):
        filled(layer)
        x = (
            torch.ones(2, 2, 5, 5)
            if isinstance(layer, nn.Conv2d)
            else torch.ones(1, layer.in_features)
        )
        for method in METHODS:
            torch.testing.assert_close(always(layer, method=method)(x), layer(x))
    zero = nn.Linear(3, 4)
    zero.weight.data.zero_()
    low, report = always(zero, return_report=True)
    assert low.basis.out_features == 1 and report.rows[0].energy == 1.0
    assert torch.equal(low(torch.ones(1, 3))[0], zero.bias)
