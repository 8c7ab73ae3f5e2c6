"""Patterns of pruned weights, and the matrix that they live on.

Everything is said of the matrix view of a weight: (c_out, *kernel, c_in / groups) with all but the
first axis flattened, so column = offset * (c_in / groups) + channel. In torch's flattened order 16
columns of a 3x3 kernel would mix nine offsets and two channels, and no offset could be skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


# ------------------------------------------------------------------ patterns
class Pattern:
    """The shape of what a mask keeps: `Unstructured`, `Block`, `NM`, `TopKRows`, `TopKColumns`.

    Patterns are immutable, hashable, compare by value and pickle.
    """

    @property
    def fixed(self) -> bool:
        """Whether the pattern itself says how much is kept, so that no sparsity can be chosen."""
        return False


def _check_size(pattern: Pattern, name: str, smallest: int = 1) -> None:
    """An attribute that must be an int, and not below a bound."""
    value, operation = getattr(pattern, name), type(pattern).__name__
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{operation}: {name} must be an int, got {value!r}; pass a number")
    if value < smallest:
        raise ValueError(
            f"{operation}: {name} must be at least {smallest}, got {value}; pass a larger number"
        )


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight may be kept.

    Example:
        >>> import torch, doublesparse as ds
        >>> ds.prune.magnitude_mask(torch.tensor([[1.0, -3.0, 2.0]]), ds.Unstructured(), 2 / 3)
        tensor([[False,  True, False]])
    """


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of r output channels times c input channels are kept whole or pruned whole.

    A block never crosses a kernel offset or a group. Where r or c does not divide, the last block
    is smaller: it is scored on what exists of it.

    Attributes:
        r: output channels of a block, at least 1.
        c: input channels of a block, at least 1.

    Raises:
        TypeError: r or c is no int.
        ValueError: r or c is below 1.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[1.0, 1.0, 0.0, 5.0], [1.0, 1.0, 0.0, 0.0]])
        >>> ds.prune.magnitude_mask(weight, ds.Block(2, 2), sparsity=0.5)
        tensor([[False, False,  True,  True],
                [False, False,  True,  True]])
    """

    r: int
    c: int

    def __post_init__(self) -> None:
        _check_size(self, "r")
        _check_size(self, "c")


@dataclass(frozen=True)
class NM(Pattern):
    """n kept of every m along the input channels, within a kernel offset.

    Where m does not divide the channels, the last run of them is shorter and keeps n, or all that
    it has.

    Attributes:
        n: kept, 0 to m.
        m: of so many, at least 1.

    Raises:
        TypeError: n or m is no int.
        ValueError: m below 1, n below 0 or above m.

    Example:
        >>> import torch, doublesparse as ds
        >>> ds.prune.magnitude_mask(torch.tensor([[4.0, 3.0, 1.0, 2.0]]), ds.NM(1, 2))
        tensor([[ True, False, False,  True]])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _check_size(self, "n", 0)
        _check_size(self, "m")
        if self.n > self.m:
            raise ValueError(
                f"NM: n must be at most m, got n={self.n} and m={self.m}; n weights are kept of "
                "every m, so swap them or lower n"
            )

    @property
    def fixed(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class TopKRows(Pattern):
    """The s largest weights of each row (output channel) of the matrix; all of a shorter row.

    Attributes:
        s: kept weights of a row, at least 0.

    Raises:
        TypeError: s is no int.
        ValueError: s is negative.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[1.0, -2.0], [4.0, 3.0]])
        >>> ds.prune.magnitude_mask(weight, ds.TopKRows(1))
        tensor([[False,  True],
                [ True, False]])
    """

    s: int

    def __post_init__(self) -> None:
        _check_size(self, "s", 0)

    @property
    def fixed(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class TopKColumns(Pattern):
    """The s largest weights of each column of the matrix; all of a shorter column.

    The double-sparsity encoder's constraint (Wang & Huang 2016).

    Attributes:
        s: kept weights of a column, at least 0.

    Raises:
        TypeError: s is no int.
        ValueError: s is negative.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[1.0, -2.0], [4.0, 3.0]])
        >>> ds.prune.magnitude_mask(weight, ds.TopKColumns(1))
        tensor([[False, False],
                [ True,  True]])
    """

    s: int

    def __post_init__(self) -> None:
        _check_size(self, "s", 0)

    @property
    def fixed(self) -> bool:
        """True."""
        return True


def check_pattern(operation: str, pattern: Any) -> None:
    """Raise TypeError where `pattern` is none of ours."""
    if not isinstance(pattern, Pattern):
        shown = pattern.__name__ if isinstance(pattern, type) else type(pattern).__name__
        raise TypeError(
            f"{operation}: pattern must be a pattern object, got {shown}; pass ds.Unstructured(), "
            "ds.Block(r, c), ds.NM(n, m), ds.TopKRows(s) or ds.TopKColumns(s)"
        )


def check_sparsity(operation: str, sparsity: Any, pattern: Pattern) -> None:
    """A share in [0, 1], or None where the pattern says itself what is kept."""
    if sparsity is None:
        if not pattern.fixed:
            raise ValueError(
                f"{operation}: sparsity must be given for {pattern}, got None; pass a number in "
                "[0, 1], e.g. 0.9"
            )
        return
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"{operation}: sparsity must be a number, got {sparsity!r}; pass e.g. 0.9")
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(
            f"{operation}: sparsity must lie in [0, 1], got {sparsity}; it is the share of weights "
            "that are pruned, e.g. 0.9"
        )


# ------------------------------------------------------------------ the matrix view
def to_matrix(weight: Tensor) -> Tensor:
    """A weight (or its mask) as the matrix (c_out, n_offsets * c_in / groups).

    Args:
        weight: (c_out, c_in / groups, *kernel), or (c_out, c_in), which is the matrix already.

    Returns:
        column = offset * (c_in / groups) + channel; a view where torch can make one.

    Example:
        >>> import torch
        >>> to_matrix(torch.arange(6).view(1, 2, 3))
        tensor([[0, 3, 1, 4, 2, 5]])
    """
    return weight if weight.dim() == 2 else weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of this shape whose matrix view this is: the inverse of `to_matrix`.

    Example:
        >>> import torch
        >>> weight = torch.randn(4, 2, 3, 3)
        >>> torch.equal(from_matrix(to_matrix(weight), weight.shape), weight)
        True
    """
    if len(shape) == 2:
        return matrix
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
