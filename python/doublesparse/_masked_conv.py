"""Convolution of dense images with a pruned weight: raw operators and what they read of a mask.

A weight (c_out, c_in / groups, *kernel) is a matrix whose row is an output channel and whose column
is channel * n_taps + tap, in torch's own order; see csrc/cpu/spmm/masked_conv.h. Sums are float32
or float64; 16-bit operands are widened once and the result is rounded once. Results have the same
bits for any number of threads. Nothing here knows autograd: see `_autograd_masked_conv.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import _C
from ._precision import wide
from ._scratch import scratch
from ._spmm_costs import runs_conv
from ._structure import Structure, of_mask, unit_rows_of

Ints = tuple[int, ...]

_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
)
_LEAST_ROWS = 8  # output channels of a group: fewer do not pay for their panel
_LEAST_COLUMNS = 32


class Geometry(NamedTuple):
    """How a convolution walks, per axis.

    Attributes:
        stride: step between outputs.
        before: zeros in front.
        after: zeros behind.
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.
    """

    stride: Ints
    before: Ints
    after: Ints
    dilation: Ints
    groups: int

    def out_shape(self, shape: Sequence[int], kernel: Sequence[int]) -> Ints:
        """Spatial extents of the result; below 1 where the kernel does not fit."""
        return tuple(
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, k, s, b, a, d in zip(shape, kernel, *self[:4], strict=True)
        )


class Phase(NamedTuple):
    """Input pixels that the same taps reach.

    Attributes:
        taps: row-major indices, ascending.
        map: of the output's gradient to these pixels.
    """

    taps: Ints
    map: _C.ConvMap


@lru_cache(maxsize=512)
def _forward_map(shape: Ints, kernel: Ints, geometry: Geometry) -> _C.ConvMap:
    n_axes = len(shape)
    steps = [[t * d for t in range(k)] for k, d in zip(kernel, geometry.dilation, strict=True)]
    at = [value for tap in itertools.product(*steps) for value in tap]
    lanes = geometry.out_shape(shape, kernel)
    start, step = [0] * n_axes, [1] * n_axes
    return _C.ConvMap(lanes, geometry.stride, geometry.before, start, step, at)


@lru_cache(maxsize=512)
def _input_phases(shape: Ints, kernel: Ints, geometry: Geometry) -> tuple[Phase, ...]:
    """The input gradient as sums over output pixels, one for each phase that some tap reaches.

    Pixel i = r * stride + phase - before reads output r - k for the taps at k * stride + phase.
    """
    walks = zip(shape, kernel, geometry.stride, geometry.before, geometry.dilation, strict=True)
    found = []
    for phases in itertools.product(*(_axis_phases(*walk) for walk in walks)):
        every_tap = itertools.product(*(phase.taps for phase in phases))
        every_at = itertools.product(*(phase.at for phase in phases))
        walk = _C.ConvMap(
            [phase.lanes for phase in phases],
            [1] * len(shape),
            [phase.pad for phase in phases],
            [phase.start for phase in phases],
            geometry.stride,
            [value for at in every_at for value in at],
        )
        found.append(Phase(tuple(_row_major(tap, kernel) for tap in every_tap), walk))
    return tuple(found)


class _AxisPhase(NamedTuple):
    taps: list[int]
    at: list[int]  # of the taps
    lanes: int  # pixels
    pad: int
    start: int  # the first pixel


def _axis_phases(n: int, k: int, stride: int, before: int, dilation: int) -> list[_AxisPhase]:
    phases = []
    for phase in range(stride):
        taps = [t for t in range(k) if t * dilation % stride == phase]
        first, last = -((phase - before) // stride), (n - 1 + before - phase) // stride
        if taps and first <= last:
            most = taps[-1] * dilation // stride
            at = [most - t * dilation // stride for t in taps]
            start = first * stride + phase - before
            phases.append(_AxisPhase(taps, at, last - first + 1, most - first, start))
    return phases


def _row_major(index: Sequence[int], shape: Sequence[int]) -> int:
    flat = 0
    for i, n in zip(index, shape, strict=True):
        flat = flat * n + i
    return flat


# ------------------------------------------------------------------ what kernels read of a mask
class Form(NamedTuple):
    """A structure, and where its values lie in a contiguous and in a channels-last weight."""

    structure: Structure
    places: Tensor
    places_last: Tensor


def _form(structure: Structure, index: Tensor, shape: torch.Size) -> Form:
    """`index`: places in a contiguous weight of this shape."""
    channels, n_taps = shape[1], math.prod(shape[2:])
    if channels == 1 or n_taps == 1:
        return Form(structure, index, index)
    row, column = index // (channels * n_taps), index % (channels * n_taps)
    last = (row * n_taps + column % n_taps) * channels + column // n_taps
    return Form(structure, index, last)


def _made_of_rows(mask: Tensor, groups: int, units: bool) -> Form:
    matrix = mask.reshape(len(mask), -1)
    unit = unit_rows_of(matrix) if units else 1
    while unit > 1 and len(mask) // groups % unit:
        unit = unit // 2 if unit > 4 else 1
    structure = Structure(matrix, unit)
    return _form(structure, structure.index, mask.shape)


def _made_of_channels(mask: Tensor, groups: int, taps: Ints) -> Form:
    """The transposed matrix: rows are input channels, columns (output channel, tap in `taps`)."""
    c_out, channels = mask.shape[0] // groups, mask.shape[1]
    places = torch.arange(mask.numel(), device="cpu").view(groups, c_out, channels, -1)[
        ..., list(taps)
    ]
    places = places.transpose(1, 2).reshape(groups * channels, c_out * len(taps))
    matrix = mask.reshape(-1)[places]
    unit = unit_rows_of(matrix)
    while unit > 1 and channels % unit:
        unit = unit // 2 if unit > 4 else 1
    structure = Structure(matrix, unit)
    return _form(structure, places.reshape(-1)[structure.index], mask.shape)


def row_form(mask: Tensor, groups: int, units: bool = True) -> Form:
    """The form whose rows are output channels, of one row a unit where not `units`."""
    key = "conv", groups, units
    return of_mask(mask, key, lambda m: _made_of_rows(m, groups, units))


def _channel_form(mask: Tensor, groups: int, taps: Ints) -> Form:
    key = "conv_transposed", groups, taps
    return of_mask(mask, key, lambda m: _made_of_channels(m, groups, taps))


def density_of(mask: Tensor) -> float:
    """Share of kept weights, remembered with the mask."""
    return of_mask(mask, "density", lambda m: float(m.sum()) / max(1, m.numel()))


def values_of(weight: Tensor, form: Form) -> Tensor:
    """The kept weights in the order of the tiles."""
    if weight.is_contiguous():
        return weight.view(-1).index_select(0, form.places)
    last = weight.movedim(1, -1)
    if last.is_contiguous():
        return last.view(-1).index_select(0, form.places_last)
    return weight.reshape(-1).index_select(0, form.places)


# ------------------------------------------------------------------ raw operators
def takes_kernel(
    weight_shape: Sequence[int],
    density: float,
    g: Geometry,
    images: Sequence[int],
    dtype: torch.dtype,
) -> bool:
    """Whether the kernels of pruned weights run, rather than torch's dense ones: a pure function.

    Args:
        weight_shape: (c_out, c_in / groups, *kernel).
        density: share of kept weights.
        g: how it walks.
        images: (B, c_in, *spatial).
        dtype: of the images.
    """
    if dtype == torch.bfloat16 and _C.isa_chosen() == "amx":
        return False
    rows, columns = weight_shape[0] // g.groups, math.prod(weight_shape[1:])
    if rows < _LEAST_ROWS or columns < _LEAST_COLUMNS:
        return False
    out = g.out_shape(images[2:], weight_shape[2:])
    pixels = images[0] * math.prod(max(0, n) for n in out)
    return runs_conv(
        math.prod(weight_shape), density, pixels, math.prod(images), weight_shape[0], max(g.stride)
    )


def new_output(x: Tensor, channels: int, shape: Sequence[int]) -> Tensor:
    """An empty image of other extents in the memory format of x: contiguous or channels last."""
    sizes = (x.shape[0], channels, *shape)
    if is_channels_last(x):
        last = x.new_empty(sizes[0], *shape, channels)
        return last.movedim(-1, 1)
    return x.new_empty(sizes)


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, *spatial) has its channels innermost, and is not contiguous as well."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def conv(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """The convolution with the kept weights: (B, c_out, *out), in the memory format of x.

    Args:
        x: (B, c_in, *spatial), 1 to 3 axes, any strides.
        weight: (c_out, c_in / groups, *kernel), the dtype of x.
        mask: bool, of the weight's shape.
        bias: (c_out,) or None.
        g: see `Geometry`; its output has no negative extent.
    """
    form = row_form(mask, g.groups)
    values = values_of(wide(weight), form)
    return run(x, form.structure.tiles, values, weight.shape, bias, g)


def run(
    x: Tensor,
    tiles: _C.Tiles,
    values: Tensor,
    shape: Sequence[int],
    bias: Tensor | None,
    g: Geometry,
) -> Tensor:
    """`conv` with the values of tiles, float32 or float64; `shape`: the weight's."""
    images = wide(x)
    walk = _forward_map(tuple(x.shape[2:]), tuple(shape[2:]), g)
    y = new_output(images, shape[0], g.out_shape(x.shape[2:], shape[2:]))
    _multiply(images, tiles, values, walk, wide(bias), y, g.groups)
    return y.to(x.dtype)


def _multiply(
    x: Tensor,
    tiles: _C.Tiles,
    values: Tensor,
    walk: _C.ConvMap,
    bias: Tensor | None,
    y: Tensor,
    groups: int,
) -> None:
    threads = torch.get_num_threads()
    size = _C.masked_conv_workspace(tiles, walk, x, y, groups, False, threads)
    workspace = scratch(size, x.dtype)
    _C.masked_conv(tiles, values, walk, x, bias, groups, workspace, y, threads)


def input_grad(
    dy: Tensor, weight: Tensor, mask: Tensor, shape: Sequence[int], g: Geometry
) -> Tensor:
    """The gradient of x, whose spatial extents are `shape`: (B, c_in, *shape), in dy's format."""
    images, weight = wide(dy), wide(weight)
    dx = new_output(images, weight.shape[1] * g.groups, shape)
    phases = _input_phases(tuple(shape), tuple(weight.shape[2:]), g)
    if len(phases) < math.prod(min(s, n) for s, n in zip(g.stride, shape, strict=True)):
        dx.zero_()  # some pixels are read by no tap
    for phase in phases:
        form = _channel_form(mask, g.groups, phase.taps)
        tiles, values = form.structure.tiles, values_of(weight, form)
        _multiply(images, tiles, values, phase.map, None, dx, g.groups)
    return dx.to(dy.dtype)


def weight_grad(x: Tensor, dy: Tensor, weight: Tensor, mask: Tensor, g: Geometry) -> Tensor:
    """The gradient of the weight, of which shape and strides are read; 0 where it is masked."""
    form = row_form(mask, g.groups, units=False)
    images, grads = wide(x), wide(dy)
    walk = _forward_map(tuple(x.shape[2:]), tuple(weight.shape[2:]), g)
    tiles, threads = form.structure.tiles, torch.get_num_threads()
    size = _C.masked_conv_workspace(tiles, walk, images, grads, g.groups, True, threads)
    values = images.new_empty(tiles.n_entries)
    workspace = scratch(size, images.dtype)
    _C.masked_conv_weight_grad(tiles, walk, images, grads, g.groups, workspace, values, threads)
    values = values.to(weight.dtype)
    last = is_channels_last(weight)
    dw = weight.new_zeros(weight.numel())
    dw.index_copy_(0, form.places_last if last else form.places, values)
    if last:
        return dw.view(len(weight), *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
    return dw.view(weight.shape)


# ------------------------------------------------------------------ torch's arithmetic
def kept(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with exact zeros where it is masked, whatever is stored there."""
    return torch.where(mask, weight, 0.0)


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """The dense convolution with zeros in front and behind."""
    padding = g.before
    if g.before != g.after:
        x, padding = pad(x, g), (0,) * len(g.before)
    convolve = _CONVOLUTIONS[len(g.before) - 1]
    return convolve(x, weight, bias, g.stride, padding, g.dilation, g.groups)


def pad(x: Tensor, g: Geometry) -> Tensor:
    """The image with its zeros in front and behind."""
    both = zip(reversed(g.before), reversed(g.after), strict=True)
    return torch.nn.functional.pad(x, [n for axis in both for n in axis])


def dense_grads(
    dy: Tensor, x: Tensor, weight: Tensor, g: Geometry, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The dense gradients of x and of the weight, those that `mask` asks for."""
    shape, none = x.shape[2:], (0,) * len(g.before)
    padding = g.before
    if g.before != g.after:
        x, padding = pad(x, g), none
    walk = g.stride, padding, g.dilation, False, none, g.groups
    dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, weight, None, *walk, [*mask, False])
    if dx is not None and g.before != g.after:
        for axis, (first, n) in enumerate(zip(g.before, shape, strict=True)):
            dx = dx.narrow(axis + 2, first, n)
    return dx, dw
