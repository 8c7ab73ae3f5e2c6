"""Convolutions on SparseTensors: ordinary, transposed, submanifold, inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _crossover, ops
from ._autograd import Segments, conv, gather_rows, kernel_weight, segment_sum
from ._geometry import Steps, resolve
from ._ground import GroundState
from ._kept import masked
from ._memo import memo_of, remembered
from ._parameters import c_out_of, check_axes, fits
from ._precision import autocasting, casts, for_torch, wide
from ._rulebook import Entry, find, find_inverse
from ._torch_compat import traced
from ._watch import current as watch
from ._watch import watched
from ._windows import (
    Chunk,
    class_map,
    class_pieces,
    class_taps,
    every_tap,
    fits_whole,
    site_pieces,
    site_taps,
)
from .sites import Sites
from .tensor import SparseTensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


# ------------------------------------------------------------------ the linear layer
class Layer(NamedTuple):
    """A linear layer's parameters and geometry."""

    weight: Tensor
    bias: Tensor | None
    groups: int
    steps: Steps
    c_out: int
    transposed: bool = False
    mask: Tensor | None = None  # which weights are kept; None for all of them

    @property
    def shape(self) -> tuple[Steps, Tensor, int, int, bool, Tensor | None]:
        """What the crossover asks for."""
        return self.steps, self.weight, self.c_out, self.groups, self.transposed, self.mask

    @property
    def whole_weight(self) -> Tensor:
        """The weight with zeros where the mask says so, for torch's kernels and for few rows."""
        return self.weight if self.mask is None else masked(self.weight, self.mask)

    def key(self, x: SparseTensor) -> _crossover.Key:
        """What `autotune` knows this layer by."""
        return _crossover.layer_key(self.steps, x.shape[1], self.c_out, self.groups, x.dtype)

    def rows(self, x: Tensor, pairs: Any, n_dst: int) -> Tensor:
        """Sums of W_k x, without the bias; parts of other sums, so float32 where x is 16-bit."""
        weight = wide(self.whole_weight)
        return conv(wide(x), weight, None, pairs, n_dst, self.groups, self.transposed)

    def classes(self, u: Tensor, segments: Segments) -> Tensor:
        """Sums of rows of u, with the bias."""
        return segment_sum(u, segments, wide(self.bias))

    def packed(self, ground: GroundState | None) -> Tensor | None:
        """The weight as the kernel reads it, kept where the ground is frozen: so is the weight."""
        if ground is None or memo_of(ground) is None:
            return None
        if traced(self.weight) or wide(self.weight) is not self.weight:
            return None
        weight = kernel_weight(self.weight)
        if self.mask is None:
            pack = partial(ops.pack_weight, weight, self.groups, self.transposed)
        else:
            pack = partial(
                ops.pack_masked_weight, weight, self.mask, self.groups, self.transposed
            )
        packed: Tensor = self.remembered(ground, "packed", pack)
        return packed

    def sums(self, rows: Tensor, chunks: Iterable[Chunk]) -> Tensor:
        """Of windows that read class rows only, with the bias."""
        parts = [
            self.classes(self.rows(gather_rows(rows, c.used), c.pairs, c.n_u), c.segments)
            for c in chunks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def zero(self, features: Tensor) -> GroundState:
        """The zero ground of the output."""
        return GroundState.zero(
            self.c_out, self.steps.out_shape, features.dtype, features.device
        )

    def remembered(self, ground: GroundState, what: str, make: Callable[[], Any]) -> Any:
        """Of a frozen ground: what this layer made of it."""
        if ground.memo is None:
            return make()
        key = (what, self.steps, self.groups, self.transposed)
        return remembered(ground, key, (self.weight, self.bias, self.mask), make)


def linear(x: SparseTensor, layer: Layer) -> SparseTensor:
    """The window rule: W_k x over active taps, W_k G over inactive ones, nothing in the padding.

    Inactive taps read u = W_k G, a table over the (offset, class) pairs; the ground's own response
    sums the same rows of u in the same order. A zero ground leaves only its bias.
    """
    sites, ground = x.sites, x.ground
    weight, bias, groups, steps, _, transposed, mask = layer
    entry = find(sites, steps)
    out_sites = sites if entry.out_sites is None else entry.out_sites
    if ground is not None and not ground.is_zero:
        return _with_ground(x, layer, entry, out_sites, ground)
    n_out, packed = out_sites.n_sites, layer.packed(ground)
    features = conv(
        *(x.features, weight, bias, entry.pairs, n_out, groups, transposed),
        packed=packed,
        mask=mask,
    )
    if ground is not None:
        if bias is None or out_sites.is_full:
            make = partial(layer.zero, features)
        else:
            make = partial(GroundState.constant, bias, steps.out_shape)
        ground = layer.remembered(ground, "zero" if out_sites.is_full else "conv", make)
    return SparseTensor._of(features, out_sites, ground)


def _with_ground(
    x: SparseTensor, layer: Layer, entry: Entry, out_sites: Sites, ground: GroundState
) -> SparseTensor:
    weight, bias, groups, steps, c_out, transposed, mask = layer
    rows, n_out, n_samples = ground.rows.contiguous(), out_sites.n_sites, ground.values.shape[0]
    row_bytes = c_out * max(rows.element_size(), 4)
    whole = fits_whole(steps, ground, row_bytes)
    if whole:
        n_rows, n_offsets = len(rows), steps.n_offsets
        u = layer.remembered(
            ground,
            "u",
            lambda: layer.rows(rows, every_tap(n_rows, n_offsets, rows.device), n_rows * n_offsets),
        )
        taps, site_bias = site_taps(x.sites, out_sites, steps, entry, ground), bias
    else:  # u piece by piece, the bias in its sums
        u = layer.sums(rows, site_pieces(out_sites, steps, entry, ground, row_bytes))
        taps, site_bias = Segments.identity(n_out, rows.device), None

    def respond() -> GroundState:
        if whole:
            values = layer.classes(u, class_taps(steps, ground.axes, n_samples, rows.device))
        else:
            values = layer.sums(rows, class_pieces(steps, ground, row_bytes))
        axes = class_map(steps, ground.axes).axes
        values = values.to(rows.dtype).view(n_samples, *(a.n_classes for a in axes), c_out)
        return GroundState._of(values, axes)

    features = conv(
        *(x.features, weight, site_bias, entry.pairs, n_out, groups, transposed, u, taps),
        packed=layer.packed(ground),
        mask=mask,
    )
    if out_sites.is_full:
        state = layer.remembered(ground, "zero", partial(layer.zero, features))
        return SparseTensor._of(features, out_sites, state)
    return SparseTensor._of(features, out_sites, layer.remembered(ground, "conv", respond))


def _chosen(x: SparseTensor, layer: Layer, f: Callable[..., Tensor]) -> SparseTensor:
    """Sparse, saturated, or by torch's f(x, weight, bias), as the crossover says."""
    choice = _crossover.choose(x, *layer.shape)
    if watch.watcher is not None and (watcher := watch.here()) is not None:
        return watcher.convolution(x, layer, choice, partial(_run, layer, f))
    return _run(layer, f, x, choice)


def _run(
    layer: Layer, f: Callable[..., Tensor], x: SparseTensor, choice: _crossover.Choice
) -> SparseTensor:
    if choice.saturate:
        x = x._saturate()
        if choice.torch:
            operands = (x._dense_view(), layer.whole_weight, layer.bias)
            dense = f(*map(for_torch, operands)).to(x.features.dtype)
            out = SparseTensor._from_full(dense, keep_none=x.ground is None)
            if x.ground is not None:  # frozen, it stays so: the next layer's weight may be packed
                out.ground = layer.remembered(x.ground, "zero", partial(layer.zero, out.features))
            return out
    return linear(x, layer)


def run_dense(x: SparseTensor, steps: Steps, f: Callable[[Tensor], Tensor]) -> SparseTensor | None:
    """Torch's dense kernel where the crossover says so, with a saturated result; else None."""
    if not _crossover.runs_dense(x.sites.is_full, x.density, x.ground is None, steps):
        return None
    dense = f(for_torch(x._saturate()._dense_view())).to(x.features.dtype)
    return SparseTensor._from_full(dense, keep_none=x.ground is None)


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
    mask: Tensor | None = None,
) -> SparseTensor:
    """conv1d .. conv4d."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, False, mask)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(convolution, operation, n_axes))
            return run(x, weight, bias, stride, padding, dilation, groups, mask)
        c_out = c_out_of(operation, x, weight, bias, groups, False, mask)
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
    layer = Layer(weight, bias, groups, steps, c_out, False, mask)
    if n_axes not in _CONV:
        return linear(x, layer)
    args = (stride, padding, dilation, groups)
    return _chosen(x, layer, lambda t, w, b: _CONV[n_axes](t, w, b, *args))


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
    mask: Tensor | None = None,
) -> SparseTensor:
    """conv_transpose1d .. conv_transpose3d."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, True, mask)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(transposed_convolution, operation, n_axes))
            return run(x, weight, bias, stride, padding, output_padding, groups, dilation, mask)
        c_out = c_out_of(operation, x, weight, bias, groups, True, mask)
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
    args = (stride, padding, output_padding, groups, dilation)
    layer = Layer(weight, bias, groups, steps, c_out, True, mask)
    return _chosen(x, layer, lambda t, w, b: _TRANSPOSED[n_axes](t, w, b, *args))


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


@watched
def submanifold_convolution(
    operation: str,
    n_axes: int,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: Any,
    groups: int,
    ground: str,
    mask: Tensor | None = None,
) -> SparseTensor:
    """submanifold_conv1d .. submanifold_conv4d (Graham and van der Maaten 2017)."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, False, mask)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(submanifold_convolution, operation, n_axes))
            return run(x, weight, bias, dilation, groups, ground, mask)
        c_out = c_out_of(operation, x, weight, bias, groups, False, mask)
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
        w = for_torch(weight if mask is None else masked(weight, mask))
        b, full = for_torch(bias), for_torch(x._dense_view())
        dense = _CONV[n_axes](full, w, b, 1, steps.left, dilation, groups)
        return SparseTensor._from_full(dense.to(x.features.dtype), sites, keep_none=True)
    entry = find(sites, steps)
    features = conv(x.features, weight, bias, entry.pairs, sites.n_sites, groups, mask=mask)
    return SparseTensor._of(features, sites, None)


@watched
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
    mask: Tensor | None = None,
) -> SparseTensor:
    """inverse_conv1d .. inverse_conv3d: the transposed convolution at given sites only."""
    check_axes(operation, x, n_axes)
    c_out = fits(x, weight, bias, groups, True, mask)
    if c_out < 0:
        if casts(x, weight):
            run = autocasting(partial(inverse_convolution, operation, n_axes))
            return run(x, weight, bias, like, stride, padding, dilation, groups, ground, mask)
        c_out_of(operation, x, weight, bias, groups, True, mask)
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
    features = conv(x.features, weight, bias, pairs, target.n_sites, groups, True, mask=mask)
    return SparseTensor._of(features, target, None)
