"""Multilayer bootstrap networks (Zhang 2014): clusterings of clusterings, as an estimator.

scikit-learn 1.6 or later is needed; it is imported when the first of these names is used, not
before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._metrics import clustering_accuracy
    from ._network import MultilayerBootstrapNetwork

__all__ = ["MultilayerBootstrapNetwork", "clustering_accuracy"]


def __getattr__(name: str) -> Any:
    if name == "MultilayerBootstrapNetwork":
        from ._network import MultilayerBootstrapNetwork

        return MultilayerBootstrapNetwork
    if name == "clustering_accuracy":
        from ._metrics import clustering_accuracy

        return clustering_accuracy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
