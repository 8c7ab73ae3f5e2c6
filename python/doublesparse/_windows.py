"""Windows: what every tap of an output site, and of an output class of the ground, reads.

Everything here depends on geometry alone and is remembered by the sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _cache, ops
from ._autograd import Segments
from ._autograd_windows import Table
from ._classes import Array, AxisClasses, flat_taps
from ._device import CPU, capturing
from ._geometry import Steps
from ._ground import MAX_ROWS, GroundState
from ._memo import memo_of, remembered
from ._rulebook import Entry
from ._torch_compat import untraced
from .sites import Sites

Axes = tuple[AxisClasses, ...]

U_BYTES = 64 << 20  # the table of W_k G is worked through in pieces of this size
_SHORT = 1024  # runs of the class maps, and
_SMALL = 1 << 14  # taps of their output classes, that are kept beyond one set of sites
_FROZEN = 1 << 22  # the same, kept with a frozen ground


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


def class_map(steps: Steps, axes: Axes, device: torch.device = CPU) -> ClassMap:
    """Classes of a layer's output; small ones are remembered, since new sites share them.

    Args:
        steps: the layer's geometry.
        axes: of the input's ground.
        device: where its `taps` lie, if they are known.
    """
    short = sum(len(a.starts) for a in axes) <= _SHORT
    return _known_map(steps, axes, device) if short else _class_map(steps, axes)


@lru_cache(maxsize=256)
def _known_map(steps: Steps, axes: Axes, device: torch.device) -> ClassMap:
    cmap = _class_map(steps, axes)
    if cmap.n_out * steps.n_offsets > _SMALL:
        return cmap
    return cmap._replace(taps=class_windows(cmap, 1, 0, cmap.n_out, device))


def _class_map(steps: Steps, axes: Axes) -> ClassMap:
    sides = [steps.axis(a, axis) for a, axis in enumerate(axes)]
    return ClassMap(
        tuple(s[0] for s in sides), [s[1] for s in sides], tuple(a.n_classes for a in axes)
    )


@untraced
def class_windows(
    cmap: ClassMap, n_samples: int, first: int, last: int, device: torch.device
) -> Tensor:
    """Class row that each tap of some output class rows reads, or -1: int32 (m, n_offsets).

    Class rows run sample by sample; `n_samples` is 1 where all samples share one ground.
    """
    if n_samples == 1 and cmap.taps is not None:
        return cmap.taps[first:last].to(device)
    row = np.arange(first, last)
    flat = flat_taps(cmap.reads, cmap.n_in, row % cmap.n_out)
    if n_samples != 1:
        flat = np.where(flat >= 0, flat + ((row // cmap.n_out) * cmap.rows_in)[:, None], -1)
    return torch.from_numpy(flat.astype(np.int32, copy=False)).to(device)


@untraced
def site_windows(
    steps: Steps, entry: Entry, out_sites: Sites, ground: GroundState | None
) -> Tensor:
    """What each tap of every output site reads: int32 (n_out, n_offsets), coded as in `Table`.

    Without a ground, inactive sites do not exist.
    """
    pairs, n_out = entry.pairs, out_sites.n_sites
    if ground is None:
        return ops.window_table(pairs, n_out)
    device = out_sites.device
    cmap, n_samples = class_map(steps, ground.axes, device), ground.values.shape[0]
    out_class = out_sites.class_of(cmap.axes)
    frozen = memo_of(ground) is not None and cmap.n_out * steps.n_offsets <= _FROZEN
    if frozen or cmap.n_out <= max(n_out, 1024):
        make = partial(class_windows, cmap, 1, 0, cmap.n_out, device)
        taps = remembered(ground, ("windows", steps), (), make)
    else:  # a background image on few sites: only the classes that occur
        used, out_class = torch.unique(out_class, return_inverse=True)
        taps = torch.from_numpy(flat_taps(cmap.reads, cmap.n_in, used.cpu().numpy())).to(device)
        out_class = out_class.to(torch.int32)
    if n_samples == 1:
        return ops.window_table(pairs, n_out, out_class, taps)
    return ops.window_table(pairs, n_out, out_class, taps, cmap.rows_in, out_sites.batch)


# ------------------------------------------------------------------ for linear layers
@lru_cache(maxsize=64)
@untraced
def _every_tap(n_rows: int, n_offsets: int, device: torch.device) -> ops.Pairs:
    """Every class row at every offset: row g at offset k goes to row k * n_rows + g of u."""
    rows = torch.arange(n_rows, dtype=torch.int32, device=device).repeat(n_offsets)
    start = torch.arange(n_offsets + 1, device=device) * n_rows
    u_rows = torch.arange(n_rows * n_offsets, dtype=torch.int32, device=device)
    return ops.Pairs(rows, u_rows, start)


def every_tap(n_rows: int, n_offsets: int, device: torch.device) -> ops.Pairs:
    """What the whole table u = W_k G is computed from; small ones are remembered."""
    known = n_rows * n_offsets <= _SMALL and not capturing(device)
    return (_every_tap if known else _every_tap.__wrapped__)(n_rows, n_offsets, device)


@untraced
def _whole_taps(table: Tensor, n_rows: int) -> Segments:
    """Rows of the whole table u that the windows add: a tap of class row g at offset k, its row."""
    start, u_rows = ops.every_tap(table, n_rows)
    return Segments(u_rows, start, n_rows * table.shape[1])


def _as_ground_taps(windows: Tensor) -> Tensor:
    """Class rows, or -1, coded as in `Table`."""
    return torch.where(windows >= 0, -2 - windows, windows)


class Chunk(NamedTuple):
    """A piece of the windows of a linear layer.

    The table u = W_k G for the (offset, class) pairs that occur in it, and its sums.
    """

    used: Tensor  # class rows of the ground, ascending
    pairs: ops.Pairs  # these to rows of u
    n_u: int
    segments: Segments  # rows of u that each window adds


def fits_whole(steps: Steps, ground: GroundState, row_bytes: int) -> bool:
    """Whether u = W_k G for every offset and class row is small enough to be held at once."""
    n_u = ground.n_rows * ground.values.shape[0] * steps.n_offsets
    return n_u <= max(1, U_BYTES // max(row_bytes, 1))


def site_taps(
    sites: Sites, out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState
) -> Segments:
    """Rows of the whole table u that each output site adds; remembered."""
    n_samples = ground.values.shape[0]
    key = ("taps", steps, ground.axes, n_samples)
    found = _cache.get(sites, key)
    if found is None:
        table = site_windows(steps, entry, out_sites, ground)
        found = _whole_taps(table, ground.n_rows * n_samples)
        found = _cache.put(sites, key, found, 2 * found.n_bytes)
    return found


@lru_cache(maxsize=256)
@untraced
def _known_taps(steps: Steps, axes: Axes, n_samples: int, device: torch.device) -> Segments:
    cmap = class_map(steps, axes, device)
    windows = class_windows(cmap, n_samples, 0, cmap.n_out * n_samples, device)
    return _whole_taps(_as_ground_taps(windows), cmap.rows_in * n_samples)


def class_taps(steps: Steps, axes: Axes, n_samples: int, device: torch.device) -> Segments:
    """Rows of the whole table u that each class of the output adds; small ones are remembered."""
    n_taps = steps.n_offsets * n_samples * math.prod(a.n_classes for a in axes)
    make = _known_taps if n_taps <= _SMALL else _known_taps.__wrapped__
    return make(steps, axes, n_samples, device)


def pieces(
    table: Callable[[int, int], Tensor], total: int, n_rows: int, n_offsets: int, row_bytes: int
) -> Iterator[Chunk]:
    """Windows over a ground with many classes, piece by piece.

    Only the (offset, class) pairs that occur in a piece are in its table u.

    Args:
        table: windows first .. last, coded as in `Table`.
        total: number of windows.
        n_rows: class rows.
        n_offsets: kernel volume.
        row_bytes: bytes of one output row.
    """
    step = max(1, U_BYTES // (row_bytes * n_offsets))  # a window adds n_offsets rows to u at most
    for first in range(0, max(total, 1), step):
        yield _piece(table, first, min(total, first + step), n_rows)


@untraced
def _piece(table: Callable[[int, int], Tensor], first: int, last: int, n_rows: int) -> Chunk:
    part, used = _renumbered(table(first, last), n_rows)
    start, u_rows, class_rows, u_start = ops.ground_taps(part, len(used))
    n_u = len(class_rows)
    u = torch.arange(n_u, dtype=torch.int32, device=class_rows.device)
    pairs = ops.Pairs(class_rows, u, u_start)
    return Chunk(used, pairs, n_u, Segments(u_rows, start, n_u))


def _renumbered(table: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """A table over the class rows that occur in it, and which those are: int32, ascending."""
    inactive = table <= -2
    rows = -2 - table[inactive]
    occurs = torch.zeros(n_rows, dtype=torch.bool, device=table.device)
    occurs[rows] = True
    number = torch.cumsum(occurs, 0, dtype=torch.int32) - 1
    renumbered = table.clone()
    renumbered[inactive] = -2 - number[rows]
    return renumbered, occurs.nonzero().view(-1).to(torch.int32)


def site_pieces(
    out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState, row_bytes: int
) -> Iterator[Chunk]:
    """The windows of the output sites, in pieces."""
    n_samples = ground.values.shape[0]
    table = site_windows(steps, entry, out_sites, ground)
    n_rows = ground.n_rows * n_samples
    return pieces(lambda i, j: table[i:j], len(table), n_rows, steps.n_offsets, row_bytes)


def class_pieces(steps: Steps, ground: GroundState, row_bytes: int) -> Iterator[Chunk]:
    """The windows of the output's classes, in pieces."""
    device = ground.values.device
    cmap, n_samples = class_map(steps, ground.axes, device), ground.values.shape[0]
    total = cmap.n_out * n_samples
    if total > MAX_ROWS:
        raise ValueError(
            f"ground state: the classes must number below 2^31, got {total}; "
            "use a smaller background"
        )

    def table(first: int, last: int) -> Tensor:
        return _as_ground_taps(class_windows(cmap, n_samples, first, last, device))

    return pieces(table, total, ground.n_rows * n_samples, steps.n_offsets, row_bytes)


# ------------------------------------------------------------------ for pools
class PoolPlan:
    """The windows of a pool.

    Attributes:
        sites: codes class rows as -2 - g.
        cmap: how the output's classes follow; None where inactive sites do not exist.
        n_samples: of the ground.
    """

    __slots__ = ("_classes", "cmap", "n_samples", "sites")

    def __init__(self, sites: Table, cmap: ClassMap | None, n_samples: int) -> None:
        self.sites, self.cmap, self.n_samples = sites, cmap, n_samples
        self._classes: Table | None = None

    @property
    def axes(self) -> Axes:
        """Class maps of the output."""
        return () if self.cmap is None else self.cmap.axes

    @property
    def covered(self) -> bool:
        """Whether every output position reads at least one position of the grid."""
        return self.cmap is None or all(bool((r >= 0).any(1).all()) for r in self.cmap.reads)

    @property
    def classes(self) -> Table:
        """The windows of the output's classes, over the ground's rows alone: rows as they are."""
        if self._classes is None:
            assert self.cmap is not None
            n_rows = self.cmap.n_out * self.n_samples
            device = self.sites.rows.device
            self._classes = Table(class_windows(self.cmap, self.n_samples, 0, n_rows, device))
        return self._classes


def pool_plan(
    sites: Sites, out_sites: Sites, steps: Steps, entry: Entry, ground: GroundState | None
) -> PoolPlan:
    """The windows of a pool over a ground (None: inactive sites do not exist); remembered."""
    axes = None if ground is None else ground.axes
    n_samples = ground.values.shape[0] if ground is not None and ground.per_sample else 1
    key = ("pool", steps, axes, n_samples)
    plan = _cache.get(sites, key)
    if plan is None:
        cmap = None if axes is None else class_map(steps, axes, sites.device)
        table = Table(site_windows(steps, entry, out_sites, ground))
        plan = PoolPlan(table, cmap, n_samples)
        held = table.n_bytes
        if cmap is not None:
            held += 12 * cmap.n_out * n_samples * steps.n_offsets
        plan = _cache.put(sites, key, plan, held)
    return plan
