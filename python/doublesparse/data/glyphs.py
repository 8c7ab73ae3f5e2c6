"""Stroke characters that need no files: a pen alphabet with random handwriting.

Each class is one or two prototypes made of lines and arcs, as one writes them. A character is a
prototype under a smooth elastic field, an affine map, a jitter of its strokes and a tremor of its
points, all drawn from one seed.

Prototypes are given as people draw: x right, y down, in the unit square. Strokes come out in grid
order (down, right), as `doublesparse.data.pen.rasterize` takes them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from ._augment import Augment
from ._ink import Floats, Ink, fit, make_ink
from ._unipen import Character

# Points that an arc gets per full turn.
_ARC_POINTS = 32


def _line(*points: tuple[float, float]) -> Floats:
    return np.array(points, dtype=np.float64)


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Floats:
    """Part of an ellipse; angles in degrees, 0 right, 90 down; `end` < `start` runs backwards."""
    n = max(2, round(abs(end - start) / 360 * _ARC_POINTS) + 1)
    angle = np.radians(np.linspace(start, end, n))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _path(*parts: Floats) -> Floats:
    """One stroke through several parts; the pen goes straight from one to the next."""
    return np.concatenate(parts)


# Prototypes by label: each a list of strokes. Pairs that differ by a turn or a stretch alone (0
# and O, 1 and I, 5 and S, 2 and Z) are not both here: the distortions below make them the same
# character.
_PROTOTYPES: dict[str, list[list[Floats]]] = {
    "0": [[_arc(0.5, 0.5, 0.35, 0.5, -90, -450)]],
    "1": [[_line((0.5, 0.0), (0.5, 1.0))], [_line((0.25, 0.3), (0.55, 0.0), (0.55, 1.0))]],
    "2": [[_path(_arc(0.5, 0.28, 0.38, 0.28, -170, 40), _line((0.1, 1.0), (0.92, 1.0)))]],
    "3": [
        [_path(_arc(0.45, 0.25, 0.38, 0.25, -150, 90), _arc(0.45, 0.75, 0.42, 0.25, -90, 150))],
        [_path(_line((0.1, 0.0), (0.85, 0.0), (0.4, 0.4)), _arc(0.42, 0.7, 0.42, 0.3, -90, 150))],
    ],
    "4": [
        [_line((0.6, 0.0), (0.05, 0.65), (0.95, 0.65)), _line((0.65, 0.35), (0.65, 1.0))],
        [_line((0.2, 0.0), (0.15, 0.5), (0.9, 0.5)), _line((0.75, 0.0), (0.7, 1.0))],
    ],
    "5": [
        [
            _path(_line((0.15, 0.0), (0.12, 0.45)), _arc(0.42, 0.7, 0.4, 0.3, -120, 150)),
            _line((0.15, 0.0), (0.85, 0.0)),
        ]
    ],
    "6": [[_path(_line((0.7, 0.0), (0.25, 0.45)), _arc(0.5, 0.72, 0.32, 0.28, -180, -540))]],
    "7": [
        [_line((0.1, 0.0), (0.9, 0.0), (0.4, 1.0))],
        [_line((0.1, 0.0), (0.9, 0.0), (0.4, 1.0)), _line((0.3, 0.5), (0.85, 0.5))],
    ],
    "8": [
        [
            _path(
                _arc(0.5, 0.25, 0.3, 0.25, 0, -270),
                _arc(0.5, 0.75, 0.38, 0.25, -90, 270),
                _line((0.8, 0.25)),
            )
        ],
        [_arc(0.5, 0.25, 0.3, 0.25, 90, 450), _arc(0.5, 0.75, 0.38, 0.25, -90, 270)],
    ],
    "9": [[_path(_arc(0.48, 0.28, 0.35, 0.28, 0, -360), _line((0.8, 0.55), (0.6, 1.0)))]],
    "A": [[_line((0.0, 1.0), (0.5, 0.0), (1.0, 1.0)), _line((0.2, 0.62), (0.8, 0.62))]],
    "E": [
        [
            _line((0.85, 0.0), (0.1, 0.0), (0.1, 1.0), (0.85, 1.0)),
            _line((0.1, 0.5), (0.7, 0.5)),
        ]
    ],
    "H": [
        [
            _line((0.1, 0.0), (0.1, 1.0)),
            _line((0.9, 0.0), (0.9, 1.0)),
            _line((0.1, 0.5), (0.9, 0.5)),
        ]
    ],
    "K": [[_line((0.1, 0.0), (0.1, 1.0)), _line((0.85, 0.0), (0.1, 0.55), (0.9, 1.0))]],
    "M": [[_line((0.0, 1.0), (0.1, 0.0), (0.5, 0.6), (0.9, 0.0), (1.0, 1.0))]],
    "R": [
        [
            _line((0.1, 0.0), (0.1, 1.0)),
            _path(
                _line((0.1, 0.0)),
                _arc(0.45, 0.25, 0.4, 0.25, -90, 90),
                _line((0.1, 0.5), (0.9, 1.0)),
            ),
        ]
    ],
    "T": [[_line((0.0, 0.0), (1.0, 0.0)), _line((0.5, 0.0), (0.5, 1.0))]],
    "U": [[_path(_line((0.1, 0.0)), _arc(0.5, 0.6, 0.4, 0.4, 180, 0), _line((0.9, 0.0)))]],
    "W": [[_line((0.0, 0.0), (0.25, 1.0), (0.5, 0.35), (0.75, 1.0), (1.0, 0.0))]],
    "X": [[_line((0.1, 0.0), (0.9, 1.0)), _line((0.9, 0.0), (0.1, 1.0))]],
}

CLASSES: tuple[str, ...] = tuple(_PROTOTYPES)

# The hand: how far characters of one class differ. Shares of the character's size.
HAND = Augment(jiggle=0.04, stretch=0.25, turn=0.3, translate=0.0, elastic=0.05)
# Tremor of each point, standard deviation: a pen tablet's noise.
_TREMOR = 0.008
# Points closer than this share of the size are filled in before the distortion, or a line could
# not bend.
_STEP = 0.06


def _dense(stroke: Floats) -> Floats:
    """Adds points along straight parts, keeping every corner."""
    parts = []
    for a, b in zip(stroke[:-1], stroke[1:], strict=True):
        n = max(1, int(np.ceil(np.hypot(*(b - a)) / _STEP)))
        parts.append(a + (b - a) * np.arange(n)[:, None] / n)
    return np.concatenate([*parts, stroke[-1:]])


def _prototype_ink() -> tuple[Ink, list[int]]:
    """All prototypes, fitted to size 1; the first one of each class, then their number."""
    characters, first = [], [0]
    for prototypes in _PROTOTYPES.values():
        for strokes in prototypes:
            characters.append([_dense(stroke)[:, ::-1] for stroke in strokes])
        first.append(len(characters))
    return fit(make_ink("make_characters", characters), 1.0), first


def make_characters(
    n: int,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    hand: Augment = HAND,
) -> list[Character]:
    """Draws characters: the classes in turn, each a random prototype in a random hand.

    Args:
        n: how many.
        seed: of every choice; the same arguments give the same points, bit for bit.
        classes: labels to draw, from `CLASSES`.
        hand: spread of the distortions.

    Returns:
        n characters; strokes in grid order (down, right), longer side about 1, 0 at the centre.

    Raises:
        TypeError: n or seed is not an integer.
        ValueError: n or seed is negative, or a class is not in `CLASSES`.

    Example:
        >>> [character.label for character in make_characters(3, seed=1)]
        ['0', '1', '2']
    """
    count, start = (_natural(name, value) for name, value in (("n", n), ("seed", seed)))
    unknown = [name for name in classes if name not in _PROTOTYPES]
    if unknown or not classes:
        raise ValueError(
            f"make_characters: classes must be some of {''.join(CLASSES)}, "
            f"got {list(classes)}; leave it out for all"
        )
    generator = np.random.Generator(np.random.Philox(start))
    ink, first = _prototype_ink()
    number = {name: i for i, name in enumerate(CLASSES)}
    wanted = np.array([number[name] for name in classes], dtype=np.int64)
    cls = wanted[np.arange(count) % len(wanted)]
    bounds = np.array(first)
    prototype = generator.integers(bounds[cls], bounds[cls + 1])
    out = hand(ink.take(prototype), 1.0, generator)
    points = out.points + generator.standard_normal(out.points.shape) * _TREMOR
    out = out.with_points(points)
    return [Character(out.strokes(i), CLASSES[cls[i]]) for i in range(count)]


def _natural(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"make_characters: {name} must be an integer, got {type(value).__name__}; round it"
        ) from error
    if number < 0:
        raise ValueError(f"make_characters: {name} must be >= 0, got {number}; use e.g. 1000")
    return number
