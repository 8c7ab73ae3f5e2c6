"""The kernels of CUDA tensors: which module has them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _C

CPU = torch.device("cpu")

_kernels: Any = getattr(_C, "gpu", None)


def whole(n: int, device: torch.device) -> Tensor:
    """Where the one segment of n rows starts and ends, int64 (2,), made without an upload."""
    return torch.arange(2, device=device) * n


def moved(plan: Any, device: torch.device) -> Any:
    """A plan, made of tensors, sites and tuples of such, on another device."""
    if isinstance(plan, (tuple, list)):
        parts = (moved(part, device) for part in plan)
        return type(plan)(*parts) if hasattr(plan, "_fields") else type(plan)(parts)
    return plan.to(device) if hasattr(plan, "to") else plan


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: nothing may be remembered then.

    What is made meanwhile lies in the graph's memory, and has no values until the graph runs.
    """
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()


def has_kernels() -> bool:
    """Whether `gpu` has any."""
    return _kernels is not None


def gpu() -> Any:
    """The bindings of the CUDA kernels: the functions of `_C`, on CUDA tensors.

    Raises:
        RuntimeError: this build has none.
    """
    if _kernels is None:
        raise RuntimeError(
            "doublesparse: tensors on cuda need a build with CUDA, this one has none; install with "
            "nvcc on the path, or use x.cpu()"
        )
    return _kernels


def use(module: ModuleType | Any) -> Any:
    """Puts other kernels in their place, returns those before: tests run emulated ones."""
    global _kernels
    before, _kernels = _kernels, module
    return before
