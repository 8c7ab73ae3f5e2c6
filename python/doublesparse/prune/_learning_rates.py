"""Scaling the learning rates of an optimizer, wherever its schedulers keep them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Everything in a group, and in a scheduler, that is a learning rate.
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "_last_lr")


def schedulers_of(operation: str, schedulers: Any) -> list[Any] | None:
    """Schedulers given by the user, as a list; None: to be found."""
    if schedulers is None:
        return None
    given = list(schedulers) if isinstance(schedulers, Iterable) else [schedulers]
    for scheduler in given:
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(
                f"{operation}: schedulers must be torch's learning-rate schedulers, got "
                f"{type(scheduler).__name__}; leave out others, and scale their rates yourself"
            )
    return given


def _found(optimizer: Optimizer) -> list[Any]:
    """All living schedulers of an optimizer, which knows none of them."""
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), LRScheduler)  # no isinstance: it would wake lazy proxies
        and getattr(thing, "optimizer", None) is optimizer
    ]


def _with_parts(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Schedulers, and those that they consist of (SequentialLR, ChainedScheduler)."""
    for scheduler in schedulers:
        yield scheduler
        yield from _with_parts(getattr(scheduler, "_schedulers", ()))


def scale_learning_rates(optimizer: Optimizer, schedulers: list[Any] | None, factor: float) -> None:
    """Multiply every learning rate of an optimizer and its schedulers, in place.

    Args:
        optimizer: whose groups' lr, initial_lr, and what one-cycle schedules write there, change.
        schedulers: None: all that live.
        factor: multiplies them.
    """
    done: set[int] = set()  # a tensor or list may be shared
    for group in optimizer.param_groups:
        for key in _GROUP_RATES:
            if isinstance(group.get(key), (int, float, Tensor)):
                group[key] = _scaled(group[key], factor, done)
    for scheduler in _with_parts(_found(optimizer) if schedulers is None else schedulers):
        if id(scheduler) in done:
            continue
        done.add(id(scheduler))
        for name in _SCHEDULER_RATES:
            value = getattr(scheduler, name, None)
            if isinstance(value, (int, float, Tensor)):
                setattr(scheduler, name, _scaled(value, factor, done))
            elif isinstance(value, list) and id(value) not in done:
                done.add(id(value))
                value[:] = [_scaled(v, factor, done) for v in value]


def _scaled(value: Any, factor: float, done: set[int]) -> Any:
    """A number times the factor; a tensor (capturable optimizers hold their rate in one) in place.

    Tensors stay the same objects, because compiled optimizers hold on to them.
    """
    if not isinstance(value, Tensor):
        return value * factor
    if id(value) not in done:
        done.add(id(value))
        with torch.no_grad():
            value.mul_(factor)
    return value
