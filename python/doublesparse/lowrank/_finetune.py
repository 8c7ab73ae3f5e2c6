"""Training a decomposed network on for a while, at a low and falling learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOMENTUM = 0.9
# Wen et al. train the decomposed ConvNet for 80 000 steps, a tenth of the rate from 30 000 and a
# hundredth from 60 000 on.
_MILESTONES = (0.375, 0.75)
_GAMMA = 0.1

Loss = Callable[[Any, Any], Tensor]


def finetune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    epochs: int,
    lr: float,
    loss: Loss = F.cross_entropy,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    milestones: Sequence[float] = _MILESTONES,
    gamma: float = _GAMMA,
) -> list[dict[str, float]]:
    """Trains a model on, in place: what decomposition lost mostly comes back in a few epochs.

    Any module will do. The learning rate is multiplied by `gamma` at each of the `milestones`;
    the defaults are the schedule of Wen et al. (2017) for a decomposed network, whose first rate
    was the last of its training. Masked weights stay masked, as in any training. Parameters that do
    not require gradients stay as they are. Whether the model was in training or in evaluation mode
    is restored at the end.

    Args:
        model: maps the input of a batch to the first argument of `loss`; any dtype, any device.
        batches: (input, target) pairs, gone through once per epoch: a DataLoader, or a list.
            Tensors move to the device of the model.
        epochs: how many times.
        lr: the learning rate at first.
        loss: (output, target) -> scalar tensor.
        optimizer: (parameters, lr=...) -> optimizer, e.g. `torch.optim.Adam`; default: SGD with
            momentum 0.9.
        milestones: shares of the steps, ascending, between 0 and 1.
        gamma: factor of the learning rate there.

    Returns:
        A dict per epoch: `epoch` (from 1), `loss` (mean over the batches) and `lr` (of its last
        step).

    Raises:
        TypeError: an argument of the wrong type; an iterator, which would be empty after one epoch.
        ValueError: a number out of range, no batch, nothing to train, or a loss that is not finite:
            the model then has its weights of before that step.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Linear(4, 2)
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(5)]
        >>> history = ds.lowrank.finetune(net, batches, epochs=4, lr=0.01)
        >>> [round(epoch["lr"], 6) for epoch in history]
        [0.01, 0.001, 0.001, 0.0001]
    """
    _check(model, batches, epochs, lr, milestones, gamma)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "finetune: model must have a parameter that requires gradients, got none; call "
            "model.requires_grad_()"
        )
    if optimizer is None:
        chosen: torch.optim.Optimizer = torch.optim.SGD(trained, lr=lr, momentum=_MOMENTUM)
    else:
        chosen = optimizer(trained, lr=lr)
    device = trained[0].device
    was_training = [(module, module.training) for module in model.modules()]
    model.train()
    history = []
    try:
        for epoch in range(epochs):
            # The length of an epoch may be known only at its end: the schedule goes by shares.
            total, n, rate = 0.0, 0, lr
            for share, (x, y) in _shares(batches):
                rate = lr * gamma ** sum((epoch + share) / epochs >= m for m in milestones)
                for group in chosen.param_groups:
                    group["lr"] = rate
                chosen.zero_grad()
                value = loss(model(_moved(x, device)), _moved(y, device))
                total += _finite(value, epoch)
                value.backward()
                chosen.step()
                n += 1
            if not n:
                raise ValueError(
                    f"finetune: batches must hold a batch, got none in epoch {epoch + 1}; pass a "
                    "DataLoader or a list"
                )
            history.append({"epoch": epoch + 1, "loss": total / n, "lr": rate})
    finally:
        for module, training in was_training:
            module.training = training
    return history


def _shares(batches: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    """Each batch with the share of the epoch that lies before it; 0 where no length is known."""
    try:
        n = len(batches)  # type: ignore[arg-type]
    except TypeError:
        n = 0
    for i, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"finetune: batches must yield pairs (input, target), got {type(batch).__name__}; "
                "wrap them"
            )
        yield (i / n if n else 0.0), batch


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor of any kind on the device; anything else as it is."""
    return value.to(device) if hasattr(value, "to") else value


def _finite(value: Tensor, epoch: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise ValueError(
            f"finetune: loss must be finite, got {number} in epoch {epoch + 1}; lower lr, or look "
            "for NaN in the batches"
        )
    return number


def _check(
    model: nn.Module,
    batches: Iterable[Any],
    epochs: int,
    lr: float,
    milestones: Sequence[float],
    gamma: float,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"finetune: model must be an nn.Module, got {type(model).__name__}; wrap it"
        )
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, Iterator)):
        raise TypeError(
            f"finetune: batches must be gone through once per epoch, got {type(batches).__name__}; "
            "pass a DataLoader or a list"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int):
        raise TypeError(f"finetune: epochs must be an integer, got {epochs!r}; pass e.g. 10")
    if epochs < 1:
        raise ValueError(f"finetune: epochs must be positive, got {epochs}; pass e.g. 10")
    for name, number in (("lr", lr), ("gamma", gamma)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"finetune: {name} must be a number, got {number!r}; pass e.g. 0.1")
        if not 0.0 < number < math.inf:
            raise ValueError(f"finetune: {name} must be positive, got {number}; pass e.g. 0.1")
    if any(not 0.0 < m < 1.0 for m in milestones) or list(milestones) != sorted(milestones):
        raise ValueError(
            f"finetune: milestones must ascend between 0 and 1, got {tuple(milestones)}; they are "
            "shares of the training, e.g. (0.375, 0.75)"
        )
