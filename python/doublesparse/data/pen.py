"""Online handwriting: pen strokes in, active sites out (Graham 2013, 2014).

A character is a list of strokes, a stroke a float array (n, 2) of points. `read_unipen` and
`read_pot` read files, `doublesparse.data.glyphs` draws characters of its own; `rasterize` makes the
sites of one character, `PenDataset` samples and batches for training, distorted anew each time by
`Augment`.

Grid order: column 0 of a stroke becomes the first axis of the grid (rows), column 1 the second.
Files name x (right) first and y (up, or down in .pot files) second; `upright` turns one into the
other. A network does not care, a picture does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _signature
from ._augment import Augment
from ._dataset import PenBatches, PenDataset, check_scale, check_size
from ._ink import Floats, Ink, as_stroke, fit, make_ink, resample
from ._pot import read_pot
from ._raster import DENSITY, ENCODINGS, LEVEL, check_encoding, check_level, rasterize_ink
from ._unipen import Character, read_unipen

__all__ = [
    "DENSITY",
    "ENCODINGS",
    "Augment",
    "Character",
    "PenBatches",
    "PenDataset",
    "constant_speed",
    "load_pendigits",
    "normalize",
    "rasterize",
    "read_pot",
    "read_unipen",
    "signature",
    "upright",
]


def upright(strokes: Sequence[ArrayLike], *, y_up: bool = True) -> list[Floats]:
    """Turns points (x right, y up), as tablets and files have them, into grid order (down, right).

    Args:
        strokes: arrays (n, 2), columns x, y.
        y_up: False where y points down already, as in .pot files.

    Example:
        >>> upright([[[3, 10]]])
        [array([[-10.,   3.]])]
    """
    checked = (as_stroke("upright", stroke) for stroke in strokes)
    sign = -1.0 if y_up else 1.0
    return [np.stack([sign * stroke[:, 1], stroke[:, 0]], axis=1) for stroke in checked]


def normalize(strokes: Sequence[ArrayLike], scale: float) -> list[Floats]:
    """Centres the bounding box at 0 and scales it, by one factor, until its longer side is `scale`.

    Args:
        strokes: arrays (n, 2).
        scale: the character scale, in cells; Graham takes a third of the grid.

    Returns:
        float64 arrays (n, 2); strokes without points are left out.

    Example:
        >>> normalize([[[0, 0], [10, 20]]], 16)
        [array([[-4., -8.],
               [ 4.,  8.]])]
    """
    ink = make_ink("normalize", [strokes])
    return fit(ink, check_scale("normalize", scale, 1)).strokes(0)


def constant_speed(stroke: ArrayLike, density: float = DENSITY) -> Floats:
    """Resamples a stroke at equal arc-length steps, linearly interpolated.

    Args:
        stroke: points (n, 2).
        density: the step. A stroke of length L gets n = int(0.5 + L / density) equal steps.

    Returns:
        float64 (n + 1, 2), from the first point to the last; the first alone where n = 0.

    Example:
        >>> constant_speed([[0, 0], [0, 1], [1, 1]], density=0.5)
        array([[0. , 0. ],
               [0. , 0.5],
               [0. , 1. ],
               [0.5, 1. ],
               [1. , 1. ]])
    """
    ink = make_ink("constant_speed", [[stroke]])
    return resample("constant_speed", ink, _check_density("constant_speed", density)).points


def signature(stroke: ArrayLike, level: int = LEVEL) -> Floats:
    """Iterated integrals of a path (Chen 1957): what the "signature" encoding shows of a window.

    Level k holds 2^k numbers, one for each word of k axes in lexicographic order: the integral
    over s_1 < ... < s_k of dX_{w_1}(s_1) ... dX_{w_k}(s_k), exact for the polyline through the
    points. Level 0 is 1, level 1 the displacement; of level 2, half the difference of its middle
    numbers is the area between the path and its chord.

    Args:
        stroke: points (n, 2).
        level: highest level, 0 to 4.

    Returns:
        float64 (2^(level + 1) - 1,), level after level.

    Example:
        >>> signature([[0, 0], [2, 0], [2, 1]])
        array([1. , 2. , 1. , 2. , 2. , 0. , 0.5])
    """
    check_level("signature", level)
    points = as_stroke("signature", stroke)
    n_steps = max(len(points) - 1, 0)
    window = np.zeros(1, dtype=np.int64), np.full(1, n_steps, dtype=np.int64)
    parts = _signature.of_windows(np.diff(points, axis=0), *window, int(level))
    return np.concatenate(parts, axis=1)[0]


def rasterize(
    strokes: Sequence[ArrayLike],
    size: int,
    encoding: str = "pen",
    scale: float | None = None,
    *,
    density: float = DENSITY,
    fitted: bool = True,
    level: int = LEVEL,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Cells that the pen visits, and what it does there (Graham 2013, 2014).

    The strokes are normalised to `scale` around the centre of the grid, resampled at steps of
    `density`, and a point x falls into cell int(x + size / 2), clamped to the grid.

    Args:
        strokes: arrays (n, 2); column 0 becomes the first coordinate.
        size: extent of the square grid.
        encoding: "pen", one feature that is 1 at every visited cell; "octogram", nine features:
            that one, and a histogram of the directions k pi/4 of the steps that leave the cell (a
            step between two directions counts for both, by shares that sum to 1); or
            "signature", the path's `signature` around the pen's first visit, 2^(level + 1) - 1
            features of which the first is 1: over a fifth of the scale to either side, cut off at
            the ends of the stroke, with that fifth as the unit of length.
        scale: longer side of the bounding box in cells; `size / 3` by default.
        density: arc-length step in cells.
        fitted: False takes the strokes as they are: in cells, 0 at the centre of the grid.
            `scale` then matters to signatures only.
        level: highest level of the signatures, 0 to 4.

    Returns:
        coords int32 (n_sites, 2), unique and in lexicographic order; features float32 (n_sites,
        n_features).

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: wrong shapes, ranges, or points that are not finite.

    Example:
        >>> coords, features = rasterize([[[0, 0], [0, 3]]], size=9)
        >>> coords.tolist()
        [[4, 3], [4, 4], [4, 5], [4, 6]]
        >>> rasterize([[[0, 0], [0, 3]]], size=9, encoding="octogram")[1].sum(axis=0).astype(int)
        array([ 4,  0,  0, 30,  0,  0,  0,  0,  0])
        >>> rasterize([[[0, 0], [0, 3]]], size=9, encoding="signature")[1][1].round(3)
        array([1., 0., 2., 0., 0., 0., 2.], dtype=float32)
    """
    check_encoding("rasterize", encoding, level)
    extent = check_size("rasterize", size)
    character_scale = check_scale("rasterize", scale, extent)
    step = _check_density("rasterize", density)
    ink: Ink = make_ink("rasterize", [strokes])
    if fitted:
        ink = fit(ink, character_scale)
    coords, features = rasterize_ink(
        "rasterize", ink, extent, encoding, character_scale, step, level
    )
    return np.ascontiguousarray(coords[:, 1:]), features


def load_pendigits(folder: str | os.PathLike[str]) -> tuple[list[Character], list[Character]]:
    """UCI's Pen-Based Recognition of Handwritten Digits: raw strokes, split by writer.

    Args:
        folder: holds `pendigits-orig.tra` and `pendigits-orig.tes`, itself or in a subfolder
            `pendigits-orig`.

    Returns:
        7494 characters by 30 writers to train on, 3498 by 14 others to test on; strokes upright.

    Raises:
        FileNotFoundError: the files are not there.
    """
    root = Path(folder)
    places = (root / "pendigits-orig", root)
    for place in places:
        files = [place / f"pendigits-orig.{part}" for part in ("tra", "tes")]
        if all(file.is_file() for file in files):
            train, test = (
                [Character(upright(c.strokes), c.label) for c in read_unipen(file)]
                for file in files
            )
            return train, test
    raise FileNotFoundError(
        "load_pendigits: expected pendigits-orig.tra and pendigits-orig.tes in "
        f"{' or '.join(map(str, places))}, found no such pair; "
        'fetch "Pen-Based Recognition of Handwritten Digits" from the UCI repository'
    )


def _check_density(operation: str, density: float) -> float:
    if isinstance(density, bool) or not isinstance(density, (int, float, np.floating, np.integer)):
        raise TypeError(
            f"{operation}: density must be a number, got {type(density).__name__}; use 0.1"
        )
    if not 0 < density < np.inf:
        raise ValueError(
            f"{operation}: density must be positive and finite, got {density}; use 0.1"
        )
    return float(density)
