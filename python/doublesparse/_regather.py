"""Operations given by any table of taps: pad, interpolate, adaptive pools.

A table says, per axis, which input position each output position reads through each tap. Where it
is not arithmetic there are no shifted lists to merge, so neighbours are looked up by binary search
on the sites' linear keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from . import _classes, ops
from ._autograd import gather_rows
from ._autograd_windows import Table
from ._classes import Array, AxisClasses
from ._device import CPU, moved
from ._ground import GroundState
from ._torch_compat import untraced
from ._windows import ClassMap, class_windows
from .sites import Sites
from .tensor import SparseTensor


class TableWindows(NamedTuple):
    """The windows of a table-driven operation.

    Attributes:
        sites: output sites: those that read at least one active site.
        table: what each tap of an output site reads: a feature row, -1 for padding (and, where the
            input's ground is None or zero, for inactive sites), -2 - g for class row g.
        classes: class row that each tap of an output class row reads, int32 (rows, n_offsets), or
            -1; None without a ground to read.
        axes: class maps of the output.
        reads: per axis int32 (n_out_classes, k): input class, PAD or ABSENT.
    """

    sites: Sites
    table: Table
    classes: Table | None
    axes: tuple[AxisClasses, ...]
    reads: list[Array]


def readers(taps: Array, extent: int) -> tuple[Array, Array]:
    """The inverse of one axis' taps: the output positions that read each input position.

    Returns:
        CSR: start (extent + 1,), positions.
    """
    flat = taps.reshape(-1)
    valid = np.flatnonzero(flat >= 0)
    order = valid[np.argsort(flat[valid], kind="stable")]
    start = np.searchsorted(flat[order], np.arange(extent + 1))
    return start, order // taps.shape[1]


def table_sites(sites: Sites, taps: Sequence[Array]) -> Sites:
    """The output sites: the distinct cells that read an active site, axis by axis."""
    out_shape = tuple(len(t) for t in taps)
    coords = sites.coords.long().numpy()
    for a, t in enumerate(taps):
        start, positions = readers(t, sites.spatial_shape[a])
        low, high = start[coords[:, 1 + a]], start[coords[:, 1 + a] + 1]
        n = high - low
        row = np.repeat(np.arange(len(coords)), n)
        within = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
        coords = coords[row]
        coords[:, 1 + a] = positions[low[row] + within]
        shape = (*out_shape[: a + 1], *sites.spatial_shape[a + 1 :])
        coords = _unique(coords, shape)
    return Sites(
        torch.from_numpy(coords).to(torch.int32), out_shape, sites.batch_size, sites.device
    )


def _unique(coords: Array, shape: tuple[int, ...]) -> Array:
    keys = torch.unique(ops.linear_keys(torch.from_numpy(coords).to(torch.int32), shape))
    return ops.coords_of_keys(keys, shape).long().numpy()


def read_rows(sites: Sites, out_sites: Sites, taps: Sequence[Array]) -> Tensor:
    """The feature row that each tap of an output site reads: int32 (n_out, n_offsets).

    -1 stands for anything but an active site.
    """
    coords = out_sites.coords.long()
    keys = coords[:, :1].clone()
    valid = torch.ones_like(keys, dtype=torch.bool)
    for a, t in enumerate(taps):
        at = torch.from_numpy(np.asarray(t, np.int64))[coords[:, 1 + a]]
        keys = (keys[:, :, None] * sites.spatial_shape[a] + at.clamp(min=0)[:, None, :]).flatten(1)
        valid = (valid[:, :, None] & (at >= 0)[:, None, :]).flatten(1)
    if sites.n_sites == 0:
        return torch.full(keys.shape, -1, dtype=torch.int32, device="cpu")
    row = torch.searchsorted(sites.keys, keys).clamp_(max=sites.n_sites - 1)
    return torch.where(valid & (sites.keys[row] == keys), row, -1).to(torch.int32)


@untraced
def table_windows(x: SparseTensor, taps: Sequence[Array]) -> TableWindows:
    """Windows of an operation given by tables.

    Args:
        x: the input.
        taps: per axis int (n_out, k): the input position that output position o reads through tap
            t, PAD or ABSENT.
    """
    device = x.sites.device
    sites, ground = x.sites.host(), x.ground
    taps = [np.asarray(t) for t in taps]
    out_sites = table_sites(sites, taps)
    rows = read_rows(sites, out_sites, taps)
    if ground is None:
        uniform = tuple(AxisClasses.uniform(len(t)) for t in taps)
        windows = TableWindows(out_sites, Table(rows), None, uniform, [])
        return cast("TableWindows", moved(windows, device))
    sides = [_classes.table(axis, t) for axis, t in zip(ground.axes, taps, strict=True)]
    cmap = ClassMap(tuple(s[0] for s in sides), [s[1] for s in sides], ground.n_classes)
    if not ground.is_zero:
        n_samples = ground.values.shape[0]
        own = class_windows(cmap, 1, 0, cmap.n_out, CPU)[out_sites.class_of(cmap.axes)]
        if n_samples != 1:
            own = torch.where(own >= 0, own + out_sites.batch[:, None] * cmap.rows_in, own)
        rows = torch.where(rows >= 0, rows, torch.where(own >= 0, -2 - own, own))
    n_samples = 1 if ground.is_zero else ground.values.shape[0]
    classes = class_windows(cmap, n_samples, 0, cmap.n_out * n_samples, CPU)
    windows = TableWindows(out_sites, Table(rows), Table(classes), cmap.axes, cmap.reads)
    return cast("TableWindows", moved(windows, device))


def regather(x: SparseTensor, taps: Sequence[Array], fill: float = 0.0) -> SparseTensor:
    """Every output position copies one input position or is `fill`; differentiable.

    One active site may go to many.

    Args:
        x: the input.
        taps: per axis int (n_out, 1), an input position or PAD.
        fill: what PAD positions hold.
    """
    return copy_windows(x, table_windows(x, taps), fill)


def copy_windows(x: SparseTensor, windows: TableWindows, fill: float = 0.0) -> SparseTensor:
    """`regather` with windows of one tap that were made, for these sites and classes, before."""
    features = gather_rows(x.features, windows.table.rows[:, 0].contiguous())
    ground = x.ground
    if ground is None:
        return SparseTensor._of(features, windows.sites, None)
    padded = windows.classes is not None and _has_padding(windows.classes)
    if windows.sites.is_full or (ground.is_zero and (fill == 0 or not padded)):
        shape = windows.sites.spatial_shape
        state = GroundState.zero(features.shape[1], shape, features.dtype, features.device)
    else:
        state = _fill(ground, windows, fill)
    return SparseTensor._of(features, windows.sites, state)


@untraced
def _has_padding(table: Table) -> bool:
    return bool((table.rows < 0).any())


def _fill(ground: GroundState, windows: TableWindows, fill: float) -> GroundState:
    """The ground behind the taps, `fill` in the padding."""
    assert windows.classes is not None
    row = windows.classes.rows[:, 0]
    values = gather_rows(ground.rows, row.clamp(min=0))
    values = torch.where((row >= 0)[:, None], values, fill)
    n_classes = tuple(a.n_classes for a in windows.axes)
    n_samples = len(row) // max(math.prod(n_classes), 1)
    return GroundState._of(values.view(n_samples, *n_classes, ground.channels), windows.axes)


def adaptive_taps(extent: int, n_out: int) -> Array:
    """Windows [floor(i n / m), ceil((i + 1) n / m)): int64 (n_out, k), filled up with ABSENT."""
    o = np.arange(n_out, dtype=np.int64)
    low, high = o * extent // n_out, -((-(o + 1) * extent) // n_out)
    read = low[:, None] + np.arange(int((high - low).max()))
    return np.where(read < high[:, None], read, _classes.ABSENT)
