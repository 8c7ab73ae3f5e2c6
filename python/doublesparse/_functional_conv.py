"""The convolutions of `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from ._checks import check_mask
from ._convolution import (
    convolution,
    inverse_convolution,
    submanifold_convolution,
    transposed_convolution,
)
from ._functional_masked import masked_conv1d, masked_conv2d, masked_conv3d
from ._kept import masked
from .sites import Sites
from .tensor import SparseTensor

X = TypeVar("X", SparseTensor, Tensor)
Ints = int | Sequence[int]


def _whole(operation: str, weight: Tensor, mask: Tensor | None) -> Tensor:
    """The weight with zeros where the mask says so."""
    if mask is None:
        return weight
    check_mask(operation, mask, weight.shape, weight.device)
    return masked(weight, mask)


def conv1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
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
        mask: bool, of the weight's shape: which weights are kept. The others count as exactly zero,
            have a gradient of exactly zero, and are not multiplied. None keeps all.

    Returns:
        a tensor whose active sites are those that read an active site.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.conv1d(x, torch.tensor([[[1.0, 2.0, 3.0]]]), padding=1).to_dense()
        tensor([[[0., 0., 0., 3., 2., 1., 0., 0., 0.]]])
    """
    if isinstance(x, Tensor):
        if mask is not None:
            return masked_conv1d(x, weight, mask, bias, stride, padding, dilation, groups)
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv1d", 1, x, weight, bias, stride, padding, dilation, groups, mask)


def conv2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
) -> X:
    """`conv1d` over two axes."""
    if isinstance(x, Tensor):
        if mask is not None:
            return masked_conv2d(x, weight, mask, bias, stride, padding, dilation, groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv2d", 2, x, weight, bias, stride, padding, dilation, groups, mask)


def conv3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
) -> X:
    """`conv1d` over three axes."""
    if isinstance(x, Tensor):
        if mask is not None:
            return masked_conv3d(x, weight, mask, bias, stride, padding, dilation, groups)
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    return convolution("conv3d", 3, x, weight, bias, stride, padding, dilation, groups, mask)


def conv4d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
) -> SparseTensor:
    """`conv1d` over four axes; torch has none, so it takes a SparseTensor only."""
    return convolution("conv4d", 4, x, weight, bias, stride, padding, dilation, groups, mask)


def conv_transpose1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    mask: Tensor | None = None,
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
        mask: as of `conv1d`, of this weight's shape.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.conv_transpose1d(x, torch.ones(1, 1, 2), stride=2).coords[:, 1]
        tensor([8, 9], dtype=torch.int32)
    """
    args = (bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose1d(x, _whole("conv_transpose1d", weight, mask), *args)
    return transposed_convolution("conv_transpose1d", 1, x, weight, *args, mask)


def conv_transpose2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    mask: Tensor | None = None,
) -> X:
    """`conv_transpose1d` over two axes."""
    args = (bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose2d(x, _whole("conv_transpose2d", weight, mask), *args)
    return transposed_convolution("conv_transpose2d", 2, x, weight, *args, mask)


def conv_transpose3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    mask: Tensor | None = None,
) -> X:
    """`conv_transpose1d` over three axes."""
    args = (bias, stride, padding, output_padding, groups, dilation)
    if isinstance(x, Tensor):
        return F.conv_transpose3d(x, _whole("conv_transpose3d", weight, mask), *args)
    return transposed_convolution("conv_transpose3d", 3, x, weight, *args, mask)


def submanifold_conv1d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
    *,
    mask: Tensor | None = None,
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
        mask: which weights are kept, as of `conv1d`.

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
        return conv1d(x, weight, bias, 1, "same", dilation, groups, mask=mask)
    return submanifold_convolution(
        "submanifold_conv1d", 1, x, weight, bias, dilation, groups, ground, mask
    )


def submanifold_conv2d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
    *,
    mask: Tensor | None = None,
) -> X:
    """`submanifold_conv1d` over two axes."""
    if isinstance(x, Tensor):
        return conv2d(x, weight, bias, 1, "same", dilation, groups, mask=mask)
    return submanifold_convolution(
        "submanifold_conv2d", 2, x, weight, bias, dilation, groups, ground, mask
    )


def submanifold_conv3d(
    x: X,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
    *,
    mask: Tensor | None = None,
) -> X:
    """`submanifold_conv1d` over three axes."""
    if isinstance(x, Tensor):
        return conv3d(x, weight, bias, 1, "same", dilation, groups, mask=mask)
    return submanifold_convolution(
        "submanifold_conv3d", 3, x, weight, bias, dilation, groups, ground, mask
    )


def submanifold_conv4d(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    ground: str = "error",
    *,
    mask: Tensor | None = None,
) -> SparseTensor:
    """`submanifold_conv1d` over four axes."""
    return submanifold_convolution(
        "submanifold_conv4d", 4, x, weight, bias, dilation, groups, ground, mask
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
    mask: Tensor | None = None,
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
        mask: which weights are kept, as of `conv1d`.

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
    geometry = (stride, padding, dilation, groups, ground, mask)
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
    mask: Tensor | None = None,
) -> SparseTensor:
    """`inverse_conv1d` over two axes."""
    geometry = (stride, padding, dilation, groups, ground, mask)
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
    mask: Tensor | None = None,
) -> SparseTensor:
    """`inverse_conv1d` over three axes."""
    geometry = (stride, padding, dilation, groups, ground, mask)
    return inverse_convolution("inverse_conv3d", 3, x, weight, bias, like, *geometry)
