"""The network that learns the answers of another: layers, training, pruning."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import prune as pruning
from .._patterns import Pattern
from ..nn._packed import Packed

# Masks of a rising sparsity are made anew this many times; each costs a selection over all weights.
_MASK_CHANGES = 12
_EVALUATION_ROWS = 512  # whose activations stay in the cache


# ------------------------------------------------------------------ the network
class Standardize(nn.Module):
    """(x - mean) / scale: one mean per feature, one scale for all of them.

    The teacher measures Euclidean distances, so the features keep their relative scale.

    Attributes:
        mean: (n_features,) float64. It is subtracted in the dtype of x.
        scale: () float64.
        dtype: of the result.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean.double())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_features) of any floating dtype -> the same shape, in `dtype`."""
        return ((x - self.mean.to(x.dtype)) / self.scale.to(x.dtype)).to(self.dtype)


def make_student(
    mean: Tensor, scale: float, hidden: Sequence[int], n_outputs: int, dropout: float
) -> nn.Sequential:
    """Standardize, then float32 linear layers with rectified hidden units (Zhang 1503.06452)."""
    layers: list[nn.Module] = [Standardize(mean, scale)]
    width = len(mean)
    for size in hidden:
        layers += [nn.Linear(width, size, dtype=torch.float32), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, n_outputs, dtype=torch.float32))


def in_bfloat16(net: nn.Sequential) -> nn.Sequential:
    """A copy with bfloat16 weights: dense layers compute in it, packed ones store values in it."""
    net = copy.deepcopy(net)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    if any(isinstance(layer, Packed) for layer in linear):
        return pruning.freeze(pruning.thaw(net).eval(), dtype=torch.bfloat16)
    for layer in linear:
        layer.to(torch.bfloat16)
    for first in net:
        if isinstance(first, Standardize):
            first.dtype = torch.bfloat16
    return net


def n_bytes(net: nn.Module) -> int:
    """Bytes of parameters, buffers and packed weights."""
    total = 0
    for module in net.modules():
        own: list[Tensor | None] = [*module._parameters.values(), *module._buffers.values()]
        if isinstance(module, Packed):  # its parked weight is empty
            total += module.packed.nbytes
        total += sum(t.numel() * t.element_size() for t in own if t is not None)
    return total


@torch.inference_mode()
def outputs(net: nn.Module, x: Tensor, rows: int = _EVALUATION_ROWS) -> Tensor:
    """What the network answers, float32 (n, n_outputs); never more than `rows` rows at a time."""
    return torch.cat([net(part).float() for part in x.split(rows)])


# ------------------------------------------------------------------ training
class Task(NamedTuple):
    """What a student learns. Rows of `x` may be of any floating dtype.

    Attributes:
        x: (n, n_features).
        y: int64 (n,), clusters, or float32 (n, n_components), codes in the unit range.
        train: int64, rows to learn from.
        validation: int64, rows to stop by.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor

    def loss(self, answer: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy of clusters, squared error of codes."""
        if wanted.is_floating_point():
            return F.mse_loss(answer, wanted)
        return F.cross_entropy(answer, wanted)

    def validate(self, net: nn.Module) -> tuple[float, float]:
        """(agreement, -loss) on the validation rows, to be maximised; codes have no agreement."""
        net.eval()
        answer, wanted = outputs(net, self.x[self.validation]), self.y[self.validation]
        loss = float(self.loss(answer, wanted))
        if wanted.is_floating_point():
            return 0.0, -loss
        return float((answer.argmax(1) == wanted).double().mean()), -loss


@dataclass(frozen=True)
class Schedule:
    """How one phase of training goes.

    The rate falls linearly to zero over the steps of all epochs.
    """

    phase: str
    epochs: int
    patience: int
    lr: float
    batch_size: int
    verbose: bool


@contextlib.contextmanager
def _progress(schedule: Schedule, n_steps: int) -> Iterator[tuple[Callable[[], None], Any]]:
    """A function to call after each step, and one that shows a text after each epoch."""
    bar: Any = None
    if schedule.verbose and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar = tqdm(total=n_steps, desc=f"{schedule.phase} student", unit="step")
    if bar is not None:
        try:
            yield bar.update, bar.set_postfix_str
        finally:
            bar.close()
        return

    def line(text: str) -> None:
        if schedule.verbose:
            print(f"{schedule.phase} student: {text}", flush=True)

    yield lambda: None, line


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    schedule: Schedule,
    after_step: Callable[[], object] = lambda: None,
    first_candidate: int = 0,
) -> list[tuple[float, float]]:
    """Train until the epochs are over or validation has not improved for `patience` epochs.

    The network ends in eval mode, with the weights of its best epoch.

    Args:
        net: trained in place.
        optimizer: of its parameters.
        task: data and loss.
        schedule: of this phase.
        after_step: called after every step of the optimizer.
        first_candidate: epochs before this one are not kept, however good: they are pruned less.

    Returns:
        `Task.validate` after each epoch.
    """
    per_epoch = -(-len(task.train) // schedule.batch_size)
    n_steps = per_epoch * schedule.epochs
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, 1 - step / n_steps))
    history: list[tuple[float, float]] = []
    best, best_state, best_epoch = (-1.0, 0.0), copy.deepcopy(net.state_dict()), first_candidate
    with _progress(schedule, n_steps) as (step_done, show):
        for epoch in range(schedule.epochs):
            net.train()
            for rows in task.train[torch.randperm(len(task.train))].split(schedule.batch_size):
                optimizer.zero_grad()
                task.loss(net(task.x[rows]), task.y[rows]).backward()
                optimizer.step()
                after_step()
                decay.step()
                step_done()
            history.append(task.validate(net))
            agreement, loss = history[-1]
            show(f"epoch {epoch + 1}, validation {agreement:.2%} agree, loss {-loss:.4g}")
            if epoch >= first_candidate and history[-1] > best:
                best, best_epoch = history[-1], epoch
                best_state = copy.deepcopy(net.state_dict())
            if epoch - best_epoch >= schedule.patience:
                break
    net.load_state_dict(best_state)
    net.eval()
    return history


def prune_student(
    net: nn.Sequential,
    task: Task,
    schedule: Schedule,
    method: str,
    pattern: Pattern,
    sparsity: float | None,
) -> list[tuple[float, float]]:
    """Prune all layers but the last, in place, and train on what is left.

    Args:
        net: trained; its pruned layers become masked ones.
        task: data and loss.
        schedule: of the sparse phase.
        method: "dsd", pruned at once as in the sparse phase of `DSD`; "block", little by little,
            over the first half of the steps (`GradualSchedule`).
        pattern: of the masks.
        sparsity: of each layer; None where the pattern says it.

    Returns:
        As of `train`.
    """
    last = str(len(net) - 1)
    optimizer = adam(net, schedule.lr)

    def hidden(name: str, module: nn.Module) -> bool:
        return name != last

    if method == "dsd":
        pruning.DSD(net, optimizer, sparsity, pattern=pattern, select=hidden).sparse()
        return train(net, optimizer, task, schedule)
    assert sparsity is not None  # a Block leaves it open
    per_epoch = -(-len(task.train) // schedule.batch_size)
    rising = schedule.epochs // 2  # epochs
    end = max(rising * per_epoch - 1, 0)
    gradual = pruning.GradualSchedule(
        net,
        sparsity,
        start=0,
        end=end,
        every=max(end // _MASK_CHANGES, 1),
        initial=sparsity / 2 if end else 0.0,
        pattern=pattern,
        select=hidden,
        optimizer=optimizer,
    )
    return train(net, optimizer, task, schedule, gradual.step, max(rising - 1, 0))


def adam(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam in one pass over memory a step: the update costs as much as a small batch."""
    return torch.optim.Adam(net.parameters(), lr=lr, fused=True)
