"""Masked layers: torch's layers on `where(mask, weight, 0)`; zeros that no optimizer revives."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.nn import _projection

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


# ------------------------------------------------------------------ optimizers
def adam_like(cls, **options):
    return lambda ps: cls(ps, lr=0.05, weight_decay=0.1, **options)


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda ps: torch.optim.SGD(
        ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "sgd foreach": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "adam": adam_like(torch.optim.Adam, foreach=False),
    "adam foreach": adam_like(torch.optim.Adam, foreach=True),
    "adam fused": adam_like(torch.optim.Adam, fused=True),
    "amsgrad": adam_like(torch.optim.Adam, amsgrad=True),
    "adamw": adam_like(torch.optim.AdamW, foreach=False),
    "adamw foreach": adam_like(torch.optim.AdamW, foreach=True),
    "adamw fused": adam_like(torch.optim.AdamW, fused=True),
    "nadam": adam_like(torch.optim.NAdam, decoupled_weight_decay=True),
    "radam": adam_like(torch.optim.RAdam),
    "adamax": adam_like(torch.optim.Adamax),
    "rmsprop": adam_like(torch.optim.RMSprop, momentum=0.9, centered=True),
    "adagrad": adam_like(torch.optim.Adagrad, initial_accumulator_value=0.1),
    "adadelta": adam_like(torch.optim.Adadelta),
    "asgd": lambda ps: torch.optim.ASGD(ps, lr=0.1, weight_decay=0.1),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda ps: torch.optim.Muon(
        [p for p in ps if p.dim() == 2], lr=0.1, weight_decay=0.1
    )


def net_and_data():
    net = nn.Sequential(
        ds.nn.MaskedConv2d(2, 4, 3, sparsity=0.5),
        nn.Flatten(),
        nn.ReLU(),
        ds.nn.MaskedLinear(4 * 9, 8, sparsity=0.8),
        nn.Tanh(),
        ds.nn.MaskedLinear(8, 6, pattern=ds.Block(2, 2), sparsity=0.5),
    )
    return net, torch.randn(16, 2, 5, 5), torch.randn(16, 6)


def masked_of(net):
    return [m for m in net.modules() if isinstance(m, ds.nn.MaskedLinear | ds.nn.MaskedConv2d)]


def assert_zero(net, optimizer=None) -> None:
    """Masked weights, gradients and optimizer states are exactly zero."""
    for layer in masked_of(net):
        gone = ~layer.mask
        assert gone.any()
        assert not layer.weight.detach()[gone].any()
        if layer.weight.grad is not None:
            assert not layer.weight.grad[gone].any()
        states = {} if optimizer is None else optimizer.state.get(layer.weight, {})
        for name, state in states.items():
            if isinstance(state, torch.Tensor) and state.shape == gone.shape:
                assert not state[gone].any(), name


def train(net, optimizer, x, y, n_steps=4, clip=False):
    for step in range(n_steps):
        for part in (slice(0, 8), slice(8, 16)):  # accumulated
            F.mse_loss(net(x[part]), y[part]).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        assert_zero(net)
        optimizer.step()
        assert_zero(net, optimizer)
        optimizer.zero_grad(set_to_none=bool(step % 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_leave_masked_weights_zero(name):
    net, x, y = net_and_data()
    before = [layer.weight.detach().clone() for layer in masked_of(net)]
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    train(net, optimizer, x, y, clip=name == "adam")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer, weight in zip(masked_of(net), before):
        moved = (layer.weight.detach() != weight) | ~layer.mask
        assert moved.float().mean() > 0.9 or id(layer.weight) not in trained


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw fused", "adamw foreach"])
def test_training_equals_masking_by_hand(name):
    """The kept weights take the steps of a dense network whose weight is masked by hand."""
    net, x, y = net_and_data()
    dense = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.ReLU())
    dense += nn.Sequential(nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 6))
    state = {k: v.clone() for k, v in net.state_dict().items() if not k.endswith("mask")}
    dense.load_state_dict(state)
    masks = [layer.mask for layer in masked_of(net)]
    weights = [m.weight for m in dense if hasattr(m, "weight")]
    for weight, mask in zip(weights, masks):
        weight.register_hook(lambda g, mask=mask: torch.where(mask, g, 0.0))
    train(net, OPTIMIZERS[name](list(net.parameters())), x, y)
    optimizer = OPTIMIZERS[name](list(dense.parameters()))
    for _ in range(4):
        for part in (slice(0, 8), slice(8, 16)):
            F.mse_loss(dense(x[part]), y[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer, weight in zip(masked_of(net), weights):
        assert torch.allclose(layer.weight, weight, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_someone_added_does_not_revive():
    net, x, y = net_and_data()
    optimizer = OPTIMIZERS["momentum"](list(net.parameters()))
    for _ in range(2):
        F.mse_loss(net(x), y).backward()
        for layer in masked_of(net):
            layer.weight.grad += torch.where(layer.mask, 0.0, math.nan)
        optimizer.step()
        optimizer.zero_grad()
        assert_zero(net, optimizer)


def test_optimizer_with_closure():
    net, x, y = net_and_data()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert_zero(net)
    assert closure().item() < before


def test_grad_scaler_skips_an_infinite_step():
    net, x, y = net_and_data()
    optimizer = OPTIMIZERS["adamw"](list(net.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    for value in (1.0, math.inf, 1.0):
        scaler.scale(F.mse_loss(net(x), y) * value).backward()
        scaler.unscale_(optimizer)
        if math.isfinite(value):
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert_zero(net, optimizer)


def test_a_layer_of_another_optimizer_is_left_alone():
    layer, other = ds.nn.MaskedLinear(4, 4, sparsity=0.5), nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert bool((layer.weight == 1).all())


def test_dead_layers_are_forgotten():
    gc.collect()
    n = len(_projection._layers)
    layer = ds.nn.MaskedLinear(4, 4)
    assert len(_projection._layers) == n + 1
    del layer
    gc.collect()
    assert len(_projection._layers) == n


# ------------------------------------------------------------------ set_mask
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", ["momentum", "adam", "adamw fused", "amsgrad"])
def test_set_mask_clears_what_changes(name, given):
    layer = ds.nn.MaskedLinear(6, 5, sparsity=0.5)
    optimizer = OPTIMIZERS[name]([layer.weight])
    x = torch.randn(8, 6)

    def grad():
        layer.zero_grad()
        layer(x).pow(2).sum().backward()

    for _ in range(3):
        grad()
        optimizer.step()
    old = layer.mask.clone()
    new = torch.rand(5, 6) < 0.5
    new[0], old_weight = ~old[0], layer.weight.detach().clone()
    grad()
    states = {k: v.clone() for k, v in optimizer.state[layer.weight].items() if v.shape == (5, 6)}
    assert states
    layer.set_mask(new, optimizer if given else None)
    assert torch.equal(layer.mask, new) and layer.mask is not new
    assert torch.equal(layer.weight, torch.where(old & new, old_weight, 0.0))
    assert not layer.weight.grad[old != new].any()
    now = optimizer.state[layer.weight]
    for key, before in states.items():
        want = torch.where(old & new, before, 0.0) if given else before
        assert torch.equal(now[key], want), key
    # the next step is that of an optimizer whose state was cleared, whichever way it was
    twin = nn.Parameter(layer.weight.detach().clone())
    twin.grad = layer.weight.grad.clone()
    other = OPTIMIZERS[name]([twin])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for key in states:
        other.state[twin][key].copy_(torch.where(old & new, states[key], 0.0))
    optimizer.step()
    other.step()
    assert torch.equal(layer.weight, torch.where(new, twin, 0.0))
    assert layer._changed is None
    for _ in range(2):
        grad()
        optimizer.step()
        assert not layer.weight.detach()[~new].any()
    assert layer.weight.detach()[new & ~old].all(), "a regrown weight did not train"


def test_masks_changed_twice_before_a_step():
    layer = ds.nn.MaskedLinear(3, 3)
    optimizer = OPTIMIZERS["momentum"]([layer.weight])
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 0] = False
    layer.set_mask(mask)
    layer.set_mask(torch.ones(3, 3, dtype=torch.bool))
    layer.zero_grad(set_to_none=False)
    optimizer.step()
    assert layer.weight[0, 0].item() == 0.0
    assert layer.weight.detach().count_nonzero() == 8


def test_set_mask_takes_strided_masks():
    layer = ds.nn.MaskedLinear(4, 3)
    mask = (torch.rand(4, 3) < 0.5).t()
    layer.set_mask(mask)
    assert torch.equal(layer.mask, mask) and layer.mask.is_contiguous()


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
