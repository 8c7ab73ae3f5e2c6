"""How well clusters fit classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._extras import extra


def clustering_accuracy(labels_true: Any, labels_pred: Any) -> float:
    """The share of points in the right class, under the best one-to-one map of clusters to classes.

    The map is found by the Hungarian method; a cluster (or class) without partner counts as wrong.

    Args:
        labels_true: (n,) classes, integers or anything that numpy can sort.
        labels_pred: (n,) clusters.

    Returns:
        In [0, 1].

    Raises:
        ValueError: not one-dimensional, empty, or of different lengths.
        ImportError: scipy is not installed.

    Example:
        >>> import doublesparse as ds
        >>> ds.bootstrap.clustering_accuracy([0, 0, 1, 1], [1, 1, 0, 1])
        0.75
    """
    true, found = np.asarray(labels_true), np.asarray(labels_pred)
    if true.ndim != 1 or true.shape != found.shape or not len(true):
        raise ValueError(
            "clustering_accuracy: labels_true and labels_pred must have the same shape (n,), "
            f"n > 0, got {true.shape} and {found.shape}; pass one label a point in each"
        )
    classes, true = np.unique(true, return_inverse=True)
    clusters, found = np.unique(found, return_inverse=True)
    table = np.zeros((len(classes), len(clusters)), np.int64)
    np.add.at(table, (true, found), 1)
    solve = extra("scipy.optimize", "clustering_accuracy").linear_sum_assignment
    rows, columns = solve(table, maximize=True)
    return float(table[rows, columns].sum() / len(true))
