"""Pruning little by little while a network trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._patterns import Pattern, Unstructured, check_pattern, check_sparsity
from ._sparsify import Select, selected, sparsify_


def check_count(operation: str, name: str, value: Any, smallest: int) -> None:
    """An int that is not below a bound."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{operation}: {name} must be an int, got {value!r}; pass a step number")
    if value < smallest:
        raise ValueError(
            f"{operation}: {name} must be at least {smallest}, got {value}; pass a larger number"
        )


class GradualSchedule:
    """Sparsity that rises from `initial` to `sparsity` as a cubic (Zhu & Gupta 2017, eq. 1).

    At step t, start <= t <= end, the layers are sparsity + (initial - sparsity) (1 - (t - start) /
    (end - start))^3 sparse: pruning is fast while much is redundant, and slow towards the end.
    Masks are made anew, by magnitude, every `every` steps and at `end`. Before the first of them
    the network is dense.

    Args:
        model: changed in place, as by `sparsify_`.
        sparsity: at the end.
        start: the first step that prunes, counted from 0.
        end: the last one.
        every: steps between two masks.
        initial: sparsity at `start`.
        pattern: `Unstructured` or `Block`.
        scope: "layer" or "global", as of `sparsify_`.
        select: (name, module) -> bool, which layers; default: all.
        optimizer: whose state is cleared at once where a mask changes; otherwise that happens at
            its next step.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a sparsity outside [0, 1], end before start, or a pattern that says itself how
            much it keeps.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Linear(10, 10))
        >>> schedule = ds.prune.GradualSchedule(net, 0.9, start=0, end=4, every=2)
        >>> for step in range(5):
        ...     schedule.step()  # after optimizer.step()
        ...     print(step, int(net[0].mask.sum()))
        0 100
        1 100
        2 21
        3 21
        4 10
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        start: int,
        end: int,
        every: int = 1,
        *,
        initial: float = 0.0,
        pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
        scope: str = "layer",
        select: Select | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        operation = type(self).__name__
        check_pattern(operation, pattern)
        if pattern.fixed:
            raise ValueError(
                f"{operation}: pattern must leave the sparsity open, got {pattern}; pass "
                "ds.Unstructured() or ds.Block(r, c)"
            )
        check_sparsity(operation, sparsity, pattern)
        check_sparsity(operation, initial, pattern)
        check_count(operation, "start", start, 0)
        check_count(operation, "end", end, start)
        check_count(operation, "every", every, 1)
        if not selected(operation, model, select):
            raise ValueError(
                f"{operation}: model must have a layer to prune, got none; ds.prune.skipped(model) "
                "says why"
            )
        self.model, self.optimizer = model, optimizer
        self.final, self.initial = sparsity, initial
        self.start, self.end, self.every = start, end, every
        self.pattern, self.scope, self.select = pattern, scope, select
        self.n_steps = 0

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the schedule wants at a step; 0 before its start."""
        if step < self.start:
            return 0.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.start) / (self.end - self.start)
        return self.final + (self.initial - self.final) * left**3

    def step(self) -> None:
        """Count a training step, and prune where it is time: call it after `optimizer.step()`."""
        t = self.n_steps
        self.n_steps += 1
        due = (t - self.start) % self.every == 0 or t == self.end
        if self.start <= t <= self.end and due:
            sparsify_(
                self.model,
                self.sparsity_at(t),
                self.pattern,
                self.scope,
                self.select,
                optimizer=self.optimizer,
            )

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; masks are in the model's own."""
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. The model's masks come with its own `state_dict`.

        A model without masks cannot load one with masks: call `sparsify_(model, 0.0)` first.
        """
        self.n_steps = int(state["n_steps"])
