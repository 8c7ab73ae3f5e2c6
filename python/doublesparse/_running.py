"""Which models' forward runs in this thread: what hooks before and after it keep."""

from __future__ import annotations

import threading
from typing import Any


class Running(threading.local):
    """Items that belong to models whose forward runs now, innermost last; of each thread its own.

    Entered in a forward pre-hook, left in a forward hook with `always_call`.
    """

    def __init__(self) -> None:
        self.items: list[Any] = []

    def enter(self, item: Any) -> None:
        """A forward begins."""
        for i, other in enumerate(self.items):
            if other is item:  # never left: interrupted, or it calls itself
                del self.items[i:]
                break
        self.items.append(item)

    def leave(self, item: Any) -> None:
        """It ended, with or without an error."""
        if self.items and self.items[-1] is item:
            self.items.pop()

    def has(self, item: Any) -> bool:
        """Whether the forward of this item's model runs."""
        return any(other is item for other in self.items)
