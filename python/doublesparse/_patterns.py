"""Patterns of kept weights, on the matrix view of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


class Pattern:
    """Of a mask."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight may be kept."""


@dataclass(frozen=True)
class Block(Pattern):
    """Whole blocks of r rows and c columns."""

    r: int
    c: int


@dataclass(frozen=True)
class NM(Pattern):
    """n kept of every m."""

    n: int
    m: int


@dataclass(frozen=True)
class TopKRows(Pattern):
    """The s largest of each row."""

    s: int


@dataclass(frozen=True)
class TopKColumns(Pattern):
    """The s largest of each column."""

    s: int


def to_matrix(weight: Tensor) -> Tensor:
    """(c_out, V * c_in/g): column = offset * (c_in/g) + channel."""
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_matrix`."""
    c_out, c_in, *kernel = shape
    return matrix.reshape(c_out, *kernel, c_in).movedim(-1, 1)


def check_pattern(operation: str, pattern: object) -> None:
    """Raise TypeError where `pattern` is none of ours."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{operation}: pattern must be a pattern object")
