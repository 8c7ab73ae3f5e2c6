"""Ink to sites: which cells of a grid the pen visits, and what it does there (Graham 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _signature
from ._ink import MAX_SAMPLES, Ink, Ints, resample

# Highest level of the signature encoding where none is asked for.
LEVEL = 2
# Features per cell of each encoding.
ENCODINGS = {"pen": 1, "octogram": 9, "signature": _signature.n_features(LEVEL)}
# A signature sees the path this far to either side of a point, as a share of the character scale
# (the reference code's four steps of a twentieth).
WINDOW = 1 / 5
# Signatures take memory for every sample, 31 numbers of them at most, several times over.
_MAX_SIGNATURES = MAX_SAMPLES // 16
# Step along the pen path, in cells. At 0.1 a path cuts a corner of at most 0.05 cells unseen.
DENSITY = 0.1
_N_DIRECTIONS = 8


def check_encoding(operation: str, encoding: str, level: int = LEVEL) -> int:
    """The number of features per cell; raises TypeError or ValueError for what is not known."""
    if not isinstance(encoding, str):
        raise TypeError(
            f"{operation}: encoding must be a string, got {type(encoding).__name__}; "
            f"use one of {', '.join(map(repr, ENCODINGS))}"
        )
    if encoding not in ENCODINGS:
        raise ValueError(
            f"{operation}: encoding must be one of {', '.join(map(repr, ENCODINGS))}, "
            f"got {encoding!r}; use one of these"
        )
    check_level(operation, level)
    return _signature.n_features(level) if encoding == "signature" else ENCODINGS[encoding]


def check_level(operation: str, level: int) -> None:
    """Raises TypeError or ValueError for a level of signatures that there is not."""
    if isinstance(level, bool) or not isinstance(level, (int, np.integer)):
        raise TypeError(f"{operation}: level must be an integer, got {type(level).__name__}; use 2")
    if not 0 <= level <= _signature.MAX_LEVEL:
        raise ValueError(
            f"{operation}: level must be in [0, {_signature.MAX_LEVEL}], got {level}; use 2"
        )


def rasterize_ink(
    operation: str,
    ink: Ink,
    size: int,
    encoding: str,
    scale: float,
    density: float = DENSITY,
    level: int = LEVEL,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rasterises characters given in cells, 0 at the centre of the grid.

    Args:
        operation: name of the public function, for messages.
        ink: the characters.
        size: extent of the square grid; a point x lies in cell int(x + size / 2), clamped to the
            grid.
        encoding: "pen", "octogram" or "signature".
        scale: the character scale in cells, which decides how far a signature looks.
        density: arc-length step in cells.
        level: highest level of a signature.

    Returns:
        Coordinates int32 (n_sites, 3) with columns [character, row, column], unique, in
        lexicographic order; features float32 (n_sites, n_features).
    """
    if len(ink) * size * size >= 1 << 63:
        raise ValueError(
            f"{operation}: n_characters * size^2 must be below 2^63, got {len(ink)} * {size}^2; "
            "use a smaller grid"
        )
    is_signature = encoding == "signature"
    path = resample(operation, ink, density, _MAX_SIGNATURES if is_signature else MAX_SAMPLES)
    key = path.character_of_point
    for coordinate in path.points.T:
        # The clamp comes before the conversion: a float beyond int64 has no defined integer.
        cell = np.minimum(np.maximum(coordinate + size / 2, 0), size - 1).astype(np.int64)
        key = key * size + cell

    # The pen stays in a cell for about ten steps: sort runs of equal keys, not steps.
    is_first = np.ones(len(key), dtype=bool)
    np.not_equal(key[1:], key[:-1], out=is_first[1:])
    site_key, site_of_run, first_run = _unique(key[is_first])

    coords = np.empty((len(site_key), 3), dtype=np.int32)
    rest = site_key // size
    coords[:, 2] = site_key - rest * size
    coords[:, 0] = rest // size
    coords[:, 1] = rest - coords[:, 0] * size
    if is_signature:
        window = scale * WINDOW
        visit = np.flatnonzero(is_first)[first_run]
        n_steps = max(1, round(window / density))
        signatures = _signature.around(path, visit, n_steps, window, level)
        return coords, signatures.astype(np.float32)
    features = np.ones((len(site_key), ENCODINGS[encoding]), dtype=np.float32)
    if encoding == "octogram":
        site_of_point = site_of_run[np.cumsum(is_first) - 1]
        features[:, 1:] = _direction_histogram(path, site_of_point, len(site_key))
    return coords, features


def _unique(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """Sorted distinct keys, the position of each key among them, the first index of each.

    np.unique, but faster.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_new = np.ones(len(keys), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    position = np.empty(len(keys), dtype=np.int64)
    position[order] = np.cumsum(is_new) - 1
    return ordered[is_new], position, order[is_new]


def _direction_histogram(path: Ink, site: Ints, n_sites: int) -> NDArray[np.float64]:
    """Per site, how many steps leave in each of eight directions: float64 (n_sites, 8).

    A step in direction theta counts for direction k by max(0, 1 - angle(theta, k pi/4) / (pi/4)):
    it splits between the two directions it lies between. The step belongs to the cell it starts in.
    """
    x, y = path.points.T
    dx, dy = x[1:] - x[:-1], y[1:] - y[:-1]
    moves = (dx != 0) | (dy != 0)
    moves[path.stroke_start[1:-1] - 1] = False  # from one stroke to the next there is no step
    turn = np.arctan2(dy[moves], dx[moves]) * (_N_DIRECTIONS / (2 * np.pi))
    site = site[:-1][moves]
    lower = np.floor(turn)
    upper_share = turn - lower
    k = lower.astype(np.int64) % _N_DIRECTIONS
    slot = site * _N_DIRECTIONS
    n_slots = n_sites * _N_DIRECTIONS
    histogram = np.zeros(n_slots)
    histogram += np.bincount(slot + k, 1.0 - upper_share, n_slots)
    histogram += np.bincount(slot + (k + 1) % _N_DIRECTIONS, upper_share, n_slots)
    return histogram.reshape(n_sites, _N_DIRECTIONS)
