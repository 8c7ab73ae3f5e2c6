"""Functions on SparseTensors, with the argument order and defaults of `torch.nn.functional`.

Every function takes a SparseTensor (and returns one), or a dense Tensor, which goes to torch's own
function. All are differentiable once. Errors, of all of them: `TypeError` for types and mixed dtypes,
`ValueError` for shapes and ranges, `RuntimeError` for devices, `NotImplementedError` for dtypes other
than float32 and float64 (a saturated tensor runs torch's kernels, which have more).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor

from ._adaptive_pool import adaptive_avg_pool
from ._convolution import (
    convolution,
    inverse_convolution,
    submanifold_convolution,
    transposed_convolution,
)
from ._crossover import set_crossover
from ._global_pool import global_avg_pool, global_max_pool
from ._pooling import avg_pool, max_pool
from .sites import Sites
from .tensor import SparseTensor

X = TypeVar("X", SparseTensor, Tensor)
Ints = int | Sequence[int]

# ------------------------------------------------------------------ convolution

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
    """Transposed convolution: tap t of input i writes to output i * stride - padding + t * dilation.

    Args:
        x: (B, c_in, *spatial).
        weight: (c_in, c_out / groups, *kernel), the dtype of x.
        bias: (c_out,) or None.
        stride: step between the places that neighbouring inputs write to.
        padding: positions cut off at both ends.
        output_padding: positions added at the right end.
        groups: divides both channel counts.
        dilation: distance of neighbouring taps.
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
    """The transposed convolution at given sites only: back to where a strided convolution came from.

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


# ------------------------------------------------------------------ pools

def max_pool1d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> X:
    """Maximum over a window: active values, and the ground of inactive sites; padding is never seen.

    Ties go to the first in row-major order, and NaN wins, as in torch. Where the ground is None only
    active sites are seen.

    Args:
        x: (B, C, *spatial).
        kernel_size: extents of the window.
        stride: default: kernel_size.
        padding: at most half of the window.
        dilation: distance of neighbouring taps.
        ceil_mode: also windows that overhang the right end.

    Raises:
        ValueError: too much padding, or a window larger than the padded grid.
    """
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool1d(x, *args[:-1], return_indices=return_indices)
    return max_pool("max_pool1d", 1, x, *args)


def max_pool2d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> X:
    """`max_pool1d` over two axes."""
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool2d(x, *args[:-1], return_indices=return_indices)
    return max_pool("max_pool2d", 2, x, *args)


def max_pool3d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> X:
    """`max_pool1d` over three axes."""
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool3d(x, *args[:-1], return_indices=return_indices)
    return max_pool("max_pool3d", 3, x, *args)


def avg_pool1d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> X:
    """Mean over a window, divided as torch does: padding counts if asked, ceil_mode's overhang never.

    Where the ground is None the divisor is the number of active sites in the window.

    Args:
        x: (B, C, *spatial).
        kernel_size: extents of the window.
        stride: default: kernel_size.
        padding: zeros at both ends, at most half of the window.
        ceil_mode: also windows that overhang the right end.
        count_include_pad: whether the divisor counts padding.
        divisor_override: a divisor of its own.
    """
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    if isinstance(x, Tensor):
        if divisor_override is not None:
            raise NotImplementedError(
                "avg_pool1d: divisor_override must be None for a dense Tensor, as in torch, "
                f"got {divisor_override}; use avg_pool2d"
            )
        return F.avg_pool1d(x, *args)
    return avg_pool("avg_pool1d", 1, x, *args, divisor_override)


def avg_pool2d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> X:
    """`avg_pool1d` over two axes."""
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if isinstance(x, Tensor):
        return F.avg_pool2d(x, *args)
    return avg_pool("avg_pool2d", 2, x, *args)


def avg_pool3d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> X:
    """`avg_pool1d` over three axes."""
    args = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if isinstance(x, Tensor):
        return F.avg_pool3d(x, *args)
    return avg_pool("avg_pool3d", 3, x, *args)


def adaptive_avg_pool1d(
    x: SparseTensor | Tensor, output_size: int | None | Sequence[int | None]
) -> SparseTensor | Tensor:
    """Mean over windows chosen such that the output has a given size.

    Where the ground is None the mean is over the active sites of a window.

    Args:
        x: (B, C, *spatial).
        output_size: an int or one per axis; None keeps an extent.

    Returns:
        a SparseTensor; where the size is 1 in all axes a dense Tensor (B, C, 1, ...).
    """
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool1d(x, output_size)
    return adaptive_avg_pool("adaptive_avg_pool1d", 1, x, output_size)


def adaptive_avg_pool2d(
    x: SparseTensor | Tensor, output_size: int | None | Sequence[int | None]
) -> SparseTensor | Tensor:
    """`adaptive_avg_pool1d` over two axes."""
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool2d(x, output_size)
    return adaptive_avg_pool("adaptive_avg_pool2d", 2, x, output_size)


def adaptive_avg_pool3d(
    x: SparseTensor | Tensor, output_size: int | None | Sequence[int | None]
) -> SparseTensor | Tensor:
    """`adaptive_avg_pool1d` over three axes."""
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool3d(x, output_size)
    return adaptive_avg_pool("adaptive_avg_pool3d", 3, x, output_size)
