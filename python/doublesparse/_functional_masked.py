"""Operators whose weight has a mask: torch's arithmetic on the kept weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._convolution import convolution
from ._masked_linear import masked_linear as masked_linear
from .tensor import SparseTensor


def _kept(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, weight, 0.0)


def masked_conv1d(
    x: Any,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`F.conv1d` with the kept weights alone; the gradient of a masked weight is exactly 0."""
    if isinstance(x, SparseTensor):
        geometry = (stride, padding, dilation, groups)
        return convolution("masked_conv1d", 1, x, weight, bias, *geometry, mask)
    return F.conv1d(x, _kept(weight, mask), bias, stride, padding, dilation, groups)


def masked_conv2d(
    x: Any,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`F.conv2d` with the kept weights alone; the gradient of a masked weight is exactly 0."""
    if isinstance(x, SparseTensor):
        geometry = (stride, padding, dilation, groups)
        return convolution("masked_conv2d", 2, x, weight, bias, *geometry, mask)
    return F.conv2d(x, _kept(weight, mask), bias, stride, padding, dilation, groups)


def masked_conv3d(
    x: Any,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`F.conv3d` with the kept weights alone; the gradient of a masked weight is exactly 0."""
    if isinstance(x, SparseTensor):
        geometry = (stride, padding, dilation, groups)
        return convolution("masked_conv3d", 3, x, weight, bias, *geometry, mask)
    return F.conv3d(x, _kept(weight, mask), bias, stride, padding, dilation, groups)
