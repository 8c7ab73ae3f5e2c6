"""What the demo of bootstrap networks measures: clusterings, students, speed."""

from __future__ import annotations

import importlib
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import bootstrap
from ..bench import interleave, milliseconds, paired_ratio
from ._images import Images
from ._plain_mbn import plain_transform
from ._show import say

Set = tuple[np.ndarray, np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]
N_CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options.

    Attributes:
        epochs: of the dense student, at most; None: as `compress` chooses.
        sparse_epochs: of the packed student, at most; None: as `compress` chooses.
        plain_points: held-out points that the plain network is timed on.
        rounds: of the interleaved timings.
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
    plain_points: int = 200
    rounds: int = 5


DIGITS = Settings()
MNIST = replace(
    DIGITS,
    seeds=1,
    train_size=0,
    hidden=(2048, 2048),
    sparsity=0.95,
    epochs=8,
    sparse_epochs=4,
    plain_points=1000,
    rounds=3,
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
    "rounds": 2,
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


def student_quality(
    predict: Predict, train: Set, test: Set, classes: np.ndarray
) -> dict[str, float]:
    """Agreement with the network and quality, in percent.

    Args:
        predict: of the student.
        train: points that it learnt from, the network's clusters.
        test: points held out, the network's clusters.
        classes: of the points held out.
    """
    clusters = predict(test[0])
    return {
        "agreement_train": 100 * float(np.mean(predict(train[0]) == train[1])),
        "agreement_test": 100 * float(np.mean(clusters == test[1])),
        **quality(classes, clusters),
    }


def plain_network(
    mbn: Any, train: np.ndarray, few: np.ndarray, wanted: np.ndarray
) -> dict[str, float]:
    """Microseconds per point of a plain network, and the share of its codes that are ours.

    Args:
        mbn: fitted.
        train: what it was fitted on.
        few: points held out.
        wanted: their codes.
    """
    start = time.perf_counter()
    plain = plain_transform(mbn, train, few)
    spent = time.perf_counter() - start
    same = np.abs(plain - wanted).max(1) <= 1e-3 * np.abs(plain).max()
    return {
        "batch_us": 1e6 * spent / len(few),
        "points": len(few),
        "same_code": 100 * float(same.mean()),
    }


def network_bytes(mbn: Any, train: np.ndarray) -> int:
    """Of what a prediction needs: the training data, their codes, the draws."""
    size: int = train.nbytes + sum(code.nbytes for code in mbn._codes)
    return size + sum(layer.columns.nbytes + layer.centers.nbytes for layer in mbn.layers_)


def measure_speed(
    found: dict[str, Any], mbn: Any, students: dict[str, Predict], x: np.ndarray, rounds: int
) -> None:
    """Adds to the rows of a run: microseconds a point, in one batch and alone, and ratios.

    The machine's speed drifts over a run; rounds of the network and every student in turn give
    ratios that do so less.
    """
    predicts = {"MBN": mbn.predict, **students}
    times = interleave({name: partial(p, x) for name, p in predicts.items()}, rounds, warmup=0)
    alone = interleave({name: partial(p, x[:1]) for name, p in students.items()}, 4 * rounds)
    alone |= interleave({"MBN": partial(mbn.predict, x[:1])}, 1, warmup=0)
    for name in predicts:
        row = found["networks" if name == "MBN" else "students"][name]
        row["batch_us"] = 1e3 * milliseconds(times[name]) / len(x)
        row["single_us"] = 1e3 * milliseconds(alone[name])
        if name != "MBN":
            row["times_MBN"] = paired_ratio(times["MBN"], times[name])
            row["times_plain MBN"] = found["networks"]["plain MBN"]["batch_us"] / row["batch_us"]


def run_seed(
    images: Images, settings: Settings, seed: int, model: str | None = None
) -> tuple[dict[str, Any], Any]:
    """All of one repetition; and what the picture shows: codes and classes held out."""
    train, test = split(images, settings, seed)
    mbn = network(train, settings, seed, model)
    x, clusters = test[0], mbn.predict(test[0])
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
    students: dict[str, Predict] = {}
    found["students"] = {}
    for form in ("dense", "packed"):
        for dtype, made in (("float32", student), ("bfloat16", student.bfloat16())):
            name = f"{form} {dtype}"
            students[name] = partial(made.predict, student=form)
            n = _BFLOAT16_POINTS if name == "dense bfloat16" else len(train[0])
            some = train[0][:n], mbn.labels_[:n]
            row = student_quality(students[name], some, (x, clusters), test[1])
            found["students"][name] = row | {"bytes": made.nbytes[form]}
    shown = mbn.transform(x[: max(_DRAWN_POINTS, settings.plain_points)])
    few = x[: settings.plain_points]
    size = {"bytes": network_bytes(mbn, train[0])}
    plain = plain_network(mbn, train[0], few, shown[: len(few)])
    found["networks"] = {"plain MBN": size | plain, "MBN": size.copy()}
    measure_speed(found, mbn, students, x, settings.rounds)
    return found, (shown[:_DRAWN_POINTS, :2], test[1][:_DRAWN_POINTS])


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
