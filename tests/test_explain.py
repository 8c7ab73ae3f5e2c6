"""explain and autotune: what they say, that they leave no trace, and that answers stay."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
import oracle
from checks import densify
from doublesparse import _autotune, _costs, _crossover, _watch
from inputs import make_input
from networks import NETWORKS
from test_crossover import at
from test_networks import randomized


def strokes(rng, shape, batch=1, c=3, ground="zero", dtype=torch.float64):
    return make_input(
        rng, len(shape), {}, channels=c, shape=shape, batch=batch, dtype=dtype, integers=False,
        ground=ground, kind="strokes",
    ).sparse(ds)  # fmt: skip


def traces(net: nn.Module) -> list:
    """Everything that a watcher could have left in a network, or in the package."""
    hooks = [h for m in net.modules() for h in (m._forward_hooks, m._forward_pre_hooks) if h]
    watcher = _watch.current.watcher
    return [*hooks, *_crossover.tuned.items, *([] if watcher is None else [watcher])]


# ------------------------------------------------------------------ explain
@pytest.mark.parametrize("crossover", (None, "auto", 0.2))
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_listed(name, crossover, rng):
    """Once per call, by name and class, in the order of the network; and nothing is changed."""
    ds.set_crossover(crossover)
    make, shape, batch = NETWORKS[name]
    net = randomized(make, False)
    x, called = strokes(rng, shape, batch), []
    leaves = {n: m for n, m in net.named_modules() if not [*m.children()]}
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: called.append((n, type(m).__name__)))
        for n, m in leaves.items()
    ]
    net(x)
    for handle in handles:
        handle.remove()
    report = ds.explain(net, x)
    rows = [(row.name, row.type) for row in report.rows if row.type[0].isupper()]
    assert rows == called and len(rows) > 2
    text = str(report)
    assert text == repr(report) and len(text.splitlines()) == len(report.rows) + 4
    assert all(name in text and kind in text for name, kind in called)
    for row in report.rows:
        assert row.path in ("sparse", "saturated", "torch dense") and 0 <= row.ms <= report.ms
        assert row.active_in is None or 0 < row.active_in <= 1
        assert crossover is not None or "Conv" not in row.type or row.path != "torch dense" or (
            row.active_in is None  # a gate on pooled features is no sparse layer
        )  # fmt: skip
        if "Conv" in row.type and row.active_in is not None:
            assert row.pairs is not None and row.predicted_dense_ns > 0
            assert (row.predicted_sparse_ns is None) == (row.active_in == 1)
    assert not traces(net)


def test_pairs_shares_and_classes_are_right(rng):
    """Counted by the dictionary-of-sites oracle, and by hand."""
    x = strokes(rng, (9, 8), ground="number")
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).double()
    conv, relu, pool = ds.explain(net, x).rows
    coords = [tuple(c) for c in x.coords.tolist()]
    found, sites = oracle.pairs(coords, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    assert conv.pairs == len(found)
    assert conv.active_in == len(coords) / 72 and conv.active_out == len(sites) / 72
    assert conv.classes == 1 and conv.ground_pairs == 9
    assert conv.ground_share == 9 / (9 + len(found))
    assert relu.active_in == relu.active_out == conv.active_out and relu.pairs is None
    found, sites = oracle.pairs([tuple(s) for s in sites], (4, 4), (2, 2), (2, 2), (0, 0), (1, 1))
    assert pool.pairs == len(found) and pool.active_out == len(sites) / 16
    assert ds.explain(net[:1], x * 0).rows[0].classes == 1
    zero = ds.SparseTensor(x.features, x.coords, (9, 8), 1)
    assert ds.explain(net[:1], zero).rows[0].ground_share == 0
    none = ds.SparseTensor(x.features, x.coords, (9, 8), 1, ground=None)
    assert ds.explain(net[:1], none).rows[0].classes is None


class Functional(nn.Module):
    """Layers without a module of their own, and a module that runs two of them."""

    class Two(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.conv2d(x, torch.ones(2, 3, 3, 3)), 2)

    def __init__(self) -> None:
        super().__init__()
        self.two, self.sub = self.Two(), ds.nn.SubmanifoldConv2d(3, 3, 3)

    def forward(self, x, twice: bool = False):
        y = self.sub(F.conv_transpose2d(F.avg_pool2d(x, 2), torch.ones(3, 3, 2, 2), stride=2))
        z = ds.functional.submanifold_conv2d(y, torch.ones(3, 3, 3, 3))
        return self.two(x), z


def test_functions_without_a_module_are_listed_too(rng):
    net = Functional()
    report = ds.explain(net, strokes(rng, (10, 12), dtype=torch.float32))
    assert [(row.name, row.type) for row in report.rows] == [
        ("", "avg_pool2d"),
        ("", "conv_transpose2d"),
        ("sub", "SubmanifoldConv2d"),
        ("", "submanifold_conv2d"),
        ("two", "conv2d"),
        ("two", "max_pool2d"),
    ]
    assert all(row.pairs > 0 and row.path == "sparse" for row in report.rows)


def test_paths(rng):
    """Sparse, saturated on our kernels, saturated by torch's; already saturated."""
    layer = nn.Sequential(nn.Conv2d(16, 16, 1))
    for crossover, ours, density, path in (
        (None, True, 0.9, "sparse"),
        (0.5, True, 0.9, "saturated"),
        (0.5, False, 0.9, "torch dense"),
        (None, True, 1.0, "saturated"),
    ):
        ds.set_crossover(crossover)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_costs, "ours", lambda m, w, ours=ours: 0.0 if ours else 1e9)
            (row,) = ds.explain(layer, at(density)).rows
        assert row.path == path
        assert (row.predicted_ns == row.predicted_sparse_ns) == (path == "sparse")
        cells = at(density).sites.n_sites if path == "sparse" else 1600
        assert row.pairs == cells


def test_frozen_grounds_cost_nothing(rng):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double().eval()
    x = strokes(rng, (9, 8), ground="number")
    assert ds.explain(net, x).rows[0].ground_share > 0
    ds.freeze_ground(net, (9, 8), ground=2.0)
    assert ds.explain(net, x).rows[0].ground_share == 0


def test_explain_leaves_a_network_in_training_as_it_was(rng):
    net = nn.Sequential(*NETWORKS["vgg_bn"][0]()[:4], nn.Dropout(0.5)).double().train()
    before, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    x = strokes(rng, (24, 26))
    report = ds.explain(net, x)
    assert report.rows[-1].type == "Dropout" and net.training
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.is_grad_enabled() and net(x).requires_grad


def test_an_error_leaves_no_trace(rng):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 2, 3)).double()
    x = strokes(rng, (9, 8))
    for call in (ds.explain, ds.autotune):
        with pytest.raises(ValueError, match="channels"):
            call(net, x)
        assert not traces(net) and _autotune._HOLDER not in net.__dict__
    assert ds.explain(net[:1], x).rows, "a second call works"


def test_threads_that_nobody_explains_are_not_seen(rng):
    net, other = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).double() for _ in range(2))
    x, stop, errors = strokes(rng, (9, 8)), threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                other(x)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            assert [row.type for row in ds.explain(net, x).rows] == ["Conv2d", "MaxPool2d"]
    finally:
        stop.set()
        thread.join()
    assert not errors


# ------------------------------------------------------------------ autotune
def tuned(net: nn.Module) -> dict:
    return net.__dict__[_autotune._HOLDER].table


def conv_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=2),
    ).eval()  # fmt: skip


def test_autotune_measures_every_convolution():
    ds.set_crossover("auto")
    net, x = conv_net(), at(0.3)
    with torch.no_grad():
        want = net(x).to_dense()
    assert ds.autotune(net, x) is net
    table = tuned(net)
    assert {key[:1] + key[4:] for key in table} == {
        ("conv", 16, 16, 1, "float32"), ("conv", 16, 8, 1, "float32"),
        ("transposed", 8, 8, 2, "float32"),
    }  # fmt: skip
    for factors in table.values():
        assert all(isinstance(f, float) and f > 0 for f in factors)
    with torch.no_grad():
        got = net(x).to_dense()
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    assert len(_crossover.tuned.items) == 0
    assert ds.autotune(net, None) is net and not traces(net)
    assert _autotune._HOLDER not in net.__dict__
    ds.autotune(net, None)


def fake(net: nn.Module, **factors: float) -> nn.Module:
    """Tuned, and then told other numbers."""
    ds.autotune(net, at(0.3))
    table = tuned(net)
    for key in table:
        table[key] = _costs.Factors(**factors)
    return net


def paths(net: nn.Module, x: ds.SparseTensor) -> list[str]:
    return [row.path for row in ds.explain(net, x).rows if "Conv" in row.type]


def test_the_table_decides_while_its_model_runs():
    """For that model, whatever runs inside of it, and nobody else."""
    ds.set_crossover("auto")
    net, plain, x = conv_net(), conv_net(), at(0.8)
    assert paths(plain, x)[0] != "sparse"
    assert paths(fake(net, sparse=1e-9), x)[0] == "sparse"
    assert paths(fake(net, ours=1e-9), x) == ["saturated"] * 3
    assert paths(fake(net, torch=1e-9), x) == ["torch dense"] * 3
    assert paths(plain, x) == paths(conv_net(), x)
    assert paths(net[:1], x) == paths(plain[:1], x), "its layers alone are not tuned"
    assert paths(nn.Sequential(net), x) == ["torch dense"] * 3
    around = fake(nn.Sequential(net), sparse=1e-9)
    assert paths(around, x) == ["torch dense"] * 3, "the innermost table counts"
    fake(net, sparse=1e-9)
    rows = ds.explain(net, x).rows
    assert rows[0].predicted_sparse_ns < 1, "explain says what decided"
    for crossover, path in ((None, "sparse"), (0.5, "torch dense")):
        ds.set_crossover(crossover)
        assert paths(fake(net, torch=1e-9), x)[0] == path


def test_a_table_decides_the_same_for_any_number_of_threads():
    ds.set_crossover("auto")
    net = ds.autotune(conv_net(), at(0.3))
    for density in (0.1, 0.5, 0.7, 0.9):
        first = paths(net, at(density))
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert paths(net, at(density)) == first


def by_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "how", (copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), by_torch_save)
)
def test_copies_keep_the_table(how):
    ds.set_crossover("auto")
    net, x = fake(conv_net(), torch=1e-9), at(0.8)
    twin = how(net)
    assert tuned(twin) == tuned(net) and tuned(twin) is not tuned(net)
    assert paths(twin, x) == paths(net, x) == ["torch dense"] * 3
    assert set(twin.state_dict()) == set(conv_net().state_dict())
    ds.autotune(twin, None)
    assert not traces(twin) and paths(net, x) == ["torch dense"] * 3
    ds.autotune(net, None)
    assert paths(twin, x) == paths(net, x) == paths(conv_net(), x)


def test_an_error_in_forward_ends_the_table():
    ds.set_crossover("auto")
    net = fake(conv_net(), torch=1e-9)
    handle = net[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(at(0.8))
    assert not _crossover.tuned.items
    with pytest.raises(ZeroDivisionError):
        ds.autotune(net, at(0.8))
    handle.remove()
    assert paths(net, at(0.8)) == ["torch dense"] * 3, "the old table is still there"


def test_the_budget_bounds_the_time(monkeypatch):
    """A clock of our own: nothing is begun after the end, nor what would not end before it."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(_autotune.time, "perf_counter", clock)
    full = ds.autotune(conv_net(), at(0.3), budget=1e9)
    assert len(tuned(full)) == 3
    for budget in (0.5, 10.0, 30.0):
        begin = now[0]
        net = ds.autotune(conv_net(), at(0.3), budget=budget)
        assert now[0] - begin < budget + 40 and len(tuned(net)) < 3
    with torch.no_grad():
        net(at(0.3))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tuned_network_gives_the_same_answer(name, rng):
    """Whatever the clock said, to float64 rounding; buffers stay while it measures."""
    ds.set_crossover("auto")
    make, shape, batch = NETWORKS[name]
    net = randomized(make, False)
    x = strokes(rng, shape, batch, ground="number")
    ds.autotune(net, x, budget=0.05)
    with torch.no_grad():
        got, want = densify(net(x)), net(x.to_dense())
    assert float((got - want).abs().max()) <= 1e-10 * float(want.abs().max())
    net.train()
    before = copy.deepcopy(net.state_dict())
    ds.autotune(net, x, budget=0.01)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_without_a_ground_there_is_nothing_to_decide():
    net = ds.autotune(conv_net(), at(0.3, ground=None))
    assert not tuned(net)
    net(at(0.3, ground=None))


# ------------------------------------------------------------------ wrong on purpose
NET = nn.Conv2d(16, 4, 3)
WRONG = {
    "explain: no module": (lambda: ds.explain(F.relu, at(0.1)), TypeError, "nn.Module"),
    "explain: dense": (lambda: ds.explain(NET, torch.rand(1, 16, 9, 9)), TypeError, "from_dense"),
    "explain: None": (lambda: ds.explain(NET, None), TypeError, "SparseTensor"),
    "autotune: no module": (lambda: ds.autotune(3, at(0.1)), TypeError, "nn.Module"),
    "autotune: dense": (lambda: ds.autotune(NET, torch.rand(1, 16, 9, 9)), TypeError, "from_dense"),
    "autotune: budget": (lambda: ds.autotune(NET, at(0.1), budget=0), ValueError, "budget"),
    "autotune: budget NaN": (lambda: ds.autotune(NET, at(0.1), float("nan")), ValueError, "budget"),
    "autotune: budget text": (lambda: ds.autotune(NET, at(0.1), budget="1"), TypeError, "budget"),
}


@pytest.mark.parametrize("what", WRONG)
def test_says_what_is_wrong(what):
    call, kind, words = WRONG[what]
    with pytest.raises(kind, match=words) as error:
        call()
    assert str(error.value).startswith(what.split(":")[0] + ": ")
    assert not traces(NET)
