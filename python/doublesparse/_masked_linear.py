"""A linear layer whose weight has a mask: checks, autocast, and which kernel runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _autograd_spmm as _spmm
from ._autograd import wanted
from ._checks import check_mask
from ._device import has_kernels
from ._torch_compat import traced

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def masked_linear(x: Any, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` with the kept weights alone; the gradient of a masked weight is exactly 0.

    Runs the sparse kernels where the cost model says that they are faster, and torch's dense one
    elsewhere; see `set_crossover`. The mask's structure is remembered while the mask lives and is
    not written to; the weight is read anew in every call.

    Args:
        x: (*, c_in).
        weight: (c_out, c_in).
        mask: bool (c_out, c_in): which weights are kept.
        bias: (c_out,) or None.

    Returns:
        (*, c_out).

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: the mask has not the weight's shape.
        RuntimeError: it is on another device.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> ds.functional.masked_linear(torch.tensor([[1.0, 1.0]]), weight, mask)
        tensor([[1., 7.]])
    """
    check_mask("masked_linear", mask, weight.shape, weight.device)
    if not _has_kernel(x, weight, bias):
        return F.linear(x, torch.where(mask, weight, 0), bias)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            own = bias if bias is None else bias.to(dtype)
            return masked_linear(x.to(dtype), weight.to(dtype), mask, own)
    if not traced(x) and _spmm.runs_dense(
        x.numel() // x.shape[-1], mask, x.dtype, wanted(x, weight)
    ):
        return F.linear(x, torch.where(mask, weight, 0), bias)
    rows = x.reshape(-1, x.shape[-1])
    if not rows.is_contiguous():
        rows = rows.contiguous()
    if traced(x):
        y = torch.ops.doublesparse.masked_linear(rows, weight, mask, bias)
    else:
        y = _spmm.masked_linear(rows, weight, mask, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])


def _autocasts(weight: Tensor) -> bool:
    return torch.is_autocast_enabled(weight.device.type)


def _has_kernel(x: Any, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether our kernels take these; torch says what is wrong with the others."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(isinstance(t, Tensor) and t.dtype in _FLOATS for t in tensors)
        and (weight.is_cpu or (weight.is_cuda and has_kernels()))
        and all(t.device == weight.device for t in tensors)
        and (_autocasts(weight) or all(t.dtype == weight.dtype for t in tensors))
        and x.layout is torch.strided
        and x.dim() > 0
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1] > 0
        and (bias is None or bias.shape == weight.shape[:1])
    )
