"""Projected training: the weights' patterns hold after each step, and may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .._magnitude import keep_magnitudes_
from .._patterns import Pattern
from ..nn._masked import Masked
from ..nn._projected import check_constraint
from ._sparsify import check_model


class Project:
    """Projected gradient descent: after a step of the optimizer, keep each pattern's largest.

    Iterative hard thresholding (Wang and Huang 2016, section on training): gradients, momenta and
    the step are dense, then all but the s largest weights of each row (`ds.TopKRows(s)`) or column
    (`ds.TopKColumns(s)`) become zero. Nothing is masked: a weight at zero gets its gradient, and
    enters again as soon as a step takes it past one of the s. Exactly s are kept; of equal ones,
    those of lower flat index (`ds.prune.magnitude_mask`).

    Constraints are what modules declare as `constraints`, {name of a parameter: pattern}, as
    `ds.nn.ProjectedLinear` and `ds.models.DoubleSparsityEncoder` do, and what `patterns` adds. The
    model is projected at once, so that training begins on the constraint.

    Call `step()` after each `optimizer.step()`; or attach it, once, in one line:
    `ds.prune.Project(model).attach(optimizer)`.

    Args:
        model: whose parameters are changed in place. Layers frozen by `ds.prune.freeze` have
            nothing to project.
        every: project on every so many steps only: between, weights move freely.
        patterns: {name of a parameter, or of a layer whose `weight` is meant: pattern}; patterns
            that say themselves how many they keep.

    Attributes:
        n_steps: steps so far.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: `every` below 1, an unknown name, a pattern that needs a sparsity, a parameter
            of a masked layer or of fewer than two axes, or nothing to project.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> project = ds.prune.Project(net, patterns={"weight": ds.TopKRows(3)})
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(torch.randn(16, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     project.step()
        >>> (net.weight != 0).sum(1).tolist()
        [3, 3, 3, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 1,
        *,
        patterns: Mapping[str, Pattern] | None = None,
    ) -> None:
        check_model("Project", model)
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"Project: every must be an int, got {every!r}; pass e.g. 1")
        if every < 1:
            raise ValueError(f"Project: every must be at least 1, got {every}; pass e.g. 1")
        if patterns is not None and not isinstance(patterns, Mapping):
            raise TypeError(
                f"Project: patterns must be a mapping, got {type(patterns).__name__}; pass e.g. "
                "{'fc1': ds.TopKRows(20)}"
            )
        self.model, self.every, self.n_steps = model, every, 0
        self._given = [_found(model, name, p) for name, p in (patterns or {}).items()]
        if not self._given and not any(_declared(module) for module in model.modules()):
            raise ValueError(
                "Project: model must have a parameter to project, got none; use layers that "
                "declare constraints (ds.nn.ProjectedLinear), or pass patterns={name: pattern}"
            )
        self.project()

    def project(self) -> None:
        """Project now, whatever the step."""
        chosen = {(id(module), name) for module, name, _ in self._given}
        todo = list(self._given)
        for module in self.model.modules():
            for name, pattern in _declared(module).items():
                if (id(module), name) not in chosen:  # what the caller says goes first
                    todo.append((module, name, pattern))
        for module, name, pattern in todo:
            parameter = module._parameters.get(name)  # None between freeze and thaw
            if parameter is not None:
                keep_magnitudes_(parameter, pattern)

    def step(self) -> None:
        """Count one step of the optimizer, and project where it is one of `every`."""
        self.n_steps += 1
        if self.n_steps % self.every == 0:
            self.project()

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `step` after each step of an optimizer, from now on.

        Args:
            optimizer: that trains the model.

        Returns:
            a handle; its `remove()` ends it.

        Raises:
            TypeError: it is no optimizer.

        Example:
            >>> import torch, doublesparse as ds
            >>> net = ds.nn.ProjectedLinear(8, 4, pattern=ds.TopKColumns(1))
            >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            >>> handle = ds.prune.Project(net).attach(optimizer)
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"Project.attach: optimizer must be a torch.optim.Optimizer, got "
                f"{type(optimizer).__name__}; pass the one that trains the model"
            )

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.step()

        return optimizer.register_step_post_hook(after_step)

    def state_dict(self) -> dict[str, Any]:
        """The count of steps: where `every` is above 1, a resumed run goes on at the same phase."""
        return {"n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the count of a `state_dict`.

        Raises:
            ValueError: it is no state of a Project.
        """
        if not isinstance(state, dict) or not isinstance(state.get("n_steps"), int):
            raise ValueError(
                "Project.load_state_dict: state must have the number 'n_steps', got "
                f"{state if isinstance(state, dict) else type(state).__name__}; pass what "
                "state_dict() returned"
            )
        self.n_steps = state["n_steps"]


def _declared(module: nn.Module) -> Mapping[str, Pattern]:
    """What a module says of its own parameters."""
    declared = getattr(module, "constraints", None)
    return declared if isinstance(declared, Mapping) else {}


def _found(model: nn.Module, name: str, pattern: Pattern) -> tuple[nn.Module, str, Pattern]:
    """The module and the parameter that a name means."""
    check_constraint("Project", pattern)
    modules = dict(model.named_modules())
    for owner, _, own in ((name, "", "weight"), name.rpartition(".")):
        module = modules.get(owner)
        parameter = None if module is None else module._parameters.get(own)
        if module is None or parameter is None:
            continue
        if isinstance(module, Masked):
            raise ValueError(
                f"Project: patterns must name parameters without a mask, got {name!r} of a "
                f"{type(module).__name__}; use ds.prune.densify_ before, or leave it out"
            )
        if parameter.dim() < 2:
            raise ValueError(
                f"Project: patterns must name weights of two axes or more, got {name!r} of shape "
                f"{tuple(parameter.shape)}; biases and norms are not pruned"
            )
        return module, own, pattern
    raise ValueError(
        f"Project: patterns must name parameters or layers of the model, got {name!r}; its "
        f"parameters are {[n for n, _ in model.named_parameters()]}"
    )
