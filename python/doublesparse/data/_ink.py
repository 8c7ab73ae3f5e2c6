"""Ragged batches of pen strokes: characters -> strokes -> points, in three flat arrays.

A character has one or two strokes of some forty points. Handled one by one, the calls into numpy
cost more than the arithmetic, so everything that is done to ink (scaling, distortion, resampling,
rasterising) is done to a whole batch of characters at once. Every function here treats each
stroke by the same operations in the same order whatever else is in the batch: a character gives
the same bits alone and in company.

Strokes are float arrays (n_points, 2); column 0 becomes the first axis of the grid (rows), column 1
the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A sample is two float64 and a few indices; 2^26 of them are about 4 GB. Ink that asks for more is
# an error of the caller (a stroke millions of cells long), and must not end in the memory killer.
MAX_SAMPLES = 1 << 26
_LARGE = 2.0**1000


@dataclass(frozen=True, eq=False)
class Ink:
    """Strokes of many characters.

    Attributes:
        points: float64 (n_points, 2), all points, stroke after stroke.
        stroke_start: int64 (n_strokes + 1,), the first point of each stroke, then n_points. No
            stroke is empty.
        character_start: int64 (n_characters + 1,), the first stroke of each character, then
            n_strokes.
    """

    points: Floats
    stroke_start: Ints
    character_start: Ints

    def __len__(self) -> int:
        """Number of characters."""
        return len(self.character_start) - 1

    @property
    def stroke_of_point(self) -> Ints:
        """int64 (n_points,)."""
        return np.repeat(np.arange(len(self.stroke_start) - 1), np.diff(self.stroke_start))

    @property
    def character_of_stroke(self) -> Ints:
        """int64 (n_strokes,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.character_start))

    @property
    def point_start(self) -> Ints:
        """int64 (n_characters + 1,): the first point of each character, then n_points."""
        return self.stroke_start[self.character_start]

    @property
    def character_of_point(self) -> Ints:
        """int64 (n_points,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.point_start))

    def with_points(self, points: Floats) -> Ink:
        """The same strokes at other points, float64 (n_points, 2)."""
        return Ink(points, self.stroke_start, self.character_start)

    def take(self, characters: ArrayLike) -> Ink:
        """The characters of the given numbers, in that order, repeats allowed."""
        chosen = np.asarray(characters, dtype=np.int64)
        strokes, character_start = _gather(self.character_start, chosen)
        points, stroke_start = _gather(self.stroke_start, strokes)
        return Ink(self.points[points], stroke_start, character_start)

    def strokes(self, character: int) -> list[Floats]:
        """The strokes of one character, as a list of float64 (n, 2)."""
        first, last = self.character_start[character], self.character_start[character + 1]
        bounds = self.stroke_start[first : last + 1]
        return [self.points[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _gather(start: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Members of chosen groups of a ragged array, and where each chosen group starts there."""
    length = start[chosen + 1] - start[chosen]
    out_start = np.concatenate([[0], np.cumsum(length)])
    members = np.arange(out_start[-1]) + np.repeat(start[chosen] - out_start[:-1], length)
    return members, out_start


def as_stroke(operation: str, stroke: ArrayLike) -> Floats:
    """Checks one stroke.

    Args:
        operation: name of the public function, for the message.
        stroke: anything numpy reads as a real (n, 2) array.

    Returns:
        float64 (n, 2).

    Raises:
        TypeError: the entries are not real numbers.
        ValueError: the shape is not (n, 2), or an entry is not finite.
    """
    try:
        array = np.asarray(stroke)
    except ValueError as error:  # ragged nesting
        raise ValueError(
            f"{operation}: a stroke must be an array (n, 2), got rows of different lengths; "
            "give every point two coordinates"
        ) from error
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"{operation}: a stroke must be an array of real numbers, got dtype {array.dtype}; "
            "convert it to float64"
        )
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(
            f"{operation}: a stroke must have shape (n, 2), got {array.shape}; "
            "pass a list of strokes, one array of points each"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(
            f"{operation}: points must be finite, got {array[row].tolist()} at point {row}; "
            "drop or repair such points"
        )
    return array


def make_ink(operation: str, characters: Sequence[Sequence[ArrayLike]]) -> Ink:
    """Packs characters, each a sequence of strokes; strokes without points are left out."""
    strokes: list[Floats] = []
    counts = []
    for character in characters:
        if isinstance(character, (str, bytes)) or not isinstance(character, (Sequence, np.ndarray)):
            raise TypeError(
                f"{operation}: strokes must be a list of arrays (n, 2), "
                f"got {type(character).__name__}; wrap a single stroke in a list"
            )
        kept = [s for s in (as_stroke(operation, stroke) for stroke in character) if len(s)]
        strokes += kept
        counts.append(len(kept))
    points = np.concatenate(strokes) if strokes else np.zeros((0, 2))
    stroke_start = np.cumsum([0, *(len(s) for s in strokes)], dtype=np.int64)
    return Ink(points, stroke_start, np.cumsum([0, *counts], dtype=np.int64))


def concatenate(inks: Sequence[Ink]) -> Ink:
    """One batch after the other."""
    points = np.concatenate([ink.points for ink in inks])
    strokes = np.concatenate([np.diff(ink.stroke_start) for ink in inks])
    characters = np.concatenate([np.diff(ink.character_start) for ink in inks])
    zero = np.zeros(1, dtype=np.int64)
    return Ink(
        points,
        np.concatenate([zero, np.cumsum(strokes)]),
        np.concatenate([zero, np.cumsum(characters)]),
    )


def extent(ink: Ink) -> tuple[Floats, Floats]:
    """Corners of the bounding boxes, (n_characters, 2) twice; 0 for a character without points."""
    lower, upper = np.zeros((len(ink), 2)), np.zeros((len(ink), 2))
    inked = np.diff(ink.point_start) > 0
    if inked.any():
        first = ink.point_start[:-1][inked]
        lower[inked] = np.minimum.reduceat(ink.points, first, axis=0)
        upper[inked] = np.maximum.reduceat(ink.points, first, axis=0)
    return lower, upper


def fit(ink: Ink, scale: float) -> Ink:
    """Centres each bounding box at 0 and scales it until its longer side is `scale`.

    One factor serves both axes. The side is taken as at least 1e-4 (a dot has none), as in the
    reference code of Graham 2014.
    """
    # Corners near the largest float would overflow in sums; dividing by a power of two is exact.
    if np.abs(ink.points).max(initial=0.0) > _LARGE:
        ink = ink.with_points(ink.points / _LARGE)
    lower, upper = extent(ink)
    # In this order of operations, the reference's: the corners of the box lie on borders of cells,
    # so that rounding decides where the outermost points fall, and with it the counts of sites.
    centre = 0.5 * (upper + lower)
    factor = scale / (upper - lower).max(axis=1, initial=1e-4)
    of_point = ink.character_of_point
    return ink.with_points((ink.points - centre[of_point]) * factor[of_point, None])


def arc_length(ink: Ink) -> Floats:
    """Length along its stroke from the stroke's first point to each point, (n_points,)."""
    x, y = ink.points.T
    step = np.hypot(x[1:] - x[:-1], y[1:] - y[:-1])
    length = np.zeros(len(x))
    bounds = ink.stroke_start.tolist()
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        np.cumsum(step[first : last - 1], out=length[first + 1 : last])
    return length


def resample(operation: str, ink: Ink, density: float, most: int = MAX_SAMPLES) -> Ink:
    """Points at equal arc-length steps, linearly interpolated.

    A stroke of length L becomes n + 1 points with n = int(0.5 + L / density), from its first to
    its last (to rounding); a stroke with n = 0 becomes its first point (`constantSpeed` of the
    reference code).

    This is the one place that loops over strokes: `np.interp` walks both of its sorted arguments
    at once, which beats gathering the segments of a whole batch, and rounds each stroke by itself.

    Raises:
        ValueError: more than `most` points would come out.
    """
    if not len(ink.points):
        return ink
    arc = arc_length(ink)
    total = arc[ink.stroke_start[1:] - 1]
    with np.errstate(over="ignore"):
        exact = 0.5 + total / density
    if not exact.sum() <= most:  # also false for inf
        raise ValueError(
            f"{operation}: strokes must give at most {most} steps, got {exact.sum():.3g} "
            f"(total length {total.sum():.3g} in steps of {density:g}); "
            "scale the strokes down or take a larger step"
        )
    n_steps = exact.astype(np.int64)
    start = np.zeros(len(n_steps) + 1, dtype=np.int64)
    np.cumsum(n_steps + 1, out=start[1:])
    out = np.empty((2, start[-1]))  # a row per axis: later passes read one axis at a time
    x, y = np.ascontiguousarray(ink.points.T)
    k = np.arange(n_steps.max() + 1, dtype=np.float64)
    first, to = ink.stroke_start.tolist(), start.tolist()
    for stroke, n in enumerate(n_steps.tolist()):
        source, target = slice(first[stroke], first[stroke + 1]), slice(to[stroke], to[stroke + 1])
        at = k[: n + 1] * total[stroke] / max(n, 1)
        out[0, target] = np.interp(at, arc[source], x[source])
        out[1, target] = np.interp(at, arc[source], y[source])
    return Ink(out.T, start, ink.character_start)
