"""Frozen models in files, in copies and in other dtypes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import doublesparse as ds
from pruned_networks import PATTERNS, contents, images, is_frozen, layers, network, same


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


def test_safetensors() -> None:
    """A file of a frozen model: small, and read into another one."""
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    for dtype in (None, torch.bfloat16, torch.int8):
        source, target = (ds.nn.MaskedConv2d(64, 64, 3, sparsity=s) for s in (0.9, 0.1))
        data = files.save(ds.prune.freeze(source, dtype).state_dict())
        assert len(data) <= 0.2 * source.weight.numel() * 4
        ds.prune.freeze(target).load_state_dict(files.load(data))
        assert target.packed == source.packed and torch.equal(target.bias, source.bias)


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
    with pytest.raises(NotImplementedError, match="device must be cpu or cuda, got meta"):
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
