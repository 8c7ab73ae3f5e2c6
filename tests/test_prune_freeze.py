"""`ds.prune.freeze` and `ds.thaw`: the same answer in an eighth of the bytes, and back again."""

from __future__ import annotations

import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

import doublesparse as ds
from pruned_networks import PATTERNS, contents, images, is_frozen, layers, network, same


def reachable_bytes(root: object) -> int:
    """Bytes of all storages that can be reached from an object, each once."""
    storages, seen, todo = {}, set(), [root]
    skip = (type, type(gc), type(reachable_bytes), type(gc.collect))
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, skip):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        todo += gc.get_referents(thing)
        todo += [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
    return sum(storages.values())


# ------------------------------------------------------------------ the same answer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_same_answer(pattern, dtype) -> None:
    """Frozen, thawed and frozen again: outputs, weights, masks and patterns as before."""
    net, x = network(0.6, pattern, dtype), images(dtype)
    want, before = net(x), contents(net)
    assert ds.prune.freeze(net) is net and is_frozen(net)
    # a dense layer of these weights, bits included, is what a layer must agree with
    for layer, (weight, mask) in zip(layers(net), before):
        assert torch.equal(layer.weight, weight) and torch.equal(layer.mask, mask)
        assert layer.packed.pattern == pattern and layer.packed.dtype == dtype
    got = net(x)
    unit = torch.finfo(dtype).eps
    assert got.dtype == dtype and float((got - want).detach().abs().max()) <= 64 * unit
    assert ds.thaw(net) is net and not is_frozen(net)
    assert same(contents(net), before) and torch.equal(net(x), want)
    assert same(contents(ds.prune.freeze(ds.thaw(ds.prune.freeze(net)))), before)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything_pruned(sparsity: float) -> None:
    """The extremes are ordinary."""
    net, x = network(sparsity), images()
    want = net(x)
    assert torch.allclose(ds.prune.freeze(net)(x), want, atol=1e-5)
    assert {layer.packed.density for layer in layers(net)} == {1.0 - sparsity}
    assert torch.equal(ds.prune.thaw(net)(x), want)


def test_narrower_values() -> None:
    """Values of another dtype, activations and biases as they were; thawing keeps the rounding."""
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.float64):
        net, x = network(), images()
        exact = [(layer.weight.detach().clone(), layer.mask.clone()) for layer in layers(net)]
        if dtype == torch.float64:
            net.double()
            x = x.double()
        ds.prune.freeze(net, dtype=dtype)
        assert {layer.packed.dtype for layer in layers(net)} == {dtype}
        assert net(x).dtype == x.dtype
        rounded = contents(net)
        ds.thaw(net)
        assert {layer.weight.dtype for layer in layers(net)} == {x.dtype}
        assert same(contents(net), rounded)
        for (got, kept), (weight, mask) in zip(rounded, exact):
            assert torch.equal(kept, mask)
            step = float(weight.abs().max()) / 127
            bound = 0.51 * step if dtype == torch.int8 else 2**-8 * weight.abs().max()
            assert float((got - weight).abs().max()) <= bound


def test_freezing_again() -> None:
    """What is frozen stays, or is packed in the new dtype; new layers join."""
    net = ds.prune.freeze(network())
    packed = [layer.packed for layer in layers(net)]
    assert [layer.packed for layer in layers(ds.prune.freeze(net))] == packed
    assert all(a is b.packed for a, b in zip(packed, layers(net)))
    masks = [layer.mask for layer in layers(net)]
    ds.prune.freeze(net, torch.int8)
    assert {layer.packed.dtype for layer in layers(net)} == {torch.int8}
    assert all(torch.equal(m, layer.mask) for m, layer in zip(masks, layers(net)))
    ds.thaw(net[0])
    ds.prune.freeze(net)
    assert [layer.packed.dtype for layer in layers(net)] == [torch.float32] + 6 * [torch.int8]


def test_a_mask_that_is_not_of_the_pattern() -> None:
    """Set by hand: packed as it is."""
    layer = ds.nn.MaskedLinear(8, 8, pattern=ds.Block(2, 2), sparsity=0.5)
    mask = torch.eye(8, dtype=torch.bool)
    layer.set_mask(mask)
    ds.prune.freeze(layer)
    assert layer.packed.pattern == ds.Unstructured() and torch.equal(layer.mask, mask)
    assert ds.thaw(layer).pattern == ds.Block(2, 2)


def test_gradients_of_inputs_and_biases() -> None:
    """As dense torch has them; the weight gets none."""
    x = images().requires_grad_()
    net = network()
    grads = {}
    for frozen in (False, True):
        if frozen:
            ds.prune.freeze(net)
        net.zero_grad()
        x.grad = None
        net(x).square().sum().backward()
        grads[frozen] = [x.grad, net[0].bias.grad.clone(), net[11].bias.grad.clone()]
        assert all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            for a, b in zip(*[grads[False], grads[frozen]])
        )


def test_sparse_tensors() -> None:
    """A frozen convolution takes sites, as it does when it is not frozen."""
    net = nn.Sequential(ds.nn.MaskedConv2d(2, 4, 3, padding=1, sparsity=0.5), nn.ReLU()).eval()
    dense = torch.zeros(1, 2, 9, 9)
    dense[0, :, 3, 4:7] = torch.randn(2, 3)
    want = net(dense)
    x = ds.SparseTensor.from_dense(dense)
    got = ds.prune.freeze(net)(x)
    state = net[0].state_dict()
    assert isinstance(got, ds.SparseTensor) and torch.allclose(got.to_dense(), want, atol=1e-6)
    with torch.no_grad():
        ds.freeze_ground(net, (9, 9))
        held = [reachable_bytes(net) for _ in range(3) if net(x) is not None]
        assert torch.allclose(net(x).to_dense(), want, atol=1e-6)
        assert held == 3 * held[:1]  # one dense weight at most, not one per call
        rounded = ds.prune.freeze(net, torch.int8)(x)  # other weights, another ground
        assert torch.allclose(rounded.to_dense(), net(dense), atol=1e-6)
        net[0].load_state_dict(state)
        assert torch.allclose(net(x).to_dense(), want, atol=1e-6)
    ds.thaw(net)
    assert torch.allclose(net(x).to_dense(), want, atol=1e-6)


# ------------------------------------------------------------------ few bytes
@pytest.mark.parametrize("dtype, share", [(None, 0.14), (torch.bfloat16, 0.09), (torch.int8, 0.07)])
def test_memory(dtype, share: float) -> None:
    """At 90 % at most 0.2 of the dense weights, all that the model holds on to counted; 0.14."""
    net = nn.Sequential(nn.Linear(512, 256, bias=False), nn.Conv2d(64, 64, 3, bias=False))
    dense = reachable_bytes(net)
    assert dense == 4 * (512 * 256 + 64 * 64 * 9)
    ds.prune.sparsify_(net, 0.9)
    net[1].set_mask(net[1].mask.roll(1, 0))  # without an optimizer: something to remember
    net[0](torch.ones(2, 512)).sum().backward()
    assert reachable_bytes(net) > 1.25 * dense
    ds.prune.freeze(net.eval(), dtype)
    net[0](torch.ones(2, 512))
    assert reachable_bytes(net) <= (share + 0.02) * dense <= 0.2 * dense
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    assert len(buffer.getvalue()) <= share * dense + 8000
    assert len(pickle.dumps(net)) <= (share + 0.02) * dense + 16000
    ds.thaw(net)
    assert net[1]._changed is not None and net[1]._changed.shape == net[1].weight.shape


def test_dense_weights_are_freed() -> None:
    """Nobody holds on to the old storage."""
    layer = ds.nn.MaskedLinear(64, 64, sparsity=0.9)
    data, mask = weakref.ref(layer.weight.untyped_storage()), weakref.ref(layer.mask)
    parameter = layer.weight
    ds.prune.freeze(layer)
    gc.collect()
    assert mask() is None and parameter.numel() == 0 and parameter.grad is None
    assert data() is None or data().nbytes() == 0


# ------------------------------------------------------------------ back again
def test_what_thaws() -> None:
    """train(True), set_mask, reset_parameters, densify_ and sparsify_ thaw; eval() does not."""
    net = ds.prune.freeze(network())
    net.eval()
    net.train(False)
    assert is_frozen(net)
    before = contents(net)
    assert net.train() is net and not is_frozen(net) and net[0].training
    assert same(contents(net), before)

    layer = ds.prune.freeze(net.eval())[11]
    mask = ~layer.mask
    layer.set_mask(mask)
    assert type(layer) is ds.nn.MaskedLinear and torch.equal(layer.mask, mask)
    assert type(net[10]) is ds.nn.PackedLinear
    net[10].reset_parameters()
    assert torch.equal(net[10].mask, before[5][1]) and type(net[10]) is ds.nn.MaskedLinear
    ds.prune.freeze(net)
    ds.prune.sparsify_(net, 0.5)
    assert not is_frozen(net) and abs(float(net[2].mask.float().mean()) - 0.5) < 0.01
    weights = [w for w, _ in contents(net)]
    ds.prune.densify_(ds.prune.freeze(net))
    dense = [m for m in net if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    assert {type(m) for m in dense} == {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
    assert all(torch.equal(m.weight, w) for m, w in zip(dense, weights))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_go_on(kind) -> None:
    """The Parameters are the same objects: the same steps as without the interlude."""
    results = []
    for interlude in (False, True):
        torch.manual_seed(3)
        net, x = network().train(), images()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.1, **options)
        parameters = list(net.parameters())
        for step in range(4):
            if interlude and step == 2:
                ds.prune.freeze(net.eval())
                assert len(list(net.parameters())) == len(parameters) - 7
                with torch.no_grad():
                    net(x)
                optimizer.zero_grad()
                optimizer.step()  # nothing has a gradient, so nothing happens
                net.train()
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        assert all(a is b for a, b in zip(net.parameters(), parameters))
        assert all(not bool(w[~m].any()) for w, m in contents(net))
        results.append(contents(net))
    assert same(*results)


def test_requires_grad_survives() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    ds.thaw(ds.prune.freeze(net))
    assert [layer.weight.requires_grad for layer in layers(net)] == [False] + 6 * [True]
    assert all(w.is_leaf and isinstance(w, nn.Parameter) for w in net.parameters())


def test_pending_changes_survive() -> None:
    """What set_mask left to the next optimizer step is still done after an interlude."""
    layer = ds.nn.MaskedLinear(6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    mask = torch.rand(6, 6) < 0.5
    layer.set_mask(mask)
    layer.set_mask(torch.ones(6, 6, dtype=torch.bool))
    ds.thaw(ds.prune.freeze(layer))
    layer(torch.zeros(1, 6)).sum().backward()
    optimizer.step()
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    assert not momentum[~mask].any() and bool(momentum[mask].all())


# ------------------------------------------------------------------ where it runs
def test_autocast() -> None:
    """As F.linear under autocast."""
    net = nn.Sequential(ds.nn.MaskedLinear(8, 8, sparsity=0.5), ds.nn.MaskedLinear(8, 4))
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        want = net(x)
        got = ds.prune.freeze(net)(x)
    assert got.dtype == want.dtype == torch.bfloat16
    assert float((got - want).detach().abs().max()) <= 2**-7 * float(want.detach().abs().max())


def test_compiled() -> None:
    """`torch.compile` runs a frozen model; graph breaks are fine."""
    net, x = ds.prune.freeze(network()), images()
    with torch.no_grad():
        assert torch.equal(torch.compile(net, backend="eager")(x), net(x))


def test_compiled_with_gradients() -> None:
    """Constants of two packed layers get along in one graph where gradients go by."""
    layers = [torch.nn.Linear(8, 8) for _ in range(3)]
    net = ds.prune.freeze(ds.prune.sparsify_(torch.nn.Sequential(*layers), 0.5))
    gradients = []
    for run in (net, torch.compile(net, backend="aot_eager")):
        x = torch.ones(2, 8, requires_grad=True)
        run(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_threads() -> None:
    """Several threads run one frozen model."""
    net, x = ds.prune.freeze(network()), images()
    want, wrong = net(x), []

    def work() -> None:
        wrong.extend(not torch.equal(net(x), want) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == 40 * [False]


# ------------------------------------------------------------------ what is left alone, and errors
def test_shared_weights() -> None:
    """A weight that an unmasked layer uses too is not dropped; masked ones may share theirs."""
    net = nn.Sequential(ds.nn.MaskedLinear(4, 4), nn.Linear(4, 4), ds.nn.MaskedLinear(4, 4))
    net[1].weight = net[0].weight
    ds.prune.freeze(net)
    assert type(net[0]) is ds.nn.MaskedLinear and type(net[2]) is ds.nn.PackedLinear
    net = nn.Sequential(ds.nn.MaskedLinear(4, 4), ds.nn.MaskedLinear(4, 4))
    net[1].weight = net[0].weight
    ds.thaw(ds.prune.freeze(net))
    assert net[1].weight is net[0].weight and net[0].weight.shape == (4, 4)


def test_subclasses_are_skipped() -> None:
    class Mine(ds.nn.MaskedLinear):
        pass

    layer = ds.prune.freeze(Mine(4, 4))
    assert type(layer) is Mine and not layer.frozen
    assert ds.prune.freeze(nn.ReLU()) is not None


def test_an_error_changes_nothing() -> None:
    """It names the layer."""
    net = network()
    with torch.no_grad():
        net[11].weight[net[11].mask] = torch.nan
    before = [layer.packed if layer.frozen else None for layer in layers(net)]
    with pytest.raises(ValueError, match="freeze: layer '11' must be packable, got: .*finite"):
        ds.prune.freeze(net, torch.int8)
    assert not is_frozen(net) and before == 7 * [None]
    assert bool(ds.prune.freeze(net)[11].weight.isnan().any())
    with pytest.raises(NotImplementedError, match="freeze: layer '' must be packable"):
        ds.prune.freeze(ds.nn.MaskedLinear(2, 2, device="meta"))


def test_wrong_arguments() -> None:
    for f in (ds.prune.freeze, ds.thaw):
        with pytest.raises(TypeError, match="model must be an nn.Module, got int; pass one"):
            f(3)
    for dtype in (torch.int32, "int8", 8):
        with pytest.raises(TypeError, match="freeze: dtype must be one of"):
            ds.prune.freeze(nn.ReLU(), dtype)
    assert ds.thaw is ds.prune.thaw and ds.thaw(nn.ReLU()) is not None
