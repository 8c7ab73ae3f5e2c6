"""`ds.prune.freeze` and `ds.thaw`: the same answer in an eighth of the bytes, and back again."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import doublesparse as ds

PATTERNS = [
    ds.Unstructured(),
    ds.Block(4, 2),
    ds.NM(1, 4),
    ds.TopKRows(6),
    ds.TopKColumns(3),
]


def network(sparsity: float = 0.8, pattern=PATTERNS[0], dtype=torch.float32) -> nn.Module:
    """Every masked layer, groups, dilation, strides, padding modes, an unmasked layer, buffers."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, stride=2, groups=4, dilation=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 8, (1, 3), padding="same", padding_mode="circular"),
        nn.Flatten(2),
        nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Unflatten(2, (4, 2, 2)),
        nn.Conv3d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(12, 16, bias=False),
        nn.Linear(16, 5),
    )
    ds.prune.sparsify_(net, None if pattern.fixed else sparsity, pattern)
    return net.to(dtype).eval()


def images(dtype=torch.float32) -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=dtype)


def layers(net: nn.Module) -> list:
    found = [m for m in net.modules() if hasattr(m, "set_mask")]
    assert len(found) == 7
    return found


def is_frozen(net: nn.Module) -> bool:
    """All layers or none."""
    states = {isinstance(m.__dict__.get("packed"), ds.PackedWeight) for m in layers(net)}
    assert len(states) == 1
    return states.pop()


def contents(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight.detach().clone(), m.mask.clone()) for m in layers(net)]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))


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
    assert len(safetensors.torch.save(net.state_dict())) <= share * dense + 8000
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


# ------------------------------------------------------------------ state_dict
def test_keys() -> None:
    """No dense weight, no mask; plain tensors."""
    net = ds.prune.freeze(network())
    state = net.state_dict()
    assert {type(t) for t in state.values()} == {Tensor}
    own = [k for k in state if k.startswith("11.")]
    assert own[:3] == ["11.bias", "11.weight.meta", "11.weight.values"] and len(own) == 4
    names = {name for name, _ in net.named_parameters()} | {n for n, _ in net.named_buffers()}
    assert not any(n.endswith(("weight", "mask")) for n in names - {"1.weight"})


def round_trips(state: dict[str, Tensor]):
    """The state_dict, and what files give back."""
    yield state
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    yield torch.load(buffer, weights_only=True)
    yield safetensors.torch.load(safetensors.torch.save(state))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [None, torch.int8], ids=str)
def test_load_into_frozen_and_masked(pattern, dtype) -> None:
    """Whatever the target's masks were, frozen or not."""
    source = ds.prune.freeze(network(0.7, pattern), dtype)
    want, x = contents(source), images()
    y = source(x)
    for state in round_trips(source.state_dict()):
        frozen = ds.prune.freeze(network(0.3))
        assert frozen.load_state_dict(state).missing_keys == []
        assert is_frozen(frozen) and same(contents(frozen), want)
        assert torch.equal(frozen(x), y)
        masked = network(0.3)
        parameters = list(masked.parameters())
        masked.load_state_dict(state)
        assert not is_frozen(masked) and same(contents(masked), want)
        assert all(a is b for a, b in zip(parameters, masked.parameters()))
        assert {layer.pattern for layer in layers(masked)} == {pattern}
        assert torch.allclose(masked(x), y, atol=1e-5)


def test_load_with_assign_and_onto_meta() -> None:
    """`assign=True`, for models that were made without memory."""
    source, x = nn.Sequential(ds.nn.MaskedLinear(8, 4, sparsity=0.5)), torch.randn(3, 8)
    state = ds.prune.freeze(source).state_dict()
    for dtype in (torch.float32, torch.bfloat16):
        empty = nn.Sequential(ds.nn.MaskedLinear(8, 4, device="meta", dtype=dtype))
        empty.load_state_dict(state, assign=True)
        assert torch.equal(empty[0].weight, source[0].weight) and empty[0].weight.requires_grad
        assert torch.equal(empty[0].mask, source[0].mask)
        assert torch.allclose(empty(x), source(x), atol=1e-6)


def test_load_dense_weights_into_frozen() -> None:
    """Thaws: with a mask, that mask; without one, the old mask stays."""
    source, x = network(0.5), images()
    frozen = ds.prune.freeze(network(0.8))
    frozen.load_state_dict(source.state_dict())
    assert not is_frozen(frozen) and same(contents(frozen), contents(source))
    ds.prune.freeze(frozen)
    dense = {k: v for k, v in network(0.0).state_dict().items() if not k.endswith("mask")}
    result = frozen.load_state_dict(dense, strict=False)
    assert all(k.endswith("mask") for k in result.missing_keys) and not is_frozen(frozen)
    for layer, (_, mask) in zip(layers(frozen), contents(source)):
        assert torch.equal(layer.mask, mask) and not bool(layer.weight[~mask].any())
    assert frozen(x).shape == (2, 5)


def test_load_errors() -> None:
    """Torch's errors, which name the layer; the frozen weight stays what it was."""
    net = ds.prune.freeze(nn.Sequential(ds.nn.MaskedLinear(8, 4, sparsity=0.5)))
    good, before = net.state_dict(), net[0].packed
    for other, text in (
        ({}, 'Missing key.*"0.weight.meta"'),
        ({**good, "0.weight.more": torch.ones(1)}, 'Unexpected key.*"0.weight.more"'),
        ({**good, "0.weight.values": torch.ones(3)}, "0.weight: PackedWeight.from_tensors: values"),
        ({k: v for k, v in good.items() if "meta" not in k}, "names must include"),
        ({**good, "0.weight.meta": good["0.weight.meta"] + 1}, "must be of version 1, got 2"),
    ):
        with pytest.raises(RuntimeError, match=text):
            net.load_state_dict(other)
        assert net[0].packed == before
    other = ds.prune.freeze(nn.Sequential(ds.nn.MaskedLinear(8, 5, sparsity=0.5)))
    for target in (net, nn.Sequential(ds.nn.MaskedLinear(8, 4))):
        with pytest.raises(RuntimeError, match="size mismatch for 0.weight: .*packed weight"):
            target.load_state_dict(other.state_dict())
    missing = net.load_state_dict({}, strict=False).missing_keys
    assert missing == ["0.bias", "0.weight.meta", "0.weight.values"]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        nn.Sequential(nn.Linear(8, 4)).load_state_dict(good)


# ------------------------------------------------------------------ copies and conversions
def test_copies_and_pickles() -> None:
    """Frozen as the original, independent of it, and thawed alone."""
    net, x = ds.prune.freeze(network()), images()
    want, y = contents(net), net(x)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert is_frozen(again) and torch.equal(again(x), y)
        parameters = list(ds.thaw(again).parameters())
        assert len(parameters) == 14 and same(contents(again), want) and is_frozen(net)
        optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
        again.train()(x).sum().backward()
        optimizer.step()
        assert all(not bool(w[~m].any()) for w, m in contents(again))
        assert same(contents(net), want)
    again = copy.deepcopy(ds.thaw(net))
    assert not is_frozen(again) and same(contents(again), want)


def test_to_another_dtype() -> None:
    """A narrower one packs anew, a wider one widens the activations; thawing agrees."""
    net, x = network(), images()
    plain = copy.deepcopy(net)
    for dtype in (torch.bfloat16, torch.float64):
        a, b = ds.prune.freeze(copy.deepcopy(net)).to(dtype), copy.deepcopy(plain).to(dtype)
        assert is_frozen(a) and a(x.to(dtype)).dtype == dtype
        eps = torch.finfo(dtype).eps
        assert torch.allclose(a(x.to(dtype)), b(x.to(dtype)), atol=64 * eps, rtol=0)
        assert same(contents(ds.thaw(a)), contents(b))
    a = ds.prune.freeze(copy.deepcopy(net), torch.int8).to(torch.bfloat16)
    assert a(x.bfloat16()).dtype == torch.bfloat16 and a[0].packed.dtype == torch.int8
    narrow = ds.prune.freeze(network().bfloat16())
    narrow.load_state_dict(ds.prune.freeze(copy.deepcopy(net)).state_dict())
    assert narrow(x.bfloat16()).dtype == torch.bfloat16


def test_to_another_device() -> None:
    net = ds.prune.freeze(network())
    before = contents(net)
    assert net.to("cpu") is net and net.share_memory() is net
    with pytest.raises(NotImplementedError, match="device must be cpu, got meta"):
        net[11].to("meta")
    assert same(contents(net), before) and net[11].bias.device.type == "cpu"


def test_reading_and_assigning() -> None:
    """Reading unpacks a copy; assigning is refused."""
    layer = ds.prune.freeze(ds.nn.MaskedLinear(8, 4, sparsity=0.5))
    weight = layer.weight
    assert weight.shape == (4, 8) and not weight.requires_grad
    weight.zero_()
    assert bool(layer.weight.any())
    for name, value in (("weight", nn.Parameter(weight)), ("weight", weight), ("mask", weight > 0)):
        with pytest.raises(RuntimeError, match=f"PackedLinear: {name} must not be assigned"):
            setattr(layer, name, value)
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        layer.weights  # noqa: B018
    assert "packed=PackedWeight(shape=(4, 8), kept=16" in repr(layer)
    assert layer.in_features == 8 and isinstance(layer, ds.nn.MaskedLinear)
    layer.project_()


def test_autocast() -> None:
    """As F.linear under autocast."""
    net = nn.Sequential(ds.nn.MaskedLinear(8, 8, sparsity=0.5), ds.nn.MaskedLinear(8, 4))
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        want = net(x)
        got = ds.prune.freeze(net)(x)
    assert got.dtype == want.dtype == torch.bfloat16
    assert float((got - want).detach().abs().max()) <= 2**-7 * float(want.detach().abs().max())


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


# ------------------------------------------------------------------ functions
def test_spmm_and_its_gradients() -> None:
    """Small integers: equal to dense torch, any leading axes, every dtype of values."""
    for shape in ((3, 6), (6,), (2, 0, 6), (2, 1, 3, 6)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            weight = torch.randint(-3, 4, (5, 6)).to(dtype)
            packed = ds.PackedWeight.pack(weight)
            x = torch.randint(-3, 4, shape).to(dtype).requires_grad_()
            bias = torch.randint(-3, 4, (5,)).to(dtype).requires_grad_()
            for b in (None, bias):
                got, want = ds.functional.spmm(packed, x, b), F.linear(x, weight, b)
                assert torch.equal(got, want) and got.dtype == dtype
            dy = torch.randint(-3, 4, got.shape).to(dtype)
            grads = torch.autograd.grad(got, (x, bias), dy)
            assert torch.equal(grads[0], dy @ weight)
            assert torch.equal(ds.functional.spmm_t(packed, dy), dy @ weight)
            want = dy.reshape(-1, 5).t() @ x.detach().reshape(-1, 6)
            mask = weight != 0
            for where in (mask, packed):
                grad = ds.functional.sddmm(dy, x, where)
                assert torch.equal(grad.unpack(), torch.where(mask, want, 0))
                assert torch.equal(grad.mask(), mask) and grad.dtype == dtype


def test_packed_conv() -> None:
    """Small integers: equal to torch's, batch or none."""
    for n, groups in ((1, 1), (2, 2), (3, 4)):
        weight = torch.randint(-2, 3, (8, 8 // groups, *[2, 3, 1][:n])).float()
        x = torch.randint(-2, 3, (2, 8, *[7, 6, 5][:n])).float()
        packed = ds.PackedWeight.pack(weight)
        dense = getattr(F, f"conv{n}d")
        options = dict(stride=2, padding=1, dilation=2, groups=groups)
        for image in (x, x[0]):
            want = dense(image, weight, torch.arange(8.0), **options)
            got = ds.functional.packed_conv(image, packed, torch.arange(8.0), **options)
            assert torch.equal(got, want)


LINEAR = ds.PackedWeight.pack(torch.ones(3, 4))
CONV = ds.PackedWeight.pack(torch.ones(4, 2, 3))
WRONG = [
    ("spmm", (torch.ones(3, 4), torch.ones(2, 4)), TypeError, "packed must be a PackedWeight"),
    ("spmm", (CONV, torch.ones(2, 4)), ValueError, r"packed must be \(c_out, c_in\)"),
    ("spmm", (LINEAR, [1.0]), TypeError, "x must be a Tensor"),
    ("spmm", (LINEAR, torch.ones(2, 4).long()), TypeError, "x must be a strided floating-point"),
    ("spmm", (LINEAR, torch.ones(2, 4).to_sparse()), TypeError, "x must be a strided"),
    ("spmm", (LINEAR, torch.ones(2, 4, device="meta")), RuntimeError, "x must be on cpu"),
    ("spmm", (LINEAR, torch.ones(2, 4).bfloat16()), TypeError, "x must be at least as wide"),
    ("spmm", (LINEAR, torch.ones(2, 3)), ValueError, "x must have a last axis of 4"),
    ("spmm", (LINEAR, torch.ones(())), ValueError, "x must have a last axis of 4"),
    ("spmm", (LINEAR, torch.ones(2, 4), torch.ones(4)), ValueError, r"bias must have shape \(3,\)"),
    ("spmm", (LINEAR, torch.ones(2, 4), torch.ones(3).double()), TypeError, "bias must be"),
    ("spmm", (LINEAR, torch.ones(2, 4), 1.0), TypeError, "bias must be a Tensor"),
    ("spmm_t", (LINEAR, torch.ones(2, 4)), ValueError, "dy must have a last axis of 3"),
    ("spmm_t", (3, torch.ones(2, 4)), TypeError, "packed must be a PackedWeight"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 4)), TypeError, "a bool Tensor"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), None), TypeError, "mask_or_packed must be"),
    ("sddmm", (torch.ones(2, 3), torch.ones(3, 4), LINEAR), ValueError, "leading axes of x"),
    ("sddmm", (torch.ones(2, 2), torch.ones(2, 4), LINEAR), ValueError, "dy must have a last axis"),
    ("sddmm", (torch.ones(2, 3).double(), torch.ones(2, 4), LINEAR), TypeError, "dy must be torch"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), CONV), ValueError, "packed must be"),
    (
        "sddmm",
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(3) > 0),
        ValueError,
        "mask_or_packed",
    ),
    ("packed_conv", (torch.ones(1, 2, 5), LINEAR), ValueError, "packed must be"),
    ("packed_conv", ([], CONV), TypeError, "x must be a Tensor"),
    ("packed_conv", (torch.ones(1, 2, 5, 5), CONV), ValueError, "x must have 1 spatial axes"),
    ("packed_conv", (torch.ones(5), CONV), ValueError, "x must have 1 spatial axes"),
    ("packed_conv", (torch.ones(1, 3, 5), CONV), ValueError, "groups channels"),
    ("packed_conv", (torch.ones(1, 2, 5), CONV, None, 1, 0, 1, 0), ValueError, "groups"),
    (
        "packed_conv",
        (torch.ones(1, 2, 5), CONV, None, 1, 0, 1, 1.0),
        TypeError,
        "groups must be an",
    ),
    ("packed_conv", (torch.ones(1, 2, 5), CONV, torch.ones(3)), ValueError, "bias must have shape"),
]


@pytest.mark.parametrize("name, arguments, error, text", WRONG)
def test_wrong_calls(name: str, arguments, error, text: str) -> None:
    with pytest.raises(error, match=f"{name}: .*{text}.*; "):
        getattr(ds.functional, name)(*arguments)
