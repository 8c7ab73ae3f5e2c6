"""Compression of a multilayer bootstrap network into a student that predicts fast."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import prune as pruning
from .._patterns import Block, Pattern, Unstructured, check_pattern, check_sparsity
from ._compressed import CodeRange, CompressedNetwork, points_of
from ._student import Schedule, Task, adam, make_student, prune_student, train

# Steps of the dense phase where the number of epochs is not given; and their bounds, in epochs.
_STEPS, _FEWEST, _MOST = 5000, 10, 100
_TARGETS = ("clusters", "codes")
_METHODS = ("dsd", "block", None)
_LARGEST = 2**31 - 1  # of a width or a count


@dataclass(frozen=True)
class _Options:
    """The options of `compress`, checked."""

    hidden: Sequence[int]
    target: str
    sparsity: float
    pattern: Pattern | None
    prune: str | None
    epochs: int | None
    sparse_epochs: int | None
    patience: int
    validation_fraction: float
    lr: float
    batch_size: int
    dropout: float
    random_state: int | None
    verbose: bool

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("target", self.target, _TARGETS),
            ("prune", self.prune, _METHODS),
        ):
            if value not in choices:
                raise ValueError(
                    f"compress: {name} must be one of {choices}, got {value!r}; pass one of them"
                )
        if not isinstance(self.hidden, (list, tuple)):
            raise TypeError(
                f"compress: hidden must be a tuple or list of ints, got {self.hidden!r}; pass e.g. "
                "(512, 512)"
            )
        for width in self.hidden:
            _check_number("hidden", width, 1, _LARGEST, whole=True)
        for name in ("epochs", "sparse_epochs", "patience", "batch_size"):
            value = getattr(self, name)
            if value is not None or name in ("patience", "batch_size"):
                _check_number(name, value, 1, _LARGEST, whole=True)
        if self.random_state is not None:
            _check_number("random_state", self.random_state, 0, 2**63 - 1, whole=True)
        _check_number("lr", self.lr, 1e-30, 1e30)
        _check_number("dropout", self.dropout, 0, 0.999)
        _check_number("validation_fraction", self.validation_fraction, 1e-9, 1 - 1e-9)
        self._check_pattern()

    def _check_pattern(self) -> None:
        pattern = self.mask_pattern
        check_pattern("compress", pattern)
        if self.prune == "block" and not isinstance(pattern, Block):
            raise ValueError(
                f"compress: pattern must be a ds.Block for prune='block', got {pattern}; pass "
                "prune='dsd'"
            )
        if self.prune is not None and not pattern.fixed:
            check_sparsity("compress", self.sparsity, pattern)

    @property
    def mask_pattern(self) -> Pattern:
        """Of the masks. Blocks of 16 outputs ran fastest at all batch sizes."""
        if self.pattern is not None:
            return self.pattern
        return Block(16, 1) if self.prune == "block" else Unstructured()

    def schedules(self, n_train: int) -> tuple[Schedule, Schedule]:
        """Of the dense and of the sparse phase."""
        per_epoch = -(-n_train // self.batch_size)
        epochs = self.epochs or min(max(_STEPS // per_epoch, _FEWEST), _MOST)
        dense = Schedule("dense", epochs, self.patience, self.lr, self.batch_size, self.verbose)
        sparse = replace(dense, phase="pruned", epochs=self.sparse_epochs or -(-epochs // 2))
        return dense, sparse


def _check_number(
    name: str, value: Any, smallest: float, largest: float, whole: bool = False
) -> None:
    kind = "an int" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"compress: {name} must be {kind}, got {value!r}; pass {kind}")
    if not smallest <= value <= largest:
        raise ValueError(
            f"compress: {name} must be in [{smallest:g}, {largest:g}], got {value}; pass another"
        )


def _teacher_labels(mbn: Any, n: int, labels: Any, needed: bool) -> tuple[Any, Tensor | None]:
    """(classes, cluster index of each point), by the argument or the teacher's own."""
    found = getattr(mbn, "labels_", None) if labels is None else labels
    if found is None and not needed:
        return None, None
    found = np.asarray([] if found is None else found)
    if found.shape != (n,):
        if labels is None and not needed:
            return None, None  # the teacher's are those of other points
        raise ValueError(
            f"compress: labels must be ({n},), one cluster per point of X, got {found.shape}; call "
            "mbn.fit_predict(X) before, or pass labels="
        )
    try:
        classes, index = np.unique(found, return_inverse=True)
    except TypeError as wrong:
        raise TypeError(
            f"compress: labels must be of one kind that sorts, got dtype {found.dtype} ({wrong}); "
            "pass integers or strings"
        ) from wrong
    return classes, torch.from_numpy(index.reshape(-1).astype(np.int64))


def _moments(x: Tensor) -> tuple[Tensor, float]:
    """Mean of each feature, and the root mean variance over all of them; float64."""
    mean = x.mean(0, dtype=torch.float64)
    square = sum(float((part - mean).square().sum()) for part in x.split(4096))
    scale = math.sqrt(square / x.numel())
    if not math.isfinite(scale) or scale > 1e30:
        raise ValueError(
            f"compress: X must have a spread below 1e30, got {scale:g}; use smaller units"
        )
    return mean, scale or 1.0


# ------------------------------------------------------------------ the function
@torch.inference_mode(mode=False)  # it trains, wherever it is called
@torch.enable_grad()
def compress(
    mbn: Any,
    X: Any,
    hidden: Sequence[int] = (2048, 2048),
    target: str = "clusters",
    *,
    labels: Any = None,
    sparsity: float = 0.9,
    pattern: Pattern | None = None,
    prune: str | None = "block",
    epochs: int | None = None,
    sparse_epochs: int | None = None,
    patience: int = 10,
    validation_fraction: float = 0.1,
    lr: float = 1e-3,
    batch_size: int = 128,
    dropout: float = 0.2,
    random_state: int | None = None,
    verbose: bool = False,
) -> CompressedNetwork:
    """Train a small network to answer as a multilayer bootstrap network, then prune and pack it.

    A multilayer bootstrap network compares every new point with all its centres. The student
    (Zhang 2015, arXiv:1503.06452) sees only features and answers of the teacher, a multilayer
    perceptron with rectified hidden units: cross-entropy on clusters, squared error on codes in
    the unit range. It is trained with Adam at a linearly falling rate, and stops early by the
    answers on points that are held out. Then all its layers but the last are pruned, trained on
    and packed, with the same loss.

    Args:
        mbn: a fitted `MultilayerBootstrapNetwork`; only `n_features_in_`, `labels_` and, for
            codes, `transform` are used.
        X: (n, n_features) real numbers, usually what the teacher was fitted on.
        hidden: widths of the hidden layers.
        target: "clusters", those of `mbn.fit_predict`, or "codes", those of `mbn.transform`.
        labels: (n,) clusters of X; default: `mbn.labels_`, which must be of this X.
        sparsity: share of the weights of each hidden layer that is pruned.
        pattern: of the masks; default: `Block(16, 1)` of "block", which ran fastest at all batch
            sizes, `Unstructured()` of "dsd".
        prune: "block": blocks, at a sparsity that rises over the first half of the sparse epochs;
            "dsd": at once, as in the sparse phase of `ds.prune.DSD`, any pattern; None: not at all.
        epochs: of the dense phase, at most; default: about 5000 steps, 10 to 100 epochs.
        sparse_epochs: of the sparse phase, at most; default: half as many.
        patience: epochs without improvement that end a phase.
        validation_fraction: share of X to stop by, not trained on, in (0, 1).
        lr: learning rate at the start of either phase.
        batch_size: points per step.
        dropout: share of the hidden units, in [0, 1).
        random_state: seed of the split, the initial weights, the order and the dropout.
        verbose: show a progress bar (tqdm), or without a terminal a line per epoch.

    Returns:
        CompressedNetwork: float32 students and how well they agree with the teacher.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument of the wrong shape or range, X not finite, `mbn` not fitted, or no
            labels for target "clusters".

    Example:
        >>> import numpy as np, doublesparse as ds
        >>> class Teacher:  # stands for a fitted network
        ...     n_features_in_, labels_ = 16, np.repeat([3, 7], 100)
        >>> X = np.random.default_rng(0).normal(size=(200, 16)) + Teacher.labels_[:, None]
        >>> made = ds.bootstrap.compress(Teacher(), X, hidden=(64, 64), random_state=0)
        >>> made.predict(X[[0, 150]]), made.agreement["packed"]["train"] > 0.97
        (array([3, 7]), True)
    """
    options = _Options(
        hidden,
        target,
        sparsity,
        pattern,
        prune,
        epochs,
        sparse_epochs,
        patience,
        validation_fraction,
        lr,
        batch_size,
        dropout,
        random_state,
        verbose,
    )
    n_features = getattr(mbn, "n_features_in_", None)
    if n_features is None:
        raise (ValueError if hasattr(mbn, "fit") else TypeError)(
            "compress: mbn must be a fitted MultilayerBootstrapNetwork, got "
            f"{type(mbn).__name__}; call mbn.fit_predict(X) before"
        )
    points = points_of("compress", X, n_features)
    classes, clusters = _teacher_labels(mbn, len(points), labels, target == "clusters")
    codes, y = None, clusters
    if target == "codes":
        code = torch.from_numpy(np.asarray(mbn.transform(X), dtype=np.float64))
        codes = CodeRange(code)
        y = codes.scaled(code)
        if clusters is not None:
            codes.learn_means(y, clusters)
    assert y is not None  # of clusters, _teacher_labels has raised otherwise
    n_outputs = y.shape[1] if target == "codes" else len(classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # whatever torch's default is
        _seed(random_state)
        task = Task(points, y, *_split(len(points), validation_fraction))
        dense, packed = _train_students(task, n_outputs, options)
    made = CompressedNetwork(dense, packed, target, classes, codes)
    made.score_(task, clusters)
    return made


def _seed(random_state: int | None) -> None:
    if random_state is None:
        torch.seed()
    else:
        torch.manual_seed(random_state)


def _split(n: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to stop by, both drawn at random and not empty."""
    n_validation = max(round(n * fraction), 1)
    if n_validation >= n:
        raise ValueError(
            f"compress: validation_fraction must leave points to train on, got {fraction} of {n}; "
            "pass more points or a smaller fraction"
        )
    order = torch.randperm(n)
    return order[n_validation:], order[:n_validation]


def _train_students(
    task: Task, n_outputs: int, options: _Options
) -> tuple[torch.nn.Sequential, torch.nn.Sequential | None]:
    """The dense student and, of a copy of it, the packed one."""
    dense_phase, sparse_phase = options.schedules(len(task.train))
    mean, scale = _moments(task.x)
    net = make_student(mean, scale, options.hidden, n_outputs, options.dropout)
    train(net, adam(net, options.lr), task, dense_phase)
    if options.prune is None or not options.hidden:
        return net, None
    pattern = options.mask_pattern
    packed = copy.deepcopy(net)
    sparsity = None if pattern.fixed else options.sparsity
    prune_student(packed, task, sparse_phase, options.prune, pattern, sparsity)
    return net, pruning.freeze(packed)
