"""Dense operands that hold one value per sample and channel, in the shape of an image.

Pooled branches come back so: DeepLab's image pooling interpolates (B, C, 1, 1) to the size of the
features and joins them, squeeze-and-excitation may write `gate.expand_as(x)`. Such a tensor is a
ground state without sites.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._ground import GroundState
from ._torch_compat import check_when_run, traced
from ._union import spread_rows
from .tensor import SparseTensor

# Interpolation adds two products of one value: its results differ by a rounding or two.
_ROUNDINGS = 4


class _FirstOfEqual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor) -> Tensor:
        ctx.shape = dense.shape
        first = dense
        while first.dim() > 2:
            first = first[..., 0]
        return first.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        # Only the sum over space is known, and only it matters to what was constant over space.
        n = ctx.shape[2:].numel()
        return (dy / n).view(*dy.shape, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)


def constant_rows(x: SparseTensor, dense: Tensor, by_value: bool) -> Tensor | None:
    """(1 or B, C') where `dense` (1 or B, C', *spatial) has one value per sample and channel.

    None where it has another shape or other values. The gradient of what it returns is spread
    evenly over space.

    Args:
        x: gives the grid.
        dense: the operand.
        by_value: look at the numbers (a traced graph does when it runs); otherwise only an expanded
            tensor (stride 0) will do.
    """
    if dense.dim() != x.ndim or tuple(dense.shape[2:]) != x.spatial_shape:
        return None
    if dense.shape[0] not in (1, x.batch_size) or not dense.numel():
        return None
    if not dense.is_floating_point():
        return None
    strides = zip(dense.stride()[2:], dense.shape[2:], strict=True)
    if any(stride and n > 1 for stride, n in strides):
        if not by_value:
            return None
        low, high = dense.detach().flatten(2).aminmax(dim=2)
        allowed = _ROUNDINGS * torch.finfo(dense.dtype).eps * torch.maximum(low.abs(), high.abs())
        same = (high - low <= allowed).all()
        if traced(dense):
            check_when_run(same, "a dense operand must hold one value per sample and channel")
        elif not bool(same):
            return None
    return _FirstOfEqual.apply(dense)


def as_sparse(x: SparseTensor, dense: Tensor) -> SparseTensor | None:
    """The same on the sites of x; None where `constant_rows` is."""
    rows = constant_rows(x, dense, by_value=True)
    if rows is None:
        return None
    features = spread_rows(rows, x.sites.batch_start, x.sites.n_sites).contiguous()
    if x.ground is None or x.sites.is_full:
        ground = None if x.ground is None else SparseTensor._zero(features, x.sites)
        return SparseTensor._of(features, x.sites, ground)
    image = rows.view(rows.shape[0], *[1] * len(x.spatial_shape), rows.shape[1])
    uniform = GroundState.zero(rows.shape[1], x.spatial_shape).axes
    return SparseTensor._of(features, x.sites, GroundState._of(image, uniform))


def expand_as(input: Any, other: Any) -> Any:
    """A dense gate in the shape of a SparseTensor, without taking memory; or x for its own shape.

    Raises:
        ValueError: a SparseTensor that would have to grow.
    """
    if not isinstance(input, SparseTensor):
        return input.expand(other.shape)
    if tuple(input.shape) != tuple(other.shape):
        raise ValueError(
            f"expand_as: a SparseTensor {tuple(input.shape)} has a fixed shape, got "
            f"{tuple(other.shape)}; arithmetic broadcasts channels by itself"
        )
    return input
