"""Means, standard deviations and paired differences with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Student's t, 97.5 % quantile, for 1 to 9 degrees of freedom; above, the expansion in 1 / n.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def t_quantile(n: int) -> float:
    """The 97.5 % quantile of Student's t with n degrees of freedom, to three decimals.

    Cornish-Fisher expansion from ten degrees on (Abramowitz and Stegun 26.7.5).

    Example:
        >>> round(t_quantile(9), 3), round(t_quantile(24), 3)
        (2.262, 2.064)
    """
    if n < 1:
        raise ValueError(f"t_quantile: n must be at least 1, got {n}; use two samples or more")
    if n <= len(_T):
        return _T[n - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / n**i for i, term in enumerate(terms))


class Interval(NamedTuple):
    """A mean and its 95 % interval; an infinite one where there is one sample only."""

    mean: float
    low: float
    high: float


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The mean of a - b with its 95 % interval (paired t).

    Example:
        >>> paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Interval(mean, mean - half, mean + half)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
