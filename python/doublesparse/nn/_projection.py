"""Masked weights and optimizers: whatever an optimizer does, a masked weight stays zero.

One pair of hooks around the step of every `torch.optim.Optimizer`, installed with the first masked
layer. Masking is `where`, not a product: NaN * 0 is NaN.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

if TYPE_CHECKING:
    from ._masked import Masked

_layers: WeakSet[Masked] = WeakSet()  # all that live; of none, a step costs one look
_lock = threading.Lock()
_installed = False


def watch(layer: Masked) -> None:
    """Keep this layer's masked weights zero from now on."""
    global _installed
    with _lock:
        if not _installed:
            register_optimizer_step_pre_hook(_before_step)
            register_optimizer_step_post_hook(_after_step)
            _installed = True
        _layers.add(layer)


def unwatch(layer: Masked) -> None:
    """No longer."""
    with _lock:
        _layers.discard(layer)


def zero_where(condition: Tensor, x: Tensor) -> None:
    """x[condition] = 0, in place, whatever it held; not recorded."""
    with torch.no_grad():
        x.masked_fill_(condition.to(x.device), 0.0)


def keep_where(mask: Tensor, x: Tensor) -> None:
    """x[~mask] = 0, in place, whatever it held; not recorded. One pass and no copy of the mask."""
    with torch.no_grad():
        torch.where(mask.to(x.device), x, x.new_zeros(()), out=x)


def states_like(optimizer: Optimizer, parameter: Tensor) -> Iterator[Tensor]:
    """The optimizer's tensors of the parameter's shape: momenta, squared gradients, maxima."""
    if parameter in optimizer.state:
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield value


def _layers_of(optimizer: Optimizer) -> Iterator[Masked]:
    """The masked layers whose weight the optimizer updates."""
    if not _layers:
        return
    with _lock:
        layers = list(_layers)
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in layers:
        if id(layer.weight) in mine:
            yield layer


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """What `set_mask` changed without an optimizer starts this step without a past."""
    for layer in _layers_of(optimizer):
        changed = layer._changed
        if changed is not None:
            for state in states_like(optimizer, layer.weight):
                zero_where(changed, state)
            layer._changed = None


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Masked weights, and what the optimizer remembers of them, are zero again."""
    for layer in _layers_of(optimizer):
        keep_where(layer.mask, layer.weight)
        for state in states_like(optimizer, layer.weight):
            keep_where(layer.mask, state)
