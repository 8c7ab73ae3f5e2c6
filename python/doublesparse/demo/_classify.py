"""Plain training and testing of a classifier on tensors that fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Set = tuple[Tensor, Tensor]


def minibatches(data: Set, size: int, seed: int, epoch: int) -> list[Set]:
    """All of the data in an order that only seed and epoch decide."""
    images, labels = data
    random = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(labels), generator=random)
    return [(images[chosen], labels[chosen]) for chosen in order.split(size)]


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Set,
    batch_size: int,
    epochs: range,
    seed: int,
    before_step: Callable[[], object] | None = None,
) -> None:
    """Plain training; `before_step` may change the gradients."""
    net.train()
    for epoch in epochs:
        for images, labels in minibatches(data, batch_size, seed, epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            if before_step is not None:
                before_step()
            optimizer.step()


@torch.no_grad()
def error(net: nn.Module, data: Set) -> float:
    """Share of wrong answers, in percent."""
    images, labels = data
    net.eval()
    wrong = sum(
        int((net(x).argmax(1) != y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * wrong / len(labels)
