"""Moving sites: interpolate and pad. Every output position copies one input position.

The weighted modes of interpolate read several: see `_interpolate.py`. The tables come from torch
itself, run on the positions of one axis: its index arithmetic (which rounds in float32) holds by
construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cache, _crossover
from ._adaptive_pool import adaptive_avg_pool, output_sizes
from ._autograd_windows import window_max
from ._checks import check_shape
from ._classes import PAD, Array
from ._elementwise import refuse
from ._global_pool import global_max_pool
from ._ground import GroundState
from ._interpolate import AxisTable, mix, probe_axis
from ._precision import widened
from ._regather import adaptive_taps, copy_windows, table_windows
from .tensor import SparseTensor

_EXACT_FLOAT32 = 1 << 24  # positions below this are exact in float32


def _positions(extent: int, n_axes: int, dtype: torch.dtype) -> Tensor:
    """0 .. extent - 1 along the first of the spatial axes of an image (1, 1, extent, 1, ...)."""
    if dtype != torch.float64:
        dtype = torch.float32 if extent <= _EXACT_FLOAT32 else torch.float64
    return torch.arange(extent, dtype=dtype, device="cpu").view(1, 1, extent, *[1] * (n_axes - 1))


def _column(moved: Tensor) -> Array:
    return moved.reshape(-1, 1).long().numpy()


def runs_dense(x: SparseTensor) -> bool:
    return x.sites.is_full and _crossover.get_crossover() is not None


def _check_extents(x: SparseTensor, out_shape: tuple[int, ...], operation: str) -> None:
    """Cells are numbered by int64, also on the way, when some axes are moved and others not."""
    shape = x.sites.spatial_shape
    for a in range(len(shape)):
        between = check_shape((*out_shape[: a + 1], *shape[a + 1 :]), operation)
        if x.sites.batch_size * math.prod(between) >= 2**63:
            raise ValueError(
                f"{operation}: batch_size times the extents must be below 2^63, got "
                f"{(x.sites.batch_size, *between)}; use a smaller grid"
            )


def move(
    x: SparseTensor,
    what: tuple[Hashable, ...],
    make_taps: Callable[[], list[Array]],
    fill: float = 0.0,
) -> SparseTensor:
    """Every output position copies one input position or is `fill`; the windows are remembered.

    Args:
        x: the input.
        what: names the operation with all its arguments, but for the fill.
        make_taps: the table of each axis, int (n_out, 1).
        fill: what padding holds.
    """
    ground = x.ground
    kind = None
    if ground is not None:
        kind = ground.axes, ground.is_zero, 1 if ground.is_zero else ground.values.shape[0]
    key = ("moved", what, kind)
    windows = _cache.get(x.sites, key)
    if windows is None:
        taps = make_taps()
        _check_extents(x, tuple(len(t) for t in taps), str(what[0]))
        windows = table_windows(x, taps)
        held = 2 * windows.table.n_bytes + 24 * windows.sites.n_sites
        windows = _cache.put(x.sites, key, windows, held)
    return copy_windows(x, windows, fill)


# ------------------------------------------------------------------ interpolate
def _of_axis(name: str, value: Any, a: int, n_axes: int) -> Any:
    if not isinstance(value, (tuple, list, torch.Size)):
        return value
    if len(value) != n_axes:
        raise ValueError(
            f"interpolate: {name} must be one number or one per spatial axis, {n_axes}, got "
            f"{tuple(value)}; match the input"
        )
    return value[a]


_WEIGHTED = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}
"""Modes that take weighted means, with the number of axes that torch wants for each."""


def interpolate(
    x: SparseTensor | Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> SparseTensor | Tensor:
    """Resampling, with the arguments of `torch.nn.functional.interpolate`.

    An output site is active where it reads an active site with a weight other than zero; the
    others hold the interpolated ground. Where the ground is None, means are over active sites.
    Indices and weights are those of torch's own function, which is run on single axes.

    Args:
        x: (B, C, *spatial).
        size: output extents, one number or one per axis; or
        scale_factor: what multiplies the extents, likewise.
        mode: "nearest", "nearest-exact" or "area" for any number of axes, "linear" for one,
            "bilinear" and "bicubic" for two, "trilinear" for three.
        align_corners: of the weighted modes.
        recompute_scale_factor: take the scale from the rounded output size.
        antialias: False; the wide windows of True have no sparse form.

    Returns:
        a SparseTensor. "area" to one value per channel is a dense (B, C, 1, ...).

    Raises:
        TypeError: x is no tensor.
        ValueError: sizes and scales that torch refuses, a mode for another number of axes, or a
            weighted mode for an axis of more than 2^24 positions.
        NotImplementedError: antialias on a SparseTensor; "bicubic", whose weights may cancel, where
            the ground is None.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 1]]), (3,))
        >>> ds.functional.interpolate(x, scale_factor=2, mode="linear").to_dense()
        tensor([[[0.0000, 0.2500, 0.7500, 0.7500, 0.2500, 0.0000]]])
    """
    kwargs: dict[str, Any] = {
        "mode": mode,
        "align_corners": align_corners,
        "recompute_scale_factor": recompute_scale_factor,
    }
    if not isinstance(x, SparseTensor):
        if not isinstance(x, Tensor):
            raise TypeError(
                "interpolate: x must be a SparseTensor or a Tensor (B, C, *spatial), got "
                f"{type(x).__name__}; make one with ds.SparseTensor.from_dense"
            )
        return F.interpolate(x, size, scale_factor, antialias=antialias, **kwargs)
    if antialias:
        refuse("interpolate", "of a SparseTensor has no antialias=True")
    if mode not in (*_WEIGHTED, "nearest", "nearest-exact", "area"):
        refuse("interpolate", f"of a SparseTensor has no mode {mode!r}")
    sizes, scales = _check_target(x, size, scale_factor)
    shape = x.sites.spatial_shape
    if mode in _WEIGHTED and _WEIGHTED[mode] != len(shape):
        raise ValueError(
            f"interpolate: mode {mode!r} is for {_WEIGHTED[mode]} spatial axes, got {len(shape)}; "
            "use linear, bilinear or trilinear for 1, 2 or 3"
        )
    if mode == "bicubic" and x.ground is None:
        refuse("interpolate", "with mode='bicubic' has no mean over active sites alone")
    if runs_dense(x) and len(shape) <= 3:
        dense = F.interpolate(x._dense_view(), size, scale_factor, **kwargs)
        return SparseTensor._from_full(dense, keep_none=x.ground is None)
    if mode in _WEIGHTED:
        return widened(_weighted)(x, sizes, scales, kwargs)
    if mode == "area":
        return widened(_area)(x, sizes, scales, align_corners)
    what, resized = _resizer(x, sizes, scales, kwargs)

    def make_taps() -> list[Array]:
        rest = [1] * (_image_rank(x) - 1)
        axes = [_positions(n, 1 + len(rest), x.dtype) for n in shape]
        return [_column(resized(a, at)) for a, at in enumerate(axes)]

    return move(x, what, make_taps)


def _check_target(x: SparseTensor, size: Any, scale_factor: Any) -> tuple[list[Any], list[Any]]:
    """Size and scale factor of each axis; one of them is None."""
    shape = x.sites.spatial_shape
    n_axes = len(shape)
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"interpolate: one of size and scale_factor must be given, got size={size}, "
            f"scale_factor={scale_factor}; pass one of them"
        )
    sizes, scales = (
        [_of_axis(name, value, a, n_axes) for a in range(n_axes)]
        for name, value in (("size", size), ("scale_factor", scale_factor))
    )
    for n, scale, extent in zip(sizes, scales, shape, strict=True):
        if (n is not None and n < 1) or (scale is not None and not scale * extent >= 1):
            raise ValueError(
                f"interpolate: size must be at least 1 on every axis, got size={size}, "
                f"scale_factor={scale_factor} for {shape}; ask for a larger one"
            )
    return sizes, scales


def _image_rank(x: SparseTensor) -> int:
    """Torch's index rule differs between ranks, so probes have the rank of the input; at most 3."""
    return min(len(x.sites.spatial_shape), 3)


def _resizer(
    x: SparseTensor, sizes: list[Any], scales: list[Any], kwargs: dict[str, Any]
) -> tuple[tuple[Hashable, ...], Callable[[int, Tensor], Tensor]]:
    """What the resampling is called in the cache, and torch's function for one axis.

    That function takes the axis and an image (1, channels, extent, 1, ...).
    """
    rest = _image_rank(x) - 1

    def resized(a: int, image: Tensor) -> Tensor:
        to = None if sizes[a] is None else [sizes[a], *[1] * rest]
        by = None if scales[a] is None else [float(scales[a]), *[1.0] * rest]
        return F.interpolate(image, to, by, **kwargs)

    double = x.dtype == torch.float64  # the rule depends on the precision too
    return ("interpolate", *sizes, *scales, *kwargs.values(), double), resized


def _weighted(
    x: SparseTensor, sizes: list[Any], scales: list[Any], kwargs: dict[str, Any]
) -> SparseTensor:
    """The linear and cubic modes."""
    what, resized = _resizer(x, sizes, scales, kwargs)
    shape, width = x.sites.spatial_shape, 4 if kwargs["mode"] == "bicubic" else 2
    target = zip(shape, sizes, scales, strict=True)
    longest = max(max(n, n * s if m is None else m) for n, m, s in target)
    if longest > _EXACT_FLOAT32:
        raise ValueError(
            f"interpolate: mode {kwargs['mode']!r} is for extents of at most {_EXACT_FLOAT32}, got "
            f"{longest}; interpolate tiles, or use mode='nearest'"
        )

    def make_tables() -> list[AxisTable]:
        tables = []
        for a, extent in enumerate(shape):

            def run(signal: Tensor, a: int = a) -> Tensor:
                flat = signal.reshape(*signal.shape, *[1] * (len(shape) - 1))
                return resized(a, flat).flatten(2)

            tables.append(probe_axis(extent, width, run, x.dtype == torch.float64))
        _check_extents(x, tuple(len(t.taps) for t in tables), "interpolate")
        return tables

    return mix(x, what, make_tables)


def _area(
    x: SparseTensor, sizes: list[Any], scales: list[Any], align_corners: bool | None
) -> SparseTensor | Tensor:
    """Adaptive average pooling to the size, as torch has it."""
    if align_corners is not None:
        raise ValueError(
            f"interpolate: align_corners must be None for mode 'area', got {align_corners}; "
            "leave it out"
        )
    for a, extent in enumerate(x.sites.spatial_shape):
        if sizes[a] is None:
            sizes[a] = math.floor(float(extent * scales[a]))
    return adaptive_avg_pool("interpolate", len(sizes), x, sizes)


# ------------------------------------------------------------------ pad
def pad(
    input: SparseTensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> SparseTensor:
    """Constant, reflect, replicate or circular padding of space; negative numbers crop.

    This is what `padding_mode=` of `nn.Conv*d` calls.

    Raises:
        ValueError: paddings that torch refuses, or an odd number of them.
        NotImplementedError: padding of channels or batch.
    """
    shape = input.sites.spatial_shape
    n_axes, pad = len(shape), [int(p) for p in pad]
    if len(pad) % 2:
        raise ValueError(f"pad: pad must have an even length, got {pad}; give (low, high) per axis")
    if any(pad[2 * n_axes :]):
        refuse("pad", "of a SparseTensor runs over space, not over channels or batch")
    pad = (pad + [0] * 2 * n_axes)[: 2 * n_axes]
    sides = [(pad[2 * i], pad[2 * i + 1]) for i in reversed(range(n_axes))]
    value = 0.0 if value is None else value
    exists = input.ground is not None or mode != "constant" or max(pad) <= 0
    if runs_dense(input) and exists and (n_axes <= 3 or mode == "constant"):
        # torch takes the padding of all spatial axes at once only in the modes other than constant
        dense = F.pad(input._dense_view(), pad, mode, value if mode == "constant" else None)
        return SparseTensor._from_full(dense, keep_none=input.ground is None)
    if any(n + low + high < 1 for n, (low, high) in zip(shape, sides, strict=True)):
        raise ValueError(
            f"pad: padding must leave at least one position per axis, got {pad} for {shape}; "
            "crop less"
        )

    def make_taps() -> list[Array]:
        return [_padded_axis(*axis, mode) for axis in zip(shape, sides, strict=True)]

    return move(input, ("pad", *pad, mode), make_taps, value)


def _padded_axis(extent: int, sides: tuple[int, int], mode: str) -> Array:
    at = _positions(extent, 1, torch.float64)
    if not any(sides):
        return _column(at)
    if mode == "constant":
        return _column(F.pad(at, sides, mode, PAD))
    if mode in ("reflect", "replicate", "circular"):
        most = {"reflect": extent - 1, "circular": extent}.get(mode, max(sides))
        if max(sides) > most:
            raise ValueError(
                f"pad: {mode} padding must be at most {most} for an extent of {extent}, got "
                f"{sides}; pad less, or pad twice"
            )
        return _column(F.pad(at, sides, mode))
    raise ValueError(
        "pad: mode must be constant, reflect, replicate or circular, "
        f"got {mode!r}; pass one of them"
    )


# ------------------------------------------------------------------ adaptive maximum
def adaptive_max_pool(
    input: SparseTensor, output_size: Any, return_indices: bool = False
) -> SparseTensor | Tensor:
    """Adaptive maximum with torch's windows; one value per channel is a dense (B, C, 1, ...)."""
    if return_indices:
        refuse("adaptive_max_pool", "of a SparseTensor has no return_indices=True")
    sizes = output_sizes("adaptive_max_pool", output_size, input.sites.spatial_shape)
    if max(sizes) == 1:
        pooled = global_max_pool(input)
        return pooled.view(*pooled.shape, *sizes)
    x, ground = input, input.ground
    if ground is not None and ground.is_zero:  # the maximum sees a zero as it sees any other value
        ground = GroundState._of(ground.values, ground.axes)
        x = SparseTensor._of(x.features, x.sites, ground)
    taps = [adaptive_taps(n, m) for n, m in zip(x.sites.spatial_shape, sizes, strict=True)]
    windows = table_windows(x, taps)
    rows = None if ground is None else ground.rows.contiguous()
    out = SparseTensor._of(window_max(x.features, rows, windows.table), windows.sites, None)
    if ground is not None and rows is not None and windows.classes is not None:
        n_classes = tuple(a.n_classes for a in windows.axes)
        values = window_max(rows, None, windows.classes)
        shape = (ground.values.shape[0], *n_classes, ground.channels)
        out.ground = GroundState._of(values.view(shape), windows.axes)
        out._drop_ground_if_full()
    return out
