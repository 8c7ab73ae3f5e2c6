"""Short actions: many calls in one timing, caches as warm for one as for the other."""

from __future__ import annotations

import time
from collections.abc import Callable

Action = Callable[[], object]


def repeated(action: Action, calls: int) -> Action:
    """The same action, so many times."""

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
