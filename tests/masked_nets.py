"""Networks with pruned weights, every optimizer of torch, and what must be zero after each step."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds


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
