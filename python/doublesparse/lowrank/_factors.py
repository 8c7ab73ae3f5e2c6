"""A matrix of filters as a product of two thin ones: PCA, SVD, k-means."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._rank import clean, spectral_rank

METHODS = ("pca", "svd", "kmeans")


class Factors(NamedTuple):
    """Filters as combinations of few: rows = combine @ basis, group by group.

    Attributes:
        basis: (groups, M, d).
        combine: (groups, n, M).
        energy: the share of the sum of squares that the product holds, of all groups together.
        error: ||rows - product|| / ||rows||, of all groups together.
    """

    basis: Tensor
    combine: Tensor
    energy: float
    error: float


def factorize(
    rows: Tensor, energy: float, rank: int | None, method: str, random_state: int
) -> Factors:
    """Factors of each group's filters, of one rank for all groups: the largest that any needs.

    Args:
        rows: (groups, n, d), finite; computed with in float64.
        energy: that each group holds at least.
        rank: M instead, capped at min(n, d).
        method: of `METHODS`.
        random_state: of k-means.
    """
    wide = rows.double()
    build = _by_centroids if method == "kmeans" else _by_singular_vectors
    basis, combine = build(wide, rows, energy, rank, method == "svd", random_state)
    unit = wide.abs().max()  # squares of 1e200 have no room in a float64
    total = float((wide / unit).square().sum()) if unit > 0 else 0.0
    lost = float(((wide - combine @ basis) / unit).square().sum())
    share = 1.0 - lost / total if total > 0 else 1.0
    error = (lost / total) ** 0.5 if total > 0 else 0.0
    return Factors(basis.to(rows.dtype), combine.to(rows.dtype), share, error)


def _by_singular_vectors(
    wide: Tensor, rows: Tensor, energy: float, rank: int | None, split: bool, random_state: int
) -> tuple[Tensor, Tensor]:
    """PCA without mean removal: combine = V, basis = V^T W = S U^T; or sqrt(S) on both sides."""
    v, s, u = torch.linalg.svd(wide, full_matrices=False)
    if rank is None:
        found = [spectral_rank(clean(values, m), energy) for values, m in zip(s, rows, strict=True)]
        rank = max(1, *found)
    m = min(rank, s.shape[1])
    v, s, u = v[..., :m], s[..., :m], u[:, :m]
    if split:
        root = s.sqrt()
        return root[..., None] * u, v * root[:, None]
    return s[..., None] * u, v


# ------------------------------------------------------------------ k-means
def _by_centroids(
    wide: Tensor, rows: Tensor, energy: float, rank: int | None, split: bool, random_state: int
) -> tuple[Tensor, Tensor]:
    """Basis = centroids, combine = one-hot rows that say whose centroid a filter becomes."""
    kmeans = _kmeans(random_state)
    n = wide.shape[1]
    if rank is None:
        rank = max(_clusters(matrix, energy, kmeans) for matrix in wide)
    found = [_cluster(matrix, min(rank, n), kmeans) for matrix in wide]
    basis = torch.stack([centroids for centroids, _ in found])
    combine = torch.stack(
        [torch.nn.functional.one_hot(labels, min(rank, n)) for _, labels in found]
    )
    return basis, combine.to(wide)


KMeans = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def _kmeans(random_state: int) -> KMeans:
    """(points, k) -> centroids, labels."""
    try:
        from sklearn.cluster import KMeans as Estimator  # type: ignore[import-untyped]
        from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            'decompose: method="kmeans" needs scikit-learn, which is not installed; '
            'pip install scikit-learn, or pass method="pca"'
        ) from error

    def run(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct filters than k
            fitted: Any = Estimator(k, n_init=3, random_state=random_state).fit(
                points.cpu().numpy()
            )
        labels = torch.from_numpy(fitted.labels_).to(points.device, torch.int64)
        # Their means again: scikit-learn's are off by what it subtracts and adds.
        centroids = points.new_zeros(k, points.shape[1]).index_add_(0, labels, points)
        counts = torch.bincount(labels, minlength=k).clamp(min=1)
        return centroids / counts[:, None], labels

    return run


def _cluster(points: Tensor, k: int, kmeans: KMeans) -> tuple[Tensor, Tensor]:
    if k >= len(points):
        return points, torch.arange(len(points), device=points.device)
    return kmeans(points, k)


def _clusters(points: Tensor, energy: float, kmeans: KMeans) -> int:
    """The number of clusters that hold this share of the energy, by bisection."""
    # No k centroids hold more than k singular vectors do.
    spectrum = torch.linalg.svdvals(points)
    low, high = max(1, spectral_rank(clean(spectrum, points), energy)), len(points)
    total = float(points.square().sum())
    while low < high:
        k = (low + high) // 2
        centroids, labels = _cluster(points, k, kmeans)
        lost = float((points - centroids[labels]).square().sum())
        if lost <= (1.0 - energy) * total * (1 + 1e-12):
            high = k
        else:
            low = k + 1
    return low
