"""Class maps of the ground state: run-length, per axis, numpy only.

What the inactive sites of a layer hold is an image that is separable into classes: one class map
per axis, one value per tuple of classes. A map is kept as runs, so a border of two positions around
10^6 equal ones is three runs, and every layer computes its output map from breakpoints: the output
positions where some tap starts to read another run. The D-dimensional grid is never built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = -1  # the tap reads padding
# There is no such tap: off-stride (transposed), ceil_mode's overhang, a short adaptive window.
ABSENT = -2

Array = NDArray[Any]


class AxisClasses:
    """Class of every position of one axis, run-length coded and immutable.

    Attributes:
        extent: number of positions.
        n_classes: classes are numbered 0 .. n_classes - 1 and each of them occurs.
        starts: int64 (n_runs,), first position of every run; starts[0] == 0.
        classes: int32 (n_runs,), class of every run.
    """

    __slots__ = ("_hash", "classes", "extent", "n_classes", "starts")

    def __init__(self, extent: int, n_classes: int, starts: Array, classes: Array) -> None:
        self.extent = extent
        self.n_classes = n_classes
        self.starts = starts
        self.classes = classes
        self._hash: int | None = None

    @staticmethod
    def uniform(extent: int) -> AxisClasses:
        """All positions in one class."""
        return _uniform(extent)

    @staticmethod
    def identity(extent: int) -> AxisClasses:
        """Every position its own class: a background image."""
        return _identity(extent)

    @staticmethod
    def from_map(classes: Array) -> AxisClasses:
        """From the class of every position, (extent,), numbered without gaps."""
        classes = np.asarray(classes, dtype=np.int32)
        if not len(classes):
            return AxisClasses(0, 1, np.zeros(1, np.int64), np.zeros(1, np.int32))
        starts = np.flatnonzero(np.concatenate(([True], classes[1:] != classes[:-1])))
        return AxisClasses(len(classes), int(classes.max()) + 1, starts, classes[starts])

    @property
    def is_identity(self) -> bool:
        """Whether position and class are the same number everywhere."""
        n = self.extent
        return (
            self.n_classes == n
            and len(self.starts) == n
            and bool((self.classes == self.starts).all())
        )

    def run_lengths(self) -> Array:
        """int64 (n_runs,)."""
        return np.diff(self.starts, append=self.extent)

    def runs_of(self, positions: Array) -> Array:
        """Number of the run that each position lies in."""
        if len(self.starts) == self.extent:
            return positions
        return np.searchsorted(self.starts, positions, side="right") - 1

    def lookup(self, positions: Array) -> Array:
        """Class of each position, int32, in the shape of `positions`."""
        if self.n_classes == 1:
            return np.zeros(positions.shape, np.int32)
        return self.classes[self.runs_of(positions)]

    def counts(self) -> Array:
        """Number of positions of every class, int64 (n_classes,)."""
        counts = np.bincount(self.classes, weights=self.run_lengths(), minlength=self.n_classes)
        return counts.astype(np.int64)  # the sums are integers below 2^31: exact in float64

    def expand(self) -> Array:
        """Class of every position, int32 (extent,)."""
        return np.repeat(self.classes, self.run_lengths())

    def representatives(self) -> Array:
        """First position of every class, int64 (n_classes,)."""
        first = np.full(self.n_classes, self.extent, np.int64)
        np.minimum.at(first, self.classes, self.starts)
        return first

    def _before(self) -> tuple[Array, Array, Array]:
        """Runs ordered by class, and for every run the number of earlier positions of its class."""
        order = np.argsort(self.classes, kind="stable")
        lengths = self.run_lengths()[order]
        total = np.cumsum(lengths) - lengths
        first = np.searchsorted(self.classes[order], np.arange(self.n_classes))
        before = np.empty(len(order), np.int64)
        before[order] = total - total[first][self.classes[order]]
        return order, first, before

    def ranks(self, positions: Array) -> Array:
        """For each position, how many positions of its class lie before it."""
        run = self.runs_of(positions)
        return self._before()[2][run] + positions - self.starts[run]

    def position(self, classes: Array, ranks: Array) -> Array:
        """The inverse of `ranks`: the position of each (class, rank)."""
        order, first, before = self._before()
        base = (
            np.cumsum(self.run_lengths()[order]) - self.run_lengths()[order]
        )  # ascending, over runs ordered by class
        run = order[np.searchsorted(base, base[first][classes] + ranks, side="right") - 1]
        return self.starts[run] + ranks - before[run]

    def __eq__(self, other: object) -> bool:
        """Equal maps, by content."""
        if self is other:
            return True
        return (
            isinstance(other, AxisClasses)
            and (self.extent, self.n_classes) == (other.extent, other.n_classes)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.classes, other.classes)
        )

    def __hash__(self) -> int:
        """By content; computed once."""
        if self._hash is None:
            self._hash = hash(
                (self.extent, self.n_classes, self.starts.tobytes(), self.classes.tobytes())
            )
        return self._hash

    def __deepcopy__(self, memo: object) -> AxisClasses:
        """Immutable, so shared."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Plain numbers, so that torch.load(weights_only=True) reads it."""
        if self.is_identity:
            return _restore, (self.extent, 0, [], [])
        return _restore, (self.extent, self.n_classes, self.starts.tolist(), self.classes.tolist())

    def __repr__(self) -> str:
        """Extent, classes and runs."""
        return (
            f"AxisClasses(extent={self.extent}, classes={self.n_classes}, runs={len(self.starts)})"
        )


def _restore(extent: int, n_classes: int, starts: list[int], classes: list[int]) -> AxisClasses:
    """Unpickle; n_classes == 0 stands for the identity map."""
    if n_classes == 0:
        return _identity(extent)
    return AxisClasses(extent, n_classes, np.array(starts, np.int64), np.array(classes, np.int32))


@lru_cache(maxsize=256)
def _uniform(extent: int) -> AxisClasses:
    return AxisClasses(extent, 1, np.zeros(1, np.int64), np.zeros(1, np.int32))


@lru_cache(maxsize=16)
def _identity(extent: int) -> AxisClasses:
    if extent <= 1:
        return _uniform(extent)
    return AxisClasses(
        extent, extent, np.arange(extent, dtype=np.int64), np.arange(extent, dtype=np.int32)
    )


@lru_cache(maxsize=256)
def uniform_axes(spatial_shape: tuple[int, ...]) -> tuple[AxisClasses, ...]:
    """One class per axis: the map of a constant ground."""
    return tuple(_uniform(n) for n in spatial_shape)


# ---------------------------------------------------------------- rows to classes
def _compress(key: Array, size: int) -> tuple[Array, Array]:
    """Rank of every key among the keys that occur, and the first index of each."""
    if size <= max(4096, 4 * len(key)):  # counting beats sorting
        seen = np.zeros(size, bool)
        seen[key] = True
        rank = np.cumsum(seen) - 1
        inverse = rank[key]
        first = np.empty(int(rank[-1]) + 1, np.int64)
        first[inverse[::-1]] = np.arange(len(key) - 1, -1, -1)
        return inverse, first
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return inverse.reshape(-1), first


def unique_rows(reads: Array, n_classes: int) -> tuple[Array, Array]:
    """Number the distinct rows of `reads` (m, k), in lexicographic order.

    Entries are ABSENT, PAD or a class.

    Returns:
        class of every row, int64 (m,), and the first row of every class, int64.
    """
    base = n_classes + 2
    key, size = np.zeros(len(reads), np.int64), 1
    first = np.zeros(1, np.int64)
    for column in reads.T:
        if size * base >= 2**62:
            key, first = _compress(key, size)
            size = len(first)
        key, size = key * base + (column.astype(np.int64) + 2), size * base
    return _compress(key, size)


def _from_points(
    extent: int, points: Array, reads: Array, n_classes: int
) -> tuple[AxisClasses, Array]:
    """The map whose position o reads what the last of `points` at or before o reads.

    `points` is sorted and begins with 0.
    """
    classes, first = unique_rows(reads, n_classes)
    keep = np.flatnonzero(np.concatenate(([True], classes[1:] != classes[:-1])))
    out = AxisClasses(
        extent, len(first), points[keep].astype(np.int64), classes[keep].astype(np.int32)
    )
    return out, np.ascontiguousarray(reads[first], np.int32)


# ---------------------------------------------------------------- what a layer does to an axis
def window_extent(
    extent: int, kernel: int, stride: int, pad: tuple[int, int], dilation: int, ceil: bool = False
) -> int:
    """Output positions of a convolution or pool, by torch's rule; below 1: it does not fit."""
    free = extent + pad[0] + pad[1] - dilation * (kernel - 1) - 1
    n_out = (-(-free // stride) if ceil else free // stride) + 1
    if ceil and n_out > 0 and (n_out - 1) * stride >= extent + pad[0]:
        n_out -= 1  # the last window must start inside the input or the left padding
    return n_out


def transposed_extent(
    extent: int, kernel: int, stride: int, pad: int, dilation: int, output_padding: int
) -> int:
    """Output positions of a transposed convolution; below 1 where nothing is left."""
    return (extent - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1 + output_padding


def _memoise(f: Any) -> Any:
    """Remember results for short maps; those of long ones (a background image) are not kept."""
    remembered = lru_cache(maxsize=512)(f)

    def call(axis: AxisClasses, *args: Any) -> tuple[AxisClasses, Array]:
        return remembered(axis, *args) if len(axis.starts) <= 4096 else f(axis, *args)

    call.__doc__, call.__name__ = f.__doc__, f.__name__
    return call


@_memoise
def window(
    axis: AxisClasses,
    kernel: int,
    stride: int,
    pad: tuple[int, int],
    dilation: int,
    ceil: bool = False,
) -> tuple[AxisClasses, Array]:
    """Convolution and pooling: output o reads o * stride - pad[0] + t * dilation through tap t.

    Returns:
        the output's class map, and what each output class reads: int32 (n_out_classes, kernel), a
        class of `axis`, PAD, or ABSENT
        for taps beyond the right padding (ceil_mode).
    """
    n, (low, high) = axis.extent, pad
    n_out = window_extent(n, kernel, stride, pad, dilation, ceil)
    taps = np.arange(kernel, dtype=np.int64) * dilation - low
    if (len(axis.starts) + 3) * kernel < n_out:
        # what tap t reads changes where its position reaches the start of a run, the end of the
        # axis, or the end of the padding
        changes = np.concatenate((axis.starts, [0, n, n + high]))
        points = -((taps[None, :] - changes[:, None]) // stride)  # ceil((change - taps) / stride)
        points = np.unique(np.concatenate(([0], points[(points > 0) & (points < n_out)])))
    else:
        points = np.arange(n_out, dtype=np.int64)
    at = points[:, None] * stride + taps
    reads = np.where((at >= 0) & (at < n), axis.lookup(at.clip(0, max(n - 1, 0))), PAD)
    reads[at >= n + high] = ABSENT
    return _from_points(n_out, points, reads, axis.n_classes)


@_memoise
def transposed(
    axis: AxisClasses, kernel: int, stride: int, pad: int, dilation: int, output_padding: int
) -> tuple[AxisClasses, Array]:
    """Transposed convolution: o reads i through tap t iff i * stride - pad + t * dilation == o.

    The pattern repeats with period `stride`, so every phase is worked out by breakpoints and the
    phases are interleaved.

    Returns:
        as `window`.
    """
    n = axis.extent
    n_out = transposed_extent(n, kernel, stride, pad, dilation, output_padding)
    points, rows = [], []
    for phase in range(min(stride, n_out)):
        at = phase + pad - np.arange(kernel, dtype=np.int64) * dilation
        fits, base = at % stride == 0, at // stride
        length = -(-(n_out - phase) // stride)
        change = np.concatenate((axis.starts, [0, n]))[:, None] - base[fits][None, :]
        q = np.unique(np.concatenate(([0], change[(change > 0) & (change < length)])))
        i = q[:, None] + base
        inside = fits & (i >= 0) & (i < n)
        points.append(q)
        rows.append(np.where(inside, axis.lookup(i.clip(0, max(n - 1, 0))), ABSENT))
    classes, first = unique_rows(np.concatenate(rows), axis.n_classes)
    expanded, at_row = np.empty(n_out, np.int32), 0
    for phase, q in enumerate(points):
        length = -(-(n_out - phase) // stride)
        expanded[phase::stride] = np.repeat(
            classes[at_row : at_row + len(q)], np.diff(q, append=length)
        )
        at_row += len(q)
    return AxisClasses.from_map(expanded), np.ascontiguousarray(
        np.concatenate(rows)[first], np.int32
    )


def table(axis: AxisClasses, taps: Array) -> tuple[AxisClasses, Array]:
    """Any taps: int (n_out, k), the input position that o reads through tap t, PAD or ABSENT.

    Returns:
        as `window`.
    """
    taps = np.asarray(taps)
    reads = np.where(taps >= 0, axis.lookup(taps.clip(min=0)), taps)
    return _from_points(len(taps), np.arange(len(taps), dtype=np.int64), reads, axis.n_classes)


def merge(axes: Sequence[AxisClasses]) -> tuple[AxisClasses, list[Array]]:
    """The common refinement of several maps of one axis.

    Returns:
        the merged map, and for each given map the class that every merged class has in it, int32
        (n_merged,).
    """
    if all(a == axes[0] for a in axes[1:]):
        return axes[0], [np.arange(axes[0].n_classes, dtype=np.int32)] * len(axes)
    points = np.unique(np.concatenate([a.starts for a in axes]))
    reads = np.stack([a.lookup(points) for a in axes], 1)
    out, reads = _from_points(axes[0].extent, points, reads, max(a.n_classes for a in axes))
    return out, list(reads.T)


def flat_taps(reads: Sequence[Array], n_in: Sequence[int], ids: Array) -> Array:
    """Flat input class that each tap of some output classes reads.

    Args:
        reads: per axis int32 (n_out_classes, k), as `window` returns.
        n_in: number of input classes per axis.
        ids: flat numbers of the output classes wanted, (m,).

    Returns:
        int32 (m, k_1 * ... * k_D), row-major over the kernel; -1 where the tap reads padding or
        does not exist.
    """
    index = np.unravel_index(ids, [len(r) for r in reads])
    return join_taps([r[i] for r, i in zip(reads, index, strict=True)], n_in)


def join_taps(sides: Sequence[Array], n_in: Sequence[int]) -> Array:
    """Flat input classes of rows of taps: `flat_taps` of rows (m, k_a), one per axis."""
    flat = sides[0].astype(np.int64)
    for side, n in zip(sides[1:], n_in[1:], strict=True):
        joined = flat[:, :, None] * n + side[:, None, :]
        joined[(flat[:, :, None] < 0) | (side[:, None, :] < 0)] = -1
        flat = joined.reshape(len(flat), flat.shape[1] * side.shape[1])
    return np.maximum(flat, -1).astype(np.int32)
