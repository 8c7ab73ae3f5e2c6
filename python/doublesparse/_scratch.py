"""Memory for the kernels' workspaces, kept by each thread.

A fresh block of megabytes is mapped page by page as it is written, which took 7 of 11 ms for the
packed weight of a 512 -> 512 layer.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_LEAST = 1 << 14  # elements that are worth keeping
_MOST = 64 << 20  # bytes that a thread keeps for each dtype

_kept = threading.local()


def scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Uninitialized memory on the CPU, 1-D: this thread's until it asks again.

    Args:
        size: number of elements.
        dtype: of them.
    """
    if size < _LEAST or size * dtype.itemsize > _MOST:
        return torch.empty(size, dtype=dtype, device="cpu")
    name = str(dtype)
    buffer: Tensor | None = getattr(_kept, name, None)
    if buffer is None or len(buffer) < size:
        buffer = torch.empty(size, dtype=dtype, device="cpu")
        setattr(_kept, name, buffer)
    return buffer[:size]
