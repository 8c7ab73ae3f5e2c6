"""Principal components of a one-hot code, which is never expanded.

Row i of the code, (n, V * k), has a one at ``v * k + codes[v, i]`` for each clustering v. So a
product with it adds, for each clustering, entries that are gathered; a product with its transpose
adds up, for each clustering, the entries of each centre's points.
"""

from __future__ import annotations

import numpy as np
import torch

from ._extras import extra

_ROWS = 4096
_EXPANDED = 1 << 19  # entries of a one-hot code that is small enough to expand (4 MiB)


def gather_sum(codes: np.ndarray, k: int, table: np.ndarray) -> np.ndarray:
    """The one-hot code (n, V * k) times `table` (V * k, q), float64. Rows are independent."""
    n_clusterings, n = codes.shape
    out = np.empty((n, table.shape[1]))
    weights = torch.from_numpy(np.ascontiguousarray(table, np.float64))
    starts = np.arange(n_clusterings, dtype=np.int64) * k
    for first in range(0, n, _ROWS):
        rows = slice(first, first + _ROWS)
        bags = torch.from_numpy(codes[:, rows].T + starts)
        out[rows] = torch.nn.functional.embedding_bag(bags, weights, mode="sum").numpy()
    return out


def _forward(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The one-hot code times one vector, given as (V, k)."""
    out = np.zeros(codes.shape[1])
    for row, values in zip(codes, table, strict=True):
        out += values[row]
    return out


def _backward(codes: np.ndarray, k: int, vector: np.ndarray | None) -> np.ndarray:
    """The transposed code times one vector (n,); None: times ones, which counts. (V * k,)."""
    return np.concatenate([np.bincount(row, vector, minlength=k) for row in codes])


def principal_components(
    codes: np.ndarray, k: int, n_components: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading principal components of the one-hot code, its mean removed.

    By Lanczos iteration (ARPACK, to machine precision) on products with the codes; a code of up to
    2^19 entries is expanded and decomposed directly, as one of which all components are wanted. A
    component's entry of largest magnitude is positive.

    Args:
        codes: (V, n) unsigned, below `k`.
        k: centres of a clustering.
        n_components: at most min(n, V * k).
        rng: draws the first vector of the iteration.

    Returns:
        components (n_components, V * k), mean (V * k,) and the variance that each component
        explains (n_components,), all float64.
    """
    n, width = codes.shape[1], codes.shape[0] * k
    mean = _backward(codes, k, None) / n
    constant = not np.any((mean > 0) & (mean < 1))
    if n * width <= _EXPANDED or n_components >= min(n, width) or constant:
        values, components = _direct(codes, k, mean, n_components)
    else:
        values, components = _lanczos(codes, k, mean, n_components, rng)
    largest = np.abs(components).argmax(axis=1)
    signs = np.where(components[np.arange(n_components), largest] < 0, -1.0, 1.0)
    return components * signs[:, None], mean, values**2 / max(1, n - 1)


def _direct(
    codes: np.ndarray, k: int, mean: np.ndarray, n_components: int
) -> tuple[np.ndarray, np.ndarray]:
    if not np.any((mean > 0) & (mean < 1)):  # every point has the same code
        return np.zeros(n_components), np.eye(n_components, len(mean))
    code = gather_sum(codes, k, np.eye(len(mean))) - mean
    _, values, components = np.linalg.svd(code, full_matrices=False)
    return values[:n_components], components[:n_components]


def _lanczos(
    codes: np.ndarray, k: int, mean: np.ndarray, n_components: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    linalg = extra("scipy.sparse.linalg", "MultilayerBootstrapNetwork")

    def forward(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1)
        return _forward(codes, x.reshape(-1, k)) - mean @ x

    def backward(y: np.ndarray) -> np.ndarray:
        y = y.reshape(-1)
        return _backward(codes, k, y) - mean * y.sum()

    shape = (codes.shape[1], len(mean))
    code = linalg.LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)
    start = rng.standard_normal(min(shape))
    _, values, components = linalg.svds(code, n_components, v0=start, return_singular_vectors="vh")
    order = np.argsort(-values, kind="stable")
    return values[order], components[order]
