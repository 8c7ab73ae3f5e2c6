"""A multilayer bootstrap network's prediction, written plainly: what its speed is compared with."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def plain_transform(mbn: Any, train: np.ndarray, X: np.ndarray) -> np.ndarray:
    """`mbn.transform(X)` with scikit-learn's and scipy's operations alone.

    Layer 1 is scikit-learn's blocked arg min of Euclidean distances, a clustering at a time. The
    layers above expand codes into one-hot CSR matrices, and multiply them by those of the centres.
    No kernel of this package runs.

    Args:
        mbn: a fitted `MultilayerBootstrapNetwork`.
        train: (n, n_features) what it was fitted on.
        X: (m, n_features).

    Returns:
        (m, n_components) float64; equal up to rounding, and up to ties of distances.
    """
    argmin = importlib.import_module("sklearn.metrics").pairwise_distances_argmin
    first, *upper = mbn.layers_
    codes = np.stack(
        [
            argmin(X[:, columns], train[centers][:, columns])
            for columns, centers in zip(first.columns, first.centers, strict=True)
        ]
    )
    k = first.centers.shape[1]
    for layer, below in zip(upper, mbn._codes, strict=True):
        code, reference = _one_hot(codes, k), _one_hot(below, k)
        codes = np.stack(
            [
                _most_alike(code, reference[centers], columns, k)
                for columns, centers in zip(layer.columns, layer.centers, strict=True)
            ]
        )
        k = layer.centers.shape[1]
    product: np.ndarray = _one_hot(codes, k) @ mbn.components_.T
    return product - mbn.components_ @ mbn.mean_


def _most_alike(code: Any, centers: Any, clusterings: np.ndarray, k: int) -> np.ndarray:
    """The centre of the largest inner product on some clusterings, the lowest on ties."""
    voting = np.zeros(code.shape[1], np.float32)
    voting.reshape(-1, k)[clusterings] = 1
    product = code @ centers.multiply(voting).T.tocsr()
    nearest: np.ndarray = product.toarray().argmax(1)
    return nearest


def _one_hot(codes: np.ndarray, k: int) -> Any:
    """(V, n) indices -> CSR (n, V k) of ones."""
    n_clusterings, n = codes.shape
    columns = codes.T + np.arange(n_clusterings, dtype=np.int64) * k
    return importlib.import_module("scipy.sparse").csr_matrix(
        (
            np.ones(n * n_clusterings, np.float32),
            columns.ravel(),
            np.arange(n + 1) * n_clusterings,
        ),
        shape=(n, n_clusterings * k),
    )
