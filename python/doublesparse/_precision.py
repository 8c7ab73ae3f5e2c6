"""16-bit features and autocast: computed in float32, rounded once.

Autocast works below `__torch_function__`, so what calls kernels must cast for itself: features,
ground and parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .tensor import SparseTensor

_F = TypeVar("_F", bound=Callable[..., Any])

_NARROW = (torch.float16, torch.bfloat16)


def widened(f: _F) -> _F:
    """Run f on a 16-bit SparseTensor in float32; round its result to the dtype of the input."""

    @functools.wraps(f)
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, SparseTensor) and x.features.dtype in _NARROW:
            return f(x.float(), *args, **kwargs).to(x.features.dtype)
        return f(x, *args, **kwargs)

    return cast("_F", call)


def casts(x: SparseTensor, weight: Tensor) -> bool:
    """Whether a convolution of x is to be computed with rounded operands: see `autocasting`."""
    dtype = x.features.dtype
    if torch.is_autocast_enabled(x.features.device.type) and dtype != torch.float64:
        return isinstance(weight, Tensor)
    return dtype in _NARROW and isinstance(weight, Tensor) and weight.dtype == dtype


def autocasting(f: _F) -> _F:
    """A convolution f(x, weight, bias, ...): under autocast, and with 16-bit operands, in float32.

    The operands are rounded to the 16-bit dtype first and the result after: what a 16-bit kernel
    with float32 sums computes.
    """

    @functools.wraps(f)
    def call(x: Any, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, SparseTensor):
            return f(x, weight, bias, *args, **kwargs)
        device, dtype = x.features.device.type, x.features.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if dtype not in _NARROW or weight.dtype != dtype:
            return f(x, weight, bias, *args, **kwargs)
        bias = None if bias is None else bias.float()
        with torch.autocast(device, enabled=False):
            return f(x.float(), weight.float(), bias, *args, **kwargs).to(dtype)

    return cast("_F", call)
