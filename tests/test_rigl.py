"""Schedules of masks: the cubic one, and RigL against a plain implementation on dense gradients."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.prune import _dense_gradient


# ------------------------------------------------------------------ gradual
def cubic(t, start, end, initial, final):
    return final + (initial - final) * (1 - (t - start) / (end - start)) ** 3


def test_cubic_schedule():
    net = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    options = dict(initial=0.2, select=lambda name, module: name == "0", optimizer=optimizer)
    schedule = ds.prune.GradualSchedule(net, 0.9, start=3, end=10, every=2, **options)
    before = None
    for t in range(14):
        net(torch.randn(4, 20)).square().mean().backward()
        optimizer.step()
        schedule.step()
        if t < 3:
            assert type(net[0]) is nn.Linear
            continue
        last = 10 if t >= 10 else t - (t - 3) % 2
        want = 200 - round(cubic(last, 3, 10, 0.2, 0.9) * 200)
        assert int(net[0].mask.sum()) == want
        assert math.isclose(schedule.sparsity_at(last), cubic(last, 3, 10, 0.2, 0.9))
        assert before is None or not (net[0].mask & ~before).any()
        before = net[0].mask.clone()
    assert type(net[2]) is nn.Linear and int(net[0].mask.sum()) == 20


def test_schedule_resumes():
    nets = [nn.Sequential(nn.Linear(8, 8)) for _ in range(2)]
    one, two = (ds.prune.GradualSchedule(n, 0.9, 0, 8, pattern=ds.Block(2, 2)) for n in nets)
    for _ in range(5):
        one.step()
    ds.prune.sparsify_(nets[1], 0.0, ds.Block(2, 2))
    nets[1].load_state_dict(nets[0].state_dict())
    two.load_state_dict(one.state_dict())
    for _ in range(5):
        one.step()
        two.step()
        assert torch.equal(nets[0][0].mask, nets[1][0].mask)
    assert int(nets[0][0].mask.sum()) == 4 * round(0.1 * 16)


def test_schedule_of_one_step():
    net = nn.Sequential(nn.Linear(4, 4))
    ds.prune.GradualSchedule(net, 0.5, 0, 0).step()
    assert int(net[0].mask.sum()) == 8


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((0.9, 5, 4), {}, ValueError, "end must be at least 5"),
        ((0.9, -1, 4), {}, ValueError, "start must be at least 0"),
        ((0.9, 0, 4, 0), {}, ValueError, "every must be at least 1"),
        ((0.9, 0, 4.0), {}, TypeError, "end must be an int"),
        ((1.9, 0, 4), {}, ValueError, "sparsity must lie"),
        ((0.9, 0, 4), dict(initial=-1.0), ValueError, "sparsity must lie"),
        ((0.9, 0, 4), dict(pattern=ds.NM(2, 4)), ValueError, "leave the sparsity open"),
        ((0.9, 0, 4), dict(select=lambda n, m: False), ValueError, "must have a layer"),
    ],
)
def test_wrong_schedules(args, options, error, words):
    with pytest.raises(error, match=words):
        ds.prune.GradualSchedule(nn.Linear(4, 4), *args, **options)


# ------------------------------------------------------------------ RigL
def moved(mask, weight, gradient, k):
    """Drop the k smallest, grow the k largest gradients among what is then not kept."""
    flat_mask, w, g = (t.flatten().tolist() for t in (mask, weight.abs(), gradient.abs()))
    kept = [i for i in range(len(w)) if flat_mask[i]]
    survivors = set(sorted(kept, key=lambda i: (-w[i], i))[: len(kept) - k])
    free = [i for i in range(len(w)) if i not in survivors]
    grown = set(sorted(free, key=lambda i: (-g[i], i))[:k])
    return torch.tensor([i in survivors | grown for i in range(len(w))]).view(mask.shape)


def dense_gradients(net, batches, loss):
    """Of a dense network whose weights are the masked ones: {name: gradient}, in float64."""
    dense = ds.prune.densify_(copy.deepcopy(net)).double()
    for x in batches:
        loss(dense(x.double())).backward()
    return {name: dense.get_submodule(name).weight.grad for name in ds.prune.masks(net)}


def conv_net(padding_mode="zeros"):
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, padding_mode=padding_mode),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.Flatten(2),
        nn.Conv1d(8, 4, 2, padding=1),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


@pytest.mark.parametrize("block", [2**18, 1, 50])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_masks_move_as_in_the_paper(block, mode, monkeypatch):
    monkeypatch.setattr(_dense_gradient, "BLOCK", block)
    net = ds.prune.sparsify_(conv_net(mode).double(), 0.7)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    rigl = ds.prune.RigL(net, optimizer, every=3, fraction=0.5, t_end=10)
    counts = {name: int(mask.sum()) for name, mask in ds.prune.masks(net).items()}
    loss = lambda y: y.square().sum()
    changes = 0
    for t in range(1, 13):
        batches = [torch.randn(2, 4, 6, 6).double() for _ in range(2)]  # accumulated
        due = t % 3 == 0 and t < 10
        gradients = dense_gradients(net, batches, loss)
        optimizer.zero_grad()
        for x in batches:
            loss(net(x)).backward()
        optimizer.step()
        want = {}
        for name, mask in ds.prune.masks(net).items():
            k = int(0.25 * (1 + math.cos(math.pi * t / 10)) * counts[name]) if due else 0
            weight = net.get_submodule(name).weight.detach()
            want[name] = moved(mask, weight, gradients[name], k), mask.clone(), weight.clone()
        rigl.step()
        for name, mask in ds.prune.masks(net).items():
            after, before, weight = want[name]
            assert torch.equal(mask, after), (t, name)
            assert int(mask.sum()) == counts[name]
            layer = net.get_submodule(name)
            assert torch.equal(layer.weight, torch.where(before & after, weight, 0.0))
            momentum = optimizer.state[layer.weight]["momentum_buffer"]
            assert not momentum[before != after].any()
            changes += int((before != after).sum())
    assert changes and rigl.n_updates == 3


def test_nothing_is_recorded_between_updates():
    net = ds.prune.sparsify_(nn.Sequential(nn.Linear(8, 8)), 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rigl = ds.prune.RigL(net, optimizer, every=3, fraction=0.3, t_end=100)
    for t in range(1, 8):
        assert bool(net[0]._forward_hooks) == (t % 3 == 0)
        net(torch.randn(4, 8)).sum().backward()
        assert len(rigl._recorders) == (t % 3 == 0)
        copied = copy.deepcopy(net)  # a copy records nothing, and pickles
        copied(torch.randn(4, 8)).sum().backward()
        pickle.loads(pickle.dumps(net))
        assert all(len(r.passes) == 1 for r in rigl._recorders)
        optimizer.step()
        rigl.step()
        assert not any(r.passes for r in rigl._recorders)


def test_no_dense_gradient_exists(monkeypatch):
    """The largest gradient tensor that is formed has the rows that fit the block."""
    monkeypatch.setattr(_dense_gradient, "BLOCK", 100)
    sizes = []
    total = _dense_gradient._total
    spy = lambda parts, *args: sizes.extend(p.numel() for p in parts) or total(parts, *args)
    monkeypatch.setattr(_dense_gradient, "_total", spy)
    net = ds.prune.sparsify_(nn.Sequential(nn.Linear(24, 40)), 0.8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rigl = ds.prune.RigL(net, optimizer, every=1, fraction=0.3, t_end=100)
    net(torch.randn(4, 24)).sum().backward()
    optimizer.step()
    rigl.step()
    assert rigl.n_updates == 1 and sizes == [96] * 10


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_full_and_empty_layers_stay(sparsity):
    net = ds.prune.sparsify_(nn.Sequential(nn.Linear(8, 8)), sparsity)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rigl = ds.prune.RigL(net, optimizer, every=1, fraction=1.0, t_end=100)
    before = net[0].mask.clone()
    for _ in range(3):
        net(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        rigl.step()
    assert torch.equal(net[0].mask, before)


def test_ties_nan_and_unused_layers():
    net = ds.prune.sparsify_(nn.ModuleDict(dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4))), 0.5)
    with torch.no_grad():
        net["a"].weight.fill_(1.0)
        net["a"].project_()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    rigl = ds.prune.RigL(net, optimizer, every=1, fraction=0.5, t_end=10**6)
    unused, mask = net["b"].mask.clone(), net["a"].mask.clone()
    x = torch.ones(1, 4)
    x[0, 1] = math.nan
    net["a"](x).sum().backward()
    rigl.step()
    gradient = torch.ones(4, 1) * x
    gradient[:, 1] = -1.0  # NaN ranks lowest
    want = moved(mask, mask.float(), gradient.abs().where(gradient > 0, torch.zeros(())), 3)
    assert torch.equal(net["a"].mask, want)
    assert torch.equal(net["b"].mask, unused)


def test_autocast_and_half():
    net = ds.prune.sparsify_(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), 0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    rigl = ds.prune.RigL(net, optimizer, every=2, fraction=0.5, t_end=100)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(torch.randn(4, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
        rigl.step()
    assert rigl.n_updates == 2 and all(int(m.sum()) == 32 for m in ds.prune.masks(net).values())


def test_rigl_resumes():
    data = [torch.randn(8, 6) for _ in range(12)]
    start = ds.prune.sparsify_(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)), 0.5)

    def run(net, optimizer, rigl, steps):
        for i in steps:
            optimizer.zero_grad()
            F.softplus(net(data[i])).mean().backward()
            optimizer.step()
            rigl.step()

    def make():
        net = copy.deepcopy(start)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        return net, optimizer, ds.prune.RigL(net, optimizer, every=2, fraction=0.5, t_end=50)

    whole, first, second = make(), make(), make()
    run(*whole, range(12))
    run(*first, range(7))
    for old, new in zip(first, second):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    run(*second, range(7, 12))
    state = second[0].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole[0].state_dict().items())


SGD = torch.optim.SGD


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(every=0), ValueError, "every must be at least 1"),
        (dict(t_end=2.5), TypeError, "t_end must be an int"),
        (dict(fraction=1.5), ValueError, "fraction must lie"),
        (dict(fraction="a"), TypeError, "fraction must be a number"),
        (dict(optimizer="sgd"), TypeError, "optimizer must be"),
        (dict(model=nn.Linear(2, 2)), ValueError, "must have masked layers"),
        (dict(model=None), TypeError, "model must be an nn.Module"),
        (
            dict(model=ds.prune.sparsify_(nn.Linear(4, 4), pattern=ds.NM(2, 4))),
            ValueError,
            "must have the pattern Unstructured",
        ),
    ],
)
def test_wrong_rigl(change, error, words):
    model = ds.prune.sparsify_(nn.Linear(4, 4), 0.5)
    arguments = dict(model=model, optimizer=SGD(model.parameters(), 0.1), every=1)
    with pytest.raises(error, match=words):
        ds.prune.RigL(**(arguments | change))


def test_layers_of_sparse_tensors_are_refused():
    net = ds.prune.sparsify_(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), 0.5)
    ds.prune.RigL(net, SGD(net.parameters(), 0.1), every=1, fraction=0.3, t_end=9)
    with pytest.raises(NotImplementedError, match="must get a dense tensor"):
        net(ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 1, 1]]), (4, 4)))
