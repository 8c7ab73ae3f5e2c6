"""Operators whose weight has a mask: torch's arithmetic on the kept weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._convolution import convolution
from ._functional_masked_conv import masked_conv
from ._masked_linear import masked_linear as masked_linear
from .tensor import SparseTensor


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
    return masked_conv(1, x, weight, mask, bias, stride, padding, dilation, groups)


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
    return masked_conv(2, x, weight, mask, bias, stride, padding, dilation, groups)


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
    return masked_conv(3, x, weight, mask, bias, stride, padding, dilation, groups)
