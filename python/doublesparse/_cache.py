"""The process-wide bound on what Sites remember: least recently used entries go first.

Everything that depends on geometry alone (rulebooks, class numbers, window tables) is kept in
`Sites.cache`, so it lives as long as its sites do and needs no name from the user. This module only
counts bytes and drops what was not used for longest. It holds weak references: a cache entry never
keeps its sites alive, and sites that die take their entries with them.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from itertools import count
from typing import TYPE_CHECKING, Any

from ._device import capturing

if TYPE_CHECKING:
    from .sites import Sites

_DEFAULT_LIMIT = 1 << 30

_lock = threading.Lock()
_order: OrderedDict[int, tuple[weakref.ref[Sites], Hashable, int]] = (
    OrderedDict()
)  # oldest use first
# Tokens of entries whose sites died. A weak reference's callback may run anywhere: no lock there.
_dead: deque[int] = deque()
_tokens = count()
_limit = _DEFAULT_LIMIT
_total = 0


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def get(sites: Sites, key: Hashable) -> Any:
    """What `sites` remembers under `key`, or None; counts as a use."""
    entry = sites.cache.get(key)
    if entry is None:
        return None
    try:  # noqa: SIM105 - suppress() costs more than the rest of a cached call's look-up
        _order.move_to_end(entry[0])
    except KeyError:  # dropped by another thread just now; the value is still good
        pass
    return entry[1]


def put(sites: Sites, key: Hashable, value: Any, n_bytes: int) -> Any:
    """Remember `value`; returns what is remembered: another thread's where that came first."""
    if capturing(sites.device):
        return value
    with _lock:
        entry = sites.cache.get(key)
        if entry is not None:
            return entry[1]
        token = next(_tokens)

        def died(_: object, token: int = token) -> None:
            _dead.append(token)

        sites.cache[key] = (token, value)
        _order[token] = (weakref.ref(sites, died), key, n_bytes)
        _add(n_bytes)
        _shrink()
    return value


def _add(n_bytes: int) -> None:
    global _total
    _total += n_bytes


def _shrink() -> None:
    """Drop dead entries, then the oldest until the bound holds. The lock is held."""
    while _dead:
        gone = _order.pop(_dead.popleft(), None)
        if gone is not None:
            _add(-gone[2])
    while _total > _limit and _order:
        _, (reference, key, n_bytes) = _order.popitem(last=False)
        _add(-n_bytes)
        sites = reference()
        if sites is not None:
            sites.cache.pop(key, None)


def set_cache_limit(n_bytes: int) -> None:
    """Bound the memory of all cached rulebooks together; the least recently used are dropped first.

    Args:
        n_bytes: the bound in bytes, 0 to keep nothing. The default is 1 GiB.

    Raises:
        TypeError: `n_bytes` is not an integer.
        ValueError: `n_bytes` is negative.

    Example:
        >>> import doublesparse as ds
        >>> ds.set_cache_limit(256 * 2**20)
        >>> ds.set_cache_limit(2**30)
    """
    global _limit
    if isinstance(n_bytes, bool) or not isinstance(n_bytes, int):
        raise TypeError(
            f"set_cache_limit: n_bytes must be an int, got {type(n_bytes).__name__}; "
            "pass a number of bytes"
        )
    if n_bytes < 0:
        raise ValueError(
            f"set_cache_limit: n_bytes must be >= 0, got {n_bytes}; pass 0 to keep nothing"
        )
    with _lock:
        _limit = n_bytes
        _shrink()


def cached_bytes() -> int:
    """Bytes that cached rulebooks and tables hold now, in all Sites together."""
    with _lock:
        _shrink()
        return _total
