"""The multilayer bootstrap network against one-hot codes written out, and on real digits."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

import doublesparse as ds

pytest.importorskip("sklearn")
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.datasets import load_digits, make_blobs  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.metrics import normalized_mutual_info_score as nmi  # noqa: E402

Network = ds.bootstrap.MultilayerBootstrapNetwork


def small(**changes: Any) -> Any:
    options: dict[str, Any] = dict(
        n_clusterings=12, n_centers=[40, 20, 6], n_components=3, n_clusters=4, random_state=0
    )
    return Network(**(options | changes))


def blobs(n: int = 150, d: int = 7, dtype: Any = np.float64) -> np.ndarray:
    return make_blobs(n, d, centers=4, cluster_std=3.0, random_state=1)[0].astype(dtype)


def integers(n: int = 90, d: int = 9) -> np.ndarray:
    """Small whole numbers, first a large one: distances are exact, so ties are ties."""
    data = np.random.default_rng(3).integers(0, 4, (n, d)).astype(np.float64)
    data[0, 0] = 8
    return data


def one_hot(codes: np.ndarray, k: int) -> np.ndarray:
    """(n, V * k) from (V, n)."""
    return np.concatenate([np.eye(k)[row] for row in codes], axis=1)


def oracle(net: Any, x: np.ndarray, train: np.ndarray) -> list[np.ndarray]:
    """The codes of each layer by the paper's words: distances, then inner products of one-hots."""
    codes, below, below_train = [], x, train
    for number, layer in enumerate(net.layers_):
        k = layer.centers.shape[1]
        outputs = []
        for points in (below, below_train):
            rows = []
            for columns, centers in zip(layer.columns, layer.centers):
                if number == 0:
                    difference = points[:, None, columns] - below_train[centers][:, columns]
                    rows.append(np.square(difference).sum(-1).argmin(1))
                else:
                    width = net.layers_[number - 1].centers.shape[1]
                    kept = (columns[:, None] * width + np.arange(width)).ravel()
                    similar = points[:, kept] @ below_train[centers][:, kept].T
                    rows.append(similar.argmax(1))
            outputs.append(np.stack(rows))
        codes.append(outputs[0])
        below, below_train = (one_hot(output, k) for output in outputs)
    return codes


def test_codes_equal_nearest_and_inner_products_of_one_hots() -> None:
    data = integers()
    net = small(random_state=5).fit(data[:60])
    expected = oracle(net, data, data[:60])
    assert np.array_equal(net.encode(data), expected[-1])
    for kept, codes in zip(net._codes, expected):
        assert np.array_equal(kept, codes[:, :60])


def test_codes_of_more_than_8_bits() -> None:
    data = integers(330)
    net = small(n_clusterings=5, n_centers=[300, 257, 256, 8]).fit(data)
    assert [codes.dtype for codes in net._codes] == [np.uint16, np.uint16, np.uint8]
    assert np.array_equal(net.encode(data[::7]), oracle(net, data[::7], data)[-1])


def test_layers_draw_without_replacement() -> None:
    net = small(n_clusterings=11, feature_fraction=0.3).fit(blobs(d=10))
    for layer, width, k in zip(net.layers_, (10, 11, 11), (40, 20, 6)):
        assert layer.columns.shape == (11, 3) and layer.centers.shape == (11, k)
        assert (np.diff(layer.columns) > 0).all() and layer.columns.max() < width
        assert all(len(set(row)) == k for row in layer.centers.tolist())
        assert layer.centers.min() >= 0 and layer.centers.max() < 150
    assert len({tuple(row) for row in net.layers_[0].centers.tolist()}) == 11


def test_code_is_one_of_k() -> None:
    codes = small().fit(blobs()).encode(blobs())
    assert codes.shape == (12, 150) and codes.max() < 6
    assert (one_hot(codes, 6).sum(1) == 12).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("clusterer", ["kmeans", "agglomerative"])
def test_training_data_again_gives_what_fit_gave(dtype: Any, clusterer: str) -> None:
    data = blobs(dtype=dtype)
    net = small(clusterer=clusterer).fit(data)
    assert net.embedding_.dtype == dtype and net.embedding_.shape == (150, 3)
    assert np.array_equal(net.transform(data), net.embedding_)
    assert np.array_equal(net.predict(data), net.labels_)
    # A row's result is its own: in other company, alone, or of another memory layout.
    assert np.array_equal(net.transform(data[40:41]), net.embedding_[40:41])
    assert np.array_equal(net.transform(np.asfortranarray(data[::-1])), net.embedding_[::-1])


def test_seed_decides() -> None:
    data = blobs()
    first = small().fit(data)
    again = small(random_state=np.random.RandomState(0)).fit(data)
    other = small(random_state=1).fit(data)
    assert np.array_equal(first.embedding_, again.embedding_)
    assert np.array_equal(first.labels_, again.labels_)
    assert not np.array_equal(first.layers_[0].centers, other.layers_[0].centers)
    assert np.array_equal(small().fit_transform(data), first.embedding_)
    assert np.array_equal(small().fit_predict(data), first.labels_)


def test_threads_do_not_matter() -> None:
    data, before = blobs(400), torch.get_num_threads()
    options: dict[str, Any] = dict(n_clusterings=300, n_centers=[60, 20], feature_fraction=0.05)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(small(**options).fit(data))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0].embedding_, results[1].embedding_)
    assert np.array_equal(results[0].labels_, results[1].labels_)


# 12 * 6 columns are expanded; 300 * 20 go through products with the codes.
@pytest.mark.parametrize("v, k", [(12, 6), (300, 20)])
def test_components_equal_pca_of_the_expanded_code(v: int, k: int) -> None:
    data = blobs(200)
    net = small(n_clusterings=v, n_centers=[50, k], feature_fraction=0.1).fit(data)
    code = one_hot(net.encode(data), k)
    pca = PCA(3, svd_solver="full").fit(code)
    signs = np.sign((pca.components_ * net.components_).sum(1))
    # Both are exact: float64 rounding over the gap between neighbouring variances is what is left.
    assert np.allclose(net.components_, signs[:, None] * pca.components_, atol=1e-7)
    assert np.allclose(net.embedding_, signs * pca.transform(code), atol=1e-6)
    assert np.allclose(net.explained_variance_, pca.explained_variance_, rtol=1e-9)
    assert np.allclose(net.mean_, code.mean(0), atol=1e-15)
    assert (np.abs(net.components_).max(1) == net.components_.max(1)).all()


def test_all_components() -> None:
    data = blobs(30)
    net = small(n_centers=[10, 4], n_components=30).fit(data)
    code = one_hot(net.encode(data), 4)
    distances = np.linalg.norm(net.embedding_[:, None] - net.embedding_, axis=-1)
    assert np.allclose(distances, np.linalg.norm(code[:, None] - code, axis=-1), atol=1e-9)


def test_equal_points_have_the_zero_embedding() -> None:
    for n in (20, 20_000):
        net = Network(5, [8], 2, random_state=0).fit(np.full((n, 3), 7.0))
        assert not net.embedding_.any() and not net.explained_variance_.any()


@pytest.mark.parametrize("shift, scale", [(0, 2.0**900), (0, 2.0**-300), (2.0**20, 1.0)])
def test_distances_decide_not_the_unit(shift: float, scale: float) -> None:
    data = integers()
    plain = small().fit(data)
    moved = small().fit((data + shift) * scale)
    assert np.array_equal(plain.encode(data), moved.encode((data + shift) * scale))


def test_network_is_independent_of_the_callers_array() -> None:
    data = blobs(dtype=np.float32)
    net = small()
    embedding = net.fit_transform(data)
    expected = embedding.copy()
    x = data[:10].copy()
    data[:], embedding[:] = 0, 0
    assert np.array_equal(net.transform(x), expected[:10])
    assert np.array_equal(net.embedding_, expected)


def test_pickle_and_names() -> None:
    net = small().fit(blobs())
    copy = pickle.loads(pickle.dumps(net))
    assert np.array_equal(copy.transform(blobs()), net.embedding_)
    assert net.get_feature_names_out()[0] == "multilayerbootstrapnetwork0"


def test_auto_schedule() -> None:
    sizes = [layer.centers.shape[1] for layer in Network(3, n_components=2).fit(blobs(64)).layers_]
    assert sizes == [32, 16, 15] or sizes == [32, 15]
    sizes = [k.centers.shape[1] for k in Network(3, n_components=2).fit(blobs(4)).layers_]
    assert sizes == [2]


def test_points_beyond_those_merged_join_the_nearest(monkeypatch: Any) -> None:
    monkeypatch.setattr("doublesparse.bootstrap._network._WARD_POINTS", 100)
    data, classes = make_blobs(400, 2, centers=3, cluster_std=0.3, random_state=0)
    net = Network(40, [30, 6], 2, clusterer="agglomerative", n_clusters=3, random_state=0)
    assert ds.bootstrap.clustering_accuracy(classes, net.fit_predict(data)) > 0.95


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"n_clusterings": 0}, ValueError, "n_clusterings must be >= 1"),
        ({"n_clusterings": 2.5}, TypeError, "n_clusterings must be an int"),
        ({"n_clusterings": True}, TypeError, "n_clusterings must be an int"),
        ({"n_centers": [40, 0]}, ValueError, "n_centers must be >= 1"),
        ({"n_centers": [151]}, ValueError, "n_centers must be .* <= 150"),
        ({"n_centers": []}, ValueError, "at least one layer"),
        ({"n_centers": "half"}, ValueError, "n_centers must be"),
        ({"n_centers": 7}, TypeError, "n_centers must be"),
        ({"n_centers": [3.5]}, TypeError, "n_centers must be an int"),
        ({"n_components": 0}, ValueError, "n_components must be >= 1"),
        ({"n_components": 73}, ValueError, "n_components must be .* <= 72"),
        ({"feature_fraction": 0.0}, ValueError, "feature_fraction must be in"),
        ({"feature_fraction": float("nan")}, ValueError, "feature_fraction must be in"),
        ({"feature_fraction": "all"}, TypeError, "feature_fraction must be a number"),
        ({"clusterer": "dbscan"}, ValueError, "clusterer must be one of"),
        ({"n_clusters": 151}, ValueError, "n_clusters must be .* <= 150"),
        ({"n_clusters": "4"}, TypeError, "n_clusters must be an int"),
        ({"random_state": "x"}, ValueError, "cannot be used to seed"),
    ],
)
def test_wrong_parameters(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        small(**changes).fit(blobs())


def test_wrong_data() -> None:
    data = blobs()
    for wrong in (np.nan, np.inf):
        broken = data.copy()
        broken[3, 2] = wrong
        with pytest.raises(ValueError, match="NaN|infinity"):
            small().fit(broken)
    for shape in ((0, 4), (1, 4), (4, 0), (4,), (3, 4, 5)):
        with pytest.raises(ValueError):
            small().fit(np.zeros(shape))
    with pytest.raises(ValueError):
        small().fit([["a", "b"], ["c", "d"]])
    with pytest.raises(NotFittedError):
        small().transform(data)
    net = small(n_clusters=None).fit(data)
    assert not hasattr(net, "labels_")
    with pytest.raises(ValueError, match="expecting 7 features"):
        net.transform(data[:, :5])
    with pytest.raises(ValueError, match="X must be within"):
        net.transform(data * 1e40)
    with pytest.raises(ValueError, match="n_clusters must have been"):
        net.predict(data)
    with pytest.raises(ValueError, match="n_clusters must be an int, got None"):
        net.fit_predict(data)


def test_clustering_accuracy() -> None:
    accuracy = ds.bootstrap.clustering_accuracy
    assert accuracy(["a", "a", "b"], [7, 7, -1]) == 1
    assert accuracy([0, 0, 0, 0], [0, 0, 1, 2]) == 0.5  # three clusters, one class
    assert accuracy([0, 1, 2, 3], [5, 5, 5, 5]) == 0.25
    for wrong in (([0, 1], [0]), ([], []), ([[0]], [[0]])):
        with pytest.raises(ValueError, match="same shape"):
            accuracy(*wrong)


def test_package_imports_no_extras() -> None:
    code = "import sys, doublesparse as ds; assert not {'sklearn', 'scipy'} & set(sys.modules)"
    hidden = (
        "sys.modules['sklearn'] = None\n"
        "try: ds.bootstrap.MultilayerBootstrapNetwork\n"
        "except ImportError as error: assert 'pip install' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", f"{code}\n{hidden}"], check=True)
    with pytest.raises(AttributeError):
        ds.bootstrap.Multilayer  # noqa: B018


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    small(verbose=True).fit(blobs())
    assert "36/36" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_digits(seed: int) -> None:
    """PAPERS M2: well above k-means on the pixels and on their principal components."""
    x, y = load_digits(return_X_y=True)
    net = Network(60, n_clusters=10, random_state=seed).fit(x)
    score = nmi(y, net.labels_)
    assert score >= 0.82
    assert ds.bootstrap.clustering_accuracy(y, net.labels_) >= 0.88
    for pixels in (x, PCA(10, random_state=seed).fit_transform(x)):
        plain = KMeans(10, n_init=10, random_state=seed).fit_predict(pixels)
        assert score >= nmi(y, plain) + 0.08


def test_memory_before_the_layers() -> None:
    """One float32 copy of the data and a few blocks: what the docstring states."""
    data = np.random.default_rng(0).random((20_000, 300))
    net = small(n_centers=[4], n_clusterings=2, n_components=1, n_clusters=None)
    tracemalloc.start()
    try:
        net.fit(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 2 + 6 * 8 * 2**20  # six blocks of 2^20 float64 at a time


def test_points_far_from_the_training_data() -> None:
    data = blobs()
    net = small().fit(data)
    assert net.transform(1e15 * data).shape == (150, 3)
    for factor in (1e20, 1e60, 1e300):
        with pytest.raises(ValueError, match="X must be within .* times the training data"):
            net.transform(factor * data)
