"""Public convolutions of dense images with a weight that has a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd_masked_conv as _grad
from ._checks import check_mask
from ._masked_conv import Geometry, kept

Ints = int | Sequence[int]
_CONVOLUTIONS: tuple[Any, ...] = (
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
)


def masked_conv(
    n_axes: int,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """The dense convolution over `n_axes` axes with `torch.where(mask, weight, 0)`.

    What is wrong besides the mask is torch's to refuse, in torch's words.

    Args:
        n_axes: 1, 2 or 3.
        x: (B, c_in, *spatial) or (c_in, *spatial).
        weight: (c_out, c_in / groups, *kernel).
        mask: bool, of the weight's shape: True where a weight is kept.
        bias: (c_out,) or None.
        stride: step between outputs, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        (B, c_out, *out) or (c_out, *out), the dtype of x. Gradients of x, weight and bias; that of
        a masked weight is exactly 0.
    """
    operation = f"masked_conv{n_axes}d"
    if isinstance(weight, Tensor):
        check_mask(operation, mask, weight.shape, weight.device)
    if torch.is_autocast_enabled("cpu") and x.is_cpu and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.to(dtype)
            operands = (x.to(dtype), weight.to(dtype), mask, bias)
            return masked_conv(n_axes, *operands, stride, padding, dilation, groups)
    g = None
    if is_plain(x, weight):
        g = geometry_of(n_axes, x, weight.shape, bias, stride, padding, dilation, groups)
    if g is None:
        dense = _CONVOLUTIONS[n_axes - 1]
        y: Tensor = dense(x, kept(weight, mask), bias, stride, padding, dilation, groups)
        return y
    if x.dim() == n_axes + 1:
        return _grad.masked_conv(x.unsqueeze(0), weight, mask, bias, g).squeeze(0)
    return _grad.masked_conv(x, weight, mask, bias, g)


def geometry_of(
    n_axes: int,
    x: Any,
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> Geometry | None:
    """The walk of a convolution that the kernels can take; None where torch must, or refuses.

    `weight`: its shape; the other arguments are those of `masked_conv`.
    """
    fits = (
        is_plain(x, x)
        and (bias is None or is_plain(bias, x) and bias.shape == weight[:1])
        and len(weight) == n_axes + 2
        and x.dim() in (n_axes + 1, n_axes + 2)
        and isinstance(groups, int)
        and groups >= 1
        and weight[0] % groups == 0
        and x.shape[-n_axes - 1] == weight[1] * groups
        and min(weight) > 0
    )
    steps = [_per_axis(value, n_axes, least) for value, least in ((stride, 1), (dilation, 1))]
    if not fits or steps[0] is None or steps[1] is None:
        return None
    kernel, shape = weight[2:], x.shape[-n_axes:]
    ends = _padding(padding, kernel, steps[0], steps[1])
    if ends is None:
        return None
    g = Geometry(steps[0], *ends, steps[1], groups)
    return g if min(g.out_shape(shape, kernel)) > 0 else None


def is_plain(t: Any, like: Any) -> bool:
    """Whether t is a strided floating-point tensor on the CPU, of the dtype of `like`."""
    if not isinstance(t, Tensor) or t.layout is not torch.strided or not t.is_cpu:
        return False
    return t.dtype.is_floating_point and t.dtype == like.dtype


def _per_axis(value: Any, n_axes: int, least: int) -> tuple[int, ...] | None:
    values = (value,) * n_axes if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= n_axes
    if len(values) != n_axes or not all(isinstance(n, int) and n >= least for n in values):
        return None
    return values


def _padding(
    padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Zeros in front and behind, per axis; None where torch refuses them."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        if any(s != 1 for s in stride):
            return None
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)
    if isinstance(padding, str):
        return None
    both = _per_axis(padding, len(kernel), 0)
    return None if both is None else (both, both)
