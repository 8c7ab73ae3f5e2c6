"""Masked layers: torch's layers on `where(mask, weight, 0)`, their copies, files and dtypes."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from masked_nets import OPTIMIZERS, assert_zero, masked_of, net_and_data, train

CONVS = [
    (ds.nn.MaskedConv1d, nn.Conv1d, F.conv1d, (7,)),
    (ds.nn.MaskedConv2d, nn.Conv2d, F.conv2d, (6, 7)),
    (ds.nn.MaskedConv3d, nn.Conv3d, F.conv3d, (5, 6, 5)),
]
GEOMETRIES = [
    dict(kernel_size=3),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, padding="same", dilation=2),
    dict(kernel_size=2, padding="valid", groups=2, bias=False),
    dict(kernel_size=3, padding=1, padding_mode="circular"),
    dict(kernel_size=3, padding="same", padding_mode="reflect", groups=4),
]


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape).float()


def fill(layer: nn.Module) -> None:
    """Small integers in every parameter; masked weights stay zero."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(integers(*p.shape))
    layer.project_()


def check_against(layer, dense, x) -> None:
    """Output and gradients, exactly; `dense` is torch's layer."""
    fill(layer)
    dense.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "mask"})
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = layer(a), dense(b)
    assert torch.equal(got, want)
    dy = integers(*want.shape)
    got.backward(dy)
    want.backward(dy)
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(layer.weight.grad, torch.where(layer.mask, dense.weight.grad, 0.0))
    if layer.bias is not None:
        assert torch.equal(layer.bias.grad, dense.bias.grad)
    assert not layer.weight.detach()[~layer.mask].any()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_linear(sparsity):
    for bias in (True, False):
        layer = ds.nn.MaskedLinear(6, 8, bias, sparsity=sparsity)
        assert isinstance(layer, nn.Linear)
        assert int(layer.mask.sum()) == round((1 - sparsity) * 48)
        for x in (integers(5, 6), integers(6), integers(2, 3, 6), integers(0, 6)):
            layer.zero_grad()
            check_against(layer, nn.Linear(6, 8, bias), x)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("masked", "torchs", "function", "spatial"), CONVS, ids=lambda v: "")
def test_convolution(masked, torchs, function, spatial, geometry):
    layer = masked(4, 8, **geometry, pattern=ds.Block(2, 1), sparsity=0.5)
    assert isinstance(layer, torchs)
    check_against(layer, torchs(4, 8, **geometry), integers(2, 4, *spatial))


def test_all_zero_rows_and_unbatched_images():
    layer = ds.nn.MaskedConv2d(3, 4, 3, padding=1)
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    mask[1] = False
    layer.set_mask(mask)
    check_against(layer, nn.Conv2d(3, 4, 3, padding=1), integers(2, 3, 5, 5))
    x = integers(3, 5, 5)
    assert torch.equal(layer(x), layer(x[None])[0])


def test_gradients_in_float64():
    layer = ds.nn.MaskedConv2d(4, 4, 3, groups=2, sparsity=0.6, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    linear = ds.nn.MaskedLinear(5, 3, sparsity=0.6, dtype=torch.float64)
    assert torch.autograd.gradcheck(linear, (torch.randn(2, 5).double().requires_grad_(),))


def test_a_masked_nan_does_not_reach_the_output():
    layer = ds.nn.MaskedLinear(4, 4, sparsity=0.5)
    want = layer(torch.ones(2, 4))
    with torch.no_grad():
        layer.weight[~layer.mask] = math.nan
    assert torch.equal(layer(torch.ones(2, 4)), want)
    layer.project_()
    assert not layer.weight.detach()[~layer.mask].any()


@pytest.mark.parametrize(
    "pattern", [ds.NM(2, 4), ds.TopKRows(2), ds.TopKColumns(3), ds.Block(3, 3)], ids=str
)
def test_constructor_patterns(pattern):
    torch.manual_seed(1)
    layer = ds.nn.MaskedConv2d(8, 6, 3, pattern=pattern, sparsity=0.0 if pattern.fixed else 0.5)
    torch.manual_seed(1)
    dense = nn.Conv2d(8, 6, 3)
    want = ds.prune.magnitude_mask(dense.weight, pattern, None if pattern.fixed else 0.5)
    assert torch.equal(layer.mask, want)
    assert torch.equal(layer.weight, torch.where(want, dense.weight, 0.0))
    assert str(pattern) in repr(layer) and f"kept={int(want.sum())} of 432" in repr(layer)


# ------------------------------------------------------------------ wrong input
@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.ones(3, 4), TypeError, "mask must be bool, got torch.float32; use mask != 0"),
        (torch.ones(4, 3).bool(), ValueError, r"weight's shape \(3, 4\), got \(4, 3\)"),
        ([[True] * 4] * 3, TypeError, "mask must be a Tensor, got list"),
    ],
)
def test_wrong_masks(mask, error, words):
    layer = ds.nn.MaskedLinear(4, 3, sparsity=0.5)
    before = layer.mask.clone()
    with pytest.raises(error, match=words):
        layer.set_mask(mask)
    with pytest.raises(TypeError, match="optimizer must be"):
        layer.set_mask(before, "sgd")
    assert torch.equal(layer.mask, before)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(sparsity=1.5), ValueError, "MaskedLinear: sparsity must lie"),
        (dict(sparsity=None), ValueError, "MaskedLinear: sparsity must be given"),
        (dict(pattern=ds.NM(2, 4), sparsity=0.9), ValueError, "must be None or agree"),
        (dict(pattern="nm"), TypeError, "MaskedLinear: pattern must be a pattern object"),
    ],
)
def test_wrong_constructor_arguments(options, error, words):
    with pytest.raises(error, match=words):
        ds.nn.MaskedLinear(4, 3, **options)


# ------------------------------------------------------------------ copies, files, dtypes
def test_copies_stay_masked():
    net, x, y = net_and_data()
    optimizer = OPTIMIZERS["adam"](list(net.parameters()))
    train(net, optimizer, x, y, 2)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), saved):
        assert torch.equal(copied(x), net(x))
        other = OPTIMIZERS["adam"](list(copied.parameters()))
        other.load_state_dict(optimizer.state_dict())
        train(copied, other, x, y, 3)


def test_state_dict_both_ways():
    net, x, y = net_and_data()
    state = copy.deepcopy(net.state_dict())
    other, *_ = net_and_data()
    other.load_state_dict(state)
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(masked_of(net), masked_of(other)))
    assert torch.equal(other(x), net(x))
    dense = nn.Linear(6, 8)
    layer = ds.nn.MaskedLinear(6, 8, sparsity=0.5)
    mask = layer.mask.clone()
    with pytest.raises(RuntimeError, match="Missing key.*mask"):
        layer.load_state_dict(dense.state_dict())
    for assign in (False, True):
        layer.load_state_dict(copy.deepcopy(dense.state_dict()), strict=False, assign=assign)
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.weight, torch.where(mask, dense.weight, 0.0))
    optimizer = OPTIMIZERS["adamw"](list(layer.parameters()))  # the Parameters are new ones
    layer(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert not layer.weight.detach()[~mask].any()
    dense.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "mask"})


def test_dtypes_keep_the_mask_bool():
    layer = ds.nn.MaskedConv2d(4, 4, 3, sparsity=0.5)
    mask = layer.mask.clone()
    moves = (
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.type(torch.float32),
        lambda m: m.to("cpu", torch.float64),
        lambda m: m.to(memory_format=torch.channels_last).float(),
    )
    for move in moves:
        layer = move(layer)
        assert layer.mask.dtype is torch.bool and torch.equal(layer.mask, mask)
        x = torch.ones(1, 4, 4, 4, dtype=layer.weight.dtype)
        assert layer(x).dtype == layer.weight.dtype
    layer.reset_parameters()
    assert torch.equal(layer.weight != 0, mask)


def test_meta_layers():
    layer = ds.nn.MaskedLinear(4, 3, device="meta", sparsity=0.5)
    assert layer.mask.is_meta and "kept" not in repr(layer)
    source = ds.nn.MaskedLinear(4, 3, sparsity=0.5)
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert torch.equal(layer.mask, source.mask) and torch.equal(layer.weight, source.weight)


def test_averaged_model_keeps_zeros():
    net, x, y = net_and_data()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    optimizer = OPTIMIZERS["momentum"](list(net.parameters()))
    for _ in range(3):
        train(net, optimizer, x, y, 1)
        averaged.update_parameters(net)
    assert_zero(averaged)


def test_compiled_forward_and_step():
    layer = ds.nn.MaskedLinear(8, 4, sparsity=0.5)
    step = torch.compile(layer, backend="eager")
    x = torch.randn(3, 8)
    assert torch.equal(step(x), layer(x))
    layer.set_mask(~layer.mask)
    assert torch.equal(step(x), layer(x))
