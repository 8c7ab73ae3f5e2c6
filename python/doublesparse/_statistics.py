"""Statistics of normalizations, and the normalized tensor: the arithmetic that all of them share.

A statistic is a sum over active rows plus a sum over class rows, each times the number of inactive
sites that hold it. Both passes (mean, then squared deviations) and their gradients are segment sums
in a fixed order: the same bits for any number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _cache, ops
from ._autograd import gather_rows
from ._device import whole
from ._ground import GroundState
from ._torch_compat import traced, untraced
from ._union import repeat_rows
from .sites import Sites
from .tensor import SparseTensor

_WIDE = (torch.float32, torch.float64)


class Population:
    """Who counts in the statistics: one set of sites for the whole batch, or one per sample.

    Geometry alone, so it is remembered by the sites.

    Attributes:
        n_rows: number of feature rows.
        start: int64 (n_sets + 1,): feature rows of each set.
        ground_start: int64 (n_sets + 1,): class rows of each set; None where a set has one.
        ground_count: (n_class_rows, 1): inactive sites of each class row; None without a ground.
        count: (n_sets, 1): sites of each set, active and inactive.
        per_group: channels that share a statistic.
        process_group: statistics are summed over its processes; None: this process alone.
    """

    def __init__(
        self,
        sites: Sites,
        ground: GroundState | None,
        per_sample: bool,
        per_group: int,
        dtype: torch.dtype,
        process_group: Any,
    ) -> None:
        n_sets = sites.batch_size if per_sample else 1
        self.n_rows, self.per_group, self.process_group = sites.n_sites, per_group, process_group
        device = sites.device
        self.start = sites.batch_start if per_sample else whole(sites.n_sites, device)
        self.ground_count: Tensor | None = None
        self.ground_start: Tensor | None = None
        if ground is None:
            self.count = (self.start[1:] - self.start[:-1])[:, None].to(dtype)
        else:
            n_cells = sites.n_cells // max(n_sets, 1)
            self.count = torch.full((n_sets, 1), n_cells, dtype=dtype, device=device)
        if ground is not None and not sites.is_full:
            inactive = _inactive(sites, ground)
            if not per_sample and not ground.per_sample:
                inactive = inactive.sum(0)
            self.ground_count = inactive.reshape(-1, 1).to(dtype)
            rows = self.ground_count.shape[0] // max(n_sets, 1)
            if rows != 1:
                self.ground_start = torch.arange(n_sets + 1, device=device) * rows
        self.set_count(self.count)

    def set_count(self, count: Tensor) -> None:
        """Sites of each set; an empty one has the mean 0."""
        self.count, self.divisor = count, (count * self.per_group).clamp(min=1)

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        counts = 0 if self.ground_count is None else self.ground_count.numel()
        return 8 * (counts + 4 * self.start.numel())

    def weighted(self, ground: Tensor) -> Tensor:
        """Class rows times the number of inactive sites that hold them."""
        return ground if self.ground_count is None else ground * self.ground_count

    def totals(self, rows: Tensor, ground: Tensor | None) -> Tensor:
        """Sums of each set, (n_sets, C); `ground` holds rows that are multiplied already."""
        total = ops.segment_sum(rows, None, self.start)
        return total if ground is None else total.add_(self._ground_totals(ground))

    def _ground_totals(self, ground: Tensor) -> Tensor:
        return (
            ground
            if self.ground_start is None
            else ops.segment_sum(ground, None, self.ground_start)
        )

    def spread(self, rows: Tensor) -> Tensor:
        """(n_sets, C) at every feature row (broadcast where there is one set)."""
        return rows if rows.shape[0] == 1 else repeat_rows(rows, self.start, self.n_rows)

    def spread_ground(self, rows: Tensor) -> Tensor:
        """(n_sets, C) at every class row."""
        if rows.shape[0] == 1 or self.ground_start is None or self.ground_count is None:
            return rows
        return repeat_rows(rows, self.ground_start, self.ground_count.shape[0])

    def group_mean(self, total: Tensor) -> Tensor:
        """Totals (n_sets, C) over the number of values of each group, as (n_sets, C)."""
        if self.per_group != 1:
            n_sets, channels = total.shape
            groups = channels // self.per_group
            total = total.view(n_sets, groups, self.per_group).sum(2, keepdim=True)
            total = total.expand(-1, -1, self.per_group).reshape(n_sets, channels)
        return total / self.divisor

    def synchronize(self, part: Tensor) -> Tensor:
        """(1, n) summed over all processes, in the order of their ranks: the same bits everywhere.

        A backend's own all-reduce adds in an order that depends on its algorithm.
        """
        return part if self.process_group is None else self._gather(part).sum(0, keepdim=True)

    def _gather(self, part: Tensor) -> Tensor:
        """(1, n) of every process: (n_processes, n)."""
        group = self.process_group
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, part, group=group)
        return torch.cat(parts)

    def moments(self, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each set and channel (of its group): (n_sets, C)."""
        total = self.totals(x, None if g is None else self.weighted(g))
        mean = self.group_mean(total)
        squares = ops.segment_sum_sq(x, self.start, mean)
        if g is not None:
            deviation = self.weighted((g - self.spread_ground(mean)).square_())
            squares.add_(self._ground_totals(deviation))
        if self.process_group is not None:
            return self._moments_of_all(total, squares)
        return mean, self.group_mean(squares)

    def _moments_of_all(self, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Moments over all processes, of which some may have no site, by one collective.

        Squared deviations from each process's own mean are moved to the common one (Chan, Golub &
        LeVeque 1979), which loses no digits where |mean| >> std.
        """
        channels = total.shape[1]
        parts = self._gather(torch.cat([total, squares, self.count], 1))
        totals, squares, counts = parts.split([channels, channels, 1], 1)
        self.set_count(counts.sum(0, keepdim=True))
        mean = totals.sum(0, keepdim=True) / self.divisor
        gaps = totals / counts.clamp(min=1) - mean
        squares = torch.addcmul(squares, counts, gaps.square_()).sum(0, keepdim=True)
        return mean, squares / self.divisor


def _inactive(sites: Sites, ground: GroundState) -> Tensor:
    """Number of inactive sites of each sample and class, int64 (B, n_rows)."""
    if ground.n_rows > 1:
        return ground.n_inactive(sites)
    start = sites.batch_start
    return (math.prod(sites.spatial_shape) - (start[1:] - start[:-1]))[:, None]


_make_population = untraced(Population)


def population(
    x: SparseTensor,
    per_sample: bool = False,
    per_group: int = 1,
    process_group: Any = None,
) -> Population:
    """Who counts in the statistics of x."""
    sites, ground = x.sites, x.ground
    dtype = x.features.dtype if x.features.dtype in _WIDE else torch.float32
    args = (per_sample, per_group, dtype, process_group)
    if process_group is not None:  # its count is that of this batch, on all processes
        return Population(sites, ground, *args)
    key = ("population", *args, None if ground is None else (ground.axes, ground.per_sample))
    found = _cache.get(sites, key)
    if found is None:
        found = _make_population(sites, ground, *args)
        found = _cache.put(sites, key, found, found.n_bytes)
    return found


def _transform(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    # centred first: x * scale + (bias - mean * scale) loses digits where |mean| >> std
    centred = x - mean
    if bias is None:
        return centred.mul_(scale)
    # a traced graph knows no out=
    return torch.addcmul(bias, centred, scale, out=None if traced(x) else centred)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias of feature rows and class rows.

    One function and not a composition: the gradient then needs two sums and three passes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        g: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        who: Population,
        given: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        mean, var = who.moments(x, g) if given is None else given
        rstd = (var + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        y = _transform(x, who.spread(mean), who.spread(scale), bias)
        y_ground = None
        if g is not None:
            y_ground = _transform(g, who.spread_ground(mean), who.spread_ground(scale), bias)
        ctx.save_for_backward(x, g, weight, mean, rstd)
        ctx.who, ctx.from_batch, ctx.has_bias = who, given is None, bias is not None
        ctx.mark_non_differentiable(mean, var)
        return y, y_ground, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, g, weight, mean, rstd = ctx.saved_tensors
        who: Population = ctx.who
        dy, dy_g = grads[0].contiguous(), None if g is None else grads[1].contiguous()
        scale = rstd if weight is None else rstd * weight
        need_x, need_g, need_weight, need_bias = ctx.needs_input_grad[:4]
        dx = dg = d_weight = d_bias = None
        centred = x - who.spread(mean)
        centred_g = None if g is None else g - who.spread_ground(mean)
        if need_weight or need_bias or ctx.from_batch:
            products = None if dy_g is None or centred_g is None else dy_g * centred_g
            outer = who.totals(dy, dy_g)
            inner = who.totals(dy * centred, products) * rstd  # sum of dy * xhat
            d_weight = inner.sum(0) if need_weight else None
            d_bias = outer.sum(0) if need_bias else None
        if not ctx.from_batch:
            dx = dy * who.spread(scale) if need_x else None
            dg = dy_g * who.spread_ground(scale) if need_g and dy_g is not None else None
            return dx, dg, d_weight, d_bias, None, None, None
        # dx = rstd * (dy w - mean(dy w) - xhat mean(dy w xhat)), and a class row stands for many
        if weight is not None:
            outer, inner = outer * weight, inner * weight
        if who.process_group is not None:
            outer, inner = who.synchronize(torch.cat([outer, inner], 1)).chunk(2, 1)
        offset = -rstd * who.group_mean(outer)
        slope = -rstd * rstd * who.group_mean(inner)
        if need_x:
            dx = torch.addcmul(who.spread(offset), centred, who.spread(slope), out=centred)
            dx.addcmul_(dy, who.spread(scale))
        if need_g and dy_g is not None and centred_g is not None:
            dg = torch.addcmul(who.spread_ground(offset), centred_g, who.spread_ground(slope))
            dg = who.weighted(dg).addcmul_(dy_g, who.spread_ground(scale))
        return dx, dg, d_weight, d_bias, None, None, None


def _wide(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return t if t is None or t.dtype == dtype else t.to(dtype)


def normalize(
    x: SparseTensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    who: Population,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[SparseTensor, Tensor, Tensor]:
    """The normalized tensor, and mean and biased variance (n_sets, C).

    16-bit features are normalized in float32, and the result is in the dtype of x.

    Args:
        x: the input.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.
        who: whose statistics; more than one set makes the ground per sample.
        given: mean and variance (1, C), instead of the batch's.
    """
    features, ground, dtype = x.features, x.ground, x.features.dtype
    wide = dtype if dtype in _WIDE else torch.float32
    rows, n_samples = None, 1
    if ground is not None and not x.sites.is_full:
        rows, n_samples = ground.rows, ground.values.shape[0]
        n_sets = who.count.shape[0]
        if n_sets > n_samples:
            # the samples part here: their statistics differ
            copies = torch.arange(ground.n_rows, dtype=torch.int32, device=rows.device)
            copies = copies.repeat(n_sets)
            rows, n_samples = gather_rows(rows, copies), n_sets
        rows = _wide(rows.contiguous(), wide)
    y, y_ground, mean, var = _Normalize.apply(
        _wide(features, wide), rows, _wide(weight, wide), _wide(bias, wide), who, given, eps
    )
    if y_ground is not None and ground is not None:
        values = y_ground.to(dtype).view(n_samples, *ground.n_classes, y.shape[1])
        ground = GroundState._of(values, ground.axes)
    return SparseTensor._of(_wide(y, dtype), x.sites, ground), mean, var  # type: ignore[arg-type]
