"""Resampling by weights: linear and cubic interpolation, the same arithmetic on every axis.

Each output position of an axis reads a few input positions with weights that sum to one. Where they
all lie in one class the ground is copied, so an interior stays one class whatever the weights are;
elsewhere a class of the output is a tuple of input classes with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _cache
from ._autograd import gather_rows
from ._classes import PAD, Array, AxisClasses, flat_taps, join_taps, unique_rows
from ._device import moved
from ._ground import MAX_ROWS, GroundState
from ._memo import remembered
from ._regather import read_rows, table_sites
from ._torch_compat import untraced
from .sites import Sites
from .tensor import SparseTensor


class AxisTable(NamedTuple):
    """What the output positions of an axis read.

    Attributes:
        taps: int64 (n_out, k), input positions, ascending; then PAD, which reads nothing. The first
            is never PAD.
        weights: (n_out, k), 0 where PAD. Rows sum to one.
    """

    taps: Array
    weights: Array


def probe_axis(extent: int, width: int, run: Callable[[Tensor], Tensor], double: bool) -> AxisTable:
    """The table of an axis, from the function itself: its weights then hold to the last bit.

    Combs of one tooth in `m` positions come back as the weight of each residue modulo m; a ramp
    tells which position of that residue it is, for m is more than twice the width.

    Args:
        extent: input positions.
        width: positions that an output position reads at most.
        run: the interpolation of (1, channels, extent).
        double: whether the weights are those of float64.
    """
    m = min(extent, 2 * width + 1)
    residue = torch.arange(extent, device="cpu") % m
    combs = (residue == torch.arange(m, device="cpu")[:, None])[None]
    weights = run(combs.to(torch.float64 if double else torch.float32))[0].T.numpy()
    at = np.broadcast_to(np.arange(m), weights.shape)
    if m < extent:
        ramp = run(torch.arange(extent, dtype=torch.float64, device="cpu")[None, None])[
            0, 0
        ].numpy()
        base = np.rint(ramp).astype(np.int64)[:, None] - m // 2
        at = base + (at - base) % m
    key = np.where(weights != 0, at, extent)  # taps without weight go last, and are cut off
    order = np.argsort(key, axis=1, kind="stable")[:, : min(width, m)]
    taps = np.take_along_axis(key, order, 1)
    kept = np.take_along_axis(weights, order, 1)
    return AxisTable(np.where(taps < extent, taps, PAD), kept)


def merged_classes(axis: AxisClasses, table: AxisTable) -> tuple[AxisClasses, Array, Array]:
    """Class map of the output, and what each of its classes reads.

    Returns:
        the map; int32 (n_classes, k), classes of `axis` or PAD; their weights.
    """
    taps, weights = table.taps, table.weights.copy()
    reads = np.where(taps >= 0, axis.lookup(taps.clip(min=0)), PAD)
    for t in range(1, reads.shape[1]):
        for s in range(t):
            same = (reads[:, t] == reads[:, s]) & (reads[:, t] >= 0)
            weights[same, s] += weights[same, t]
            weights[same, t], reads[same, t] = 0, PAD
    weights[(reads[:, 1:] < 0).all(1), 0] = 1  # the sum of all weights, but for rounding
    numbers = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in weights.T]
    columns = np.concatenate([reads, np.stack(numbers, 1)], 1)
    most = max(axis.n_classes, max(int(n.max()) for n in numbers) + 1)
    classes, first = unique_rows(columns, most)
    return AxisClasses.from_map(classes), reads[first].astype(np.int32), weights[first]


class _Mix(NamedTuple):
    """Weighted sums of rows: out[i] = sum over t of weights[i, t] * rows[source[i, t]]."""

    source: Tensor  # int32 (T, n)
    weights: Tensor  # (T, n, 1)

    def of(self, rows: Tensor) -> Tensor:
        """The sums: (n, C). The last row number means zero."""
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        total = gather_rows(rows, self.source[0]) * self.weights[0]
        for source, weights in zip(self.source[1:], self.weights[1:], strict=True):
            total = total + gather_rows(rows, source) * weights
        return total

    @property
    def n_bytes(self) -> int:
        return 12 * self.source.numel()


class _Plan(NamedTuple):
    sites: Sites
    features: _Mix  # of the feature rows, then the class rows
    mass: Tensor  # (n_out, 1): weights of the active sites
    ground: _Mix | None  # of the class rows
    axes: tuple[AxisClasses, ...]


def mix(
    x: SparseTensor, what: tuple[Hashable, ...], make_tables: Callable[[], list[AxisTable]]
) -> SparseTensor:
    """Every output position is a weighted mean of input positions; the plan is remembered.

    An output site is active where it reads an active site with a weight other than zero. Where the
    ground is None the mean is over active sites.

    Args:
        x: the input.
        what: names the operation with all its arguments.
        make_tables: the table of each axis.
    """
    ground = None if x.ground is None or x.ground.is_zero else x.ground
    n_samples = 1 if ground is None else ground.values.shape[0]
    key = ("mixed", what, None if ground is None else ground.axes, n_samples)
    plan = _cache.get(x.sites, key)
    if plan is None:
        plan = _build(x.sites.host(), ground, make_tables(), x.dtype)
        plan = moved(plan, x.device)
        held = plan.features.n_bytes + 24 * plan.sites.n_sites
        held += 0 if plan.ground is None else plan.ground.n_bytes
        plan = _cache.put(x.sites, key, plan, held)
    rows = x.features if ground is None else torch.cat([x.features, ground.rows])
    features = plan.features.of(rows)
    if x.ground is None:
        return SparseTensor._of(features / plan.mass, plan.sites, None)
    if ground is None or plan.ground is None:
        return SparseTensor._of(features, plan.sites, SparseTensor._zero(features, plan.sites))
    state = _mixed_ground(ground, plan.ground, plan.axes, what)
    out = SparseTensor._of(features, plan.sites, state)
    out._drop_ground_if_full()
    return out


def _mixed_ground(
    ground: GroundState, sums: _Mix, axes: tuple[AxisClasses, ...], what: tuple[Hashable, ...]
) -> GroundState:
    def respond() -> GroundState:
        shape = (ground.values.shape[0], *(a.n_classes for a in axes), ground.channels)
        return GroundState._of(sums.of(ground.rows).view(shape), axes)

    return remembered(ground, what, (), respond)


def _product(weights: Sequence[Array], ids: Sequence[Array], dtype: torch.dtype) -> Tensor:
    """Weights of all tuples of taps, of rows given by their number per axis: (T, n, 1)."""
    total = weights[0][ids[0]]
    for w, i in zip(weights[1:], ids[1:], strict=True):
        total = (total[:, :, None] * w[i][:, None, :]).reshape(len(i), total.shape[1] * w.shape[1])
    return torch.from_numpy(np.ascontiguousarray(total.T))[:, :, None].to(dtype)


@untraced
def _build(
    sites: Sites, ground: GroundState | None, tables: list[AxisTable], dtype: torch.dtype
) -> _Plan:
    taps = [t.taps for t in tables]
    out_sites = table_sites(sites, taps)
    positions = [out_sites.coords[:, 1 + a].numpy() for a in range(len(tables))]
    index = read_rows(sites, out_sites, taps)
    weights = _product([t.weights for t in tables], positions, dtype)
    mass = (weights[:, :, 0] * (index >= 0).T).sum(0)[:, None]
    if ground is None:
        index = torch.where(index >= 0, index, sites.n_sites)
        return _Plan(out_sites, _Mix(_taps_first(index), weights), mass, None, ())
    n_samples = ground.values.shape[0]
    no_row = ground.n_rows * n_samples
    sides = [merged_classes(axis, t) for axis, t in zip(ground.axes, tables, strict=True)]
    n_classes = math.prod(s[0].n_classes for s in sides) * n_samples
    if max(n_classes, sites.n_sites + no_row) > MAX_ROWS:
        raise ValueError(
            f"interpolate: the classes of the ground, with the sites, must number below 2^31, got "
            f"{n_classes} from {no_row} and {sites.n_sites} sites; use a smaller background"
        )
    at = zip(ground.axes, taps, positions, strict=True)
    reads = [np.where(t >= 0, axis.lookup(t.clip(min=0)), PAD)[p] for axis, t, p in at]
    sample = out_sites.batch.numpy()[:, None] * np.int32(ground.n_rows * ground.per_sample)
    flat = join_taps(reads, ground.n_classes)
    behind = torch.from_numpy(np.where(flat >= 0, flat + sample, no_row)) + sites.n_sites
    own = _taps_first(torch.where(index >= 0, index, behind))
    classes = _class_mix(ground, sides, dtype)
    return _Plan(out_sites, _Mix(own, weights), mass, classes, tuple(s[0] for s in sides))


def _taps_first(index: Tensor) -> Tensor:
    """int32 (T, n) of (n, T), contiguous also where n is 1."""
    return index.T.to(torch.int32).clone(memory_format=torch.contiguous_format)


def _class_mix(
    ground: GroundState, sides: Sequence[tuple[AxisClasses, Array, Array]], dtype: torch.dtype
) -> _Mix:
    """The sums of class rows that make the output's class rows, sample by sample."""
    reads, weights = [s[1] for s in sides], [s[2] for s in sides]
    n_samples = ground.values.shape[0]
    ids = np.arange(math.prod(len(r) for r in reads))
    flat = flat_taps(reads, ground.n_classes, ids)
    sample = np.arange(n_samples, dtype=np.int32)[:, None, None] * np.int32(ground.n_rows)
    rows = np.where(flat >= 0, flat + sample, ground.n_rows * n_samples)
    each = np.unravel_index(ids, [len(r) for r in reads])
    source = _taps_first(torch.from_numpy(rows.reshape(-1, flat.shape[1])))
    return _Mix(source, _product(weights, each, dtype).repeat(1, n_samples, 1))
