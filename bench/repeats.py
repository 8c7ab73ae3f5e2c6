"""Short actions, many calls in one timing, and what is read off a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable

Action = Callable[[], object]


def repeated(action: Action, calls: int) -> Action:
    """The same action, so many times; caches are then as warm for one as for another."""

    def run() -> None:
        for _ in range(calls):
            action()

    return run


def per_call(seconds: list[float], calls: int) -> list[float]:
    """Seconds of one call of a repeated action."""
    return [second / calls for second in seconds]


def calls_for(action: Action, seconds: float = 5e-4) -> int:
    """How many calls take about so long, once the action is warm; at least one."""
    action()
    start = time.perf_counter()
    action()
    return max(1, round(seconds / (time.perf_counter() - start)))


def break_even(ratios: dict[float, float]) -> float:
    """The sparsity from which on dense over ours stays at 1 or above, between points by a line.

    The lowest of `ratios` where it never is below 1, and 1.0 where it ends below.
    """
    points = sorted(ratios.items())
    below = [i for i, (_, ratio) in enumerate(points) if ratio < 1]
    if not below:
        return points[0][0]
    if below[-1] == len(points) - 1:
        return 1.0
    (low, slow), (high, fast) = points[below[-1]], points[below[-1] + 1]
    return low + (high - low) * (1 - slow) / (fast - slow)
