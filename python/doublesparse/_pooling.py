"""Max and average pools with a window, on SparseTensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cache, _crossover
from ._autograd_windows import window_max, window_sum
from ._classes import ABSENT, AxisClasses
from ._convolution import run_dense
from ._geometry import Steps, per_axis, resolve
from ._ground import GroundState
from ._memo import remembered
from ._parameters import check_axes, check_dtype
from ._rulebook import find
from ._torch_compat import untraced
from ._watch import watched
from ._windows import class_map, pool_plan
from .sites import Sites
from .tensor import SparseTensor

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _pool_steps(
    operation: str,
    x: SparseTensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> Steps:
    """Torch's arguments of a pool as a geometry."""
    shape = x.sites.spatial_shape
    n_axes = len(shape)
    if stride is None or (isinstance(stride, (list, tuple)) and len(stride) == 0):
        stride = kernel_size
    if isinstance(kernel_size, int) and not isinstance(kernel_size, bool):
        kernel = (kernel_size,) * n_axes
    else:
        kernel = per_axis(operation, "kernel_size", kernel_size, n_axes, 1)
    if padding != 0:
        pads = per_axis(operation, "padding", padding, n_axes, 0)
        spread = per_axis(operation, "dilation", dilation, n_axes, 1)
        if any(2 * p > d * (k - 1) + 1 for p, k, d in zip(pads, kernel, spread, strict=True)):
            raise ValueError(
                f"{operation}: padding must be at most half of the kernel, got padding {pads} for "
                f"kernel {kernel}; use less padding"
            )
    return resolve(
        operation,
        "conv",
        x.sites.batch_size,
        shape,
        kernel,
        stride,
        padding,
        dilation,
        ceil=bool(ceil_mode),
    )


def _as_ground(values: Tensor, plan_axes: tuple[AxisClasses, ...], n_samples: int) -> GroundState:
    """Rows of class values as a ground state."""
    n_classes = tuple(a.n_classes for a in plan_axes)
    return GroundState._of(values.view(n_samples, *n_classes, values.shape[1]), plan_axes)


@watched
def max_pool(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> SparseTensor:
    """max_pool1d .. max_pool3d: active values and the ground of inactive sites, never padding."""
    check_axes(operation, x, n_axes)
    if return_indices:
        raise NotImplementedError(
            f"{operation}: return_indices must be False for a SparseTensor, got True; "
            "call .to_dense() first"
        )
    steps = _pool_steps(operation, x, kernel_size, stride, padding, dilation, ceil_mode)
    sites, ground = x.sites, x.ground
    if sites.is_full or _crossover.threshold is not None:
        args = (steps.kernel, steps.stride, steps.left, steps.dilation, steps.ceil)
        out = run_dense(x, steps, lambda t: _MAX[n_axes](t, *args))
        if out is not None:
            return out
    check_dtype(operation, x)
    entry = find(sites, steps)
    out_sites = sites if entry.out_sites is None else entry.out_sites
    plan = pool_plan(sites, out_sites, steps, entry, ground)
    rows = None if ground is None else ground.rows.contiguous()
    features = window_max(x.features, rows, plan.sites)
    if ground is None or rows is None or plan.classes is None:
        return SparseTensor._of(features, out_sites, None)
    if out_sites.is_full or (ground.is_zero and plan.covered):
        state = GroundState.zero(
            features.shape[1], steps.out_shape, features.dtype, features.device
        )
    else:
        classes = plan.classes
        state = remembered(
            ground,
            ("max_pool", steps),
            (),
            lambda: _as_ground(window_max(rows, None, classes), plan.axes, ground.values.shape[0]),
        )
    return SparseTensor._of(features, out_sites, state)


# ------------------------------------------------------------------ average
def _axis_counts(reads: Any, count_pad: bool) -> Tensor:
    """Number of taps that torch's divisor counts, per class: ABSENT never, PAD if asked."""
    counted = reads != ABSENT if count_pad else reads >= 0
    return torch.from_numpy(counted.sum(1))


@untraced
def _divisors(
    out_sites: Sites, steps: Steps, axes: tuple[AxisClasses, ...] | None, count_pad: bool
) -> tuple[Tensor, Tensor | None]:
    """The divisors of the output sites (n_out, 1) and of the output's class rows (n_rows, 1)."""
    device = out_sites.device

    def product(reads: list[Any]) -> Tensor:
        total = torch.ones(1, dtype=torch.int64, device="cpu")
        for r in reads:
            total = (total[:, None] * _axis_counts(r, count_pad)).reshape(-1)
        return total.to(device)

    plain = class_map(steps, tuple(AxisClasses.uniform(n) for n in steps.in_shape))
    sites = product(plain.reads)[out_sites.class_of(plain.axes).long()]
    classes = None if axes is None else product(class_map(steps, axes).reads)[:, None]
    return sites[:, None], classes


@watched
def avg_pool(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SparseTensor:
    """avg_pool1d .. avg_pool3d; where the ground is None the divisor counts active sites."""
    check_axes(operation, x, n_axes)
    if divisor_override is not None and (
        isinstance(divisor_override, bool)
        or not isinstance(divisor_override, int)
        or divisor_override == 0
    ):
        raise ValueError(
            f"{operation}: divisor_override must be a non-zero int or None, "
            f"got {divisor_override!r}; pass None for the window's size"
        )
    steps = _pool_steps(operation, x, kernel_size, stride, padding, 1, ceil_mode)
    sites, ground = x.sites, x.ground
    if sites.is_full or _crossover.threshold is not None:
        count_pad = bool(count_include_pad) and ground is not None
        out = run_dense(x, steps, lambda t: _dense_average(t, steps, count_pad, divisor_override))
        if out is not None:
            return out
    check_dtype(operation, x)
    entry = find(sites, steps)
    out_sites = sites if entry.out_sites is None else entry.out_sites
    zero = ground is None or ground.is_zero
    plan = pool_plan(sites, out_sites, steps, entry, None if zero else ground)
    rows = None if zero or ground is None else ground.rows.contiguous()
    features = window_sum(x.features, rows, plan.sites)
    if divisor_override is not None:
        site_divisor: Any = divisor_override
        class_divisor: Any = divisor_override
    elif ground is None:
        site_divisor, class_divisor = (plan.sites.rows >= 0).sum(1, keepdim=True), None
    else:
        site_divisor, class_divisor = _remembered_divisors(
            sites, out_sites, steps, None if zero else ground.axes, bool(count_include_pad)
        )
    features = features / site_divisor
    if ground is None:
        return SparseTensor._of(features, out_sites, None)
    if zero or out_sites.is_full or rows is None or plan.classes is None:
        state = GroundState.zero(
            features.shape[1], steps.out_shape, features.dtype, features.device
        )
    else:
        classes, by_class = plan.classes, class_divisor
        if isinstance(by_class, Tensor):
            by_class = by_class.view(1, *(a.n_classes for a in plan.axes), 1)

        def respond() -> GroundState:
            total = _as_ground(window_sum(rows, None, classes), plan.axes, ground.values.shape[0])
            return total.map(lambda v: v / by_class)

        key = ("avg_pool", steps, bool(count_include_pad), divisor_override)
        state = remembered(ground, key, (), respond)
    return SparseTensor._of(features, out_sites, state)


def _remembered_divisors(
    sites: Sites,
    out_sites: Sites,
    steps: Steps,
    axes: tuple[AxisClasses, ...] | None,
    count_pad: bool,
) -> tuple[Tensor, Tensor | None]:
    key = ("divisors", steps, axes, count_pad)
    found = _cache.get(sites, key)
    if found is None:
        found = _divisors(out_sites, steps, axes, count_pad)
        held = 8 * sum(0 if t is None else t.numel() for t in found)
        found = _cache.put(sites, key, found, held)
    return found


def _dense_average(x: Tensor, steps: Steps, count_pad: bool, divisor: int | None) -> Tensor:
    args = (steps.kernel, steps.stride, steps.left, steps.ceil, count_pad)
    if x.dim() == 3:  # torch's one-dimensional form has no divisor: give it a second axis
        if divisor is None:
            return F.avg_pool1d(x, *args)
        kernel, stride, pad = ((1, v[0]) for v in (steps.kernel, steps.stride, steps.left))
        flat = F.avg_pool2d(x[:, :, None], kernel, stride, (0, pad[1]), *args[3:], divisor)
        return flat[:, :, 0]
    return (F.avg_pool2d if x.dim() == 4 else F.avg_pool3d)(x, *args, divisor)
