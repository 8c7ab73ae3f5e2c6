"""Dense-sparse-dense training: the acceptance checks of the paper's algorithm, and resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, 10),
        nn.Tanh(),
        nn.Linear(10, 3),
    )


LAYERS = ("0", "4", "6")
DATA = torch.Generator().manual_seed(5)
X, Y = torch.randn(24, 1, 5, 5, generator=DATA), torch.randint(3, (24,), generator=DATA)

OPTIMIZERS = {
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.01),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
}


def train(net, optimizer, n_steps=3, scheduler=None) -> None:
    for i in range(n_steps):
        part = slice(8 * (i % 3), 8 * (i % 3) + 8)
        optimizer.zero_grad()
        F.cross_entropy(net(X[part]), Y[part]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def snapshot(net) -> dict:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_phases(name):
    """M1: exactly k kept, zero through the sparse phase, re-dense from zero, survivors as left."""
    net = network()
    classes = [type(m) for m in net]
    parameters = dict(net.named_parameters())
    optimizer = OPTIMIZERS[name](net.parameters())
    with torch.no_grad():
        net[6].weight.copy_(torch.tensor([0.5, -0.5]).repeat(3, 5))  # ties
        net[6].weight.requires_grad_(False)
    dsd = ds.prune.DSD(net, optimizer, sparsity=0.3)
    assert dsd.phase == "dense" and not ds.prune.masks(net)
    train(net, optimizer)
    dense = snapshot(net)
    dsd.sparse()
    assert dsd.phase == "sparse"
    masks = {n: m.clone() for n, m in ds.prune.masks(net).items()}
    assert set(masks) == set(LAYERS)
    for layer, mask in masks.items():
        assert int(mask.sum()) == round(0.7 * mask.numel())
        weight = dense[f"{layer}.weight"]
        assert torch.equal(mask, ds.prune.magnitude_mask(weight, ds.Unstructured(), 0.3))
        want = torch.where(mask, weight, 0.0)
        assert torch.equal(net.get_submodule(layer).weight, want)
    assert bool(masks["6"].flatten()[:21].all()) and not masks["6"].flatten()[21:].any()
    for key, value in dense.items():  # nothing but weights is touched
        if key not in {f"{layer}.weight" for layer in LAYERS}:
            assert torch.equal(net.state_dict()[key], value), key
    for _ in range(4):
        train(net, optimizer, 1)
        for layer, mask in masks.items():
            module = net.get_submodule(layer)
            assert torch.equal(module.mask, mask)
            states = [s for s in optimizer.state.get(module.weight, {}).values() if s.dim()]
            for value in (module.weight.detach(), *states):
                assert not value[~mask].any()
    sparse = snapshot(net)
    assert any((sparse[f"{n}.bias"] != dense[f"{n}.bias"]).all() for n in LAYERS)
    rate = optimizer.param_groups[0]["lr"]
    dsd.redense()
    assert dsd.phase == "redense" and optimizer.param_groups[0]["lr"] == 0.1 * rate
    assert [type(m) for m in net] == classes  # M2: the network that was given
    assert list(net.state_dict()) == list(dense)
    assert all(p is parameters[n] for n, p in net.named_parameters())
    for key, value in net.state_dict().items():
        assert torch.equal(value, sparse[key]), key
    train(net, optimizer, 5)
    freed = net[4].weight.detach()[~masks["4"]]
    assert (freed != 0).float().mean() > 0.9


def test_steps_are_those_of_the_algorithm():
    """Phase by phase, with momentum and weight decay, against masking by hand."""
    net = network().double()
    twin = copy.deepcopy(net)
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    plain = OPTIMIZERS["momentum"](twin.parameters())
    x = X.double()
    dsd = ds.prune.DSD(net, optimizer, 0.5)
    masks = {}
    for t in range(12):
        if t == 4:
            dsd.sparse()
            for name in LAYERS:
                weight = twin.get_submodule(name).weight
                masks[name] = torch.zeros(weight.numel(), dtype=torch.bool)
                order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
                masks[name][order[: round(0.5 * weight.numel())]] = True
                masks[name] = masks[name].view(weight.shape)
                with torch.no_grad():
                    weight[~masks[name]] = 0.0
                    plain.state[weight]["momentum_buffer"][~masks[name]] = 0.0
        if t == 8:
            dsd.redense()
            plain.param_groups[0]["lr"] *= 0.1
            masks = {}
        for model, opt in ((net, optimizer), (twin, plain)):
            opt.zero_grad()
            F.cross_entropy(model(x), Y).backward()
        for name, mask in masks.items():
            twin.get_submodule(name).weight.grad[~mask] = 0.0
        optimizer.step()
        plain.step()
        for a, b in zip(net.parameters(), twin.parameters()):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), t


def test_a_plain_training_loop():
    net = network()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    dsd = ds.prune.DSD(net, optimizer)
    losses = []
    for epoch in range(30):
        if epoch == 10:
            dsd.sparse()
        if epoch == 20:
            dsd.redense()
        train(net, optimizer)
        losses.append(float(F.cross_entropy(net(X), Y).detach()))
    assert losses[-1] < losses[9] < losses[0] and dsd.phase == "redense"


def test_sparse_and_dense_again():
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    dsd = ds.prune.DSD(net, optimizer, 0.5)
    for _ in range(2):
        dsd.sparse()
        train(net, optimizer)
        dsd.redense()
        train(net, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.1  # scaled once


@pytest.mark.parametrize("pattern", [ds.NM(2, 4), ds.Block(2, 2), ds.TopKRows(3)], ids=str)
def test_other_patterns_and_selection(pattern):
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    ds.prune.sparsify_(net, 0.5, select=lambda name, module: name == "6")  # not DSD's
    dsd = ds.prune.DSD(net, optimizer, pattern=pattern, select=lambda name, module: name != "0")
    dsd.sparse()
    assert type(net[0]) is nn.Conv2d and net[4].pattern == pattern
    assert net[6].pattern == ds.Unstructured()
    dsd.redense()
    assert type(net[4]) is nn.Linear and type(net[6]) is ds.nn.MaskedLinear


# ------------------------------------------------------------------ learning rates
def schedules(optimizer):
    lr = torch.optim.lr_scheduler
    return {
        "step": lambda: lr.StepLR(optimizer, 4, 0.5),
        "lambda": lambda: lr.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
        "cosine": lambda: lr.CosineAnnealingLR(optimizer, 15, eta_min=0.01),
        "one cycle": lambda: lr.OneCycleLR(optimizer, 0.4, total_steps=20),
        "cyclic": lambda: lr.CyclicLR(optimizer, 0.01, 0.2, 3, cycle_momentum=False),
        "restarts": lambda: lr.CosineAnnealingWarmRestarts(optimizer, 5, eta_min=0.001),
        "plateau": lambda: lr.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.001),
        "sequential": lambda: lr.SequentialLR(
            optimizer,
            [lr.LinearLR(optimizer, 0.1, total_iters=5), lr.ExponentialLR(optimizer, 0.9)],
            milestones=[5],
        ),
        "chained": lambda: lr.ChainedScheduler(
            [lr.ConstantLR(optimizer, 0.5, 8), lr.ExponentialLR(optimizer, 0.9)]
        ),
    }


def rates(name, scaled_at, given, tensor=False):
    """The learning rate of each step; times 0.1 from some step on, by DSD."""
    net = network()
    start = torch.tensor(0.2) if tensor else 0.2
    optimizer = torch.optim.SGD(net.parameters(), lr=start, momentum=0.9, foreach=True)
    scheduler = schedules(optimizer)[name]()
    dsd = ds.prune.DSD(net, optimizer, schedulers=scheduler if given else None)
    dsd.sparse()
    found = []
    for t in range(16):
        if t == scaled_at:
            dsd.redense()
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step(*([1.0] if name == "plateau" else []))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", schedules(None))
def test_schedules_go_on_at_a_tenth(name, given):
    want = rates(name, None, given)
    got = rates(name, 6, given)
    assert torch.equal(got[:6], want[:6]) and want.unique().numel() > 2
    assert torch.allclose(got[6:], 0.1 * want[6:], rtol=1e-9, atol=0)


def test_a_rate_that_is_a_tensor():
    want, got = rates("step", None, False, tensor=True), rates("step", 6, False, tensor=True)
    assert torch.allclose(got[6:], 0.1 * want[6:], rtol=1e-6, atol=0)


def test_groups_and_strangers():
    """Every group of the optimizer, and no other optimizer's schedule."""
    net, other = network(), network()
    groups = [dict(params=net[0].parameters(), lr=1.0), dict(params=net[4].parameters(), lr=2.0)]
    optimizer = torch.optim.SGD(groups)
    stranger = torch.optim.SGD(other.parameters(), lr=3.0)
    schedule = torch.optim.lr_scheduler.StepLR(stranger, 5)
    dsd = ds.prune.DSD(net, optimizer, lr_scale=0.5)
    dsd.sparse()
    assert list(ds.prune.masks(net)) == ["0", "4"]  # the optimizer does not train the third
    dsd.redense()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    assert stranger.param_groups[0]["lr"] == 3.0 and schedule.base_lrs == [3.0]


# ------------------------------------------------------------------ resuming
@pytest.mark.parametrize("stop", [2, 6, 10])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_resumes_in_any_phase(stop, name):
    """M2: saved to a file and loaded into freshly built objects, training takes the same steps."""

    def build():
        torch.manual_seed(1)
        net = network()
        optimizer = OPTIMIZERS[name](net.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
        return net, optimizer, scheduler, ds.prune.DSD(net, optimizer, 0.4)

    def run(objects, steps):
        net, optimizer, scheduler, dsd = objects
        for t in steps:
            if t == 4:
                dsd.sparse()
            if t == 8:
                dsd.redense()
            train(net, optimizer, 1, scheduler)

    whole, first = build(), build()
    run(whole, range(12))
    run(first, range(stop))
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in reversed(first)], file)
    file.seek(0)
    second = build()
    for thing, state in zip(reversed(second), torch.load(file)):
        thing.load_state_dict(state)
    assert second[3].phase == ("dense", "sparse", "redense")[stop // 4]
    run(second, range(stop, 12))
    want, got = whole[0].state_dict(), second[0].state_dict()
    assert list(want) == list(got) and all(torch.equal(want[k], got[k]) for k in want)
    assert second[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]


def test_loading_goes_back_too():
    net = network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    dsd = ds.prune.DSD(net, optimizer)
    start = dsd.state_dict()
    dsd.sparse()
    dsd.load_state_dict(start)
    assert dsd.phase == "dense" and type(net[4]) is nn.Linear
    with pytest.raises(ValueError, match="must be of this model"):
        dsd.load_state_dict(dict(start, phase="sparse"))
    with pytest.raises(ValueError, match="must be of this model"):
        dsd.load_state_dict(dict(start, phase="thin"))


# ------------------------------------------------------------------ wrong use
def test_phases_in_the_wrong_order():
    net = network()
    dsd = ds.prune.DSD(net, OPTIMIZERS["momentum"](net.parameters()))
    with pytest.raises(RuntimeError, match="phase must be 'sparse', got 'dense'"):
        dsd.redense()
    dsd.sparse()
    with pytest.raises(RuntimeError, match="got 'sparse'"):
        dsd.sparse()
    dsd.redense()
    with pytest.raises(RuntimeError, match="got 'redense'"):
        dsd.redense()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(model=None), TypeError, "DSD: model must be"),
        (dict(model=nn.BatchNorm1d(3)), ValueError, "must have a layer to prune"),
        (dict(model=network()), ValueError, "whose weight the optimizer trains"),
        (dict(optimizer=None), TypeError, "optimizer must be"),
        (dict(sparsity=1.5), ValueError, "DSD: sparsity must lie"),
        (dict(sparsity=None), ValueError, "sparsity must be given"),
        (dict(lr_scale=0.0), ValueError, "lr_scale must be positive"),
        (dict(lr_scale="a"), TypeError, "lr_scale must be a number"),
        (dict(pattern="nm"), TypeError, "pattern must be"),
        (dict(schedulers=[1]), TypeError, "schedulers must be"),
        (dict(schedulers=1), TypeError, "schedulers must be"),
        (dict(select="0"), TypeError, "select must be"),
    ],
)
def test_wrong_arguments(change, error, words):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(error, match=words):
        ds.prune.DSD(**(dict(model=net, optimizer=optimizer) | change))
