"""Measuring, where asked for: how far the shipped cost model is off for a network's layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from . import _costs, _crossover
from ._convolution import Layer
from ._crossover import SPARSE, Choice
from ._watch import Watcher, check_arguments, watching
from .sites import Sites
from .tensor import SparseTensor

M = TypeVar("M", bound=nn.Module)

_HOLDER = "_doublesparse_tuned"  # in the __dict__ of a tuned model: copied and pickled with it
_REPEATS = 3
_OURS, _TORCH = Choice(True, False), Choice(True, True)


class _Tuned(NamedTuple):
    table: _crossover.Table
    handles: tuple[RemovableHandle, ...]


def _enter(model: nn.Module, args: Any) -> None:
    tuned = model.__dict__.get(_HOLDER)
    if tuned is not None:
        _crossover.tuned.enter(tuned.table)


def _leave(model: nn.Module, args: Any, out: Any) -> None:
    tuned = model.__dict__.get(_HOLDER)
    if tuned is not None:
        _crossover.tuned.leave(tuned.table)


class _Measurer(Watcher):
    """Times what each convolution might have done; then it does what it would have done."""

    def __init__(self, budget: float) -> None:
        self.end = time.perf_counter() + budget
        self.ratios: dict[_crossover.Key, dict[str, list[float]]] = {}
        self.seen: set[Any] = set()

    def convolution(
        self,
        x: SparseTensor,
        layer: Layer,
        choice: Choice,
        run: Callable[[SparseTensor, Choice], SparseTensor],
    ) -> SparseTensor:
        key = layer.key(x)
        kind = (key, layer.steps, x.saturated)
        if kind not in self.seen and time.perf_counter() < self.end:
            self.seen.add(kind)
            self._measure(key, x, layer, run)
        return run(x, choice)

    def _measure(
        self,
        key: _crossover.Key,
        x: SparseTensor,
        layer: Layer,
        run: Callable[[SparseTensor, Choice], SparseTensor],
    ) -> None:
        machine = _costs.machine(x.dtype, x.features.is_cuda)
        n_out = _crossover.output_sites(x.sites, layer.steps).n_sites
        work = _crossover.work_of(x, *layer.shape)._replace(n_out=n_out)
        if not x.saturated:
            if x.ground is None:
                return  # never saturates
            seconds = self._time(lambda: run(_anew(x), SPARSE))
            self._note(key, "sparse", seconds, _costs.sparse(machine, work))
        full = x._saturate()
        seconds = self._time(lambda: run(full, _OURS))
        self._note(key, "ours", seconds, _costs.ours(machine, work))
        if x.ground is not None or layer.steps.covers():
            seconds = self._time(lambda: run(full, _TORCH))
            self._note(key, "torch", seconds, _costs.torchs(machine, work))

    def _time(self, f: Callable[[], object]) -> float | None:
        """Median of some calls, after one to warm up; None where the budget does not allow it."""
        seconds = []
        for i in range(1 + _REPEATS):
            start = time.perf_counter()
            f()
            now = time.perf_counter()
            if i > 0:
                seconds.append(now - start)
            elif now + _REPEATS * (now - start) > self.end:
                return None
        return statistics.median(seconds)

    def _note(self, key: _crossover.Key, path: str, seconds: float | None, ns: float) -> None:
        if seconds is not None:
            self.ratios.setdefault(key, {}).setdefault(path, []).append(1e9 * seconds / ns)

    def table(self) -> _crossover.Table:
        """Layer -> factors; the mean where a layer was met on several grids."""
        return {
            key: _costs.Factors(**{p: statistics.geometric_mean(r) for p, r in ratios.items()})
            for key, ratios in self.ratios.items()
        }


def _anew(x: SparseTensor) -> SparseTensor:
    """On sites that remember no rulebook, as the next input's will be."""
    s = x.sites
    return SparseTensor._of(
        x.features, Sites(s.coords, s.spatial_shape, s.batch_size, s.device), x.ground
    )


def autotune(model: M, x: SparseTensor | None, budget: float = 10.0) -> M:
    """Measure how fast a network's convolutions run on this machine, and let that decide.

    Which layers run dense is otherwise the decision of a cost model that was fitted to another
    machine. Here every convolution that `x` meets is timed sparse, saturated and by torch's kernel,
    and the ratios to the predicted times are stored with the model. From then on the crossover
    multiplies its predictions by them while this model's forward runs. It remains a pure function:
    of the shapes and of that table.

    The table is copied and pickled with the model, and is no part of its `state_dict`. The answer
    is the same up to rounding, but bits may differ from the untuned model's, and from those of
    a model that was tuned on another machine or another time.

    Args:
        model: any network; it runs as it is, without gradients. Buffers are left as they were.
        x: an input like those to come, with their share of active sites; None forgets the table.
            Layers behind one that fills up are met full, so only their dense times are measured.
        budget: seconds. Layers that are met later than that stay as predicted.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no nn.Module, `x` no SparseTensor, `budget` no number.
        ValueError: `budget` is not positive.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU())
        >>> image = torch.zeros(1, 1, 32, 32)
        >>> image[0, 0, 5, 6] = 1.0
        >>> net = ds.autotune(net, ds.SparseTensor.from_dense(image), budget=1.0)
        >>> y = net(ds.SparseTensor.from_dense(image))
        >>> torch.allclose(y.to_dense(), net(image), atol=1e-6)
        True
        >>> net = ds.autotune(net, None)
    """
    check_arguments("autotune", model, x, optional=True)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(
            f"autotune: budget must be a number of seconds, got {type(budget).__name__}; pass 10.0"
        )
    if not budget > 0:
        raise ValueError(f"autotune: budget must be positive, got {budget}; pass e.g. 10.0")
    table = None
    if x is not None:
        measurer = _Measurer(budget)
        with watching(measurer, model):
            model(x)
        table = measurer.table()
    old = model.__dict__.pop(_HOLDER, None)
    if old is not None:
        for handle in old.handles:
            handle.remove()
    if table is not None:
        handles = (
            model.register_forward_pre_hook(_enter),
            model.register_forward_hook(_leave, always_call=True),
        )
        model.__dict__[_HOLDER] = _Tuned(table, handles)
    return model
