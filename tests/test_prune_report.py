"""`ds.prune.report`: every masked layer, what it keeps, what that saves and how fast it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import doublesparse as ds
from doublesparse.prune import _report


def network() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.Dropout(),
        nn.Linear(16, 5),
        nn.Linear(5, 5),
    )
    ds.prune.sparsify_(net[:4], 0.75)
    ds.prune.sparsify_(net[5], pattern=ds.NM(1, 4))
    return net


def test_numbers() -> None:
    """Shapes, kept weights and bytes, from the masks themselves; in the order of the model."""
    net = network()
    got = ds.prune.report(net, batch=None)
    assert [row.name for row in got.rows] == ["0", "3", "5"]
    for row in got.rows:
        layer = net.get_submodule(row.name)
        assert row.shape == tuple(layer.weight.shape) and row.pattern == layer.pattern
        assert row.n_kept == int(layer.mask.sum()) and row.kept == float(layer.mask.float().mean())
        assert row.dense_bytes == 4 * layer.weight.numel()
        assert row.packed_bytes == ds.PackedWeight.pack(layer.weight, layer.mask).nbytes
        assert (row.n_rows, row.dense_ms, row.sparse_ms, row.path) == (None,) * 4
    assert got.n_kept == sum(row.n_kept for row in got.rows)
    assert got.packed_bytes == sum(row.packed_bytes for row in got.rows)
    assert got.dense_bytes == 4 * (8 * 2 * 9 + 16 * 32 + 5 * 16)


def test_what_is_skipped() -> None:
    """Why each weight that is dense is dense."""
    net = nn.Sequential(network(), nn.MultiheadAttention(4, 2), nn.Embedding(3, 4), nn.ReLU())
    got = ds.prune.report(net, batch=None)
    assert got.skipped == ds.prune.skipped(net) | {"0.6": "nobody pruned it"}
    assert len(got.rows) == 3 and {"1", "1.out_proj", "2", "0.6"} == set(got.skipped)
    for name, why in got.skipped.items():
        assert f"\n{name}: {why}" in str(got)


def test_times_of_an_input() -> None:
    """Every layer is timed on what it gets; rows are output positions."""
    got = ds.prune.report(network(), torch.randn(3, 4, 4, 4))
    assert [row.n_rows for row in got.rows] == [3 * 2 * 2, 3, 3]
    for row in got.rows:
        assert row.dense_ms > 0 and row.sparse_ms > 0 and row.path in ("sparse", "dense")


def test_times_of_rows() -> None:
    """Without an input, linear layers get random rows; nobody knows a convolution's images."""
    got = ds.prune.report(network(), batch=7)
    assert [row.n_rows for row in got.rows] == [None, 7, 7]
    assert [row.dense_ms is None for row in got.rows] == [True, False, False]
    assert [row.n_rows for row in ds.prune.report(network()).rows] == [None, 512, 512]


def test_several_arguments_and_calls() -> None:
    """A tuple of arguments; a layer that runs twice counts once; one that never runs is listed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = ds.nn.MaskedLinear(4, 4), ds.nn.MaskedLinear(4, 4)

        def forward(self, x, y):
            return self.a(x) + self.a(input=y)

    got = ds.prune.report(Net(), (torch.ones(2, 4), torch.ones(1, 4)))
    assert [(row.name, row.n_rows) for row in got.rows] == [("a", 2), ("b", None)]


def test_sparse_tensors() -> None:
    """Sites are the rows."""
    net = nn.Sequential(ds.nn.MaskedConv2d(2, 4, 1, sparsity=0.5))
    dense = torch.zeros(1, 2, 8, 8)
    dense[0, :, 2, 2:5] = 1.0
    (row,) = ds.prune.report(net, ds.SparseTensor.from_dense(dense)).rows
    assert row.n_rows == 3 and row.dense_ms > 0


def test_the_model_stays_what_it_is() -> None:
    """In training too: weights, masks, buffers, modes, random numbers, hooks, gradients."""
    net, x = network().train(), torch.randn(3, 4, 4, 4)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    ds.prune.report(net, x)
    ds.prune.report(net)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert net.training and all(m.training for m in net.modules())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert type(net[0]) is ds.nn.MaskedConv2d


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_frozen_models(dtype) -> None:
    """As before freezing, but for the bytes of another dtype; and still frozen."""
    net, x = network().eval(), torch.randn(3, 4, 4, 4)
    before = ds.prune.report(net, x)
    ds.prune.freeze(net, dtype)
    packed = [net[i].packed for i in (0, 3, 5)]
    after = ds.prune.report(net, x)
    assert [net[i].packed for i in (0, 3, 5)] == packed
    for a, b, p in zip(after.rows, before.rows, packed):
        assert a.type == b.type.replace("Masked", "Packed")
        assert (a.name, a.shape, a.n_kept, a.n_rows) == (b.name, b.shape, b.n_kept, b.n_rows)
        assert a.dense_bytes == b.dense_bytes and a.packed_bytes == p.nbytes
        assert a.dense_ms > 0 and a.sparse_ms > 0
    assert after.skipped == before.skipped


def test_prediction_and_its_error(monkeypatch) -> None:
    """The cost model's choice, its time, and how far that is from the measured one."""
    asked = []

    def predict(layer, packed, x, n_rows):
        asked.append((packed.n_kept, n_rows, x.dtype))
        return _report.Prediction("sparse" if packed.shape[0] == 16 else "dense", 2.0, 1.0)

    monkeypatch.setattr(_report, "_predict", predict)
    got = ds.prune.report(network(), torch.randn(3, 4, 4, 4))
    assert [row.path for row in got.rows] == ["dense", "sparse", "dense"]
    assert [row.predicted_ms for row in got.rows] == [2.0, 1.0, 2.0]
    assert [a[1:] for a in asked] == [(n, torch.float32) for n in (12, 3, 3)]
    for row in got.rows:
        assert row.ms == (row.sparse_ms if row.path == "sparse" else row.dense_ms)
        assert row.error == pytest.approx(row.predicted_ms / row.ms - 1)
    assert "5.000" in str(got).splitlines()[-2]


def test_table() -> None:
    """All lines as wide as they say; nothing to report is no error."""
    text = str(ds.prune.report(network(), torch.randn(1, 4, 4, 4)))
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["layer", "type", "shape", "pattern", "kept"]
    assert [line.split()[0] for line in lines[2:5]] == ["0", "3", "5"]
    assert "8x2x3x3" in lines[2] and "25.0%" in lines[2] and "NM(n=1, m=4)" in lines[4]
    assert lines[-1] == "6: nobody pruned it" and repr(ds.prune.report(nn.ReLU())).count("\n") == 3


def test_edges() -> None:
    """Fully pruned, not pruned, a user's subclass, a nameless layer."""

    class Mine(ds.nn.MaskedLinear):
        pass

    for layer, kept in ((ds.nn.MaskedLinear(8, 4, sparsity=1.0), 0.0), (Mine(8, 4), 1.0)):
        (row,) = ds.prune.report(layer, torch.ones(2, 8)).rows
        assert row.kept == kept and row.name == "" and row.dense_ms > 0
        assert (row.sparse_ms is None) == (type(layer) is Mine)


def test_wrong_arguments() -> None:
    for arguments, options, error, text in (
        ((3,), {}, TypeError, "report: model must be an nn.Module, got int"),
        ((nn.ReLU(),), {"batch": 2.5}, TypeError, "report: batch must be an int or None"),
        ((nn.ReLU(),), {"batch": True}, TypeError, "report: batch must be an int or None"),
        ((nn.ReLU(),), {"batch": 0}, ValueError, "report: batch must be at least 1, got 0"),
    ):
        with pytest.raises(error, match=text + ".*; "):
            ds.prune.report(*arguments, **options)
    net = network()
    with pytest.raises(RuntimeError):  # torch's own, and no hook stays behind
        ds.prune.report(net, torch.ones(1))
    assert not any(m._forward_pre_hooks for m in net.modules())
