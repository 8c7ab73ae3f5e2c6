"""Filters as rows of a matrix, group by group; what is checked of a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._torch_compat import ConvBase

_DTYPES = (torch.float32, torch.float64)


def check_weight(operation: str, weight: Any) -> Tensor:
    """Raise where it is no finite float32 or float64 tensor with filters along axis 0."""
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{operation}: weight must be a Tensor, got {type(weight).__name__}; pass layer.weight"
        )
    if weight.dtype not in _DTYPES:
        kind = NotImplementedError if weight.is_floating_point() else TypeError
        raise kind(
            f"{operation}: weight must be float32 or float64, got {weight.dtype}; use "
            "weight.float()"
        )
    if weight.is_meta or weight.layout is not torch.strided:
        raise NotImplementedError(
            f"{operation}: weight must be strided and hold data, got {weight.layout} on "
            f"{weight.device}; use a dense CPU or CUDA tensor"
        )
    if weight.dim() == 0:
        raise ValueError(
            f"{operation}: weight must have an axis of filters, got a scalar; pass (filters, ...)"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"{operation}: weight must be finite, got NaN or infinity; see where training diverged"
        )
    return weight.detach()


def filter_rows(weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """(groups, filters of a group, weights of a filter) of a layer's weight.

    Args:
        weight: (c_out, c_in / groups, *kernel), of a linear layer (out, in), or, transposed,
            (c_in, c_out / groups, *kernel).
        groups: that filters interact in.
        transposed: of a transposed convolution, whose filters lie along axis 1.
    """
    if not transposed:
        return weight.reshape(groups, len(weight) // groups, weight[:1].numel())
    split = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    return split.transpose(1, 2).flatten(2)


def filters_back(rows: Tensor, like: Tensor, transposed: bool = False) -> Tensor:
    """What `filter_rows` took apart, of any number of filters, in the layout of `like`."""
    groups, n_filters = rows.shape[:2]
    if not transposed:
        return rows.reshape(groups * n_filters, *like.shape[1:])
    split = rows.reshape(groups, n_filters, len(like) // groups, *like.shape[2:])
    return split.transpose(1, 2).flatten(0, 1)


def is_filtering(module: nn.Module) -> bool:
    """Whether a layer has filters: a linear layer or a convolution, of any class."""
    return isinstance(module, (nn.Linear, ConvBase))


def grouping(module: nn.Module) -> tuple[int, bool]:
    """Groups of a layer, and whether it is transposed."""
    if isinstance(module, ConvBase):
        return module.groups, module.transposed
    return 1, False
