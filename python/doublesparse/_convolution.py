"""Convolutions on SparseTensors: ordinary, transposed, submanifold, inverse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _crossover
from ._autograd import Segments, conv, segment_sum
from ._geometry import Steps, resolve
from ._ground import GroundState
from ._parameters import c_out_of, check_axes, fits
from ._precision import autocasting, casts
from ._rulebook import Entry, find, find_inverse
from ._torch_compat import traced
from ._windows import linear_plan
from .sites import Sites
from .tensor import SparseTensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


# ------------------------------------------------------------------ the linear layer
def linear(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    steps: Steps,
    c_out: int,
    transposed: bool = False,
) -> SparseTensor:
    """The window rule: W_k x over active taps, W_k G over inactive ones, nothing in the padding.

    Inactive taps read u = W_k G, a table over the (offset, class) pairs that occur; the ground's
    own response sums the same rows of u in the same order. A zero ground leaves only its bias.
    """
    sites = x.sites
    entry = find(sites, steps)
    out_sites = sites if entry.out_sites is None else entry.out_sites
    ground = x.ground
    if ground is not None and not ground.is_zero:
        return _with_ground(
            x, weight, bias, groups, steps, c_out, transposed, entry, out_sites, ground
        )
    features = conv(x.features, weight, bias, entry.pairs, out_sites.n_sites, groups, transposed)
    if ground is not None:
        if bias is None or out_sites.is_full:
            ground = GroundState.zero(c_out, steps.out_shape, features.dtype, features.device)
        else:
            ground = GroundState.constant(bias, steps.out_shape)
    return SparseTensor._of(features, out_sites, ground)


def _with_ground(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    steps: Steps,
    c_out: int,
    transposed: bool,
    entry: Entry,
    out_sites: Sites,
    ground: GroundState,
) -> SparseTensor:
    rows = ground.rows.contiguous()
    row_bytes = c_out * rows.element_size()
    plan = linear_plan(x.sites, out_sites, steps, entry, ground, row_bytes)
    n_out = out_sites.n_sites

    def u_of(pairs: Any, n_u: int) -> Tensor:
        return conv(rows, weight, None, pairs, n_u, groups, transposed)

    if plan.sites is not None and plan.classes is not None:
        u = u_of(plan.chunks[0].pairs, plan.chunks[0].n_u)
        response = segment_sum(u, plan.classes, bias) if plan.n_classes else None
        taps, site_bias = plan.sites, bias
    else:
        parts = [segment_sum(u_of(c.pairs, c.n_u), c.segments, bias) for c in plan.chunks]
        sums = torch.cat(parts)
        u, response = sums[:n_out], sums[n_out:]
        taps, site_bias = Segments.identity(n_out), None  # the bias is in the sums already
    features = conv(x.features, weight, site_bias, entry.pairs, n_out, groups, transposed, u, taps)
    if out_sites.is_full or response is None:
        out_ground = GroundState.zero(c_out, steps.out_shape, features.dtype, features.device)
    else:
        n_classes = tuple(a.n_classes for a in plan.axes)
        values = response.view(ground.values.shape[0], *n_classes, c_out)
        out_ground = GroundState._of(values, plan.axes)
    return SparseTensor._of(features, out_sites, out_ground)


def run_dense(x: SparseTensor, steps: Steps, f: Callable[[Tensor], Tensor]) -> SparseTensor | None:
    """Torch's dense kernel where the crossover says so, with a saturated result; else None."""
    if not _crossover.runs_dense(x.sites.is_full, x.density, x.ground is None, steps):
        return None
    dense = x._dense_view() if x.sites.is_full else x.to_dense()
    return SparseTensor._from_full(f(dense), keep_none=x.ground is None)


def convolution(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> SparseTensor:
    """conv1d .. conv4d."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, False)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(convolution, operation, n_axes))
            return run(x, weight, bias, stride, padding, dilation, groups)
        c_out = c_out_of(operation, x, weight, bias, groups, False)
    sites = x.sites
    steps = resolve(
        operation,
        "conv",
        sites.batch_size,
        sites.spatial_shape,
        weight.shape[2:],
        stride,
        padding,
        dilation,
    )
    if (sites.is_full or _crossover.threshold is not None) and n_axes in _CONV:
        out = run_dense(
            x,
            steps,
            lambda t: _CONV[n_axes](t, weight, bias, stride, padding, dilation, groups),
        )
        if out is not None:
            return out
    return linear(x, weight, bias, groups, steps, c_out)


def transposed_convolution(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> SparseTensor:
    """conv_transpose1d .. conv_transpose3d."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, True)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(transposed_convolution, operation, n_axes))
            return run(x, weight, bias, stride, padding, output_padding, groups, dilation)
        c_out = c_out_of(operation, x, weight, bias, groups, True)
    if isinstance(padding, str):
        raise ValueError(
            f"{operation}: padding must be ints, got {padding!r}; give the padding in numbers"
        )
    sites = x.sites
    steps = resolve(
        operation,
        "transposed",
        sites.batch_size,
        sites.spatial_shape,
        weight.shape[2:],
        stride,
        padding,
        dilation,
        output_padding,
    )
    if sites.is_full or _crossover.threshold is not None:
        args = (stride, padding, output_padding, groups, dilation)
        out = run_dense(x, steps, lambda t: _TRANSPOSED[n_axes](t, weight, bias, *args))
        if out is not None:
            return out
    return linear(x, weight, bias, groups, steps, c_out, transposed=True)


# ------------------------------------------------------------------ on given sites
def _drop_ground(operation: str, x: SparseTensor, ground: str) -> None:
    """Inactive sites will count as zero: refuse a ground that is not, unless told to drop it."""
    if ground not in ("error", "drop"):
        raise ValueError(
            f'{operation}: ground must be "error" or "drop", got {ground!r}; pass one of them'
        )
    state = x.ground
    if state is None or state.is_zero or ground == "drop" or x.sites.is_full:
        return
    # any: a NaN counts too; a traced graph cannot look
    if traced(state.values) or bool(state.values.detach().any()):
        raise ValueError(
            f"{operation}: the ground must be zero or None, because inactive sites count as zero "
            f'here, got {state!r}; pass ground="drop" to drop it, or use the ordinary convolution'
        )


def submanifold_convolution(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Any,
    groups: int,
    ground: str,
) -> SparseTensor:
    """submanifold_conv1d .. submanifold_conv4d (Graham and van der Maaten 2017)."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, False)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(submanifold_convolution, operation, n_axes))
            return run(x, weight, bias, dilation, groups, ground)
        c_out = c_out_of(operation, x, weight, bias, groups, False)
    _drop_ground(operation, x, ground)
    sites = x.sites
    steps = resolve(
        operation,
        "submanifold",
        sites.batch_size,
        sites.spatial_shape,
        weight.shape[2:],
        1,
        0,
        dilation,
    )
    if sites.is_full and n_axes in _CONV and _crossover.runs_dense(True, 1.0, False, steps):
        dense = _CONV[n_axes](x._dense_view(), weight, bias, 1, steps.left, dilation, groups)
        return SparseTensor._from_full(dense, sites, keep_none=True)
    entry = find(sites, steps)
    features = conv(x.features, weight, bias, entry.pairs, sites.n_sites, groups)
    return SparseTensor._of(features, sites, None)


def inverse_convolution(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    like: SparseTensor | Sites,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    ground: str,
) -> SparseTensor:
    """inverse_conv1d .. inverse_conv3d: the transposed convolution at given sites only."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, True)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(inverse_convolution, operation, n_axes))
            return run(x, weight, bias, like, stride, padding, dilation, groups, ground)
        c_out_of(operation, x, weight, bias, groups, True)
    target = like.sites if isinstance(like, SparseTensor) else like
    if not isinstance(target, Sites):
        raise TypeError(
            f"{operation}: like must be a SparseTensor or Sites, got {type(like).__name__}; "
            "pass the tensor whose sites the result shall have"
        )
    if target.n_axes != n_axes:
        raise ValueError(
            f"{operation}: like must have {n_axes} spatial axes like the input, "
            f"got {target.n_axes}; pass the tensor whose sites the result shall have"
        )
    _drop_ground(operation, x, ground)
    steps = resolve(
        operation,
        "conv",
        target.batch_size,
        target.spatial_shape,
        weight.shape[2:],
        stride,
        padding,
        dilation,
    )
    got = (x.sites.batch_size, x.sites.spatial_shape)
    if got != (target.batch_size, steps.out_shape):
        raise ValueError(
            f"{operation}: input must be what this geometry makes of like's grid, "
            f"(batch, spatial) = {(target.batch_size, steps.out_shape)}, got {got}; "
            "use the geometry of the convolution that is to be undone"
        )
    pairs = find_inverse(x.sites, target, steps)
    features = conv(x.features, weight, bias, pairs, target.n_sites, groups, True)
    return SparseTensor._of(features, target, None)
