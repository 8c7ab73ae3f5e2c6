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

METHODS = ("pca", "svd", "kmeans")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def filled(layer: nn.Module, seed: int = 1) -> nn.Module:
    """Deterministic parameters, biases too."""
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed + i, dtype=parameter.dtype)
    return layer


def always(layer, energy=1.0, **options):
    return ds.lowrank.decompose(layer, energy, cost="always", **options)


def sparse_input(n_axes: int, channels: int, extent: int = 9, ground: float = 0.5):
    """Some sites over a ground that is not zero, so that a layer's ground state is at stake."""
    coords = torch.unique(
        torch.randint(extent, (12, n_axes), generator=torch.Generator().manual_seed(3)), dim=0
    )
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int64), coords], 1)
    features = randn(len(coords), channels, seed=4)
    grounds = torch.full((channels,), ground, dtype=torch.float64) if ground else 0.0
    return ds.SparseTensor(features, coords, (extent,) * n_axes, 1, ground=grounds)


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


# ------------------------------------------------------------------ models
def network() -> nn.Module:
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 36, 10),
        ).eval()
    )


X = randn(2, 3, 6, 6, dtype=torch.float32)


def test_model_is_copied_unless_in_place():
    net = network()
    kinds = [type(m) for m in net]
    low, report = always(net, return_report=True)
    assert [type(m) for m in net] == kinds and low is not net
    assert [row.name for row in report.rows] == ["0", "3", "6"] == list(report.ranks)
    torch.testing.assert_close(low(X), net(X), rtol=1e-5, atol=1e-3)  # outputs of a few hundred
    assert not low.training and not any(m.training for m in low.modules())
    same = always(net, inplace=True)
    assert same is net and type(net[3]) is ds.lowrank.LowRank
    assert set(net.state_dict()) >= {"3.basis.weight", "3.combine.weight", "3.combine.bias"}
    again, report = always(net, return_report=True)
    assert not report.rows and report.skipped["3.basis"] == "it is a factor of a decomposed layer"
    torch.optim.SGD(again.parameters(), lr=0.1)
    again(X).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_ranks_by_name_and_select():
    net = network()
    low, report = ds.lowrank.decompose(net, rank={"3": 5}, return_report=True)
    assert low[3].basis.out_channels == 5 and type(low[0]) is nn.Conv2d
    assert report.skipped == {"0": "rank does not name it", "6": "rank does not name it"}
    low = ds.lowrank.decompose(net, rank=99, select=lambda name, module: name != "0")
    assert type(low[0]) is nn.Conv2d
    assert (low[3].basis.out_channels, low[6].basis.out_features) == (24, 10)  # what they have


def test_decides_by_the_cost_model():
    net = nn.Sequential(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 1))
    net[0].weight.data = (randn(128, 4) @ randn(4, 576, seed=2)).reshape(128, 64, 3, 3).float()
    low, report = ds.lowrank.decompose(net, return_report=True)
    first, second = report.rows
    assert first.replaced and first.rank <= 4 and first.predicted > 3
    assert not second.replaced and second.predicted < 1 and "does not pay" in second.why
    assert type(low[2]) is nn.Conv2d
    assert first.macs == 64 * 9 * 128
    assert first.low_rank_macs == first.rank * (64 * 9 + 128)
    _, report = ds.lowrank.decompose(net, example=torch.ones(2, 64, 5, 5), return_report=True)
    assert report.rows[0].macs == 2 * 9 * 64 * 9 * 128  # 3 x 3 positions of two images
    _, report = ds.lowrank.decompose(net, rank=128, cost="auto", return_report=True)
    assert not any(row.replaced for row in report.rows)


def test_report_measures_and_prints():
    net = network()
    low, report = ds.lowrank.decompose(net, rank={"3": 2, "6": 2}, return_report=True)
    before = low(X)
    assert report.measure(X, rounds=2) is report
    assert torch.equal(low(X), before) and type(low[3]) is ds.lowrank.LowRank
    assert report.speedup > 0 and report.seconds > 0
    for row in report.rows:
        assert row.seconds > 0 and row.speedup == row.seconds / row.low_rank_seconds
    text = str(report)
    assert "24x16x3x3  2x16x3x3 + 24x2x1x1" in text and "0: rank does not name it" in text
    assert "total" in text and f"{report.speedup:.2f}x" in text
    with pytest.raises(ValueError, match="rounds"):
        report.measure(X, rounds=0)
    layer, report = ds.lowrank.decompose(nn.Linear(4, 4), rank=1, return_report=True)
    assert report.measure(torch.ones(2, 4)).speedup > 0  # a layer that is the model


def test_what_is_left_alone():
    net = nn.ModuleDict(
        {
            "a": nn.Linear(4, 4),
            "b": nn.Linear(4, 4),
            "c": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "d": nn.MultiheadAttention(4, 2),
            "e": nn.Embedding(4, 4),
            "f": nn.LazyLinear(3),
            "g": nn.Linear(4, 4),
        }
    )
    net["b"].weight = net["a"].weight
    net["g"].register_forward_hook(lambda module, args, out: None)
    _, report = always(net, return_report=True)
    assert not report.rows
    assert set(report.skipped) == {"a", "b", "c", "d", "d.out_proj", "e", "f", "g"}
    assert "tied" in report.skipped["a"] and "hooks" in report.skipped["g"]


def test_a_layer_under_two_names():
    shared = filled(nn.Linear(4, 4))
    net = nn.Sequential(shared, nn.Tanh(), shared)
    low, report = always(net, return_report=True)
    assert low[0] is low[2] and type(low[0]) is ds.lowrank.LowRank
    torch.testing.assert_close(low(torch.ones(1, 4)), net(torch.ones(1, 4)))
    assert report.measure(torch.ones(1, 4), rounds=1).speedup > 0


def test_masked_layers_and_pruning_afterwards():
    net = ds.prune.sparsify_(network(), 0.5)
    want = net(X)
    low = always(net)
    torch.testing.assert_close(low(X), want, rtol=1e-5, atol=1e-3)
    assert type(low[3].basis) is nn.Conv2d and type(net[3]) is ds.nn.MaskedConv2d
    ds.prune.sparsify_(low, 0.5, select=lambda name, module: name.endswith("basis"))
    assert type(low[3].basis) is ds.nn.MaskedConv2d and type(low[3].combine) is nn.Conv2d
    pruned = low(X)
    ds.prune.freeze(low)
    torch.testing.assert_close(low(X), pruned, rtol=1e-4, atol=1e-2)
    frozen = ds.prune.freeze(net)
    torch.testing.assert_close(always(frozen)(X), want, rtol=1e-5, atol=1e-3)
    sparse = filled(ds.nn.SubmanifoldConv2d(4, 6, 3, dtype=torch.float64))
    sparse.set_mask(torch.rand(sparse.weight.shape) < 0.5)
    x = sparse_input(2, 4, ground=0.0)
    low = always(sparse)
    assert type(low.basis) is ds.nn.SubmanifoldConv2d
    torch.testing.assert_close(low(x).features, sparse(x).features)


@pytest.mark.parametrize("kind", [ds.models.DeepCNet, ds.models.DeepCNiN])
def test_deepcnet(kind):
    """Dense and sparse, with the scaling of its feature dropout in evaluation."""
    net = filled(kind(2, 8, 5, in_channels=2, dropout=0.4, dtype=torch.float64)).eval()
    x = torch.zeros(2, 2, 12, 12, dtype=torch.float64)
    x[:, :, 5, 3:9] = randn(2, 2, 6)
    sparse = ds.SparseTensor.from_dense(x)
    want = net(x)
    scale = float(want.detach().abs().max())
    low, report = always(net, return_report=True)
    assert len(report.rows) == (7 if kind is ds.models.DeepCNiN else 4)
    for answer in (low(x), low(sparse)):
        assert float((answer - want).detach().abs().max()) <= 1e-10 * scale
    low.train()
    torch.manual_seed(0)
    dropped = low(x)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, net.train()(x), rtol=1e-9, atol=1e-9 * scale)


def test_frozen_grounds_are_forgotten():
    net = filled(nn.Sequential(ds.nn.SparseConv2d(4, 6, 3, dtype=torch.float64))).eval()
    x = sparse_input(2, 4)
    ds.freeze_ground(net, (9, 9), ground=x.ground)
    low = ds.lowrank.decompose(net, rank=1, inplace=True)
    torch.testing.assert_close(low(x).to_dense(), low(x.to_dense()), rtol=1e-10, atol=1e-10)


def test_keeps_dtype_order_and_requires_grad():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    layer.weight.requires_grad_(False)
    low = always(layer, rank=3)
    assert low.basis.weight.is_contiguous(memory_format=torch.channels_last)
    assert not low.basis.weight.requires_grad and low.combine.bias.requires_grad
    assert low.basis.weight.dtype is torch.float32
    assert low.combine.weight.untyped_storage().nbytes() == 4 * 6 * 3


# ------------------------------------------------------------------ wrong input
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"module": "net"}, TypeError),
        ({"energy": 0.0}, ValueError),
        ({"energy": 1.01}, ValueError),
        ({"energy": math.nan}, ValueError),
        ({"energy": "all"}, TypeError),
        ({"energy": True}, TypeError),
        ({"rank": 0}, ValueError),
        ({"rank": 2.0}, TypeError),
        ({"rank": True}, TypeError),
        ({"rank": {"3": 0}}, ValueError),
        ({"rank": {"2": 1}}, ValueError),
        ({"rank": {"head": 1}}, ValueError),
        ({"method": "qr"}, ValueError),
        ({"cost": "never"}, ValueError),
        ({"select": "0"}, TypeError),
    ],
)
def test_wrong_arguments(arguments, error):
    with pytest.raises(error, match="decompose: "):
        ds.lowrank.decompose(**({"module": network()} | arguments))


def test_wrong_weights_change_nothing():
    net = network()
    with torch.no_grad():
        net[6].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="decompose: layer '6': weight must be finite"):
        always(net, inplace=True)
    assert type(net[0]) is nn.Conv2d
    with pytest.raises(NotImplementedError, match="float32 or float64"):
        always(nn.Linear(2, 2).bfloat16())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"energy": 0}, ValueError),
        ({"energy": 2}, ValueError),
        ({"energy": None}, TypeError),
        ({"weight": torch.zeros(0, 3)}, ValueError),
        ({"weight": torch.tensor(1.0)}, ValueError),
        ({"weight": torch.tensor([[math.nan]])}, ValueError),
        ({"weight": torch.ones(2, 2, dtype=torch.int32)}, TypeError),
        ({"weight": torch.ones(2, 2, dtype=torch.float16)}, NotImplementedError),
        ({"weight": [1.0]}, TypeError),
        ({"groups": 3}, ValueError),
        ({"groups": 0}, ValueError),
        ({"groups": 1.5}, ValueError),
    ],
)
def test_wrong_rank_arguments(arguments, error):
    with pytest.raises(error, match="rank: "):
        ds.lowrank.rank(**({"weight": torch.ones(4, 3)} | arguments))


def test_kmeans_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        always(nn.Linear(4, 4), 0.5, method="kmeans")


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_scale_does_not_matter(scale):
    """Squares of such weights have no room in a float64; shares of energy do."""
    weight = randn(6, 8)
    assert [ds.lowrank.rank(scale * weight, e) for e in (0.5, 0.9, 1.0)] == [
        ds.lowrank.rank(weight, e) for e in (0.5, 0.9, 1.0)
    ]
    rows = []
    for factor in (1.0, scale):
        layer = nn.Linear(8, 6, bias=False).double()
        layer.weight.data = factor * weight
        rows += ds.lowrank.decompose(layer, 0.9, cost="always", return_report=True)[1].rows
    assert rows[0].rank == rows[1].rank
    assert rows[0].energy == pytest.approx(rows[1].energy, rel=1e-12)
    assert rows[0].error == pytest.approx(rows[1].error, rel=1e-12)


def test_weights_without_data_and_slices():
    with pytest.raises(NotImplementedError, match="must be strided and hold data"):
        ds.lowrank.rank(torch.empty(3, 3, device="meta"))
    with pytest.raises(NotImplementedError, match="must be strided and hold data"):
        ds.lowrank.force(torch.eye(3).to_sparse())
    low = ds.lowrank.decompose(nn.Linear(8, 8), rank=2)
    assert low[0] is low.basis and low[-1] is low.combine
    assert list(low[:1]) == [low.basis] and type(low[:1]) is nn.Sequential


def test_ranks_of_centroids_and_backward_hooks():
    """There may be as many centroids as filters; a hook before the backward is a hook."""
    layer = nn.Linear(2, 6)
    row = ds.lowrank.decompose(layer, rank=5, method="kmeans", return_report=True)[1].rows[0]
    assert (row.rank, row.full_rank) == (5, 6)
    layer.register_full_backward_pre_hook(lambda module, gradient: None)
    assert "hooks" in ds.lowrank.decompose(layer, rank=1, return_report=True)[1].skipped[""]
