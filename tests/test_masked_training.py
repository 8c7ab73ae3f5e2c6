"""Training pruned weights: whatever an optimizer does, what is masked stays exactly zero."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.nn import _projection
from masked_nets import OPTIMIZERS, assert_zero, masked_of, net_and_data, train


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
