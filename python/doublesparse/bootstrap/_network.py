"""The multilayer bootstrap network as a scikit-learn estimator."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import _layers
from ._extras import extra
from ._projection import gather_sum, principal_components

_NAME = "MultilayerBootstrapNetwork"
_base = extra("sklearn.base", _NAME)
_validation = extra("sklearn.utils.validation", _NAME)

_CLUSTERERS = ("kmeans", "agglomerative")
_KMEANS_RESTARTS = 10
_BACKGROUND = 0.2  # share of points whose equal value is one to skip
_LARGEST_NORM = 1e19  # of a float32 point, so that its products with centres do not overflow
_BLOCK = 1 << 20  # numbers that are converted at a time
_WARD_POINTS = 10_000  # merged at most: memory grows as the square (0.4 GB)


# Typed as Any: scikit-learn has no types, and need not be there when types are checked.
_Names: Any = _base.ClassNamePrefixFeaturesOutMixin
_Transformer: Any = _base.TransformerMixin
_Cluster: Any = _base.ClusterMixin
_Estimator: Any = _base.BaseEstimator


class MultilayerBootstrapNetwork(_Names, _Transformer, _Cluster, _Estimator):
    """Nonlinear dimensionality reduction and clustering by layers of random clusterings.

    A layer has `n_clusterings` clusterings: each draws k points of the training data as centres and
    a share of the features, and says of a point which centre is nearest. Layer 1 compares data by
    squared Euclidean distance; the layers above compare the one-hot outputs of the layer below by
    their inner product, which is the number of equal indices. k falls from layer to layer. The top
    is a principal component analysis of the last one-hot code (Zhang, arXiv 1408.0848); for
    `fit_predict`, and for `labels_` where `n_clusters` is given, a clusterer on its output.

    Everything is computed in float32 up to the top layer and in float64 above it; the one-hot code
    is never expanded. Ties between centres go to the lowest index. The result depends on
    `random_state` and not on the number of threads.

    **Memory.** Beyond the data: n_clusterings * n bytes a layer of at most 256 centres and twice
    that for a larger one, one float32 copy of the training data, and at the top 4 * n_clusterings *
    n bytes. MNIST (70 000 points, 400 clusterings, 9 layers): 0.36 GB + 0.22 GB + 0.11 GB.

    Args:
        n_clusterings: V, of each layer.
        n_centers: k of each layer, bottom up, each at most 65536 and at most the number of training
            points. "auto": min(4000, n / 2) halved until it reaches 1.5 * n_clusters (15 where
            `n_clusters` is None), rounded to multiples of 5 from 25 up; 70 000 points and 10
            clusters give 4000, 2000, 1000, 500, 250, 125, 65, 30, 15.
        n_components: of the output; at most min(n, V * last k).
        feature_fraction: a in (0, 1], the share of features (above: of clusterings of the layer
            below) that each clustering sees.
        random_state: int, numpy.random.RandomState or None.
        clusterer: "kmeans" (10 restarts), or "agglomerative" (Ward; of more than 10 000
            points a random 10 000 are merged and the others join the nearest of them).
        n_clusters: of the clusterer. None: `fit` only computes the embedding.
        verbose: a progress bar, if tqdm is installed.

    Attributes:
        layers_: list of `Layer(columns, centers)`: indices of features or clusterings (V, s) and
            rows of the training data (V, k).
        embedding_: (n, n_components), the training data's; the dtype of X (float32 or float64).
        components_: (n_components, V * last k) float64, principal axes of the one-hot code.
        mean_: (V * last k,) float64, the mean of the one-hot code.
        explained_variance_: (n_components,) float64.
        labels_: (n,) int32 or int64 clusters of the training data, where `n_clusters` is given.
        n_features_in_: columns of X.

    Example:
        >>> import numpy as np, doublesparse as ds
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(5 * i, 1, (50, 4)) for i in range(3)])
        >>> net = ds.bootstrap.MultilayerBootstrapNetwork(
        ...     n_clusterings=30, n_components=2, n_clusters=3, random_state=0
        ... ).fit(X)
        >>> net.embedding_.shape
        (150, 2)
        >>> ds.bootstrap.clustering_accuracy(np.repeat([0, 1, 2], 50), net.labels_)
        1.0
        >>> bool(np.all(net.transform(X) == net.embedding_))
        True
    """

    def __init__(
        self,
        n_clusterings: int = 400,
        n_centers: Sequence[int] | str = "auto",
        n_components: int = 10,
        feature_fraction: float = 0.5,
        random_state: Any = None,
        *,
        clusterer: str = "kmeans",
        n_clusters: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusterings = n_clusterings
        self.n_centers = n_centers
        self.n_components = n_components
        self.feature_fraction = feature_fraction
        self.random_state = random_state
        self.clusterer = clusterer
        self.n_clusters = n_clusters
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> MultilayerBootstrapNetwork:
        """Draw and run the layers, find the components and, given `n_clusters`, the clusters.

        Args:
            X: (n, d), n >= 2, finite; float32, or anything that numpy makes float64 of.
            y: ignored.

        Returns:
            The network.

        Raises:
            TypeError: X is sparse or a parameter has a wrong type.
            ValueError: NaN or infinity in X, a wrong shape, or a parameter out of range.
        """
        x = _validation.validate_data(
            self, X, dtype=(np.float64, np.float32), order="C", ensure_min_samples=2
        )
        sizes = self._check_parameters(len(x))
        seed = _validation.check_random_state(self.random_state).randint(2**31 - 1)
        rng = np.random.default_rng(seed)
        self._set_range(x)
        self._points = self._to_points(x)
        self.layers_: list[_layers.Layer] = []
        self._codes: list[np.ndarray] = []
        width = x.shape[1]
        with _progress(self.verbose, len(sizes) * self.n_clusterings) as tick:
            for k in sizes:
                shape = (self.n_clusterings, k)
                layer = _layers.draw(rng, len(x), width, self.feature_fraction, shape)
                top = self._encode(layer, self._codes[-1] if self._codes else None, tick)
                self.layers_.append(layer)
                self._codes.append(top)
                width = self.n_clusterings
        # No layer has centres in the top one's code: it is used here and not kept.
        top = self._codes.pop()
        with _one_thread():
            self.components_, self.mean_, self.explained_variance_ = principal_components(
                top, sizes[-1], self.n_components, rng
            )
        self._n_features_out = self.n_components
        embedded = self._project(top)
        self.embedding_ = embedded.astype(x.dtype, copy=False)
        self._cluster(embedded, int(rng.integers(2**31 - 1)))
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """`fit`, then `embedding_`. A copy, so that changing it leaves the network alone."""
        return self.fit(X, y, **fit_params).embedding_.copy()

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> np.ndarray:
        """`fit`, then `labels_`.

        Raises:
            ValueError: as `fit`, or `n_clusters` is None.
        """
        if self.n_clusters is None:
            raise ValueError(
                f"{_NAME}.fit_predict: n_clusters must be an int, got None; "
                "say how many clusters there are"
            )
        return self.fit(X, y, **kwargs).labels_

    def transform(self, X: Any) -> np.ndarray:
        """The components of points: (n, n_components), the dtype of X (float32 or float64).

        For the training data they are exactly `embedding_`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: as `fit`.
        """
        x = self._validate(X)
        return self._project(self._top_codes(x)).astype(x.dtype, copy=False)

    def encode(self, X: Any) -> np.ndarray:
        """The top layer's code of points: (n_clusterings, n), uint8 (k <= 256) or uint16.

        Entry (v, i) is the index of the centre of clustering v that is nearest to point i; the
        one-hot code of the paper has its one there.

        Raises:
            NotFittedError: before `fit`.
            ValueError: as `fit`.
        """
        return self._top_codes(self._validate(X))

    def predict(self, X: Any) -> np.ndarray:
        """Clusters of points: (n,), for the training data `labels_`.

        K-means: the nearest cluster centre in the embedding. Agglomerative: the cluster of the
        nearest training point that was merged.

        Raises:
            NotFittedError: before `fit`.
            ValueError: as `fit`, or the network was fitted without `n_clusters`.
        """
        embedded = self._project(self._top_codes(self._validate(X)))
        if self._predictor is None:
            raise ValueError(
                f"{_NAME}.predict: n_clusters must have been an int at fit, got None; "
                "set n_clusters and fit again"
            )
        with _one_thread():
            return self._predictor.predict(embedded)

    def _validate(self, X: Any) -> np.ndarray:
        _validation.check_is_fitted(self)
        return _validation.validate_data(
            self, X, dtype=(np.float64, np.float32), order="C", reset=False
        )

    def _check_parameters(self, n: int) -> list[int]:
        """The centres of each layer."""
        _check_int("n_clusterings", self.n_clusterings, 1)
        _check_int("n_components", self.n_components, 1)
        if self.n_clusters is not None:
            _check_int("n_clusters", self.n_clusters, 1, n, "the number of points")
        a: Any = self.feature_fraction
        if isinstance(a, bool) or not isinstance(a, numbers.Real):
            _fail(TypeError, "feature_fraction", "a number", a, "pass e.g. 0.5")
        if not 0 < a <= 1:
            _fail(ValueError, "feature_fraction", "in (0, 1]", a, "pass e.g. 0.5")
        if self.clusterer not in _CLUSTERERS:
            _fail(ValueError, "clusterer", f"one of {_CLUSTERERS}", self.clusterer, "pass one")
        given: Any = self.n_centers
        if isinstance(given, str):
            if given != "auto":
                _fail(ValueError, "n_centers", '"auto" or a list of ints', given, 'pass "auto"')
            sizes = _layers.schedule(n, 10 if self.n_clusters is None else self.n_clusters)
        else:
            if not isinstance(given, (Sequence, np.ndarray)):
                _fail(TypeError, "n_centers", '"auto" or a list of ints', given, 'pass "auto"')
            if not len(given):
                _fail(ValueError, "n_centers", "at least one layer", given, 'pass "auto"')
            largest = min(n, _layers.LARGEST_K)
            for k in given:
                _check_int("n_centers", k, 1, largest, "min(number of points, 65536)")
            sizes = [int(k) for k in given]
        limit = min(n, self.n_clusterings * sizes[-1])
        _check_int("n_components", self.n_components, 1, limit, "min(points, V * last k)")
        return sizes

    def _set_range(self, x: np.ndarray) -> None:
        """What is taken off and multiplied on before float32.

        Distances do not change: a feature whose smallest value is a common one, as a background is,
        is moved by it, because layer 1 skips zeros; another that is far from 0 for its spread would
        lose its digits in x.c and is moved by its first value. A power of two brings the largest
        magnitude to between 1/2 and 1, so that no square overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean, lowest = x.mean(axis=0, dtype=np.float64), x.min(axis=0)
            squares, n_lowest = np.zeros((2, x.shape[1]))
            for rows in _blocks(x):
                squares += np.square(x[rows] - mean).sum(axis=0)
                n_lowest += (x[rows] == lowest).sum(axis=0)
            spread = np.sqrt(squares / len(x))
            offset = np.where(np.abs(mean) > 3 * spread, x[0], 0.0)
            self._offset = np.where(n_lowest > _BACKGROUND * len(x), lowest, offset)
            largest = max(np.abs(x[rows] - self._offset).max() for rows in _blocks(x))
        self._scale = float(2.0 ** -np.clip(np.frexp(largest)[1], -1000, 1000))

    def _to_points(self, x: np.ndarray) -> np.ndarray:
        points = np.empty(x.shape, np.float32)
        limit = _LARGEST_NORM / x.shape[1] ** 0.5
        with np.errstate(over="ignore"):
            for rows in _blocks(x):
                points[rows] = (x[rows].astype(np.float64) - self._offset) * self._scale
                largest = float(np.abs(points[rows]).max())
                if not largest <= limit:
                    wanted = f"within {limit:.2g} times the training data"
                    _fail(ValueError, "X", wanted, largest, "check its unit")
        return points

    def _encode(
        self, layer: _layers.Layer, below: np.ndarray | None, tick: Callable[[], object]
    ) -> np.ndarray:
        """One layer on the training data."""
        if below is None:
            return _layers.encode_points(layer, self._points, self._points, tick)
        return _layers.encode_codes(layer, below, below, tick)

    def _top_codes(self, x: np.ndarray) -> np.ndarray:
        points = self._to_points(x)
        with _progress(self.verbose, len(self.layers_) * len(self.layers_[0].centers)) as tick:
            codes = _layers.encode_points(self.layers_[0], points, self._points, tick)
            for layer, train in zip(self.layers_[1:], self._codes, strict=True):
                codes = _layers.encode_codes(layer, codes, train, tick)
        return codes

    def _project(self, codes: np.ndarray) -> np.ndarray:
        """(n, n_components) float64; a row depends on that point alone."""
        k = self.layers_[-1].centers.shape[1]
        return gather_sum(codes, k, self.components_.T) - self.components_ @ self.mean_

    def _cluster(self, embedded: np.ndarray, seed: int) -> None:
        self._predictor = None
        self.__dict__.pop("labels_", None)
        if self.n_clusters is None:
            return
        with _one_thread():
            if self.clusterer == "kmeans":
                cluster = extra("sklearn.cluster", _NAME)
                self._predictor = cluster.KMeans(
                    self.n_clusters, n_init=_KMEANS_RESTARTS, random_state=seed
                ).fit(embedded)
                self.labels_ = self._predictor.labels_
            else:
                self._predictor = _ward(embedded, self.n_clusters, seed)
                self.labels_ = self._predictor.predict(embedded)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _ward(embedded: np.ndarray, n_clusters: int, seed: int) -> Any:
    """What gives points the Ward cluster of the nearest of the points that were merged."""
    cluster = extra("sklearn.cluster", _NAME)
    neighbors = extra("sklearn.neighbors", _NAME)
    size = min(len(embedded), max(_WARD_POINTS, n_clusters))
    chosen = np.random.default_rng(seed).choice(len(embedded), size, replace=False, shuffle=False)
    merged = embedded[np.sort(chosen)]
    labels = cluster.AgglomerativeClustering(n_clusters).fit_predict(merged)
    return neighbors.KNeighborsClassifier(1).fit(merged, labels)


def _blocks(x: np.ndarray) -> Iterator[slice]:
    """Slices of rows, so that what is computed of them takes little memory."""
    step = max(1, _BLOCK // x.shape[1])
    for first in range(0, len(x), step):
        yield slice(first, first + step)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of BLAS and of k-means in an order that does not depend on the number of threads."""
    with extra("threadpoolctl", _NAME).threadpool_limits(1):
        yield


@contextmanager
def _progress(verbose: bool, total: int) -> Iterator[Callable[[], object]]:
    """What to call after each clustering."""
    if verbose:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            pass
        else:
            with tqdm(total=total, desc="bootstrap network", unit="clustering") as bar:
                yield bar.update
            return
    yield lambda: None


def _check_int(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        _fail(TypeError, name, "an int", value, f"pass an int >= {low}")
    if value < low or (high is not None and value > high):
        top = "" if high is None else f" and <= {high} ({what})"
        _fail(ValueError, name, f">= {low}{top}", value, "change it or pass more points")


def _fail(kind: type[Exception], name: str, wanted: str, got: Any, fix: str) -> None:
    raise kind(f"{_NAME}: {name} must be {wanted}, got {got!r}; {fix}")
