"""How many directions the filters of a layer need: the spectrum of a weight, and its rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._filters import check_weight, filter_rows


def rank(weight: Tensor, energy: float = 0.95, *, groups: int = 1, transposed: bool = False) -> int:
    """The smallest M of which the M largest singular values hold this share of the energy.

    Energy is the sum of squared singular values of the matrix with the filters as rows, of which no
    mean is subtracted: "at most 5 % PCA reconstruction error" (Wen et al. 2017) is energy 0.95.
    Singular values within rounding of zero (`torch.linalg.matrix_rank`'s tolerance) count as zero.

    Args:
        weight: (n, ...), float32 or float64: filters along axis 0, or, transposed, along axis 1.
        energy: the share, in (0, 1].
        groups: of a grouped convolution: the share is held in each group, and M is the sum of the
            groups' ranks.
        transposed: of a transposed convolution.

    Returns:
        M, at most the number of filters; 0 where all weights are zero.

    Raises:
        TypeError: `weight` is no floating-point tensor, `energy` no number.
        NotImplementedError: another floating-point dtype.
        ValueError: an empty weight, NaN or infinity in it, `energy` outside (0, 1], or `groups`
            that do not divide the filters.

    Example:
        >>> import torch, doublesparse as ds
        >>> ds.lowrank.rank(torch.diag(torch.tensor([3.0, 2.0, 1.0])), energy=0.9)
        2
    """
    check_energy("rank", energy)
    rows = _checked_rows("rank", weight, groups, transposed)
    return sum(spectral_rank(values, energy) for values in spectra(rows))


def check_energy(operation: str, energy: Any) -> None:
    """Raise where it is no share."""
    if isinstance(energy, bool) or not isinstance(energy, (int, float)):
        raise TypeError(
            f"{operation}: energy must be a number, got {type(energy).__name__}; pass e.g. 0.95"
        )
    if not 0 < energy <= 1:
        raise ValueError(f"{operation}: energy must be in (0, 1], got {energy}; pass e.g. 0.95")


def _checked_rows(operation: str, weight: Any, groups: Any, transposed: bool) -> Tensor:
    weight = check_weight(operation, weight)
    if weight.numel() == 0:
        raise ValueError(
            f"{operation}: weight must not be empty, got shape {tuple(weight.shape)}; "
            "there is nothing to decompose"
        )
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{operation}: groups must be an int >= 1, got {groups!r}; pass e.g. 1")
    if len(weight) % groups or (transposed and weight.dim() < 2):
        raise ValueError(
            f"{operation}: weight must have filters in {groups} groups, got shape "
            f"{tuple(weight.shape)}; pass layer.weight with layer.groups"
        )
    return filter_rows(weight, groups, transposed)


def spectra(rows: Tensor) -> list[Tensor]:
    """Singular values of each group's matrix, in float64, those within rounding of zero as zero."""
    return [clean(torch.linalg.svdvals(matrix.double()), matrix) for matrix in rows]


def clean(values: Tensor, matrix: Tensor) -> Tensor:
    """Singular values of a matrix, with zeros where they are below its rounding."""
    floor = values.max() * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    return torch.where(values > floor, values, 0.0)


def spectral_rank(values: Tensor, energy: float) -> int:
    """The smallest number of singular values, which descend, with this share of the energy."""
    largest = float(values.max())
    if largest == 0:
        return 0
    squares = (values / largest).square()  # those of 1e200 have no room in a float64
    # Summed from the small end: what the first M leave out, M = 0 .. n.
    left_out = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    # The slack is for a share that rounding alone would miss.
    allowed = (1.0 - energy) * float(left_out[0]) * (1 + 1e-12)
    return int((left_out > allowed).sum())
