"""Channels and space exchanged: pixel shuffle and its inverse."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _cache, ops
from ._autograd import gather_rows
from ._classes import AxisClasses
from ._device import moved
from ._elementwise import refuse
from ._ground import GroundState
from ._regather import TableWindows, table_windows
from ._torch_compat import untraced
from .sites import Sites
from .tensor import SparseTensor


def _check_factor(operation: str, name: str, x: SparseTensor, factor: int) -> None:
    if x.sites.n_axes != 2:
        refuse(operation, f"of a SparseTensor is for two spatial axes, got {x.sites.n_axes}")
    if isinstance(factor, bool) or not isinstance(factor, int):
        raise TypeError(f"{operation}: {name} must be an int, got {factor!r}; pass 1 or more")
    if factor < 1:
        raise ValueError(f"{operation}: {name} must be positive, got {factor}; pass 1 or more")


# ------------------------------------------------------------------ channels to space
class _Spread(NamedTuple):
    """Every site becomes r * r of them."""

    sites: Sites
    rows: Tensor  # int32: which (site, i, j) each output row is


@untraced
def _spread_sites(sites: Sites, r: int) -> _Spread:
    coords = sites.coords.numpy()
    row, i, j = (v.reshape(-1) for v in np.indices((len(coords), r, r)))
    moved = np.stack([coords[row, 0], coords[row, 1] * r + i, coords[row, 2] * r + j], 1)
    shape = (sites.spatial_shape[0] * r, sites.spatial_shape[1] * r)
    keys = ops.linear_keys(torch.from_numpy(np.ascontiguousarray(moved, np.int32)), shape)
    order = torch.argsort(keys)
    out = Sites(ops.coords_of_keys(keys[order], shape), shape, sites.batch_size, sites.device)
    return _Spread(out, order.to(torch.int32))


def _interleave(axis: AxisClasses, r: int) -> AxisClasses:
    """Position p * r + i has class c * r + i, where p has c."""
    fine = axis.expand().astype(np.int64)[:, None] * r + np.arange(r)
    return AxisClasses.from_map(fine.reshape(-1))


def pixel_shuffle(input: SparseTensor, upscale_factor: int) -> SparseTensor:
    """Channels to space (Shi et al. 2016): (B, C r^2, H, W) to (B, C, H r, W r).

    Raises:
        NotImplementedError: another number of spatial axes than two.
        ValueError: channels that r^2 does not divide, or extents beyond int32.
    """
    r, sites = upscale_factor, input.sites
    _check_factor("pixel_shuffle", "upscale_factor", input, r)
    channels = input.features.shape[1]
    if channels % (r * r):
        raise ValueError(
            f"pixel_shuffle: channels must be divisible by upscale_factor^2, got {channels} for "
            f"{r}; use a convolution to a multiple of {r * r} channels"
        )
    if max(sites.spatial_shape) * r >= 2**31 or sites.n_cells * r * r >= 2**63:
        raise ValueError(
            f"pixel_shuffle: extents must stay below 2^31, got {sites.spatial_shape} times {r}; "
            "use a smaller grid"
        )
    spread = _cache.get(sites, ("pixel_shuffle", r))
    if spread is None:
        spread = moved(_spread_sites(sites.host(), r), sites.device)
        spread = _cache.put(sites, ("pixel_shuffle", r), spread, 16 * spread.sites.n_sites)
    split = input.features.unflatten(1, (-1, r * r)).transpose(1, 2)
    features = gather_rows(split.flatten(0, 1), spread.rows)
    ground = input.ground
    if ground is None:
        return SparseTensor._of(features, spread.sites, None)
    if ground.is_zero or sites.is_full:
        return SparseTensor._of(features, spread.sites, SparseTensor._zero(features, spread.sites))
    n_samples, height, width, _ = ground.values.shape
    values = ground.values.unflatten(-1, (-1, r, r)).permute(0, 1, 4, 2, 5, 3)
    values = values.reshape(n_samples, height * r, width * r, -1)
    state = GroundState._of(values, tuple(_interleave(axis, r) for axis in ground.axes))
    return SparseTensor._of(features, spread.sites, state)


# ------------------------------------------------------------------ space to channels
def pixel_unshuffle(input: SparseTensor, downscale_factor: int) -> SparseTensor:
    """Space to channels, the inverse of `pixel_shuffle`: (B, C, H r, W r) to (B, C r^2, H, W).

    An output site is active where one of its r * r pixels is.

    Raises:
        NotImplementedError: another number of spatial axes than two.
        ValueError: extents that r does not divide.
    """
    r, sites = downscale_factor, input.sites
    _check_factor("pixel_unshuffle", "downscale_factor", input, r)
    if any(n % r for n in sites.spatial_shape):
        raise ValueError(
            f"pixel_unshuffle: extents must be divisible by downscale_factor, got "
            f"{sites.spatial_shape} for {r}; pad or crop the input"
        )
    ground = None if input.ground is None or input.ground.is_zero else input.ground
    kind = None if ground is None else (ground.axes, ground.values.shape[0])
    key = ("pixel_unshuffle", r, input.ground is None, kind)
    windows = _cache.get(sites, key)
    if windows is None:
        taps = [np.arange(n).reshape(-1, r) for n in sites.spatial_shape]
        windows = table_windows(input, taps)
        windows = _cache.put(sites, key, windows, 2 * windows.table.n_bytes)
    return _side_by_side(input, windows, ground)


def _side_by_side(
    x: SparseTensor, windows: TableWindows, ground: GroundState | None
) -> SparseTensor:
    """What the taps of a window read, as channels."""
    rows = windows.table.rows
    values = [x.features] if ground is None else [x.features, ground.rows]
    nothing = sum(len(v) for v in values)
    source = torch.cat([*values, x.features.new_zeros(1, x.features.shape[1])])
    behind = torch.where(rows == -1, nothing, x.sites.n_sites - 2 - rows)
    index = torch.where(rows >= 0, rows, behind).to(torch.int32)
    features = _as_channels(source, index)
    if x.ground is None:
        return SparseTensor._of(features, windows.sites, None)
    if ground is None or windows.classes is None or windows.sites.is_full:
        state = SparseTensor._zero(features, windows.sites)
        return SparseTensor._of(features, windows.sites, state)
    n_classes = tuple(a.n_classes for a in windows.axes)
    own = _as_channels(ground.rows, windows.classes.rows)  # every tap reads a class
    own = own.view(ground.values.shape[0], *n_classes, own.shape[1])
    return SparseTensor._of(features, windows.sites, GroundState._of(own, windows.axes))


def _as_channels(source: Tensor, index: Tensor) -> Tensor:
    """Rows side by side, channel by channel: (n, C * taps) of index (n, taps)."""
    n_taps, channels = index.shape[1], source.shape[1]
    taken = gather_rows(source, index.reshape(-1).contiguous()).view(len(index), n_taps, channels)
    return taken.transpose(1, 2).reshape(len(index), channels * n_taps)
