"""`ds.lowrank.finetune`: its schedule and its steps against plain torch, masks, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import doublesparse as ds
from doublesparse.lowrank import finetune


def some_batches(n=8, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, 6, generator=random, dtype=dtype)
    y = torch.randint(3, (n, 5), generator=random)
    return list(zip(x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_and_schedule_equal_plain_torch(dtype):
    """80 steps with the rate a tenth from step 30 and a hundredth from step 60 on."""
    batches = some_batches(dtype=dtype)
    torch.manual_seed(1)
    net = nn.Linear(6, 3, dtype=dtype)
    plain = copy.deepcopy(net)
    history = finetune(net, batches, epochs=10, lr=0.1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** ((step >= 30) + (step >= 60))
        x, y = batches[step % 8]
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert torch.equal(net.weight, plain.weight) and torch.equal(net.bias, plain.bias)
    assert [epoch["epoch"] for epoch in history] == list(range(1, 11))
    assert history[2]["loss"] == pytest.approx(sum(losses[16:24]) / 8, rel=1e-12)
    assert [f"{epoch['lr']:.4g}" for epoch in history] == ["0.1"] * 3 + ["0.01"] * 4 + ["0.001"] * 3


def test_options():
    batches = some_batches()
    x = torch.stack([x for x, _ in batches])
    net = nn.Linear(6, 3)
    before = copy.deepcopy(net)
    history = finetune(
        net,
        [(x, x[..., :3])],
        epochs=4,
        lr=0.01,
        loss=F.mse_loss,
        optimizer=torch.optim.Adam,
        milestones=(0.5,),
        gamma=0.5,
    )
    assert [epoch["lr"] for epoch in history] == [0.01, 0.01, 0.005, 0.005]
    assert history[-1]["loss"] < history[0]["loss"]
    # Adam's first step is lr in every entry that has a gradient: it is Adam that ran.
    one = copy.deepcopy(before)
    finetune(one, [(x, x[..., :3])], epochs=1, lr=0.01, loss=F.mse_loss, optimizer=torch.optim.Adam)
    assert torch.allclose((one.weight - before.weight).abs(), torch.tensor(0.01), rtol=1e-3)


def test_modes_and_frozen_parameters_stay():
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    net.eval()
    net[2].train()
    net[0].requires_grad_(False)
    first, last = net[0].weight.clone(), net[3].weight.clone()
    loader = DataLoader(
        TensorDataset(torch.randn(20, 6), torch.randint(3, (20,))), batch_size=5, shuffle=True
    )
    assert len(finetune(net, loader, epochs=2, lr=0.1)) == 2
    assert [module.training for module in net.children()] == [False, False, True, False]
    assert torch.equal(net[0].weight, first) and not torch.equal(net[3].weight, last)
    assert float(net[1].running_mean.abs().max()) > 0  # it was trained in training mode


def test_masks_stay():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    ds.prune.sparsify_(net, 0.5)
    zero = [net[i].weight == 0 for i in (0, 2)]
    before = net[0].weight.detach().clone()
    finetune(net, some_batches(), epochs=3, lr=0.1)
    assert all(torch.equal(net[i].weight == 0, z) for i, z in zip((0, 2), zero))
    assert not torch.equal(net[0].weight, before)


class Endless:
    """Batches whose number nobody can ask for."""

    def __iter__(self):
        return iter(some_batches())


def test_batches_without_length():
    """The schedule then goes by whole epochs."""
    history = finetune(nn.Linear(6, 3), Endless(), epochs=4, lr=1.0)
    assert [f"{epoch['lr']:g}" for epoch in history] == ["1", "1", "0.1", "0.01"]


NET = nn.Linear(6, 3)
GOOD = {"epochs": 1, "lr": 0.1}


@pytest.mark.parametrize(
    ("model", "batches", "options", "error", "words"),
    [
        ("net", some_batches(), GOOD, TypeError, "model must be an nn.Module, got str"),
        (NET, iter(some_batches()), GOOD, TypeError, "once per epoch, got list_iterator"),
        (NET, torch.zeros(2, 6), GOOD, TypeError, "once per epoch, got Tensor"),
        (NET, 3, GOOD, TypeError, "once per epoch, got int"),
        (NET, [torch.zeros(2, 6)], GOOD, TypeError, "pairs .input, target., got Tensor"),
        (NET, [], GOOD, ValueError, "must hold a batch"),
        (NET, some_batches(), GOOD | {"epochs": 0}, ValueError, "epochs must be positive"),
        (NET, some_batches(), GOOD | {"epochs": 1.5}, TypeError, "epochs must be an integer"),
        (NET, some_batches(), GOOD | {"lr": -1.0}, ValueError, "lr must be positive"),
        (NET, some_batches(), GOOD | {"lr": float("nan")}, ValueError, "lr must be positive"),
        (NET, some_batches(), GOOD | {"lr": "fast"}, TypeError, "lr must be a number"),
        (NET, some_batches(), GOOD | {"gamma": 0}, ValueError, "gamma must be positive"),
        (NET, some_batches(), GOOD | {"milestones": (0.5, 0.2)}, ValueError, "must ascend"),
        (NET, some_batches(), GOOD | {"milestones": (0.5, 2)}, ValueError, "must ascend"),
        (nn.ReLU(), some_batches(), GOOD, ValueError, "requires gradients, got none"),
    ],
)
def test_bad_input(model, batches, options, error, words):
    with pytest.raises(error, match=f"^finetune: .*{words}"):
        finetune(model, batches, **options)


def test_not_a_number():
    """It says so, and the weights are those of before the step."""
    net = nn.Linear(6, 3).eval()
    before = net.weight.detach().clone()
    bad = [(torch.full((2, 6), float("nan")), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="loss must be finite, got nan in epoch 1"):
        finetune(net, bad, epochs=1, lr=0.1)
    assert torch.equal(net.weight, before) and not net.training
