"""RigL: sparse training whose masks move to where the gradient is large."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._largest import keep_largest
from .._patterns import Unstructured
from ..nn._masked import Masked
from . import _dense_gradient
from ._gradual import check_count
from ._sparsify import Select, check_model, masked_layers


class RigL:
    """Rigging the lottery (Evci et al. 2020): drop by magnitude, grow by dense gradient.

    Every `every` steps, until `t_end`, each masked layer drops a share of its kept weights, the
    smallest, and grows as many elsewhere: where the gradient that a dense layer would have is
    largest. The share is fraction / 2 * (1 + cos(pi t / t_end)) (eq. 1 there). The number of kept
    weights of a layer never changes. A regrown weight starts at zero and without a past in the
    optimizer; one that is dropped and grown at once stays as it is.

    The dense gradient is formed in blocks of rows, from the layer's input and output gradient,
    which are recorded on update steps only; no more than about 2^18 entries of it (or one row)
    exist at a time. Every backward pass since the last step counts, so gradients may accumulate.

    Args:
        model: with masked, unstructured layers; see `sparsify_`.
        optimizer: that trains it; its state is cleared where a mask changes.
        every: steps between two updates of the masks.
        fraction: share of the kept weights that moves at first, in [0, 1].
        t_end: no update at or after this step (three quarters of the training, in the paper).
        select: (name, module) -> bool, which masked layers move; default: all.
        process_group: of data-parallel training: gradients of all its processes are added, so that
            all get the same masks.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number out of range, no masked layer, or one with another pattern than
            `Unstructured`.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = ds.prune.sparsify_(torch.nn.Sequential(torch.nn.Linear(16, 8)), 0.75)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> rigl = ds.prune.RigL(net, optimizer, every=2, fraction=0.3, t_end=75)
        >>> for _ in range(4):
        ...     loss = net(torch.randn(32, 16)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     rigl.step()
        >>> int(net[0].mask.sum()), rigl.n_updates
        (32, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 100,
        fraction: float = 0.3,
        t_end: int = 75_000,
        *,
        select: Select | None = None,
        process_group: Any = None,
    ) -> None:
        check_model("RigL", model)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"RigL: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; "
                "pass the one that trains the model"
            )
        check_count("RigL", "every", every, 1)
        check_count("RigL", "t_end", t_end, 1)
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise TypeError(f"RigL: fraction must be a number, got {fraction!r}; pass e.g. 0.3")
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"RigL: fraction must lie in [0, 1], got {fraction}; pass e.g. 0.3")
        self.optimizer, self.every, self.fraction, self.t_end = optimizer, every, fraction, t_end
        self.process_group = process_group
        self.layers: dict[str, Masked] = {
            name: layer
            for name, layer in masked_layers(model)
            if select is None or select(name, layer)  # type: ignore[arg-type]  # a module too
        }
        if not self.layers:
            raise ValueError(
                "RigL: model must have masked layers, got none; call ds.prune.sparsify_ first"
            )
        for name, layer in self.layers.items():
            if not isinstance(layer.pattern, Unstructured):
                raise ValueError(
                    f"RigL: layer {name!r} must have the pattern Unstructured(), got "
                    f"{layer.pattern}, which single weights would break; leave it out by select"
                )
        self.n_steps = 0
        self.n_updates = 0
        self._recorders: list[_dense_gradient.Recorder] = []
        self._arm()

    def _is_due(self, step: int) -> bool:
        """Whether masks move after this many steps."""
        return 0 < step < self.t_end and step % self.every == 0

    def _arm(self) -> None:
        """Record the passes of the step that comes, if masks move after it."""
        for recorder in self._recorders:
            recorder.remove()
        self._recorders = []
        if self._is_due(self.n_steps + 1):
            self._recorders = [
                _dense_gradient.Recorder(name, layer) for name, layer in self.layers.items()
            ]

    def fraction_at(self, step: int) -> float:
        """The share of the kept weights that moves at a step."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.t_end))

    def step(self) -> None:
        """Count a training step, and move the masks where it is time.

        Call it after each `optimizer.step()`.
        """
        self.n_steps += 1
        if self._is_due(self.n_steps):
            for recorder in self._recorders:
                if recorder.passes or self.process_group is not None:
                    self._update(recorder)
            self.n_updates += 1
        self._arm()

    def _update(self, recorder: _dense_gradient.Recorder) -> None:
        """Drop and grow in one layer."""
        layer = recorder.layer
        mask = layer.mask
        n_kept = int(mask.sum())
        k = int(self.fraction_at(self.n_steps) * n_kept)
        if k == 0 or n_kept == mask.numel():
            return
        survivors = _largest_kept(layer, n_kept - k)
        grown = _dense_gradient.largest(recorder, ~survivors, k, self.process_group)
        survivors.view(-1)[grown] = True
        layer.set_mask(survivors, self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The numbers of steps and updates; masks are in the model's own."""
        return {"n_steps": self.n_steps, "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the model's masks come with its own `state_dict`."""
        self.n_steps, self.n_updates = int(state["n_steps"]), int(state["n_updates"])
        self._arm()


def _largest_kept(layer: Masked, k: int) -> Tensor:
    """The mask of the k largest weights among the kept ones; contiguous."""
    weight = layer.weight.detach()
    wide = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    wide.nan_to_num_(-1.0, math.inf)
    scores = torch.where(layer.mask, wide, -2.0)
    return keep_largest(scores.reshape(-1), k).view(layer.mask.shape)
