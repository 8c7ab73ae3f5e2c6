"""What a network's layers did with a SparseTensor: sites, pairs, ground, path, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from . import _costs, _crossover
from ._channels_last import ChannelsLast
from ._convolution import Layer
from ._ground import GroundState
from ._memo import memo_of
from ._table import count, share, table
from ._watch import Watcher, check_arguments, watching
from .tensor import SparseTensor


@dataclass(frozen=True)
class Row:
    """What one layer did; None where a layer has no such thing.

    Attributes:
        name: of the module; of the one around it for a function that is no module of its own.
        type: class of the module, or name of the function (lower case).
        active_in: active sites of the input as a share of all; None for a dense tensor.
        active_out: the same of the output.
        pairs: multiplications of a weight with an active site's features, per (c_in, c_out).
        classes: class rows of the input's ground, over all samples; 0 where it is zero.
        ground_pairs: multiplications for the ground; 0 where it is zero or remembered.
        path: "sparse"; "saturated": on all sites; "torch dense": by torch's kernel.
        predicted_sparse_ns: the cost model's time; None where the input is saturated already.
        predicted_dense_ns: the same, on all sites.
        ms: time it took, rulebook included where that was not remembered.
    """

    name: str
    type: str
    active_in: float | None
    active_out: float | None
    path: str
    ms: float
    pairs: int | None = None
    classes: int | None = None
    ground_pairs: int = 0
    predicted_sparse_ns: float | None = None
    predicted_dense_ns: float | None = None

    @property
    def ground_share(self) -> float | None:
        """Multiplications for the ground, as a share of all."""
        if self.pairs is None or self.classes is None:
            return None
        return self.ground_pairs / max(self.pairs + self.ground_pairs, 1)

    @property
    def predicted_ns(self) -> float | None:
        """The cost model's time for the path that was taken."""
        return self.predicted_sparse_ns if self.path == "sparse" else self.predicted_dense_ns


@dataclass(frozen=True)
class Explanation:
    """A network's layers, in the order they ran; `print` it.

    Attributes:
        rows: one per layer.
        ms: time of the whole network.
    """

    rows: list[Row]
    ms: float

    def __str__(self) -> str:
        """A table, with a line of totals."""
        header = (
            *("layer", "type", "active in", "out", "pairs", "classes", "ground", "path"),
            *("sparse ms", "dense ms", "took ms"),
        )
        body = [
            (
                *(row.name, row.type, share(row.active_in), share(row.active_out)),
                *(count(row.pairs), count(row.classes), share(row.ground_share), row.path),
                *(_ms(row.predicted_sparse_ns), _ms(row.predicted_dense_ns), f"{row.ms:.3f}"),
            )
            for row in self.rows
        ]
        pairs = sum(row.pairs or 0 for row in self.rows)
        ground = sum(row.ground_pairs for row in self.rows)
        predicted = sum(row.predicted_ns or 0.0 for row in self.rows)
        total = (
            *("total", f"{len(body)} layers", "", "", count(pairs), ""),
            share(ground / max(pairs + ground, 1)),
            *("as predicted", "", f"{predicted / 1e6:.3f}", f"{self.ms:.3f}"),
        )
        return table(header, body, total, left=(0, 1, 7))

    __repr__ = __str__


def _ms(ns: float | None) -> str:
    return "-" if ns is None else f"{ns / 1e6:.3f}"


@dataclass
class _Frame:
    """A module whose forward runs."""

    name: str
    module: nn.Module
    x: SparseTensor | None
    active_in: float | None
    start: float
    rows: list[Row] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return next(self.module.children(), None) is None


def _first_sparse(value: Any) -> SparseTensor | None:
    if isinstance(value, SparseTensor):
        return value
    if isinstance(value, ChannelsLast):
        return value.base
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return None
    return next((x for v in value if (x := _first_sparse(v)) is not None), None)


def _density(x: SparseTensor | None) -> float | None:
    return None if x is None else x.density


def _path(x: SparseTensor | None) -> str:
    if x is None:
        return "torch dense"
    return "saturated" if x.saturated else "sparse"


def _classes(ground: GroundState | None) -> int | None:
    if ground is None:
        return None
    return 0 if ground.is_zero else ground.n_rows * ground.values.shape[0]


class _Recorder(Watcher):
    """Writes a row for every module without children, and for every function between them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.frames: list[_Frame] = []
        self.n_pairs: int | None = None

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = _first_sparse((*args, *kwargs.values()))
        self.frames.append(_Frame(name, module, x, _density(x), time.perf_counter()))
        self.n_pairs = None

    def leave(self, out: Any) -> None:
        end, frame = time.perf_counter(), self.frames.pop()
        if not frame.is_leaf:
            return
        kind, ms = type(frame.module).__name__, 1e3 * (end - frame.start)
        if len(frame.rows) == 1:
            self.rows.append(replace(frame.rows[0], type=kind, ms=ms))
        elif frame.rows:
            self.rows += frame.rows
        else:
            y = _first_sparse(out)
            path = _path(frame.x if y is None else y)
            row = Row(frame.name, kind, frame.active_in, _density(y), path, ms, self.n_pairs)
            self.rows.append(row)

    def note(self, row: Row) -> None:
        """A function's row; it may turn out to be all that a module does."""
        frame = self.frames[-1] if self.frames else None
        name = "" if frame is None else frame.name
        rows = frame.rows if frame is not None and frame.is_leaf else self.rows
        rows.append(replace(row, name=name))

    def pairs(self, n_pairs: int) -> None:
        self.n_pairs = n_pairs

    def operation(
        self, name: str, x: SparseTensor, run: Callable[[], SparseTensor]
    ) -> SparseTensor:
        before, self.n_pairs, start = x.density, None, time.perf_counter()
        out = run()
        ms = 1e3 * (time.perf_counter() - start)
        path = "torch dense" if self.n_pairs is None else _path(x)
        self.note(Row("", name, before, out.density, path, ms, self.n_pairs))
        return out

    def convolution(
        self,
        x: SparseTensor,
        layer: Layer,
        choice: _crossover.Choice,
        run: Callable[[SparseTensor, _crossover.Choice], SparseTensor],
    ) -> SparseTensor:
        before, self.n_pairs, start = x.density, None, time.perf_counter()
        out = run(x, choice)
        ms = 1e3 * (time.perf_counter() - start)
        work = _crossover.work_of(x, *layer.shape)._replace(n_out=out.sites.n_sites)
        factors = _crossover.factors_of(lambda: layer.key(x))
        machine, classes = _costs.machine(x.dtype, x.features.is_cuda), _classes(x.ground)
        path = "saturated" if choice.saturate or x.saturated else "sparse"
        pairs, ground = self.n_pairs, 0
        if choice.torch or pairs is None:
            path, pairs = "torch dense", work.cells_out * work.n_offsets
        if path == "sparse" and classes and x.ground is not None and memo_of(x.ground) is None:
            ground = classes * work.n_offsets
        sparse = None if x.saturated else factors.sparse * _costs.sparse(machine, work)
        dense = _costs.dense(machine, work, factors)
        name = f"conv_transpose{x.ndim - 2}d" if layer.transposed else f"conv{x.ndim - 2}d"
        self.note(
            Row("", name, before, out.density, path, ms, pairs, classes, ground, sparse, dense)
        )
        return out


@contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Hooks on all modules, gone afterwards, whatever happens."""
    handles: list[Any] = []

    def before(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: recorder.enter(name, module, args, kwargs)

    def after(module: nn.Module, args: Any, out: Any) -> None:
        recorder.leave(out)

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def explain(model: nn.Module, x: SparseTensor) -> Explanation:
    """Run a network once and say what each layer did, and why it ran sparse or dense.

    It runs as it is, in training or in evaluation mode, without gradients; buffers and random
    numbers are left as they were. Rulebooks that `x` remembers from earlier runs are not built
    again: pass a new tensor to see their time.

    Args:
        model: any network.
        x: its input.

    Returns:
        an `Explanation`: `print` it, or read its `rows`.

    Raises:
        TypeError: `model` is no nn.Module, or `x` no SparseTensor.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU())
        >>> image = torch.zeros(1, 1, 32, 32)
        >>> image[0, 0, 5, 6] = 1.0
        >>> report = ds.explain(net, ds.SparseTensor.from_dense(image))
        >>> [(row.name, row.type, row.path, row.pairs) for row in report.rows]
        [('0', 'Conv2d', 'sparse', 9), ('1', 'ReLU', 'sparse', None)]
        >>> print(report)  # doctest: +ELLIPSIS
        layer  type      active in   out  pairs  classes  ground  path ...
    """
    check_arguments("explain", model, x)
    recorder = _Recorder()
    with watching(recorder, model), _hooked(model, recorder):
        start = time.perf_counter()
        model(x)
        ms = 1e3 * (time.perf_counter() - start)
    return Explanation(recorder.rows, ms)
