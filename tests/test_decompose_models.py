"""Models with layers of low rank: what is decomposed, the report, wrong input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn

import doublesparse as ds
from decomposing import always, filled, randn, sparse_input


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
