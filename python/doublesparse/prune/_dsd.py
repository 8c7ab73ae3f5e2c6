"""Dense-sparse-dense training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._patterns import Pattern, Unstructured, check_pattern, check_sparsity
from ..nn._masked import Masked
from ._learning_rates import scale_learning_rates, schedulers_of
from ._sparsify import Select, apply_mask, densify_, selected, sparsify_

PHASES = ("dense", "sparse", "redense")


class DSD:
    """Dense-sparse-dense training (Han et al. 2017): prune, train on, free the pruned weights.

    Train as usual; call `sparse()` and train on: the smallest weights of each layer are zero and
    stay zero, with a mask that is fixed for the phase; call `redense()` and train on: the pruned
    weights start from zero, and everything trains at `lr_scale` times the learning rate. The
    sparsity is the only new hyper-parameter. Only weights are pruned, no bias and no norm. The
    final network has the classes, the shapes and the speed of the one that was given.

    In the sparse phase layers are of masked classes (see `sparsify_`), with the same Parameters, so
    the optimizer goes on; what it remembers of pruned weights is zero. `redense` scales the
    learning rates of the optimizer's groups, their `initial_lr`, and what schedulers keep
    (`base_lrs`, maxima and minima), so that a schedule goes on at a tenth of what it would have
    been. A second `sparse()` and `redense()` may follow (DSDSD); rates are scaled once.

    To resume in any phase: build model, optimizer, schedulers and `DSD` as at first, call
    `load_state_dict` of the DSD, then of the model, the optimizer and the schedulers, whose states
    hold weights, momenta and learning rates.

    Args:
        model: changed in place by `sparse` and `redense`. Layers that are masked already are left
            alone.
        optimizer: that trains it.
        sparsity: share of the weights of each layer that is pruned in the sparse phase. The paper
            takes 0.25 to 0.5 for most networks.
        lr_scale: of the learning rates in the last phase.
        pattern: of the masks.
        select: (name, module) -> bool, which layers; default: all that `sparsify_` can mask.
        schedulers: of the learning rate; default: all that live and drive the optimizer.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number out of range, or no layer to prune that the optimizer trains.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        >>> dsd = ds.prune.DSD(net, optimizer, sparsity=0.25)
        >>> for epoch in range(9):
        ...     if epoch == 3: dsd.sparse()
        ...     if epoch == 6: dsd.redense()
        ...     optimizer.zero_grad()
        ...     net(torch.randn(16, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> dsd.phase, optimizer.param_groups[0]["lr"], type(net[0]).__name__
        ('redense', 0.05, 'Linear')
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float | None = 0.3,
        lr_scale: float = 0.1,
        pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
        select: Select | None = None,
        *,
        schedulers: Iterable[Any] | Any | None = None,
    ) -> None:
        check_pattern("DSD", pattern)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"DSD: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; "
                "pass the one that trains the model"
            )
        if isinstance(lr_scale, bool) or not isinstance(lr_scale, (int, float)):
            raise TypeError(f"DSD: lr_scale must be a number, got {lr_scale!r}; pass e.g. 0.1")
        if not 0.0 < lr_scale < float("inf"):
            raise ValueError(f"DSD: lr_scale must be positive, got {lr_scale}; pass e.g. 0.1")
        layers = selected("DSD", model, select)
        if pattern.fixed and sparsity == 0.3:
            sparsity = None  # the default says nothing
        check_sparsity("DSD", sparsity, pattern)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._names = [
            name
            for name, layer in layers.items()
            if not isinstance(layer, Masked) and id(layer.weight) in trained
        ]
        if not self._names:
            raise ValueError(
                "DSD: model must have a layer to prune whose weight the optimizer trains, got "
                "none; ds.prune.skipped(model) says which layers cannot be pruned"
            )
        self.model, self.optimizer = model, optimizer
        self.sparsity, self.lr_scale, self.pattern = sparsity, lr_scale, pattern
        self.schedulers = schedulers_of("DSD", schedulers)
        self._phase = "dense"
        self._scaled = False

    @property
    def phase(self) -> str:
        """Where training is: "dense", "sparse" or "redense"."""
        return self._phase

    def _mine(self, name: str, module: nn.Module) -> bool:
        return name in self._names

    def sparse(self) -> None:
        """Begin the sparse phase: prune the smallest weights of each layer, and keep them zero.

        Raises:
            RuntimeError: it has begun already.
        """
        if self._phase == "sparse":
            raise RuntimeError(
                "DSD.sparse: phase must be 'dense' or 'redense', got 'sparse'; call redense() first"
            )
        sparsify_(
            self.model,
            self.sparsity,
            self.pattern,
            select=self._mine,
            optimizer=self.optimizer,
        )
        self._phase = "sparse"

    def redense(self) -> None:
        """Begin the last phase: free the pruned weights, which are zero; lower the learning rate.

        Raises:
            RuntimeError: the sparse phase has not begun.
        """
        if self._phase != "sparse":
            raise RuntimeError(
                f"DSD.redense: phase must be 'sparse', got {self._phase!r}; call sparse() first"
            )
        densify_(self.model, self._mine)
        if not self._scaled:
            scale_learning_rates(self.optimizer, self.schedulers, self.lr_scale)
            self._scaled = True
        self._phase = "redense"

    def state_dict(self) -> dict[str, Any]:
        """The phase and, in the sparse phase, the masks: {name of the layer: mask}."""
        masks: dict[str, Tensor] = {}
        if self._phase == "sparse":
            masks = {name: self._layer(name).mask.clone() for name in self._names}
        return {"phase": self._phase, "scaled": self._scaled, "masks": masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Enter the phase of a state; in the sparse one, with its masks.

        Learning rates are part of the optimizer's and the schedulers' own states, so they are left
        as they are.

        Raises:
            ValueError: a phase that does not exist, or masks of other layers than this model's.
        """
        phase, masks = state["phase"], state["masks"]
        wanted = set(self._names) if phase == "sparse" else set()
        if phase not in PHASES or set(masks) != wanted:
            raise ValueError(
                f"DSD.load_state_dict: state must be of this model, got phase {phase!r} with masks "
                f"of {sorted(masks)} instead of {sorted(wanted)}; build the DSD with the same "
                "model and select"
            )
        if phase == "sparse":
            for name, mask in masks.items():
                module = self.model.get_submodule(name)
                apply_mask(module, self.pattern, mask, self.optimizer)
        else:
            densify_(self.model, self._mine)
        self._phase, self._scaled = phase, bool(state["scaled"])

    def _layer(self, name: str) -> Masked:
        return cast("Masked", self.model.get_submodule(name))
