"""The convolutions of `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from ._convolution import (
    convolution,
    inverse_convolution,
    submanifold_convolution,
    transposed_convolution,
)
from .sites import Sites
from .tensor import SparseTensor

X = TypeVar("X", SparseTensor, Tensor)
Ints = int | Sequence[int]


def conv1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> X:
    """Convolution; exact to the dense one over features and ground.

    Args:
        x: (B, c_in, *spatial).
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        bias: (c_out,) or None. Where the ground is None it is added at active sites only.
        stride: step between output positions, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        a tensor whose active sites are those that read an active site.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.conv1d(x, torch.tensor([[[1.0, 2.0, 3.0]]]), padding=1).to_dense()
        tensor([[[0., 0., 0., 3., 2., 1., 0., 0., 0.]]])
    """
    if isinstance(x, Tensor):
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> X:
    """`conv1d` over two axes."""
    if isinstance(x, Tensor):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def conv3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> X:
    """`conv1d` over three axes."""
    if isinstance(x, Tensor):
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv3d", 3, x, weight, bias, stride, padding, dilation, groups)


def conv4d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> SparseTensor:
    """`conv1d` over four axes; torch has none, so it takes a SparseTensor only."""
    return convolution("conv4d", 4, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> X:
    """Transposed convolution: tap t of input i adds to output i * stride - padding + t * dilation.

    Args:
        x: (B, c_in, *spatial).
        weight: (c_in, c_out / groups, *kernel), the dtype of x.
        bias: (c_out,) or None.
        stride: step between the places that neighbouring inputs write to.
        padding: positions cut off at both ends.
        output_padding: positions added at the right end.
        groups: divides both channel counts.
        dilation: distance of neighbouring taps.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.conv_transpose1d(x, torch.ones(1, 1, 2), stride=2).coords[:, 1]
        tensor([8, 9], dtype=torch.int32)
    """
    args = (weight, bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose1d(x, *args)
    return transposed_convolution("conv_transpose1d", 1, x, *args)


def conv_transpose2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> X:
    """`conv_transpose1d` over two axes."""
    args = (weight, bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose2d(x, *args)
    return transposed_convolution("conv_transpose2d", 2, x, *args)


def conv_transpose3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> X:
    """`conv_transpose1d` over three axes."""
    args = (weight, bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose3d(x, *args)
    return transposed_convolution("conv_transpose3d", 3, x, *args)


def submanifold_conv1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> X:
    """Submanifold convolution (Graham and van der Maaten 2017): output sites = input sites.

    Inactive sites count as zero, whatever the ground, so this is a function of its own.

    Args:
        x: (B, c_in, *spatial). A dense tensor gets torch's convolution with the same padding.
        weight: (c_out, c_in / groups, *kernel), odd extents.
        bias: (c_out,) or None.
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.
        ground: what to do with a ground that is not zero: "error" or "drop".

    Returns:
        a tensor at the same sites, with ground=None.

    Raises:
        ValueError: an even kernel, or a non-zero ground without ground="drop".

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.submanifold_conv1d(x, torch.ones(1, 1, 3)).coords[:, 1]
        tensor([4], dtype=torch.int32)
    """
    if isinstance(x, Tensor):
        return F.conv1d(x, weight, bias, 1, "same", dilation, groups)
    return submanifold_convolution(
        "submanifold_conv1d", 1, x, weight, bias, dilation, groups, ground
    )


def submanifold_conv2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> X:
    """`submanifold_conv1d` over two axes."""
    if isinstance(x, Tensor):
        return F.conv2d(x, weight, bias, 1, "same", dilation, groups)
    return submanifold_convolution(
        "submanifold_conv2d", 2, x, weight, bias, dilation, groups, ground
    )


def submanifold_conv3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> X:
    """`submanifold_conv1d` over three axes."""
    if isinstance(x, Tensor):
        return F.conv3d(x, weight, bias, 1, "same", dilation, groups)
    return submanifold_convolution(
        "submanifold_conv3d", 3, x, weight, bias, dilation, groups, ground
    )


def submanifold_conv4d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> SparseTensor:
    """`submanifold_conv1d` over four axes."""
    return submanifold_convolution(
        "submanifold_conv4d", 4, x, weight, bias, dilation, groups, ground
    )


def inverse_conv1d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    like: SparseTensor | Sites,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> SparseTensor:
    """The transposed convolution at given sites: back to where a strided convolution came from.

    Args:
        x: (B, c_in, *spatial); inactive sites count as zero.
        weight: (c_in, c_out / groups, *kernel), as of a transposed convolution.
        bias: (c_out,) or None.
        like: the tensor (or its sites) whose sites the result has.
        stride: of the convolution that led from like's grid to x's.
        padding: of it.
        dilation: of it.
        groups: divides both channel counts.
        ground: what to do with a ground that is not zero: "error" or "drop".

    Returns:
        a tensor at like's sites, with ground=None.

    Raises:
        ValueError: x is not on the grid that the convolution makes of like's, or a non-zero ground
            without ground="drop".

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> y = ds.functional.conv1d(x, torch.ones(1, 1, 2), stride=2)
        >>> ds.functional.inverse_conv1d(y, torch.ones(1, 1, 2), like=x, stride=2).coords[:, 1]
        tensor([4], dtype=torch.int32)
    """
    geometry = (stride, padding, dilation, groups, ground)
    return inverse_convolution("inverse_conv1d", 1, x, weight, bias, like, *geometry)


def inverse_conv2d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    like: SparseTensor | Sites,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> SparseTensor:
    """`inverse_conv1d` over two axes."""
    geometry = (stride, padding, dilation, groups, ground)
    return inverse_convolution("inverse_conv2d", 2, x, weight, bias, like, *geometry)


def inverse_conv3d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    like: SparseTensor | Sites,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
) -> SparseTensor:
    """`inverse_conv1d` over three axes."""
    geometry = (stride, padding, dilation, groups, ground)
    return inverse_convolution("inverse_conv3d", 3, x, weight, bias, like, *geometry)
