"""16-bit features and autocast: summed in float32, rounded once.

The kernels take 16-bit features themselves. What is more than one kernel's sum (an average, a
ground response that is a part of other sums) is computed in float32 before it is rounded. Autocast
works below `__torch_function__`, so what calls kernels must cast for itself: features, ground and
parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from . import _C
from .tensor import SparseTensor

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T", Tensor, Tensor | None)

_NARROW = (torch.float16, torch.bfloat16)


def wide(values: _T) -> _T:
    """16-bit values as float32; others, and None, as they are."""
    if values is not None and values.dtype in _NARROW:
        return values.float()
    return values


def for_torch(values: _T) -> _T:
    """What torch's dense kernels get: 16-bit values as float32, unless the device multiplies them.

    On a CPU without AMX torch's bfloat16 convolution is slower than its float32.
    """
    if values is None or values.is_cuda:
        return values
    if values.dtype == torch.bfloat16 and _C.isa_chosen() == "amx":
        return values
    return wide(values)


def widened(f: _F) -> _F:
    """Run f on a 16-bit SparseTensor in float32; round its result to the dtype of the input."""

    @functools.wraps(f)
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, SparseTensor) and x.features.dtype in _NARROW:
            return f(x.float(), *args, **kwargs).to(x.features.dtype)
        return f(x, *args, **kwargs)

    return cast("_F", call)


def casts(x: SparseTensor, weight: Tensor) -> bool:
    """Whether autocast rounds the operands of a convolution of x first: see `autocasting`."""
    if not torch.is_autocast_enabled(x.features.device.type):
        return False
    return x.features.dtype != torch.float64 and isinstance(weight, Tensor)


def autocasting(f: _F) -> _F:
    """A convolution f(x, weight, bias, ...) under autocast, its operands in the 16-bit dtype."""

    @functools.wraps(f)
    def call(x: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, SparseTensor) or not casts(x, weight):
            return f(x, weight, bias, *args, **kwargs)
        device = x.features.device.type
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return f(x.to(dtype), weight.to(dtype), bias, *args, **kwargs)

    return cast("_F", call)
