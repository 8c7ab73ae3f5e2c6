"""The layers of a multilayer bootstrap network: how they are drawn, and what they say of points.

A layer is `n_clusterings` independent one-nearest-centre clusterings. Its output is kept as codes
(n_clusterings, n): row v holds the index of the nearest centre of clustering v for each point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._code_ops import most_agreeing, nearest_centers

LARGEST_K = 1 << 16  # a code is 16 bits
_FIRST_K = 4000
_ROUND_FROM = 25


@dataclass(frozen=True)
class Layer:
    """The random draws of one layer.

    Attributes:
        columns: (n_clusterings, s) int64, ascending in each row: the features (layer 1) or the
            clusterings of the layer below that take part.
        centers: (n_clusterings, k) int64: rows of the training data, distinct within a clustering.
    """

    columns: np.ndarray
    centers: np.ndarray

    @property
    def code_dtype(self) -> np.dtype:
        """The smallest unsigned integer that holds k - 1."""
        return np.dtype(np.uint8 if self.centers.shape[1] <= 256 else np.uint16)


def schedule(n: int, n_clusters: int) -> list[int]:
    """Centres of each layer, for n training points of which about `n_clusters` groups are expected.

    k_1 = min(4000, n // 2), then halves of it while they are above 1.25 times the last, which is
    1.5 * n_clusters. From 25 up the halves are rounded to multiples of 5, halves up.

    Example:
        >>> schedule(70000, 10)
        [4000, 2000, 1000, 500, 250, 125, 65, 30, 15]
        >>> schedule(1797, 10)
        [898, 450, 225, 110, 55, 30, 15]
    """
    first = max(1, min(_FIRST_K, n // 2))
    last = min(first, int(1.5 * n_clusters + 0.5))
    sizes, k = [first], first / 2
    while k > 1.25 * last:
        unit = 5 if k >= _ROUND_FROM else 1
        sizes.append(unit * int(k / unit + 0.5))
        k /= 2
    return sizes if sizes[-1] <= last else [*sizes, last]


def draw(rng: np.random.Generator, n: int, width: int, fraction: float, shape: Any) -> Layer:
    """One layer of `shape` (n_clusterings, k) over `n` training points of `width` columns.

    The order of the centres is random too: ties go to the lowest index, which in the order of the
    data would favour what comes first in a sorted data set.
    """
    n_clusterings, k = shape
    s = max(1, int(fraction * width + 0.5))
    columns = np.empty((n_clusterings, s), np.int64)
    centers = np.empty((n_clusterings, k), np.int64)
    for v in range(n_clusterings):
        columns[v] = np.sort(rng.choice(width, s, replace=False, shuffle=False))
        centers[v] = rng.choice(n, k, replace=False)
    return Layer(columns, centers)


def encode_points(
    layer: Layer, points: np.ndarray, train: np.ndarray, tick: Callable[[], object]
) -> np.ndarray:
    """Codes of float32 points (n, d) in layer 1, whose centres are rows of `train`."""
    codes = np.empty((len(layer.centers), len(points)), layer.code_dtype)
    x = torch.from_numpy(points)
    for v, (columns, centers) in enumerate(zip(layer.columns, layer.centers, strict=True)):
        # Whole rows, then columns of those: a quarter of the time of both at once.
        values = torch.from_numpy(train.take(centers, 0).take(columns, 1))
        nearest_centers(x, values, torch.from_numpy(columns), out=torch.from_numpy(codes[v]))
        tick()
    return codes


def encode_codes(
    layer: Layer, below: np.ndarray, train: np.ndarray, tick: Callable[[], object]
) -> np.ndarray:
    """Codes of points in an upper layer, from their codes `below` and those of the training data.

    The inner product of two one-hot vectors is 1 where the indices are equal: the most similar
    centre is the one with the most equal codes.
    """
    codes = np.empty((len(layer.centers), below.shape[1]), layer.code_dtype)
    x = torch.from_numpy(below)
    by_point = np.ascontiguousarray(train.T)  # a point's codes are near each other
    for v, (columns, centers) in enumerate(zip(layer.columns, layer.centers, strict=True)):
        values = torch.from_numpy(by_point.take(centers, 0).T.take(columns, 0))
        most_agreeing(x, torch.from_numpy(columns), values, out=torch.from_numpy(codes[v]))
        tick()
    return codes
