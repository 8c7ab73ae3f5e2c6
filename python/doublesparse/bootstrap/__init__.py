"""Multilayer bootstrap networks (Zhang 2014): clusterings of clusterings, as an estimator.

The estimator needs scikit-learn 1.6 or later, which is imported when it is first used, not before.
`compress` and what it returns do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._compress import compress
from ._compressed import CompressedNetwork

if TYPE_CHECKING:
    from ._metrics import clustering_accuracy
    from ._network import MultilayerBootstrapNetwork

__all__ = ["CompressedNetwork", "MultilayerBootstrapNetwork", "clustering_accuracy", "compress"]


def __getattr__(name: str) -> Any:
    if name == "MultilayerBootstrapNetwork":
        from ._network import MultilayerBootstrapNetwork

        return MultilayerBootstrapNetwork
    if name == "clustering_accuracy":
        from ._metrics import clustering_accuracy

        return clustering_accuracy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
