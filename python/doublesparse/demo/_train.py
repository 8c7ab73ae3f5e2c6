"""Training and testing, as one would write it for a dense network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from ..data.pen import PenBatches, PenDataset
from ..tensor import SparseTensor
from ._report import Progress

if TYPE_CHECKING:
    from .pen import Settings

# Points of the error curve: testing at each of many epochs would take a good part of the time.
_CURVE_POINTS = 10
# Share of the steps in which the learning rate rises.
_WARM_UP = 0.2
_TEST_BATCH = 200


@dataclass
class Data:
    """Training set with distortions; test set without; the test set with distortions."""

    train: PenDataset
    test: PenDataset
    views: PenDataset


@dataclass
class History:
    """What training leaves: the network to test, its error on the way, and the time."""

    net: nn.Module
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def batches(
    data: PenDataset, batch_size: int, shuffle: bool = False, workers: int = 0
) -> Iterator[tuple[SparseTensor, Tensor]]:
    """Batches of sparse images and labels."""
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    sampler = BatchSampler(order, batch_size, drop_last=False)
    yield from DataLoader(PenBatches(data), sampler=sampler, batch_size=None, num_workers=workers)


def train(net: nn.Module, data: Data, settings: Settings, workers: int = 0) -> History:
    """AdamW with one learning-rate cycle, and a running mean of the weights.

    Args:
        net: trained in place.
        data: what on.
        settings: epochs, batch size, rates.
        workers: processes that rasterise.

    Returns:
        The history; `History.net` holds the averaged weights.
    """
    n_batches = -(-len(data.train) // settings.batch_size)
    n_steps = settings.epochs * n_batches
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cycle(step, n_steps))
    averaged = copy.deepcopy(net)
    history = History(averaged)
    every = max(1, -(-settings.epochs // _CURVE_POINTS))
    step, start = 0, time.perf_counter()
    with Progress(n_steps) as progress:
        for epoch in range(settings.epochs):
            total = 0.0
            net.train()
            for images, labels in batches(data.train, settings.batch_size, True, workers):
                loss = functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                _average(averaged, net, min(settings.average, step / (step + 10)))
                total += loss.item() * len(labels)
                progress.step(loss.item())
            if (epoch + 1) % every == 0 or epoch + 1 == settings.epochs:
                wrong = errors(probabilities(averaged, data.test), data.test.labels)
                point = {
                    "epoch": epoch + 1,
                    "loss": total / max(len(data.train), 1),
                    "error": wrong / max(len(data.test), 1),
                }
                history.curve.append(point)
                progress.note(point)
    history.seconds = time.perf_counter() - start
    return history


def _cycle(step: int, n_steps: int) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine down to 0."""
    n_rising = max(1, round(_WARM_UP * n_steps))
    if step < n_rising:
        return (step + 1) / (n_rising + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - n_rising) / max(1, n_steps - n_rising))


@torch.no_grad()
def _average(averaged: nn.Module, net: nn.Module, decay: float) -> None:
    """Moves the averaged weights by 1 - decay towards those of the network."""
    for mean, parameter in zip(averaged.parameters(), net.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)


@torch.no_grad()
def probabilities(net: nn.Module, data: PenDataset) -> Tensor:
    """Class probabilities of all characters, (n, n_classes)."""
    net.eval()
    return torch.cat([net(images).softmax(1) for images, _ in batches(data, _TEST_BATCH)])


def errors(predicted: Tensor, labels: Tensor) -> int:
    """How many are wrong."""
    return int((predicted.argmax(1) != labels).sum())


def test(net: nn.Module, data: Data, settings: Settings) -> dict[str, Any]:
    """Test error, on the characters as they are and averaged over distorted views."""
    predicted = probabilities(net, data.test)
    results: dict[str, Any] = {
        "n_test": len(data.test),
        "n_wrong": errors(predicted, data.test.labels),
        "predicted": predicted.argmax(1).tolist(),
    }
    if settings.views > 1:
        torch.manual_seed(settings.seed)
        for _ in range(settings.views):
            predicted = predicted + probabilities(net, data.views)
        results["n_wrong_views"] = errors(predicted, data.test.labels)
    return results
