"""What the demo of bootstrap networks measures: clusterings, students, speed."""

from __future__ import annotations

import importlib
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bootstrap
from ._images import Images
from ._plain_mbn import plain_transform
from ._show import say

Set = tuple[np.ndarray, np.ndarray]
N_CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options.

    Attributes:
        epochs: of the dense student, at most; None: as `compress` chooses.
        sparse_epochs: of the packed student, at most; None: as `compress` chooses.
        plain_points: held-out points that the plain network is timed on.
        timing: seconds that each repeated timing may take.
    """

    seeds: int = 3
    clusterings: int = 400
    components: int = 10
    train_size: int = 1300
    hidden: tuple[int, ...] = (512, 512)
    sparsity: float = 0.9
    prune: str = "block"
    epochs: int | None = None
    sparse_epochs: int | None = None
    plain_points: int = 500
    timing: float = 1.0


DIGITS = Settings()
MNIST = replace(
    DIGITS, seeds=1, train_size=0, hidden=(2048, 2048), epochs=8, sparse_epochs=4, plain_points=1000
)
# A smoke test of everything the demo does: its numbers say nothing.
QUICK: dict[str, Any] = {
    "seeds": 2,
    "clusterings": 20,
    "train_size": 300,
    "hidden": (64, 64),
    "epochs": 6,
    "sparse_epochs": 4,
    "plain_points": 50,
    "timing": 0.05,
}

_BFLOAT16_POINTS = 2000  # training points of a dense bfloat16 student, which may be slow
_DRAWN_POINTS = 2000


def _metrics() -> Any:
    return importlib.import_module("sklearn.metrics")


def quality(classes: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Clustering accuracy and normalised mutual information, in percent."""
    return {
        "accuracy": 100 * bootstrap.clustering_accuracy(classes, clusters),
        "nmi": 100 * float(_metrics().normalized_mutual_info_score(classes, clusters)),
    }


def seconds(call: Callable[[], Any], budget: float) -> float:
    """The shortest of the calls that the budget allows, one to warm up and one at least."""
    call()
    spent: list[float] = []
    while not spent or sum(spent) < budget:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def split(images: Images, settings: Settings, seed: int) -> tuple[Set, Set]:
    """Rows of pixels in [0, 1], where paper is exactly 0, and classes: training, held out."""
    whole = images.test is not None and settings.train_size == 0
    if whole:
        assert images.test is not None
        parts = (images.train, images.test)
    else:
        parts = images.split(settings.train_size, seed)
    (x, y), (x_out, y_out) = ((x.flatten(1) + 0.5, y) for x, y in parts)
    return (x.numpy(), y.numpy()), (x_out.numpy(), y_out.numpy())


def network(train: Set, settings: Settings, seed: int, model: str | None) -> Any:
    """The fitted network; that of a file, if there is one."""
    made = bootstrap.MultilayerBootstrapNetwork(
        settings.clusterings,
        n_components=settings.components,
        n_clusters=N_CLASSES,
        random_state=seed,
        verbose=len(train[0]) > _BFLOAT16_POINTS,
    )
    if model is not None and Path(model).is_file():
        with Path(model).open("rb") as file:
            found = pickle.load(file)
        wanted: dict[str, Any] = made.get_params()
        got: dict[str, Any] = getattr(found, "get_params", dict)()
        same = got | {"verbose": None} == wanted | {"verbose": None}
        if not same or found.embedding_.shape[0] != len(train[0]):
            raise SystemExit(
                f"doublesparse demo mbn: --model: {model} is no network of these images, options "
                "and seed; name another file"
            )
        say(f"network of {model}")
        return found
    start = time.perf_counter()
    made.fit(train[0])
    made.verbose = False
    say(f"network fitted in {time.perf_counter() - start:.1f} s")
    if model is not None:
        Path(model).parent.mkdir(parents=True, exist_ok=True)
        with Path(model).open("wb") as file:
            pickle.dump(made, file, protocol=pickle.HIGHEST_PROTOCOL)
    return made


def clusterings(
    mbn: Any, train: Set, test: Set, clusters: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """Quality of each way of clustering, on training and on held-out points.

    The network's clusters of the latter are given.
    """
    cluster = importlib.import_module("sklearn.cluster")
    decomposition = importlib.import_module("sklearn.decomposition")
    pipeline = importlib.import_module("sklearn.pipeline")

    def kmeans() -> Any:
        return cluster.KMeans(N_CLASSES, n_init=10, random_state=seed)

    ways = {
        "raw k-means": kmeans(),
        "PCA + k-means": pipeline.make_pipeline(
            decomposition.PCA(mbn.n_components, random_state=seed), kmeans()
        ),
    }
    found = {}
    for name, way in ways.items():
        way.fit(train[0])
        found[name] = {
            part: quality(y, way.predict(x)) for part, (x, y) in (("train", train), ("test", test))
        }
    found["MBN"] = {
        "train": quality(train[1], mbn.labels_),
        "test": quality(test[1], clusters),
    }
    return found


def measure_student(
    student: bootstrap.CompressedNetwork,
    name: str,
    train: Set,
    test: Set,
    classes: np.ndarray,
    timing: float,
) -> dict[str, float]:
    """Agreement and quality in percent, bytes, microseconds per point.

    Args:
        student: of float32 or bfloat16.
        name: which of its forms, and the dtype.
        train: points, the network's clusters.
        test: the same, held out.
        classes: of the points held out.
        timing: as of the settings.
    """
    points, labels = train
    if name.startswith("dense bfloat16"):
        points, labels = points[:_BFLOAT16_POINTS], labels[:_BFLOAT16_POINTS]
    form = name.split()[0]
    x = test[0]
    clusters = student.predict(x, form)
    return {
        "agreement_train": 100 * float(np.mean(student.predict(points, form) == labels)),
        "agreement_test": 100 * float(np.mean(clusters == test[1])),
        **quality(classes, clusters),
        "bytes": student.nbytes[form],
        "batch_us": 1e6 * seconds(lambda: student.predict(x, form), timing) / len(x),
        "single_us": 1e6 * seconds(lambda: student.predict(x[:1], form), timing),
    }


def measure_networks(
    mbn: Any, train: Set, test: Set, spent_mbn: float, settings: Settings
) -> dict[str, dict[str, float]]:
    """Bytes and microseconds per point of the network itself, and of a plain one.

    Args:
        mbn: fitted.
        train: what it was fitted on.
        test: held out.
        spent_mbn: seconds that it took to predict all of these.
        settings: how many the plain one is timed on.
    """
    x, few = test[0], test[0][: settings.plain_points]
    size = train[0].nbytes + sum(code.nbytes for code in mbn._codes)
    size += sum(layer.columns.nbytes + layer.centers.nbytes for layer in mbn.layers_)
    start = time.perf_counter()
    plain = plain_transform(mbn, train[0], few)
    spent = time.perf_counter() - start
    gap = np.abs(plain - mbn.transform(few)).max(1) <= 1e-3 * np.abs(plain).max()
    return {
        "MBN": {
            "bytes": size,
            "batch_us": 1e6 * spent_mbn / len(x),
            "single_us": 1e6 * seconds(lambda: mbn.predict(x[:1]), 0.0),
        },
        "plain MBN": {
            "bytes": size,
            "batch_us": 1e6 * spent / len(few),
            "points": len(few),
            "same_code": 100 * float(gap.mean()),
        },
    }


def run_seed(
    images: Images, settings: Settings, seed: int, model: str | None = None
) -> tuple[dict[str, Any], Any]:
    """All of one repetition; and what the picture shows: codes and classes held out."""
    train, test = split(images, settings, seed)
    mbn = network(train, settings, seed, model)
    start = time.perf_counter()
    clusters = mbn.predict(test[0])
    spent = time.perf_counter() - start
    if spent < settings.timing:
        spent = seconds(lambda: mbn.predict(test[0]), settings.timing)
    found: dict[str, Any] = {"clusterings": clusterings(mbn, train, test, clusters, seed)}
    start = time.perf_counter()
    student = bootstrap.compress(
        mbn,
        train[0],
        settings.hidden,
        sparsity=settings.sparsity,
        prune=settings.prune,
        epochs=settings.epochs,
        sparse_epochs=settings.sparse_epochs,
        random_state=seed,
        verbose=len(train[0]) > _BFLOAT16_POINTS,
    )
    say(f"students trained in {time.perf_counter() - start:.1f} s")
    narrow = student.bfloat16()
    found["students"] = {
        f"{form} {dtype}": measure_student(
            made,
            f"{form} {dtype}",
            (train[0], mbn.labels_),
            (test[0], clusters),
            test[1],
            settings.timing,
        )
        for form in ("dense", "packed")
        for dtype, made in (("float32", student), ("bfloat16", narrow))
    }
    found["networks"] = measure_networks(mbn, train, test, spent, settings)
    for row in found["students"].values():
        for name, other in found["networks"].items():
            row[f"times_{name}"] = other["batch_us"] / row["batch_us"]
    return found, (mbn.transform(test[0][:_DRAWN_POINTS])[:, :2], test[1][:_DRAWN_POINTS])


def run_all(images: Images, settings: Settings, model: str | None = None) -> dict[str, Any]:
    """Every seed. The last one's picture is under "map", which is no JSON."""
    start = time.perf_counter()
    runs, shown = [], None
    for seed in range(settings.seeds):
        run, shown = run_seed(images, settings, seed, model)
        runs.append(run)
        now = run["clusterings"]["MBN"]["test"]
        say(
            f"seed {seed}: MBN held-out accuracy {now['accuracy']:.2f} %, NMI {now['nmi']:.2f} %  "
            f"{time.perf_counter() - start:6.1f} s"
        )
    return {
        "title": images.title,
        "settings": asdict(settings),
        "runs": runs,
        "seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        "map": shown,
    }
