"""Differentiable forms of the raw operators.

Each is one `torch.autograd.Function`, skipped altogether where no gradient is wanted: its call
costs more than a small kernel. Backward passes are kernels of the same kind (a gather has a segment
sum as its gradient, and the other way round), so gradients too have the same bits for any number of
threads. Second derivatives are not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import ops
from ._device import capturing, whole
from ._torch_compat import fast_apply, outside_transforms, traced

Grads = tuple[Tensor | None, ...]


def wanted(*tensors: Any) -> bool:
    """Whether a gradient of any of these is, and no traced operator brings its own."""
    return (
        torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
        and not traced(tensors[0])
        and outside_transforms()
    )


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`once_differentiable`, at no cost in an ordinary backward pass (there gradients are off)."""
    checked = once_differentiable(backward)

    @wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        return checked(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return call


@lru_cache(maxsize=256)
def _one_segment(n: int, device: torch.device) -> Tensor:
    return whole(n, device)


def column_sum(rows: Tensor) -> Tensor:
    """Sum over rows in a fixed order: (C,)."""
    if traced(rows):
        return torch.ops.doublesparse.column_sum(rows)
    n, device = rows.shape[0], rows.device
    start = whole(n, device) if capturing(device) else _one_segment(n, device)
    return ops.segment_sum(rows, None, start).view(-1)


# ------------------------------------------------------------------ sums of rows
class Segments:
    """Which rows are summed into which result.

    out[s] = sum of values[rows[j]] over start[s] <= j < start[s + 1].

    Attributes:
        rows: int32 (m,), or None for the identity.
        start: int64 (n_segments + 1,).
        n_values: number of value rows.
    """

    __slots__ = ("_inverse", "n_values", "rows", "start")

    def __init__(self, rows: Tensor | None, start: Tensor, n_values: int) -> None:
        self.rows, self.start, self.n_values = rows, start, n_values
        self._inverse: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def identity(n: int, device: torch.device) -> Segments:
        """Every row its own sum."""
        rows = torch.arange(n, dtype=torch.int32, device=device)
        return Segments(rows, torch.arange(n + 1, device=device), n)

    def to(self, device: torch.device) -> Segments:
        """These on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Segments(rows, self.start.to(device), self.n_values)

    @property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """The transposed sums, for the gradient; built on first use.

        Returns:
            start (n_values + 1,), and the segments that each value goes to.
        """
        if self._inverse is None:
            rows, segment = (_joined_on_gpu if self.start.is_cuda else _joined)(self)
            value_start, position = ops.invert_rows(rows, self.n_values)
            self._inverse = value_start, segment[position]
        return self._inverse

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows and of the inverse that a backward pass will build."""
        if self.start.is_cuda:  # a bound: no number is read back
            n = self.n_values if self.rows is None else len(self.rows)
        else:
            n = int(self.start[-1]) if len(self.start) else 0
        return 8 * len(self.start) + 8 * self.n_values + 12 * n


def _joined(of: Segments) -> tuple[Tensor, Tensor]:
    """The value rows that are summed, int32, and the segment of each."""
    start = of.start
    first, last = (int(start[0]), int(start[-1])) if len(start) > 1 else (0, 0)
    if of.rows is None:
        rows = torch.arange(first, last, dtype=torch.int32, device="cpu")
    else:
        rows = of.rows[first:last].to(torch.int32)
    return rows, torch.repeat_interleave(start[1:] - start[:-1])


def _joined_on_gpu(of: Segments) -> tuple[Tensor, Tensor]:
    """`_joined` without reading a number back: rows outside all segments are -1."""
    if of.rows is None:
        rows = torch.arange(of.n_values, dtype=torch.int32, device=of.start.device)
    else:
        rows = of.rows.to(torch.int32)
    segment, inside = segment_of_row(of.start, len(rows))
    return torch.where(inside, rows, -1), segment


def segment_of_row(start: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The segment of each of n rows, and whether there is one (else some segment is named)."""
    n_segments = max(len(start) - 1, 0)
    row = torch.arange(n, device=start.device)
    segment = torch.searchsorted(start, row, right=True) - 1
    inside = (segment >= 0) & (segment < n_segments)
    return segment.clamp(0, max(n_segments - 1, 0)), inside


def spread(dy: Tensor, segments: Segments) -> Tensor:
    """The gradient of a segment sum: every value gets the sum of dy[s] over its segments."""
    if traced(dy):
        rows, start, n_values = segments.rows, segments.start, segments.n_values
        return torch.ops.doublesparse.segment_sum_grad(dy, rows, start, n_values)
    start, segment = segments.inverse
    return ops.segment_sum(dy, segment, start)


def segment_sum_grads(needs: Sequence[bool], dy: Tensor, segments: Segments) -> Grads:
    """Gradients of `segment_sum` with respect to values and bias, where needed."""
    dy = dy.contiguous()
    d_values = spread(dy, segments) if needs[0] else None
    return d_values, column_sum(dy) if needs[1] else None


class _SegmentSum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
        ctx.segments = segments
        return ops.segment_sum(values, segments.rows, segments.start, bias)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*segment_sum_grads(ctx.needs_input_grad, dy, ctx.segments), None)


_apply_segment_sum = fast_apply(_SegmentSum)


def segment_sum(values: Tensor, segments: Segments, bias: Tensor | None = None) -> Tensor:
    """Bias + sum of the value rows of every segment: (n_segments, C)."""
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if wanted(values, bias):
        return _apply_segment_sum(values, bias, segments)
    return ops.segment_sum(values, segments.rows, segments.start, bias)


def segment_sum_sq_grads(
    dy: Tensor, values: Tensor, start: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `segment_sum_sq` with respect to values and mean."""
    if traced(dy):
        return torch.ops.doublesparse.segment_sum_sq_grads(dy, values, start, mean)
    if values.is_cuda:
        segment, inside = segment_of_row(start, len(values))
        deviation = (values - mean[segment]) * (2 * dy[segment])
        deviation = torch.where(inside[:, None], deviation, 0.0)
        return deviation, -ops.segment_sum(deviation, None, start)
    segment = torch.repeat_interleave(start[1:] - start[:-1])
    first, last = int(start[0]), int(start[-1])
    deviation = (values[first:last] - mean[segment]) * (2 * dy[segment])
    d_mean = -ops.segment_sum(deviation, None, start - first)
    if (first, last) != (0, values.shape[0]):
        whole = torch.zeros_like(values)
        whole[first:last] = deviation
        deviation = whole
    return deviation, d_mean


class _SegmentSumSq(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(values, mean)
        ctx.start = start
        return ops.segment_sum_sq(values, start, mean)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, mean = ctx.saved_tensors
        return (*segment_sum_sq_grads(dy, values, ctx.start, mean), None)


_apply_segment_sum_sq = fast_apply(_SegmentSumSq)


def segment_sum_sq(values: Tensor, start: Tensor, mean: Tensor) -> Tensor:
    """Sum over each segment's contiguous rows of (x - mean)^2: (n_segments, C).

    Args:
        values: (n, C).
        start: int64 (n_segments + 1,): segment s is rows start[s] .. start[s + 1].
        mean: (n_segments, C).
    """
    if wanted(values, mean):
        return _apply_segment_sum_sq(values, mean, start)
    return ops.segment_sum_sq(values, start, mean)


def gather_rows_grad(dy: Tensor, rows: Tensor, n_values: int) -> Tensor:
    """The gradient of values[rows], (n_values, C): sums in a fixed order."""
    if traced(dy):
        return torch.ops.doublesparse.gather_rows_grad(dy, rows, n_values)
    start, position = ops.invert_rows(rows, n_values)
    return ops.segment_sum(dy.contiguous(), position, start)


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        ctx.rows, ctx.n_values = rows, values.shape[0]
        return values.index_select(0, rows)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return gather_rows_grad(dy, ctx.rows, ctx.n_values), None


_apply_gather = fast_apply(_GatherRows)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows]: (m, C); the gradient of a repeated row is summed in a fixed order.

    Args:
        values: (n, C).
        rows: int32 (m,), in [0, n).
    """
    if values.dtype in (torch.float32, torch.float64):
        if wanted(values):
            return _apply_gather(values, rows)
        if traced(values):
            return torch.ops.doublesparse.gather_rows(values, rows)
    return values.index_select(0, rows)


class _ScatterRows(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, n: int) -> Tensor:
        ctx.place = place
        return ops.scatter_rows(rows, place, n)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy.index_select(0, ctx.place), None, None


_apply_scatter = fast_apply(_ScatterRows)


def scatter_rows(rows: Tensor, place: Tensor, n: int) -> Tensor:
    """Rows at their places, strictly ascending, and zero elsewhere: (n, C)."""
    if rows.dtype not in (torch.float32, torch.float64):
        return rows.new_zeros(n, rows.shape[1]).index_copy_(0, place, rows)
    return _apply_scatter(rows, place, n) if wanted(rows) else ops.scatter_rows(rows, place, n)


def merge_repeats(features: Tensor, order: Tensor, start: Tensor, how: str) -> Tensor:
    """One row per site out of the sorted rows features[order]; how = sum, mean, max or first."""
    if how == "first":  # the sort is stable
        return features[order[start[:-1]]]
    if how == "max":
        segment = torch.repeat_interleave(start[1:] - start[:-1])[:, None].expand(
            -1, features.shape[1]
        )
        # Not zeros: torch gives a start that equals the maximum a share of the gradient, with
        # include_self=False too.
        out = features.new_full((len(start) - 1, features.shape[1]), -torch.inf)
        return out.scatter_reduce(0, segment, features[order], "amax", include_self=False)
    segments = Segments(order.to(torch.int32), start, features.shape[0])
    wide = features if features.dtype == torch.float64 else features.float()
    total = segment_sum(wide.contiguous(), segments)
    if how == "mean":
        total = total / (start[1:] - start[:-1])[:, None]
    return total.to(features.dtype)


# ------------------------------------------------------------------ convolution
def kernel_weight(weight: Tensor) -> Tensor:
    """(d0, d1, n_offsets) of torch's weight (d0, d1, *kernel): a view, also of a channels-last one.

    16-bit weights are brought into torch's own order first.
    """
    flat = weight.flatten(2)
    if flat.is_contiguous():
        return flat
    if flat.stride()[1:] == (1, flat.shape[1]) and flat.dtype in (torch.float32, torch.float64):
        return flat
    return flat.contiguous()


def _masked_conv(x: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    """`ops.conv` or, where there is a mask, `ops.masked_conv`."""
    if mask is None:
        return ops.conv(x, weight, *rest)
    return ops.masked_conv(x, weight, mask, *rest)


def conv_grads(
    needs: Sequence[bool],
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    pairs: ops.Pairs,
    groups: int,
    transposed: bool,
    taps: Segments | None,
    u_dtype: torch.dtype | None,
    mask: Tensor | None = None,
) -> Grads:
    """Gradients of `conv` with respect to x, weight, bias and u, where needed."""
    need_x, need_weight, need_bias, need_u = needs[:4]
    dy = dy.contiguous()
    dx = dw = db = du = None
    if need_x:
        back = (pairs.reversed(), x.shape[0], None, groups, None, None, None, not transposed)
        dx = _masked_conv(dy, kernel_weight(weight), mask, *back)
    if need_weight:
        a, b, joined = (dy, x, pairs.reversed()) if transposed else (x, dy, pairs)
        if mask is None:
            dw = ops.conv_weight_grad(a, b, joined, groups)
        else:
            dw = ops.masked_conv_weight_grad(a, b, mask, joined, groups)
        dw = dw.view(weight.shape)
    if need_bias:
        db = column_sum(dy)
    if need_u and taps is not None and u_dtype is not None:
        du = spread(dy.to(u_dtype), taps)
    return dx, dw, db, du


class _Conv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        u: Tensor | None,
        pairs: ops.Pairs,
        n_dst: int,
        groups: int,
        transposed: bool,
        taps: Segments | None,
        mask: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.args = pairs, groups, transposed, taps, None if u is None else u.dtype
        ground = (None, None, None) if u is None or taps is None else (u, taps.start, taps.rows)
        sums = (pairs, n_dst, bias, groups, *ground, transposed)
        return _masked_conv(x, kernel_weight(weight), mask, *sums)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        args = (x, weight, *ctx.args, mask)
        grads = conv_grads(ctx.needs_input_grad, dy, *args)
        return (*grads, None, None, None, None, None, None)


_apply_conv = fast_apply(_Conv)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pairs: ops.Pairs,
    n_dst: int,
    groups: int = 1,
    transposed: bool = False,
    u: Tensor | None = None,
    taps: Segments | None = None,
    packed: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """y[dst] = bias + the row's sum of u + sum over pairs of W_k x[src]: (n_dst, c_out).

    Args:
        x: (n_src, c_in), contiguous.
        weight: (c_out, c_in / groups, *kernel), or (c_in, c_out / groups, *kernel) where
            `transposed`.
        bias: (c_out,) or None.
        pairs: of the rulebook.
        n_dst: number of output rows.
        groups: divides both channel counts.
        transposed: the layout of `weight`.
        u: (n_u, c_out): what inactive sites add, per kernel offset and class of the ground; float32
            where x is 16-bit.
        taps: which rows of `u` each output row adds.
        packed: `ops.pack_weight` of the weight, where no gradient is wanted; of one with a mask
            `ops.pack_masked_weight`.
        mask: bool, of the weight's shape: which weights are kept; None for all of them.
    """
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if (
        torch.is_grad_enabled()
        and (
            weight.requires_grad
            or x.requires_grad
            or (bias is not None and bias.requires_grad)
            or (u is not None and u.requires_grad)
        )
        and not traced(x)
        and outside_transforms()
    ):
        return _apply_conv(x, weight, bias, u, pairs, n_dst, groups, transposed, taps, mask)
    ground = (None, None, None) if u is None or taps is None else (u, taps.start, taps.rows)
    sums = (pairs, n_dst, bias, groups, *ground, transposed, packed)
    return _masked_conv(x, kernel_weight(weight), mask, *sums)
