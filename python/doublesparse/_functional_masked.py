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
    """`F.conv1d` with the kept weights alone; the gradient of a masked weight is exactly 0.

    Runs the sparse kernels where the cost model says that they are faster; on a SparseTensor the
    work is that of the active sites and the kept weights.

    Args:
        x: (B, c_in, *spatial) or (c_in, *spatial), or a SparseTensor.
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        mask: bool, of the weight's shape: True where a weight is kept.
        bias: (c_out,) or None.
        stride: step between outputs, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        (B, c_out, *out) or (c_out, *out), or a SparseTensor, as x.

    Raises:
        TypeError: the mask is not a bool tensor; what torch refuses.
        ValueError: the mask has not the weight's shape.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[[1.0, 5.0, 2.0]]])
        >>> mask = torch.tensor([[[True, False, True]]])
        >>> ds.functional.masked_conv1d(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), weight, mask)
        tensor([[[ 7., 10.]]])
    """
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
    """`F.conv2d` with the kept weights alone; the gradient of a masked weight is exactly 0.

    Runs the sparse kernels where the cost model says that they are faster; on a SparseTensor the
    work is that of the active sites and the kept weights.

    Args:
        x: (B, c_in, *spatial) or (c_in, *spatial), or a SparseTensor.
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        mask: bool, of the weight's shape: True where a weight is kept.
        bias: (c_out,) or None.
        stride: step between outputs, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        (B, c_out, *out) or (c_out, *out), or a SparseTensor, as x.

    Raises:
        TypeError: the mask is not a bool tensor; what torch refuses.
        ValueError: the mask has not the weight's shape.
    """
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
    """`F.conv3d` with the kept weights alone; the gradient of a masked weight is exactly 0.

    Runs the sparse kernels where the cost model says that they are faster; on a SparseTensor the
    work is that of the active sites and the kept weights.

    Args:
        x: (B, c_in, *spatial) or (c_in, *spatial), or a SparseTensor.
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        mask: bool, of the weight's shape: True where a weight is kept.
        bias: (c_out,) or None.
        stride: step between outputs, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        (B, c_out, *out) or (c_out, *out), or a SparseTensor, as x.

    Raises:
        TypeError: the mask is not a bool tensor; what torch refuses.
        ValueError: the mask has not the weight's shape.
    """
    if isinstance(x, SparseTensor):
        geometry = (stride, padding, dilation, groups)
        return convolution("masked_conv3d", 3, x, weight, bias, *geometry, mask)
    return masked_conv(3, x, weight, mask, bias, stride, padding, dilation, groups)
