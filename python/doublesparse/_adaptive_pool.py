"""Adaptive average pools.

Windows are long and few, so no table of taps is made: an active site goes to the few windows that
hold it, and the ground counts as often as its class occurs, inactive, in a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cache, _classes, _crossover, ops
from ._autograd import Segments, gather_rows, segment_sum
from ._checks import check_shape
from ._classes import Array, AxisClasses
from ._device import moved
from ._geometry import Ints
from ._global_pool import global_avg_pool
from ._ground import GroundState
from ._parameters import check_axes, check_dtype
from ._regather import adaptive_taps, readers
from ._torch_compat import untraced
from .sites import Sites
from .tensor import SparseTensor

_DENSE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class _Weighted(NamedTuple):
    """Class rows with the number of times each counts, window by window."""

    rows: Tensor  # int32 (nnz,)
    counts: Tensor  # int64 (nnz, 1)
    segments: Segments


class _Plan(NamedTuple):
    sites: Sites
    active: Segments  # feature rows of every output site
    n_active: Tensor  # int64 (n_out, 1)
    size: Tensor  # int64 (n_out, 1): cells of each output site's window
    site_ground: _Weighted | None
    class_ground: _Weighted | None
    class_size: Tensor  # int64 (n_class_rows, 1)
    axes: tuple[AxisClasses, ...]


def output_sizes(operation: str, output_size: Any, spatial_shape: Ints) -> Ints:
    """One size per axis from an int, None (as it is) or a sequence of them."""
    n_axes = len(spatial_shape)
    many = isinstance(output_size, (tuple, list, torch.Size))
    sizes = tuple(output_size) if many else (output_size,) * n_axes
    if len(sizes) == 1:
        sizes *= n_axes
    if len(sizes) != n_axes:
        raise ValueError(
            f"{operation}: output_size must have {n_axes} values, got {output_size!r}; "
            "give one per axis"
        )
    sizes = tuple(n if s is None else s for s, n in zip(sizes, spatial_shape, strict=True))
    if any(isinstance(s, bool) or not hasattr(s, "__index__") for s in sizes):
        raise TypeError(
            f"{operation}: output_size must be ints or None, got {output_size!r}; pass integers"
        )
    sizes = tuple(s.__index__() for s in sizes)
    if min(sizes) < 1:
        raise ValueError(
            f"{operation}: output_size must be at least 1, got {output_size!r}; use 1 or more"
        )
    return check_shape(sizes, operation)


def adaptive_avg_pool(
    operation: str, n_axes: int, x: SparseTensor, output_size: Any
) -> SparseTensor | Tensor:
    """adaptive_avg_pool1d .. 3d. One value per sample and channel is a dense Tensor (B, C, 1, ...).

    Where the ground is None the mean is over the active sites of a window.
    """
    check_axes(operation, x, n_axes)
    sites, ground = x.sites, x.ground
    size = output_sizes(operation, output_size, sites.spatial_shape)
    if sites.batch_size * math.prod(size) >= 2**63:
        raise ValueError(
            f"{operation}: output_size must have, with the batch, a product below 2^63, "
            f"got {(sites.batch_size, *size)}; use a smaller size"
        )
    if max(size) == 1:
        pooled = global_avg_pool(x)
        return pooled.view(*pooled.shape, *size)
    if _crossover.runs_dense(sites.is_full, x.density, ground is None):
        image = x._dense_view() if sites.is_full else x.to_dense()
        return SparseTensor._from_full(_DENSE[n_axes](image, size), keep_none=ground is None)
    check_dtype(operation, x)
    axes = None if ground is None or ground.is_zero else ground.axes
    n_samples = ground.values.shape[0] if ground is not None and axes is not None else 1
    key = ("adaptive", size, axes, n_samples)
    plan = _cache.get(sites, key)
    if plan is None:
        plan = moved(_build(sites.host(), size, axes, n_samples), sites.device)
        held = 3 * plan.active.n_bytes + 12 * plan.sites.coords.numel()
        held += 0 if plan.site_ground is None else 3 * plan.site_ground.segments.n_bytes
        plan = _cache.put(sites, key, plan, held)
    return _apply(x, plan, n_samples)


def _apply(x: SparseTensor, plan: _Plan, n_samples: int) -> SparseTensor:
    ground, out_sites = x.ground, plan.sites
    total = segment_sum(x.features, plan.active)
    if ground is None:
        return SparseTensor._of(total / plan.n_active, out_sites, None)
    if plan.site_ground is None or plan.class_ground is None:
        state = GroundState.zero(total.shape[1], out_sites.spatial_shape, total.dtype, total.device)
        return SparseTensor._of(total / plan.size, out_sites, state)
    rows = ground.rows
    total = total + _weighted_sum(rows, plan.site_ground)
    values = _weighted_sum(rows, plan.class_ground) / plan.class_size
    n_classes = tuple(a.n_classes for a in plan.axes)
    state = GroundState._of(values.view(n_samples, *n_classes, values.shape[1]), plan.axes)
    out = SparseTensor._of(total / plan.size, out_sites, state)
    out._drop_ground_if_full()
    return out


def _weighted_sum(rows: Tensor, weighted: _Weighted) -> Tensor:
    return segment_sum(gather_rows(rows, weighted.rows) * weighted.counts, weighted.segments)


# ------------------------------------------------------------------ the windows
@untraced
def _build(sites: Sites, size: Ints, axes: tuple[AxisClasses, ...] | None, n_samples: int) -> _Plan:
    taps = [adaptive_taps(n, m) for n, m in zip(sites.spatial_shape, size, strict=True)]
    out_sites, src, dst = _joined(sites, taps)
    start = torch.searchsorted(dst, torch.arange(out_sites.n_sites + 1, device="cpu"))
    active = Segments(src.to(torch.int32), start, sites.n_sites)
    n_active = (start[1:] - start[:-1])[:, None]
    coords = out_sites.coords.numpy()
    extents = [(t >= 0).sum(1) for t in taps]
    cells = np.ones(out_sites.n_sites, np.int64)
    for a, extent in enumerate(extents):
        cells *= extent[coords[:, 1 + a]]
    window = torch.from_numpy(cells)[:, None]
    if axes is None:
        return _Plan(out_sites, active, n_active, window, None, None, window[:0], ())
    sides = [_classes.table(axis, t) for axis, t in zip(axes, taps, strict=True)]
    out_axes = tuple(s[0] for s in sides)
    histograms = [_histogram(s[1]) for s in sides]
    n_in = tuple(a.n_classes for a in axes)
    own = [axis.lookup(coords[:, 1 + a]) for a, axis in enumerate(out_axes)]
    site_ground = _inactive(sites, own, histograms, n_in, axes, src, dst, out_sites, n_samples)
    shape = tuple(a.n_classes for a in out_axes)
    ids = [i.reshape(-1) for i in np.indices(shape)]
    row, flat, count = _product(ids, histograms, n_in)
    n_classes, n_rows = len(ids[0]), int(np.prod(n_in))
    sample = np.arange(n_samples)[:, None]
    class_rows = (sample * n_rows + flat).reshape(-1)
    class_row = (sample * n_classes + row).reshape(-1)
    class_ground = _weighted(
        class_row, class_rows, np.tile(count, n_samples), n_classes * n_samples
    )
    class_cells = np.bincount(row, weights=count, minlength=n_classes).astype(np.int64)
    class_size = torch.from_numpy(np.tile(class_cells, n_samples))[:, None]
    return _Plan(
        out_sites, active, n_active, window, site_ground, class_ground, class_size, out_axes
    )


def _joined(sites: Sites, taps: Sequence[Array]) -> tuple[Sites, Tensor, Tensor]:
    """Output sites, and the (input row, output row) pairs sorted by output row, then input row."""
    coords = sites.coords.long().numpy()
    src = np.arange(len(coords))
    for a, t in enumerate(taps):
        start, positions = readers(t, sites.spatial_shape[a])
        low, high = start[coords[:, 1 + a]], start[coords[:, 1 + a] + 1]
        n = high - low
        row = np.repeat(np.arange(len(coords)), n)
        within = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
        coords, src = coords[row], src[row]
        coords[:, 1 + a] = positions[low[row] + within]
    size = tuple(len(t) for t in taps)
    keys = ops.linear_keys(torch.from_numpy(coords).to(torch.int32), size)
    order = torch.argsort(keys, stable=True)
    unique, dst = torch.unique_consecutive(keys[order], return_inverse=True)
    out = Sites(ops.coords_of_keys(unique, size), size, sites.batch_size, sites.device)
    return out, torch.from_numpy(src)[order], dst


def _histogram(reads: Array) -> tuple[Array, Array, Array]:
    """How often each output class of an axis reads each input class: CSR (start, class, count)."""
    n_classes = int(reads.max()) + 1
    row, tap = np.nonzero(reads >= 0)
    key, count = np.unique(row * n_classes + reads[row, tap], return_counts=True)
    start = np.searchsorted(key, np.arange(len(reads) + 1) * n_classes)
    return start, key % n_classes, count


def _product(
    ids: Sequence[Array], histograms: Sequence[tuple[Array, Array, Array]], n_in: Ints
) -> tuple[Array, Array, Array]:
    """Histograms over flat classes of windows given by their class per axis.

    Returns:
        window, flat class and count, sorted.
    """
    row = np.arange(len(ids[0]))
    flat, total = np.zeros(len(row), np.int64), np.ones(len(row), np.int64)
    for a, (start, classes, count) in enumerate(histograms):
        own = ids[a][row]
        n = start[own + 1] - start[own]
        at = np.repeat(start[own] - (np.cumsum(n) - n), n) + np.arange(int(n.sum()))
        flat = np.repeat(flat, n) * n_in[a] + classes[at]
        total = np.repeat(total, n) * count[at]
        row = np.repeat(row, n)
    return row, flat, total


def _inactive(
    sites: Sites,
    own: Sequence[Array],
    histograms: Sequence[tuple[Array, Array, Array]],
    n_in: Ints,
    axes: tuple[AxisClasses, ...],
    src: Tensor,
    dst: Tensor,
    out_sites: Sites,
    n_samples: int,
) -> _Weighted:
    """For every output site the class rows of its window's inactive sites, with their numbers."""
    row, flat, count = _product(own, histograms, n_in)
    n_rows = int(np.prod(n_in))
    key = row * n_rows + flat  # sorted
    active = dst.numpy() * n_rows + sites.class_of(axes)[src].numpy()
    count = count - np.bincount(np.searchsorted(key, active), minlength=len(key))
    keep = np.flatnonzero(count)
    row, flat, count = row[keep], flat[keep], count[keep]
    if n_samples != 1:
        flat = flat + out_sites.batch.numpy()[row].astype(np.int64) * n_rows
    return _weighted(row, flat, count, out_sites.n_sites)


def _weighted(row: Array, flat: Array, count: Array, n_windows: int) -> _Weighted:
    start = torch.from_numpy(np.searchsorted(row, np.arange(n_windows + 1)))
    return _Weighted(
        torch.from_numpy(flat.astype(np.int32)),
        torch.from_numpy(count)[:, None],
        Segments(None, start, len(row)),
    )
