"""Random distortions of ink (Graham 2014, as in the reference code), for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ._ink import Floats, Ink


@dataclass(frozen=True)
class Augment:
    """Ranges of the random distortions, applied in this order to ink in cells with 0 at its centre.

    The reference draws every range from U(-r, r), for characters 64 cells high. `jiggle` and
    `translate` are lengths there (1 and 12 cells); here they are shares of the character scale,
    so that one setting serves every grid.

    Attributes:
        jiggle: each stroke moves by itself, along both axes.
        stretch: both axes stretch independently, by a factor 1 + U(-r, r).
        turn: one of {rotation, slant along rows, slant along columns} is picked, with this angle
            or shear.
        translate: the character moves, along both axes.
        elastic: strength of a smooth random field (`elastic`), applied first; 0, as in the
            reference, is none.
    """

    jiggle: float = 1 / 64
    stretch: float = 0.3
    turn: float = 0.3
    translate: float = 12 / 64
    elastic: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(
                    f"Augment: {field.name} must be a number, got {type(value).__name__}; "
                    "give half the width of the range"
                )
            if not 0 <= value < np.inf:
                raise ValueError(
                    f"Augment: {field.name} must be finite and >= 0, got {value}; 0 switches it off"
                )

    def __call__(self, ink: Ink, scale: float, generator: np.random.Generator) -> Ink:
        """Distorts every character by its own draw.

        Args:
            ink: characters in cells.
            scale: the character scale in cells.
            generator: the source of randomness; the draws depend on the batch as a whole.
        """
        n_strokes, n_characters = len(ink.stroke_start) - 1, len(ink)
        if self.elastic:
            ink = elastic(ink, scale, self.elastic, generator)
        points = ink.points
        moved = generator.uniform(-1, 1, (n_strokes, 2)) * (self.jiggle * scale)
        points = points + moved[ink.stroke_of_point]

        matrix = self._matrices(n_characters, generator)
        shift = generator.uniform(-1, 1, (n_characters, 2)) * (self.translate * scale)
        of_point = ink.character_of_point
        # Four products spelled out: einsum and matmul over (n, 2, 2) are slower than the
        # arithmetic.
        per_point = matrix[of_point]
        x, y = points[:, 0], points[:, 1]
        out = np.stack(
            [
                per_point[:, 0, 0] * x + per_point[:, 0, 1] * y,
                per_point[:, 1, 0] * x + per_point[:, 1, 1] * y,
            ],
            axis=1,
        )
        return ink.with_points(out + shift[of_point])

    def _matrices(self, n: int, generator: np.random.Generator) -> Floats:
        """Turn times stretch, (n, 2, 2)."""
        stretch = 1 + generator.uniform(-1, 1, (n, 2)) * self.stretch
        kind = generator.integers(0, 3, n)
        angle = generator.uniform(-1, 1, n) * self.turn
        turn = np.zeros((n, 2, 2))
        turn[:, 0, 0] = turn[:, 1, 1] = np.where(kind == 0, np.cos(angle), 1.0)
        turn[:, 0, 1] = np.where(kind == 0, np.sin(angle), np.where(kind == 1, angle, 0.0))
        turn[:, 1, 0] = np.where(kind == 0, -np.sin(angle), np.where(kind == 2, angle, 0.0))
        return turn * stretch[:, None, :]  # the stretch acts first: it scales the columns


# Waves of the elastic field, and their lengths as shares of the character scale: long enough that
# a stroke bends rather than shakes, short enough that its two ends bend differently.
_N_WAVES = 4
_SHORTEST_WAVE, _LONGEST_WAVE = 0.6, 2.0


def elastic(ink: Ink, scale: float, strength: float, generator: np.random.Generator) -> Ink:
    """Moves every point by a smooth random field, one field per character.

    The field is a sum of plane waves of random direction, length, phase and polarisation: the
    smoothed noise image that distorts pictures, evaluated at the points of the pen and nowhere
    else.

    Args:
        ink: characters of the given scale.
        scale: the character scale; wave lengths are shares of it.
        strength: root mean square displacement along an axis, as a share of the scale.
        generator: the source of randomness.
    """
    n = len(ink)
    direction = generator.uniform(0, 2 * np.pi, (n, _N_WAVES))
    length = generator.uniform(_SHORTEST_WAVE, _LONGEST_WAVE, (n, _N_WAVES)) * scale
    phase = generator.uniform(0, 2 * np.pi, (n, _N_WAVES))
    # The mean square of a sine is 1/2; n_waves of them add up.
    amplitude = generator.standard_normal((n, _N_WAVES, 2)) * (
        strength * scale * np.sqrt(2 / _N_WAVES)
    )
    of_point = ink.character_of_point
    number = 2 * np.pi / length
    wave = ink.points[:, :1] * (np.cos(direction) * number)[of_point]
    wave += ink.points[:, 1:] * (np.sin(direction) * number)[of_point]
    wave = np.sin(wave + phase[of_point])
    moved = np.empty_like(ink.points)
    for axis in range(2):
        moved[:, axis] = (wave * amplitude[of_point, :, axis]).sum(axis=1)
    return ink.with_points(ink.points + moved)
