"""Batch, group and instance normalization: every inactive site counts, as the value of its class.

The dense layer's statistics are a sum over active rows plus a sum over class rows, each times the
number of inactive sites that hold it. Both passes (mean, then squared deviations) and their
gradients are segment sums in a fixed order: the same bits for any number of threads. With
ground=None inactive sites do not exist, and statistics are those of the active ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops
from ._arithmetic import _spread_rows
from ._autograd import gather_rows
from ._elementwise import refuse
from ._ground import GroundState
from .tensor import SparseTensor


class _Population:
    """Who counts in the statistics: one set for the whole batch, or one per sample.

    Attributes:
        n_rows: number of feature rows.
        start: int64 (n_sets + 1,): feature rows of each set.
        ground_start: int64 (n_sets + 1,): class rows of each set.
        ground_count: (n_class_rows, 1): inactive sites of each class row; None without a ground.
        count: (n_sets, 1): sites of each set, active and inactive.
        groups: channels are normalized in this many groups.
        process_group: statistics are summed over its processes; None: this process alone.
    """

    def __init__(
        self, x: SparseTensor, per_sample: bool, groups: int, dtype: torch.dtype, sync: Any = None
    ) -> None:
        sites, ground = x.sites, x.ground
        n_sets = sites.batch_size if per_sample else 1
        self.n_rows = sites.n_sites
        self.start = sites.batch_start if per_sample else torch.tensor([0, sites.n_sites])
        self.groups, self.process_group = groups, sync
        self.ground_count: Tensor | None = None
        if ground is None:
            counts = (self.start[1:] - self.start[:-1])[:, None]
            self.count = counts.to(dtype)
            return
        self.count = torch.full((n_sets, 1), sites.n_cells // max(n_sets, 1), dtype=dtype)
        if not sites.is_full:
            inactive = _inactive(x, ground)
            if not per_sample and not ground.per_sample:
                inactive = inactive.sum(0)
            self.ground_count = inactive.reshape(-1, 1).to(dtype)
            rows = self.ground_count.shape[0] // max(n_sets, 1)
            self.ground_start = torch.arange(n_sets + 1) * rows

    def totals(self, rows: Tensor, ground: Tensor | None) -> Tensor:
        """Sums of each set, (n_sets, C); `ground` holds rows that are multiplied already."""
        total = ops.segment_sum(rows, None, self.start)
        if ground is not None:
            total += ops.segment_sum(ground, None, self.ground_start)
        return total

    def weighted(self, ground: Tensor) -> Tensor:
        """Class rows times the number of inactive sites that hold them."""
        return ground if self.ground_count is None else ground * self.ground_count

    def spread(self, rows: Tensor) -> Tensor:
        """(n_sets, C) at every feature row (broadcast where there is one set)."""
        return rows if rows.shape[0] == 1 else _spread_rows(rows, self.start, self.n_rows)

    def spread_ground(self, rows: Tensor) -> Tensor:
        """(n_sets, C) at every class row."""
        if rows.shape[0] == 1 or self.ground_count is None:
            return rows
        return _spread_rows(rows, self.ground_start, self.ground_count.shape[0])

    def group_mean(self, total: Tensor) -> Tensor:
        """Totals (n_sets, C) over the number of values of each group, as (n_sets, C)."""
        c = total.shape[1]
        per_group = c // self.groups if self.groups else 1
        if per_group != 1:
            total = total.view(-1, self.groups, per_group).sum(2, keepdim=True)
            total = total.expand(-1, -1, per_group).reshape(-1, c)
        return total / (self.count * per_group).clamp(min=1)

    def synchronize(self, total: Tensor) -> Tensor:
        """Sums over all processes."""
        if self.process_group is not None:
            torch.distributed.all_reduce(total, group=self.process_group)
        return total

    def moments(self, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each set and channel (of its group): (n_sets, C)."""
        total = self.totals(x, None if g is None else self.weighted(g))
        if self.process_group is not None:
            both = self.synchronize(torch.cat([total, self.count], 1))
            total, self.count = both[:, :-1].contiguous(), both[:, -1:]
        mean = self.group_mean(total)
        squares = ops.segment_sum_sq(x, self.start, mean)
        if g is not None:
            deviation = self.weighted((g - self.spread_ground(mean)).square_())
            squares += ops.segment_sum(deviation, None, self.ground_start)
        return mean, self.group_mean(self.synchronize(squares))


def _inactive(x: SparseTensor, ground: GroundState) -> Tensor:
    """Number of inactive sites of each sample and class, int64 (B, n_rows)."""
    if ground.n_rows > 1:
        return ground.n_inactive(x.sites)
    start = x.sites.batch_start
    return (math.prod(x.spatial_shape) - (start[1:] - start[:-1]))[:, None]


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
        who: _Population,
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
        who: _Population = ctx.who
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
        offset = -rstd * who.group_mean(who.synchronize(outer.clone()))
        slope = -rstd * rstd * who.group_mean(who.synchronize(inner.clone()))
        if need_x:
            dx = torch.addcmul(who.spread(offset), centred, who.spread(slope), out=centred)
            dx.addcmul_(dy, who.spread(scale))
        if need_g and dy_g is not None and centred_g is not None:
            dg = torch.addcmul(who.spread_ground(offset), centred_g, who.spread_ground(slope))
            dg = who.weighted(dg).addcmul_(dy_g, who.spread_ground(scale))
        return dx, dg, d_weight, d_bias, None, None, None


def _transform(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    # centred first: x * scale + (bias - mean * scale) loses digits where |mean| >> std
    centred = x - mean
    return centred.mul_(scale) if bias is None else torch.addcmul(bias, centred, scale)


def _normalize(
    x: SparseTensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    given: tuple[Tensor, Tensor] | None = None,
    per_sample: bool = False,
    groups: int | None = None,
    process_group: Any = None,
) -> tuple[SparseTensor, Tensor, Tensor, _Population]:
    """The normalized tensor; mean and biased variance (n_sets, C); the population.

    16-bit features are normalized in float32, and the result is in the dtype of x.
    """
    features, ground, dtype = x.features, x.ground, x.features.dtype
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    channels, batch = features.shape[1], x.sites.batch_size
    rows, n_samples = None, 1
    if ground is not None and not x.sites.is_full:
        rows, n_samples = ground.rows, ground.values.shape[0]
        if per_sample and n_samples != batch:
            # the samples part here: their statistics differ
            copies = torch.arange(ground.n_rows, dtype=torch.int32).repeat(batch)
            rows, n_samples = gather_rows(rows, copies), batch
        rows = rows.to(wide).contiguous()
    who = _Population(x, per_sample, channels if groups is None else groups, wide, process_group)
    weight, bias = (None if p is None else p.to(wide) for p in (weight, bias))
    y, y_ground, mean, var = _Normalize.apply(
        features.to(wide), rows, weight, bias, who, given, eps
    )
    if y_ground is not None and ground is not None:
        values = y_ground.to(dtype).view(n_samples, *ground.n_classes, channels)
        ground = GroundState._of(values, ground.axes)
    return SparseTensor._of(y.to(dtype), x.sites, ground), mean, var, who


# ------------------------------------------------------------------ the public forms
def _check_channels(operation: str, x: SparseTensor, **vectors: Any) -> None:
    channels = x.features.shape[1]
    for name, v in vectors.items():
        if v is None:
            continue
        if not isinstance(v, Tensor):
            raise TypeError(
                f"{operation}: {name} must be a Tensor or None, got {type(v).__name__}; "
                f"pass a tensor of shape ({channels},)"
            )
        if tuple(v.shape) != (channels,):
            raise ValueError(
                f"{operation}: {name} must have shape ({channels},), one number per channel, "
                f"got {tuple(v.shape)}; make the layer for {channels} channels"
            )
        if v.device != x.device:
            raise RuntimeError(
                f"{operation}: {name} must be on {x.device} like the input, got {v.device}; "
                "move one with .to(device)"
            )


def _track(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)


def batch_norm(
    x: SparseTensor | Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> SparseTensor | Tensor:
    """Batch normalization (Ioffe & Szegedy 2015), equal to the dense layer's.

    In training every inactive site counts, as the value of its class; with ground=None only active
    sites count. Running buffers are updated in place as torch does.

    Args:
        x: SparseTensor with C channels, or a dense Tensor (then this is torch's function).
        running_mean: (C,) or None.
        running_var: (C,) or None.
        weight: (C,) or None.
        bias: (C,) or None.
        training: take the statistics of the batch.
        momentum: weight of the batch in the running buffers.
        eps: added to the variance.
        process_group: sum the statistics over the processes of this `torch.distributed` group.

    Raises:
        TypeError: a vector is no tensor.
        ValueError: a vector of another length, one value per channel in training, or no running
            statistics in evaluation.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1]]), (4, 4))
        >>> y = ds.functional.batch_norm(x, None, None, training=True)
        >>> dense = torch.nn.functional.batch_norm(x.to_dense(), None, None, training=True)
        >>> torch.allclose(y.to_dense(), dense)
        True
    """
    if not isinstance(x, SparseTensor):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    vectors = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("batch_norm", x, weight=weight, bias=bias, **vectors)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "batch_norm: running_mean and running_var must be tensors in evaluation, got None;"
                " pass training=True to use the batch's statistics"
            )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        given = running_mean.to(wide)[None], running_var.to(wide)[None]
        return _normalize(x, weight, bias, eps, given)[0]
    n: float = x.sites.n_sites if x.ground is None else x.sites.n_cells
    if n == 1 and process_group is None:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size "
            f"{tuple(x.shape)} with 1 site that counts; use a larger batch or eval()"
        )
    y, mean, var, who = _normalize(x, weight, bias, eps, process_group=process_group)
    n = float(who.count) if process_group is not None else n
    if n > 0:
        _track(running_mean, mean[0], momentum)
        _track(running_var, var[0] * (n / max(n - 1, 1)), momentum)
    return y


def group_norm(
    input: SparseTensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> SparseTensor:
    """Group normalization (Wu & He 2018): statistics per sample and group of channels."""
    channels = input.features.shape[1]
    _check_channels("group_norm", input, weight=weight, bias=bias)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm: num_groups must divide {channels} channels, got {num_groups}; "
            "choose a divisor"
        )
    if math.prod(input.shape) == input.shape[0] * num_groups == 1:
        raise ValueError(
            f"group_norm: Expected more than 1 value per channel when training, got input size "
            f"{tuple(input.shape)}; use a larger grid"
        )
    return _normalize(input, weight, bias, eps, per_sample=True, groups=num_groups)[0]


def instance_norm(
    input: SparseTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseTensor:
    """Instance normalization: statistics per sample and channel, or the running ones."""
    if not use_input_stats:
        args = (running_mean, running_var, weight, bias, False, momentum, eps)
        return batch_norm(input, *args)  # type: ignore[return-value]  # sparse in, sparse out
    vectors = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("instance_norm", input, weight=weight, bias=bias, **vectors)
    if math.prod(input.spatial_shape) == 1:
        raise ValueError(
            "instance_norm: Expected more than 1 spatial element when training, got input size "
            f"{tuple(input.shape)}; use a larger grid"
        )
    y, mean, var, who = _normalize(input, weight, bias, eps, per_sample=True)
    if len(mean):
        _track(running_mean, mean.mean(0), momentum)
        _track(running_var, (var * who.count / (who.count - 1).clamp(min=1)).mean(0), momentum)
    return y


def layer_norm(
    input: SparseTensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> SparseTensor:
    """Layer normalization over (C, *spatial) without an affine map."""
    if tuple(normalized_shape) != tuple(input.shape[1:]) or weight is not None or bias is not None:
        refuse(
            "layer_norm",
            "of a SparseTensor runs over (C, *spatial) and has no weight per site",
            "for one weight per channel use nn.GroupNorm(1, C)",
        )
    return group_norm(input, 1, None, None, eps)
