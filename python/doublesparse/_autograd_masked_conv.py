"""Differentiable convolutions of dense images with a pruned weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _masked_conv as raw
from ._autograd import Grads, column_sum, once, wanted
from ._masked_conv import Geometry
from ._patterns import to_matrix
from ._precision import wide
from ._structure import index_of_tiles
from ._torch_compat import fast_apply, traced


def bias_grad(dy: Tensor) -> Tensor:
    """Sum over images and pixels, in a fixed order: (c_out,)."""
    return column_sum(dy.movedim(1, -1).reshape(-1, dy.shape[1]).contiguous())


def _takes_kernel(
    weight: Tensor, mask: Tensor, g: Geometry, images: Sequence[int], dtype: torch.dtype
) -> bool:
    return raw.takes_kernel(weight.shape, raw.density_of(mask), g, images, dtype)


# ------------------------------------------------------------------ what traced graphs call
def conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`masked_conv` with the kernels or torch's, whichever `takes_kernel` says; no gradient."""
    g = Geometry(tuple(stride), tuple(before), tuple(after), tuple(dilation), groups)
    if _takes_kernel(weight, mask, g, x.shape, x.dtype):
        return raw.conv(x, weight, mask, bias, g)
    return _formatted(raw.dense_conv(x, raw.kept(weight, mask), bias, g), x)


def input_grad(
    dy: Tensor, weight: Tensor, mask: Tensor, shape: Sequence[int], *geometry: Any
) -> Tensor:
    """Its gradient of x, with spatial extents `shape`, in the memory format of dy."""
    stride, before, after, dilation, groups = geometry
    g = Geometry(tuple(stride), tuple(before), tuple(after), tuple(dilation), groups)
    images = (dy.shape[0], weight.shape[1] * groups, *shape)
    if _takes_kernel(weight, mask, g, images, dy.dtype):
        return raw.input_grad(dy, weight, mask, shape, g)
    x = dy.new_empty(dy.shape[0], weight.shape[1] * groups, *shape)
    dx, _ = raw.dense_grads(dy, x, raw.kept(weight, mask), g, (True, False))
    assert dx is not None
    return _formatted(dx, dy)


def weight_grad(x: Tensor, dy: Tensor, weight: Tensor, mask: Tensor, *geometry: Any) -> Tensor:
    """Its gradient of the weight, 0 where masked, in the memory format of the weight."""
    stride, before, after, dilation, groups = geometry
    g = Geometry(tuple(stride), tuple(before), tuple(after), tuple(dilation), groups)
    if _takes_kernel(weight, mask, g, x.shape, x.dtype):
        return raw.weight_grad(x, dy, weight, mask, g)
    _, dw = raw.dense_grads(dy, x, weight, g, (False, True))
    assert dw is not None
    return _formatted(raw.kept(dw, mask), weight)


def _formatted(y: Tensor, like: Tensor) -> Tensor:
    """The same in memory as `new_output` lays out a result of `like`."""
    if raw.is_channels_last(like):
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()


# ------------------------------------------------------------------ eager
class _MaskedConv(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, g: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.geometry = g
        return raw.conv(x, weight, mask, bias, g)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Grads:
        x, weight, mask = ctx.saved_tensors
        g: Geometry = ctx.geometry
        needs = ctx.needs_input_grad
        dx = raw.input_grad(dy, weight, mask, x.shape[2:], g) if needs[0] else None
        dw = raw.weight_grad(x, dy, weight, mask, g) if needs[1] else None
        return dx, dw, None, bias_grad(dy) if needs[3] else None, None


def masked_conv(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, g: Geometry
) -> Tensor:
    """The convolution with the kept weights, on the kernels or on torch's, with its gradients.

    Args:
        x: (B, c_in, *spatial).
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        mask: bool, of the weight's shape.
        bias: (c_out,), the dtype of x, or None.
        g: see `Geometry`.
    """
    if traced(x) or traced(weight):
        return torch.ops.doublesparse.masked_dense_conv(x, weight, mask, bias, *g)
    if not _takes_kernel(weight, mask, g, x.shape, x.dtype):
        return raw.dense_conv(x, raw.kept(weight, mask), bias, g)
    if wanted(x, weight, bias):
        return _apply(x, weight, mask, bias, g)
    return raw.conv(x, weight, mask, bias, g)


_apply = fast_apply(_MaskedConv)


# ------------------------------------------------------------------ weights that do not change
class FrozenConv:
    """The kernel form of a pruned weight that does not change: its values in the tiles' order.

    Args:
        weight: (c_out, c_in / groups, *kernel); not kept.
        mask: bool, of the weight's shape; not kept.
        groups: of the convolution.
        dtype: of the images, that of the weight where None. Sums are float32 or float64.
    """

    def __init__(
        self, weight: Tensor, mask: Tensor, groups: int = 1, dtype: torch.dtype | None = None
    ) -> None:
        self.shape, self.groups = weight.shape, groups
        self.dtype = dtype or weight.dtype
        form = raw.row_form(mask, groups)
        self.values = raw.values_of(wide(weight.detach().to(self.dtype)), form)
        self._tiles = form.structure.tiles

    @property
    def nbytes(self) -> int:
        """Bytes of values and structure."""
        return sum(t.nbytes for t in (self.values, self._tiles.starts, self._tiles.columns))

    def dense(self) -> tuple[Tensor, Tensor]:
        """The matrix view of the values, and of the mask: see `PackedWeight.keep_form`."""
        index = index_of_tiles(self._tiles)  # the tiles' columns are in torch's own order
        weight = self.values.new_zeros(self.shape)
        mask = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        weight.view(-1)[index] = self.values
        mask.view(-1)[index] = True
        return to_matrix(weight), to_matrix(mask)

    def __call__(self, x: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
        """The convolution of x (B, c_in, *spatial); bias has its dtype. No gradient."""
        return raw.run(x, self._tiles, self.values, self.shape, bias, g)
