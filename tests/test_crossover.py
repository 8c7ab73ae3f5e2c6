"""Which layers run dense: a pure function of what the tensor is, and never another answer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from checks import densify
from doublesparse import _convolution
from inputs import make_input
from networks import ResNet18
from test_networks import randomized

DENSITIES = (0.005, 0.02, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)


def at(density: float, shape=(40, 40), c=16, ground=0.5, dtype=torch.float32, batch=1):
    """Random active sites; a smaller density's are among a larger one's."""
    torch.manual_seed(7)
    order = torch.rand(batch, *shape)
    coords = (order < density).nonzero()
    values = torch.randn(batch, *shape, c, dtype=dtype)
    features = values[tuple(coords.unbind(1))]
    return ds.SparseTensor(features, coords, shape, batch, ground=ground)


def fresh(x: ds.SparseTensor) -> ds.SparseTensor:
    """The same tensor on sites that remember nothing."""
    ground = None if x.ground is None else x.ground.values.flatten()[: x.shape[1]].clone()
    ground = 0.0 if x.ground is not None and x.ground.is_zero else ground
    return ds.SparseTensor(x.features, x.coords, x.spatial_shape, x.batch_size, ground=ground)


LAYERS = {
    "3x3": lambda c, o: nn.Conv2d(c, o, 3, padding=1),
    "1x1": lambda c, o: nn.Conv2d(c, o, 1),
    "stride 2": lambda c, o: nn.Conv2d(c, o, 3, 2, 1),
    "7x7": lambda c, o: nn.Conv2d(c, o, 7, padding=3),
    "depthwise": lambda c, o: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "transposed": lambda c, o: nn.ConvTranspose2d(c, o, 2, 2),
    "dilated": lambda c, o: nn.Conv2d(c, o, 3, padding=2, dilation=2),
}


# ------------------------------------------------------------------ a pure function
def decide(layer: nn.Module, x: ds.SparseTensor) -> bool:
    with torch.no_grad():
        return layer(x).saturated


@pytest.mark.parametrize("kind", LAYERS)
def test_the_decision_depends_on_nothing_else(kind):
    """Not on threads, on what is remembered, on how often; on values neither."""
    ds.set_crossover("auto")
    layer = LAYERS[kind](16, 32)
    for density in (0.02, 0.5, 0.75, 0.9, 1.0):
        x = at(density)
        first = decide(layer, x)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            assert decide(layer, x) == decide(layer, fresh(x)) == first, f"{density} {threads}"
        ds.set_cache_limit(0)
        assert decide(layer, fresh(x)) == first
        ds.set_cache_limit(2**30)
        assert decide(layer, x * 3 + 1) == first
        assert decide(copy.deepcopy(layer), copy.deepcopy(x)) == first
        x.features.requires_grad_()
        assert layer(x).saturated == first, "training decides otherwise"


@pytest.mark.parametrize("density", (0.02, 0.3, 0.9))
def test_same_sites_and_bits_for_any_number_of_threads(density, monkeypatch):
    """Of everything that runs on our kernels, saturated layers among it."""
    ds.set_crossover("auto")
    monkeypatch.setattr(ds._costs, "torchs", lambda m, w: float("inf"))
    net = nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.MaxPool2d(2)
    )
    x, first = at(density), None
    for threads in (1, 2, 4, 1):
        torch.set_num_threads(threads)
        for _ in range(2):
            outs = [net[: n + 1](fresh(x)) for n in range(3)]
            now = [(o.features.detach(), o.coords) for o in outs]
            first = first or now
            for (f, c), (f1, c1) in zip(now, first):
                assert torch.equal(c, c1) and torch.equal(f, f1)
    assert outs[0].saturated == (density > 0.1), "this proves less than it should"


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("ground", (0.0, 0.5))
def test_monotone_in_the_density(kind, ground):
    """Where a layer runs dense, it does so on more sites, too; and does, somewhere."""
    ds.set_crossover("auto")
    layer = LAYERS[kind](64, 64)
    decisions = [decide(layer, at(d, (48, 48), 64, ground)) for d in DENSITIES]
    assert decisions == sorted(decisions), dict(zip(DENSITIES, decisions))
    assert not decisions[0] and decisions[-1]


def test_the_shipped_model_alone_decides(monkeypatch):
    """No clock: the decision follows the predictions."""
    ds.set_crossover("auto")
    layer, x = LAYERS["1x1"](16, 16), at(0.9)
    monkeypatch.setattr(ds._costs, "sparse", lambda m, w: 0.0)
    assert not decide(layer, x)
    monkeypatch.setattr(ds._costs, "sparse", lambda m, w: 1e18)
    assert decide(layer, x)
    assert not decide(layer, at(0.02)), "half of the sites are still inactive"


# ------------------------------------------------------------------ set_crossover
def test_none_never_saturates():
    ds.set_crossover(None)
    for kind in LAYERS:
        for density in (0.3, 0.8):
            x = at(density)
            torch_conv, calls = _convolution._CONV, []
            try:
                _convolution._CONV = {2: lambda *a: calls.append(a) or F.conv2d(*a)}
                y = LAYERS[kind](16, 16)(x)
            finally:
                _convolution._CONV = torch_conv
            assert not calls
            if kind == "1x1":
                assert torch.equal(y.coords, x.coords) and not y.saturated
    assert ds.functional.conv2d(at(1.0), torch.ones(4, 16, 3, 3)).saturated  # by its sites


@pytest.mark.parametrize("threshold", (0.0, 0.25, 0.5, 1.0))
def test_a_number_saturates_from_that_density_on(threshold):
    ds.set_crossover(threshold)
    layers = (nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(16, 8, 1), nn.MaxPool2d(1), nn.AvgPool2d(1))
    for density in DENSITIES[1:]:
        x = at(density)
        for layer in layers:
            assert decide(layer, x) == (x.density >= threshold), f"{layer} at {x.density}"
    exact = ds.SparseTensor(torch.ones(2, 16), torch.tensor([[0, 0, 1], [0, 1, 0]]), (2, 4))
    assert decide(layers[0], exact) == (threshold <= 0.25)


@pytest.mark.parametrize("crossover", ("auto", 0.0, 0.5))
def test_without_a_ground_nothing_saturates_below_full(crossover):
    ds.set_crossover(crossover)
    layers = (*(make(16, 16) for make in LAYERS.values()), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1))
    for density in (0.02, 0.5, 0.9):
        x = at(density, ground=None)
        for layer in layers:
            got = layer(x)
            ds.set_crossover(None)
            want = layer(fresh(x))
            ds.set_crossover(crossover)
            assert torch.equal(got.coords, want.coords) and got.ground is None
            assert torch.equal(got.features, want.features), layer
    full = at(1.0, ground=None)
    for layer in layers:
        ds.set_crossover(None)
        want = layer(fresh(full))
        ds.set_crossover(crossover)
        got = layer(full)
        assert got.ground is None and torch.equal(got.coords, want.coords)
        assert torch.allclose(got.features, want.features, rtol=1e-4, atol=1e-5)


def test_without_a_ground_padding_reads_nothing():
    """Outputs whose window holds no site do not exist, so torch's kernel is another function."""
    for crossover in (None, "auto", 0.0):
        ds.set_crossover(crossover)
        x = at(1.0, (4, 4), 3, ground=None)
        y = ds.functional.conv2d(x, torch.ones(2, 3, 1, 1), torch.ones(2), padding=2)
        assert y.sites.n_sites == 16 and not y.saturated


# ------------------------------------------------------------------ the same answer
@pytest.mark.parametrize("crossover", (None, "auto", 0.0, 0.3))
@pytest.mark.parametrize("kind", LAYERS)
def test_the_answer_is_the_dense_one_on_both_sides(kind, crossover, rng):
    """Integers: exact, whatever ran; forward and gradients."""
    ds.set_crossover(crossover)
    layer = LAYERS[kind](3, 4).double()
    for p in layer.parameters():
        nn.init._no_grad_uniform_(p, -3, 3)
        p.data.round_()
    for ground in ("zero", "number", "image"):
        for share in ("strokes", "random", "all", "none"):
            made = make_input(rng, 2, {}, channels=3, shape=(10, 12), dtype=torch.float64,
                              ground=ground, kind=share)  # fmt: skip
            x, dense = made.sparse(ds), made.dense()
            layer.zero_grad()
            got = densify(layer(x))
            got.square().sum().backward()
            mine = [p.grad.clone() for p in layer.parameters()]
            layer.zero_grad()
            want = layer(dense)
            want.square().sum().backward()
            assert torch.equal(got, want), made.note
            for a, p in zip(mine, layer.parameters()):
                assert torch.equal(a, p.grad), made.note


@pytest.mark.parametrize("crossover", ("auto", 0.0, 0.4))
def test_a_network_that_fills_up(crossover):
    ds.set_crossover(crossover)
    net = randomized(ResNet18, False)
    x = at(0.3, (48, 40), 3, dtype=torch.float64, batch=2)
    with torch.no_grad():
        got, want = net(x), net(x.to_dense())
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()))


# ------------------------------------------------------------------ dense storage
def channels_last_of(x: ds.SparseTensor) -> torch.Tensor:
    view = x._dense_view()
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert view.data_ptr() == x.features.data_ptr(), "the dense view is a copy"
    return view


@pytest.mark.parametrize("torch_too", (True, False))
def test_a_saturated_chain_keeps_dense_storage(torch_too, monkeypatch):
    """Between saturated layers nothing is copied: rows and dense image are the same memory."""
    ds.set_crossover("auto")
    monkeypatch.setattr(ds._costs, "torchs", lambda m, w: 0.0 if torch_too else float("inf"))
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 16, 1),
        nn.ConvTranspose2d(16, 8, 2, 2),
    ).eval()
    given, real = [], F.conv2d
    monkeypatch.setattr(
        _convolution, "_CONV", {2: lambda t, *a: given.append(t.data_ptr()) or real(t, *a)}
    )
    x, inputs = at(0.95), []
    for layer in net:
        layer.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        y = net(x)
        want = net(x.to_dense())
    sparse = [i for i in inputs if isinstance(i, ds.SparseTensor)]
    assert not sparse[0].saturated and all(i.saturated for i in sparse[1:]) and y.saturated
    pointers = [channels_last_of(i).data_ptr() for i in (*sparse[1:], y)]
    for i in sparse[1:]:
        assert i.ground.is_zero and i.sites is ds.Sites.full(1, i.spatial_shape)
    if torch_too:
        assert given[1] == pointers[2] and given[2] == pointers[4], "its input was copied"
    else:
        assert not given
    assert torch.allclose(y.to_dense(), want, rtol=1e-4, atol=1e-5)


def test_a_dense_image_in_channels_last_is_taken_as_it_is():
    image = torch.rand(2, 8, 6, 5).contiguous(memory_format=torch.channels_last) + 1
    x = ds.SparseTensor.from_dense(image)
    assert x.saturated and x.features.data_ptr() == image.data_ptr()


@pytest.mark.parametrize("operation", ("add", "sub", "cat", "iadd"))
def test_saturated_and_sparse_operands(operation):
    """A residual sum of a branch that filled up and one that did not, either way round."""
    ds.set_crossover(0.6)
    wide, narrow = at(0.9, dtype=torch.float64), at(0.3, dtype=torch.float64)
    saturated = nn.Conv2d(16, 16, 3, padding=1).double().eval()(wide).detach()
    assert saturated.saturated and not narrow.saturated
    for a, b in ((saturated, narrow), (narrow, saturated)):
        da, db = a.to_dense(), b.to_dense()
        if operation == "cat":
            got, want = torch.cat([a, b], 1), torch.cat([da, db], 1)
        elif operation == "iadd":
            got, want = copy.deepcopy(a), da + db
            got += b
        else:
            got, want = getattr(torch, operation)(a, b), getattr(torch, operation)(da, db)
        assert got.saturated and got.ground.is_zero and torch.equal(got.to_dense(), want)
        channels_last_of(got)
        after = nn.Conv2d(want.shape[1], 4, 3).double()
        assert torch.allclose(after(got).to_dense(), after(want), rtol=1e-12, atol=1e-12)
