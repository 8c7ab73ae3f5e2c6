"""The pools of `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor

from ._adaptive_pool import adaptive_avg_pool
from ._pooling import avg_pool, max_pool
from ._precision import widened
from .tensor import SparseTensor

X = TypeVar("X", SparseTensor, Tensor)
Ints = int | Sequence[int]
Sizes = int | None | Sequence[int | None]


def max_pool1d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> X:
    """Maximum over a window of active values and the ground of inactive sites, without padding.

    Ties go to the first in row-major order, and NaN wins, as in torch. Where the ground is None
    only active sites are seen.

    Args:
        x: (B, C, *spatial).
        kernel_size: extents of the window.
        stride: default: kernel_size.
        padding: at most half of the window.
        dilation: distance of neighbouring taps.
        ceil_mode: also windows that overhang the right end.
        return_indices: False; a SparseTensor has none to give.

    Raises:
        ValueError: too much padding, or a window larger than the padded grid.
        NotImplementedError: return_indices on a SparseTensor.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(-torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.max_pool1d(x, 3).to_dense()  # the ground, 0, is larger than -1
        tensor([[[0., 0., 0.]]])
    """
    args: Any = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool1d(x, *args)
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
    args: Any = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool2d(x, *args)
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
    args: Any = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if isinstance(x, Tensor):
        return F.max_pool3d(x, *args)
    return max_pool("max_pool3d", 3, x, *args)


@widened
def avg_pool1d(
    x: X,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> X:
    """Mean over a window, divided as in torch: padding counts if asked, the overhang never.

    Where the ground is None the divisor is the number of active sites in the window.

    Args:
        x: (B, C, *spatial).
        kernel_size: extents of the window.
        stride: default: kernel_size.
        padding: zeros at both ends, at most half of the window.
        ceil_mode: also windows that overhang the right end.
        count_include_pad: whether the divisor counts padding.
        divisor_override: a divisor of its own.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.avg_pool1d(x, 2).to_dense()
        tensor([[[0.0000, 0.0000, 0.5000, 0.0000]]])
    """
    args: Any = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    if isinstance(x, Tensor):
        if divisor_override is not None:
            raise NotImplementedError(
                "avg_pool1d: divisor_override must be None for a dense Tensor, as in torch, "
                f"got {divisor_override}; use avg_pool2d"
            )
        return F.avg_pool1d(x, *args)
    args += (divisor_override,)
    return avg_pool("avg_pool1d", 1, x, *args)


@widened
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
    args: Any = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if isinstance(x, Tensor):
        return F.avg_pool2d(x, *args)
    return avg_pool("avg_pool2d", 2, x, *args)


@widened
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
    args: Any = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if isinstance(x, Tensor):
        return F.avg_pool3d(x, *args)
    return avg_pool("avg_pool3d", 3, x, *args)


@widened
def adaptive_avg_pool1d(x: SparseTensor | Tensor, output_size: Sizes) -> SparseTensor | Tensor:
    """Mean over windows chosen such that the output has a given size.

    Where the ground is None the mean is over the active sites of a window.

    Args:
        x: (B, C, *spatial).
        output_size: an int or one per axis; None keeps an extent.

    Returns:
        a SparseTensor; where the size is 1 in all axes a dense Tensor (B, C, 1, ...).

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.adaptive_avg_pool1d(x, 1)
        tensor([[[0.1111]]])
    """
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool1d(x, cast(Any, output_size))
    return adaptive_avg_pool("adaptive_avg_pool1d", 1, x, output_size)


@widened
def adaptive_avg_pool2d(x: SparseTensor | Tensor, output_size: Sizes) -> SparseTensor | Tensor:
    """`adaptive_avg_pool1d` over two axes."""
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool2d(x, cast(Any, output_size))
    return adaptive_avg_pool("adaptive_avg_pool2d", 2, x, output_size)


@widened
def adaptive_avg_pool3d(x: SparseTensor | Tensor, output_size: Sizes) -> SparseTensor | Tensor:
    """`adaptive_avg_pool1d` over three axes."""
    if isinstance(x, Tensor):
        return F.adaptive_avg_pool3d(x, cast(Any, output_size))
    return adaptive_avg_pool("adaptive_avg_pool3d", 3, x, output_size)
