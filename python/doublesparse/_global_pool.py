"""Pools over all of space: global average, global maximum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import _cache, _crossover
from ._autograd import Segments, segment_sum
from ._autograd_windows import Table, window_max
from ._classes import Array
from ._device import moved, whole
from ._ground import GroundState
from ._parameters import check_dtype
from ._precision import widened
from ._torch_compat import untraced
from .sites import Sites
from .tensor import SparseTensor

_WIDTH = 256  # taps of one window of the global maximum: longer lists are reduced in several steps
_WHOLE = 1 << 22  # numbers of one piece of the weighted ground sum


def _check(operation: str, x: SparseTensor) -> None:
    if not isinstance(x, SparseTensor):
        raise TypeError(
            f"{operation}: input must be a SparseTensor or a Tensor (B, C, *spatial), "
            f"got {type(x).__name__}; make one with ds.SparseTensor.from_dense"
        )


def _runs_dense(x: SparseTensor) -> bool:
    return x.sites.is_full and _crossover.runs_dense(True, 1.0, x.ground is None)


def _by_sample(x: SparseTensor) -> Tensor:
    """(B, cells, C) of a saturated tensor."""
    return x.features.view(x.sites.batch_size, -1, x.features.shape[1])


def sample_segments(sites: Sites) -> Segments:
    """The rows of each sample; remembered."""
    found = _cache.get(sites, "samples")
    if found is None:
        found = Segments(None, sites.batch_start, sites.n_sites)
        found = _cache.put(sites, "samples", found, found.n_bytes)
    return found


def ground_total(ground: GroundState, sites: Sites) -> Tensor:
    """Sum of the ground over all inactive sites of each sample: (B, C)."""
    weights = ground.n_inactive(sites).to(ground.dtype)
    n_samples, n_rows = weights.shape
    rows = ground.rows
    channels = rows.shape[1]
    if n_samples * n_rows * channels <= _WHOLE:
        product = weights[:, :, None] * rows.view(-1, n_rows, channels)
        start = torch.arange(n_samples + 1, device=rows.device) * n_rows
        flat = product.reshape(n_samples * n_rows, channels)
        return segment_sum(flat, Segments(None, start, n_samples * n_rows))
    # a background image: sample by sample
    one = Segments(None, whole(n_rows, rows.device), n_rows)
    parts = []
    for b in range(n_samples):
        own = rows[b * n_rows : (b + 1) * n_rows] if ground.per_sample else rows
        parts.append(segment_sum(weights[b, :, None] * own, one))
    return torch.cat(parts)


@widened
def global_avg_pool(x: SparseTensor | Tensor) -> Tensor:
    """Mean over all sites, (B, C): the ground counts once per inactive site.

    Where the ground is None the mean is over the active sites alone, and 0 for a sample without
    any.

    Args:
        x: a SparseTensor, or a dense tensor (B, C, *spatial).

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.global_avg_pool(x)
        tensor([[0.1111]])
    """
    if isinstance(x, Tensor):
        return x.flatten(2).mean(2)
    _check("global_avg_pool", x)
    if _runs_dense(x):
        return _by_sample(x).mean(1)
    check_dtype("global_avg_pool", x)
    sites, ground = x.sites, x.ground
    total = segment_sum(x.features, sample_segments(sites))
    if ground is None:
        n_active = sites.batch_start[1:] - sites.batch_start[:-1]
        return total / n_active.clamp(min=1)[:, None]
    if not ground.is_zero and not sites.is_full:
        total = total + ground_total(ground, sites)
    return total / (sites.n_cells // max(sites.batch_size, 1) or 1)


# ------------------------------------------------------------------ maximum
def global_max_pool(x: SparseTensor | Tensor) -> Tensor:
    """Maximum over all sites, (B, C): active values and the ground of inactive sites.

    Ties go to the first site, and NaN wins.

    Where the ground is None only active sites are seen, and a sample without any gives 0.

    Args:
        x: a SparseTensor, or a dense tensor (B, C, *spatial).

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 4]]), (9,))
        >>> ds.functional.global_max_pool(x)
        tensor([[1.]])
    """
    if isinstance(x, Tensor):
        return x.flatten(2).max(2).values
    _check("global_max_pool", x)
    if _runs_dense(x):
        return _by_sample(x).max(1).values
    check_dtype("global_max_pool", x)
    sites, ground = x.sites, x.ground
    n_samples = 1 if ground is None or not ground.per_sample else sites.batch_size
    key = ("global max", None if ground is None else ground.axes, n_samples)
    tables = _cache.get(sites, key)
    if tables is None:
        tables = moved(_max_tables(sites.host(), ground), sites.device)
        tables = _cache.put(sites, key, tables, sum(t.n_bytes for t in tables))
    rows = None if ground is None else ground.rows.contiguous()
    y = window_max(x.features, rows, tables[0])
    for table in tables[1:]:
        y = window_max(y, None, table)
    if ground is None:
        n_active = sites.batch_start[1:] - sites.batch_start[:-1]
        y = torch.where((n_active > 0)[:, None], y, 0.0)
    return y


@untraced
def _max_tables(sites: Sites, ground: GroundState | None) -> list[Table]:
    """Windows that reduce each sample's list of candidates, in row-major order, to one row."""
    keys, codes = sites.keys.numpy(), np.arange(sites.n_sites, dtype=np.int32)
    sample = sites.batch.numpy()
    if ground is not None and not sites.is_full:
        first, b, c = _first_inactive(sites, ground)
        row = c + b * ground.n_rows if ground.per_sample else c
        order = np.argsort(np.concatenate((keys, first)), kind="stable")
        codes = np.concatenate((codes, (-2 - row).astype(np.int32)))[order]
        sample = np.concatenate((sample, b))[order]
    start = np.searchsorted(sample, np.arange(sites.batch_size + 1))
    tables = []
    while True:
        count = np.diff(start)
        longest = int(count.max(initial=0))
        width = max(1, min(longest, _WIDTH))
        pieces = np.maximum(-(-count // width), 1)  # an empty sample keeps one empty window
        piece_start = np.concatenate(([0], np.cumsum(pieces)))
        within = np.arange(len(codes)) - np.repeat(start[:-1], count)
        table = np.full((int(piece_start[-1]), width), -1, np.int32)
        table[np.repeat(piece_start[:-1], count) + within // width, within % width] = codes
        tables.append(Table(torch.from_numpy(table)))
        if longest <= _WIDTH:
            return tables
        codes, start = np.arange(len(table), dtype=np.int32), piece_start


def _first_inactive(sites: Sites, ground: GroundState) -> tuple[Array, Array, Array]:
    """The first inactive site of every (sample, class) that has one: linear key, sample, class.

    The positions of a class are a product of per-axis sets, so a site's rank within its class is a
    mixed-radix number, and the first rank that the sorted active sites skip is the first inactive
    site.
    """
    n_rows, coords = ground.n_rows, sites.coords.numpy()
    group = sites.batch.numpy().astype(np.int64) * n_rows + sites.class_of(ground.axes).numpy()
    counts = [axis.counts() for axis in ground.axes]
    rank = np.zeros(sites.n_sites, np.int64)
    for a, axis in enumerate(ground.axes):
        position = coords[:, 1 + a].astype(np.int64)
        rank = rank * counts[a][axis.lookup(position)] + axis.ranks(position)
    order = np.argsort(
        group, kind="stable"
    )  # within a group rows stay in row-major order: ascending ranks
    size = np.bincount(group, minlength=sites.batch_size * n_rows)
    ordinal = np.arange(len(order)) - (np.cumsum(size) - size)[group[order]]
    skipped = rank[order] != ordinal
    first = size.copy()
    np.minimum.at(first, group[order][skipped], ordinal[skipped])
    there = np.flatnonzero(ground.n_inactive(sites).reshape(-1).numpy() > 0)
    first, b, c = first[there], there // n_rows, there % n_rows
    classes = np.unravel_index(c, ground.n_classes)
    key, inner = np.zeros(len(there), np.int64), 1
    for a in reversed(range(sites.n_axes)):
        m = counts[a][classes[a]]
        key += ground.axes[a].position(classes[a], first % m) * inner
        first, inner = first // m, inner * sites.spatial_shape[a]
    return key + b * inner, b.astype(np.int32), c.astype(np.int32)
