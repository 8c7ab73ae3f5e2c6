"""Force regularization: the force against autograd and a double loop, and its place in training."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.lowrank import _force as private

NORMS = ("l2", "l1")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def loops(weight, norm) -> np.ndarray:
    """The definition, filter by filter, in numpy."""
    rows = weight.detach().double().reshape(len(weight), -1).numpy()
    out = np.zeros_like(rows)
    lengths = np.sqrt((rows**2).sum(1))
    for i, a in enumerate(rows):
        if lengths[i] <= 1e-4:
            continue
        a = a / lengths[i]
        for j, b in enumerate(rows):
            if lengths[j] <= 1e-4:
                continue
            f = b / lengths[j] - a
            size = np.sqrt((f**2).sum())
            if norm == "l1":
                f = f / size if size > 1e-4 else 0 * f
            out[i] += lengths[i] * (f - (f @ a) * a)
    return out.reshape(weight.shape)


# ------------------------------------------------------------------ the force itself
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(9, 4, 3, 3), (5, 7), (17, 3, 2), (2, 2, 2, 2, 2)])
def test_is_the_gradient_of_the_distances(norm, shape):
    """M1: ||W_i||^2 dR/dW_i = -2 Delta W_i, and Delta W_i . W_i = 0."""
    weight = randn(*shape).requires_grad_()
    rows = weight.flatten(1)
    unit = rows / rows.norm(dim=1, keepdim=True)
    off = ~torch.eye(shape[0], dtype=torch.bool)
    apart = (unit[:, None] - unit[None])[off]
    r = 0.5 * apart.square().sum() if norm == "l2" else apart.norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(r, weight)
    delta = ds.lowrank.force(weight, norm)
    assert not delta.requires_grad and delta.shape == weight.shape
    squared = rows.detach().square().sum(1).reshape(-1, *[1] * (len(shape) - 1))
    assert (squared * gradient + 2 * delta).abs().max() <= 1e-10
    assert (delta * weight).flatten(1).sum(1).abs().max() <= 1e-10


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_loops(norm, dtype):
    weight = randn(11, 3, 2, 2, dtype=dtype)
    weight[3] = 0
    weight[5] *= 1e-5 / weight[5].norm()  # no direction
    weight[7] = 2 * weight[6]  # one direction, two lengths
    delta = ds.lowrank.force(weight, norm)
    want = loops(weight, norm)
    assert delta.dtype is dtype
    # 11 terms of unit size, times the length.
    tolerance = 64 * torch.finfo(dtype).eps * float(weight.flatten(1).norm(dim=1).max())
    assert np.abs(delta.numpy() - want).max() <= tolerance
    assert not delta[3].any() and not delta[5].any()


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_rows_are_the_whole(norm, monkeypatch):
    weight = randn(23, 5)
    whole = ds.lowrank.force(weight, norm)
    monkeypatch.setattr(private, "_PAIR_BYTES", 8 * 23 * 4)  # 4 rows
    torch.testing.assert_close(ds.lowrank.force(weight, norm), whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_degenerate_filters(norm):
    assert not ds.lowrank.force(randn(1, 3, 3, 3), norm).any()
    assert not ds.lowrank.force(torch.zeros(4, 3), norm).any()
    one = randn(1, 6).expand(5, 6)
    assert ds.lowrank.force(one, norm).abs().max() <= 1e-14  # identical filters
    assert ds.lowrank.force(torch.ones(4), norm).abs().max() == 0  # filters of one weight
    assert ds.lowrank.force(torch.zeros(0, 3), norm).shape == (0, 3)
    assert ds.lowrank.force(torch.zeros(3, 0), norm).shape == (3, 0)


def test_l1_of_near_filters_in_float32():
    """3e-4 apart, a Gram matrix in float32 has no digit of the squared distance."""
    base = randn(1, 64)
    weight = (base + 3e-4 / 8 * base.norm() * randn(40, 64, seed=1)).float()
    delta = ds.lowrank.force(weight, "l1")
    want = torch.from_numpy(loops(weight, "l1"))
    # Rounding of the unit vectors, eps, over their distance, in each of the pairs.
    assert (delta - want).norm() <= 4 * 2**-23 / 3e-4 * want.norm()


def test_follows_the_paper_in_groups_and_transposed():
    force = ds.lowrank.force
    for layer, split in [
        (nn.Conv2d(4, 6, 3, groups=2), lambda d: [d[:3], d[3:]]),
        (nn.ConvTranspose2d(4, 6, 3), lambda d: [d.transpose(0, 1)]),
        (
            nn.ConvTranspose2d(4, 6, 3, groups=2),
            lambda d: [d[:2].transpose(0, 1), d[2:].transpose(0, 1)],
        ),
    ]:
        layer(torch.ones(1, 4, 5, 5)).sum().backward()
        before = layer.weight.grad.clone()
        ds.lowrank.Force(layer, 1.0).apply_()
        moved = before - layer.weight.grad
        for part, weight in zip(split(moved), split(layer.weight.detach()), strict=True):
            torch.testing.assert_close(part, force(weight.contiguous()), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ in training
def network(seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)
    )


def backward(net) -> None:
    x = randn(8, 1, 5, 5, dtype=torch.float32)
    F.cross_entropy(net(x), torch.arange(8) % 5).backward()


def gradients(net) -> dict:
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def test_adds_to_the_gradients_of_weights_only():
    net = network()
    backward(net)
    before = gradients(net)
    force = ds.lowrank.Force(net, 0.5, "l1")
    assert force.names == ["0", "4"] and not force.decoupled
    force.apply_()
    after = gradients(net)
    for name, p in net.named_parameters():
        want = before[name]
        if name in ("0.weight", "4.weight"):
            want = want - 0.5 * ds.lowrank.force(p, "l1")
        torch.testing.assert_close(after[name], want)


def test_attracts_and_repels():
    for strength, nearer in ((0.05, True), (-0.05, False)):
        layer = nn.Linear(6, 4, bias=False).double()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        force = ds.lowrank.Force(layer, strength)

        def spread(layer=layer):
            unit = F.normalize(layer.weight.detach(), dim=1)
            return float((unit[:, None] - unit[None]).square().sum())

        start = spread()
        for _ in range(20):
            layer.weight.grad = torch.zeros_like(layer.weight)
            force.apply_()
            optimizer.step()
        assert (spread() < start) is nearer


def test_decoupled_moves_weights_by_the_learning_rate():
    """AdamW's decay: weight += lr * strength * force; the gradient Adam sees is the error's."""
    net = network()
    plain = copy.deepcopy(net)
    groups = [{"params": net[0].parameters(), "lr": 0.25}, {"params": net[4].parameters()}]
    force = ds.lowrank.Force(net, 0.5, optimizer=torch.optim.Adam(groups, lr=0.125))
    assert force.decoupled
    backward(net)
    backward(plain)
    force.apply_()
    for name, rate in (("0", 0.25), ("4", 0.125)):
        old, new = plain.get_submodule(name).weight, net.get_submodule(name).weight
        torch.testing.assert_close(new.data, old.data + rate * 0.5 * ds.lowrank.force(old))
    for name, gradient in gradients(net).items():
        assert torch.equal(gradient, gradients(plain)[name])


def test_adaptive_is_a_share_of_the_gradient():
    net = network()
    backward(net)
    before = gradients(net)
    ds.lowrank.Force(net, 0.25, adaptive=True).apply_()
    for name in ("0.weight", "4.weight"):
        added = net.get_parameter(name).grad - before[name]
        assert math.isclose(added.norm(), 0.25 * before[name].norm(), rel_tol=1e-4)
    single = nn.Linear(3, 1)
    single(torch.ones(2, 3)).sum().backward()
    kept = single.weight.grad.clone()
    ds.lowrank.Force(single, 0.25, adaptive=True).apply_()  # no force at all
    assert torch.equal(single.weight.grad, kept)


def test_same_direction():
    net = network()
    backward(net)
    before = gradients(net)
    ds.lowrank.Force(net, 0.1, direction="same").apply_()
    for name in ("0.weight", "4.weight"):
        term = -0.1 * ds.lowrank.force(net.get_parameter(name))
        agree = term * before[name] >= 0
        assert agree.any() and not agree.all()
        want = before[name] + torch.where(agree, term, 0.0)
        torch.testing.assert_close(net.get_parameter(name).grad, want)


def test_after_unscaling_and_clipping():
    """The force is neither scaled nor clipped, and an overflow does not poison the weights."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    force = ds.lowrank.Force(net, 0.5)
    x = randn(8, 1, 5, 5, dtype=torch.float32)
    start = net[4].weight.detach().clone()
    scaler.scale(net(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    clipped = net[4].weight.grad.clone()
    force.apply_()
    scaler.step(optimizer)
    scaler.update()
    want = start - 0.1 * (clipped - 0.5 * ds.lowrank.force(start))
    torch.testing.assert_close(net[4].weight.detach(), want)


@pytest.mark.parametrize("adaptive", [False, True])
def test_overflow_is_skipped(adaptive):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    force = ds.lowrank.Force(net, 0.5, adaptive=adaptive, optimizer=optimizer)
    scaler.scale(1e30 * net(torch.ones(8, 1, 5, 5)).square().mean()).backward()
    scaler.unscale_(optimizer)
    force.apply_()
    scaler.step(optimizer)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_masked_layers_stay_masked():
    for decoupled in (False, True):
        net = ds.prune.sparsify_(network(), 0.5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        force = ds.lowrank.Force(net, 0.5, optimizer=optimizer, decoupled=decoupled)
        start = net[4].weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            backward(net)
            force.apply_()
            for layer in (net[0], net[4]):
                assert not layer.weight[~layer.mask].any()
                assert not layer.weight.grad[~layer.mask].any()
            optimizer.step()
        assert not torch.equal(net[4].weight, start)
    ds.prune.freeze(net.eval())
    force.apply_()  # packed: nothing to move


def test_sparse_convolutions_and_selection():
    net = nn.Sequential(ds.nn.SparseConv2d(1, 4, 3), ds.nn.SubmanifoldConv2d(4, 4, 3), nn.PReLU())
    assert ds.lowrank.Force(net, 1.0).names == ["0", "1"]
    chosen = ds.lowrank.Force(net, 1.0, select=lambda name, module: name == "1")
    assert chosen.names == ["1"]
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    net[1].weight.grad = torch.zeros_like(net[1].weight)
    chosen.apply_()
    assert not net[0].weight.grad.any() and net[1].weight.grad.any()


def test_weights_without_gradient_and_tied_ones():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[2].weight.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(net[3])
    force = ds.lowrank.Force(net, 1.0)
    assert force.names == ["0", "1", "2"]
    force.apply_()  # no gradients yet
    net(torch.ones(1, 4)).sum().backward()
    before = net[0].weight.grad.clone()
    force.apply_()
    once = before - ds.lowrank.force(net[0].weight)
    torch.testing.assert_close(net[0].weight.grad, once)


def test_iterations_and_state():
    layer = nn.Linear(4, 3)
    force = ds.lowrank.Force(layer, 1.0, iterations=3)
    layer.weight.grad = torch.zeros_like(layer.weight)
    for _ in range(2):
        force.apply_()
    force.strength = 0.5
    again = ds.lowrank.Force(layer, 1.0, iterations=3)
    again.load_state_dict(force.state_dict())
    assert again.n_applied == 2 and again.strength == 0.5
    layer.weight.grad.zero_()
    again.apply_()
    assert layer.weight.grad.any()
    layer.weight.grad.zero_()
    again.apply_()
    assert not layer.weight.grad.any() and again.n_applied == 3
    with pytest.raises(ValueError, match="state must have"):
        again.load_state_dict({"n_applied": 1})


# ------------------------------------------------------------------ wrong input
@pytest.mark.parametrize(
    ("weight", "norm", "error"),
    [
        (torch.tensor(1.0), "l2", ValueError),
        (torch.ones(2, 2, dtype=torch.int64), "l2", TypeError),
        (torch.ones(2, 2, dtype=torch.bfloat16), "l2", NotImplementedError),
        (torch.tensor([[1.0, math.nan]]), "l1", ValueError),
        (torch.tensor([[1.0, math.inf]]), "l2", ValueError),
        ([[1.0]], "l2", TypeError),
        (torch.ones(2, 2), "l3", ValueError),
        (torch.ones(2, 2), None, ValueError),
    ],
)
def test_wrong_weights(weight, norm, error):
    with pytest.raises(error, match="force: "):
        ds.lowrank.force(weight, norm)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": "net"}, TypeError),
        ({"model": nn.ReLU()}, ValueError),
        ({"strength": "1"}, TypeError),
        ({"strength": True}, TypeError),
        ({"strength": math.nan}, ValueError),
        ({"strength": math.inf}, ValueError),
        ({"norm": "l0"}, ValueError),
        ({"direction": "up"}, ValueError),
        ({"select": "0"}, TypeError),
        ({"select": lambda name, module: False}, ValueError),
        ({"iterations": -1}, ValueError),
        ({"iterations": 1.5}, TypeError),
        ({"decoupled": True}, ValueError),
        ({"optimizer": 0.1}, TypeError),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)}, ValueError),
    ],
)
def test_wrong_arguments(arguments, error):
    with pytest.raises(error, match="Force: "):
        ds.lowrank.Force(**({"model": network(), "strength": 1.0} | arguments))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(norm, dtype):
    """The force is computed in float32 and rounded once."""
    net = nn.Linear(9, 20, bias=False).to(dtype)
    net.weight.grad = torch.zeros_like(net.weight)
    ds.lowrank.Force(net, 1.0, norm).apply_()
    want = -ds.lowrank.force(net.weight.detach().float(), norm).to(dtype)
    assert torch.equal(net.weight.grad, want)
