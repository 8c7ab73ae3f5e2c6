"""The kernels of CUDA tensors: which module has them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import _C

_kernels: Any = getattr(_C, "gpu", None)


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
