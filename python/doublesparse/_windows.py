"""Windows: what every tap of an output site, and of an output class of the ground, reads.

Everything here depends on geometry alone and is remembered by the sites.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _cache, ops
from ._autograd import Segments
from ._autograd_windows import Table
from ._classes import Array, AxisClasses, flat_taps, uniform_axes
from ._geometry import Steps
from ._ground import MAX_ROWS, GroundState
from ._rulebook import Entry
from ._torch_compat import untraced
from .sites import Sites

Axes = tuple[AxisClasses, ...]

U_BYTES = 64 << 20  # the table of W_k G is worked through in pieces of this size
_SHORT = 1024  # runs of the class maps, and
_SMALL = 1 << 14  # taps of their output classes, that are kept beyond one set of sites


class ClassMap(NamedTuple):
    """How the classes of the ground follow from those of the input's ground."""

    axes: Axes  # of the output
    reads: list[Array]  # per axis (n_out_classes, k): input class, PAD or ABSENT
    n_in: tuple[int, ...]  # input classes per axis
    taps: Tensor | None = None  # of all output classes, as `class_windows` gives them, if known

    @property
    def n_out(self) -> int:
        """Output class rows of one sample."""
        return math.prod(len(r) for r in self.reads)

    @property
    def rows_in(self) -> int:
        """Input class rows of one sample."""
        return math.prod(self.n_in)


def class_map(steps: Steps, axes: Axes) -> ClassMap:
    """Classes of a layer's output; small ones are remembered, since new sites share them."""
    short = sum(len(a.starts) for a in axes) <= _SHORT
    return _known_map(steps, axes) if short else _class_map(steps, axes)


@lru_cache(maxsize=256)
def _known_map(steps: Steps, axes: Axes) -> ClassMap:
    cmap = _class_map(steps, axes)
    if cmap.n_out * steps.n_offsets > _SMALL:
        return cmap
    return cmap._replace(taps=class_windows(cmap, 1, 0, cmap.n_out))


def _class_map(steps: Steps, axes: Axes) -> ClassMap:
    sides = [steps.axis(a, axis) for a, axis in enumerate(axes)]
    return ClassMap(
        tuple(s[0] for s in sides), [s[1] for s in sides], tuple(a.n_classes for a in axes)
    )


@untraced
def class_windows(cmap: ClassMap, n_samples: int, first: int, last: int) -> Tensor:
    """Class row that each tap of some output class rows reads, or -1: int32 (m, n_offsets).

    Class rows run sample by sample; `n_samples` is 1 where all samples share one ground.
    """
    if n_samples == 1 and cmap.taps is not None:
        return cmap.taps[first:last]
    row = np.arange(first, last)
    flat = flat_taps(cmap.reads, cmap.n_in, row % cmap.n_out)
    if n_samples != 1:
        flat = np.where(flat >= 0, flat + ((row // cmap.n_out) * cmap.rows_in)[:, None], -1)
    return torch.from_numpy(flat.astype(np.int32, copy=False))


@untraced
def site_windows(entry: Entry, out_sites: Sites, cmap: ClassMap | None, n_samples: int) -> Tensor:
    """What each tap of every output site reads: int32 (n_out, n_offsets), coded as in `Table`.

    Without a class map, inactive sites do not exist.
    """
    pairs, n_out = entry.pairs, out_sites.n_sites
    if cmap is None:
        return ops.window_table(pairs, n_out)
    out_class = out_sites.class_of(cmap.axes)
    if cmap.n_out <= max(n_out, 1024):
        taps = class_windows(cmap, 1, 0, cmap.n_out)
    else:  # a background image on few sites: only the classes that occur
        used, out_class = torch.unique(out_class, return_inverse=True)
        taps = torch.from_numpy(flat_taps(cmap.reads, cmap.n_in, used.numpy()))
        out_class = out_class.to(torch.int32)
    if n_samples == 1:
        return ops.window_table(pairs, n_out, out_class, taps)
    return ops.window_table(pairs, n_out, out_class, taps, cmap.rows_in, out_sites.batch)


# ------------------------------------------------------------------ for linear layers
class Chunk(NamedTuple):
    """A piece of the windows of a linear layer.

    The table u = W_k G for the (offset, class) pairs that occur in it, and its sums.
    """

    pairs: ops.Pairs  # class rows to rows of u
    n_u: int
    segments: Segments  # rows of u that each window adds


class LinearPlan(NamedTuple):
    """What a linear layer adds for inactive sites.

    One chunk of all windows where the table u is small: `sites` and `classes` are then its two
    halves. Else several chunks, whose windows (sites first, then classes) come one after the other.
    """

    axes: Axes
    n_classes: int  # output class rows, all samples
    chunks: list[Chunk]
    sites: Segments | None
    classes: Segments | None


def linear_plan(
    sites: Sites, out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState, row_bytes: int
) -> LinearPlan:
    """The windows of a convolution over a ground that is not zero; remembered.

    Args:
        sites: of the input.
        out_sites: of the output.
        steps: the geometry.
        entry: its pairs.
        ground: of the input.
        row_bytes: bytes of one output row.
    """
    n_samples = ground.values.shape[0]
    n_u = max(1, U_BYTES // max(row_bytes, 1))
    whole = ground.n_rows * n_samples * steps.n_offsets <= n_u
    # a window adds at most n_offsets rows to u; a power of two, so that layers of other widths find
    # the same plan
    step = 0 if whole else 1 << (max(1, n_u // steps.n_offsets).bit_length() - 1)
    key = ("linear", steps, ground.axes, n_samples, step)
    plan = _cache.get(sites, key)
    if plan is None:
        plan = _build_linear(out_sites, steps, entry, ground, n_samples, step)
        held = sum(c.segments.n_bytes + 8 * c.n_u for c in plan.chunks)
        plan = _cache.put(sites, key, plan, 2 * held)
    return plan


@untraced
def _build_linear(
    out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState, n_samples: int, step: int
) -> LinearPlan:
    cmap = class_map(steps, ground.axes)
    table = site_windows(entry, out_sites, cmap, n_samples)
    n_sites, n_rows = len(table), ground.n_rows * n_samples
    n_classes = 0 if out_sites.is_full else cmap.n_out * n_samples  # no inactive site: no ground
    if n_classes > MAX_ROWS:
        raise ValueError(
            f"ground state: the classes must number below 2^31, got {n_classes}; "
            "use a smaller background"
        )
    chunks = []
    total = n_sites + n_classes
    for first in range(0, max(total, 1), step) if step else [0]:
        last = min(total, first + step) if step else total
        parts = [table[first : min(last, n_sites)]] if first < n_sites or last <= n_sites else []
        if last > n_sites:
            windows = class_windows(cmap, n_samples, max(first - n_sites, 0), last - n_sites)
            parts.append(torch.where(windows >= 0, -2 - windows, windows))
        start, u_rows, class_rows, u_start = ops.ground_taps(torch.cat(parts), n_rows)
        n_u = len(class_rows)
        pairs = ops.Pairs(class_rows, torch.arange(n_u, dtype=torch.int32), u_start)
        chunks.append(Chunk(pairs, n_u, Segments(u_rows, start, n_u)))
    if step:
        return LinearPlan(cmap.axes, n_classes, chunks, None, None)
    (chunk,) = chunks
    cut = int(start[n_sites])
    # copies: a program that is exported keeps whole tensors, not views of one that it never reads
    return LinearPlan(
        cmap.axes,
        n_classes,
        chunks,
        Segments(u_rows[:cut].clone(), start[: n_sites + 1].clone(), chunk.n_u),
        Segments(u_rows[cut:].clone(), start[n_sites:] - cut, chunk.n_u),
    )


# ------------------------------------------------------------------ for pools
class PoolPlan(NamedTuple):
    """The windows of a pool.

    `sites` codes class rows as -2 - g; `classes` is over the ground's rows alone, so it holds them
    as they are.
    """

    sites: Table
    classes: Table | None
    axes: Axes
    covered: bool  # every output position reads at least one position of the grid


def pool_plan(
    sites: Sites, out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState | None
) -> PoolPlan:
    """The windows of a pool over a ground (None: inactive sites do not exist); remembered."""
    axes = None if ground is None else ground.axes
    n_samples = ground.values.shape[0] if ground is not None and ground.per_sample else 1
    key = ("pool", steps, axes, n_samples)
    plan = _cache.get(sites, key)
    if plan is None:
        plan = _build_pool(out_sites, steps, entry, axes, n_samples)
        held = plan.sites.n_bytes + (0 if plan.classes is None else plan.classes.n_bytes)
        plan = _cache.put(sites, key, plan, held)
    return plan


@untraced
def _build_pool(
    out_sites: Sites, steps: Steps, entry: Entry, axes: Axes | None, n_samples: int
) -> PoolPlan:
    if axes is None:
        table = Table(site_windows(entry, out_sites, None, 1))
        return PoolPlan(table, None, uniform_axes(steps.out_shape), True)
    cmap = class_map(steps, axes)
    table = Table(site_windows(entry, out_sites, cmap, n_samples))
    windows = class_windows(cmap, n_samples, 0, cmap.n_out * n_samples)
    covered = bool((windows >= 0).any(1).all())
    return PoolPlan(table, Table(windows), cmap.axes, covered)
