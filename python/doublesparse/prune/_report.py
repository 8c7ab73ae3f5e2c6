"""What pruning made of a model, layer by layer: `report`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._crossover import get_crossover, set_crossover
from .._functional_masked_conv import geometry_of
from .._masked_conv import takes_kernel
from .._packed_weight import PackedWeight
from .._patterns import Pattern
from .._spmm_costs import counts_of, dense_ns, runs_packed, sparse_ns
from .._table import count, share, table
from .._watch import Watcher, watching
from ..nn._masked import Masked
from ..nn._packed import PACKED_CLASSES, Packed, freeze_layer, pack_layer
from ..tensor import SparseTensor
from ._sparsify import check_model, masked_layers, selected, skipped

_REPEATS = 5


class Prediction(NamedTuple):
    """What the cost model says of a layer.

    Attributes:
        path: which kernel it runs: "sparse" or "dense".
        dense_ms: time of the dense kernel; None where the model does not say.
        sparse_ms: of the sparse one.
    """

    path: str
    dense_ms: float | None
    sparse_ms: float | None


def _predict(layer: Any, packed: PackedWeight, x: Any, n_rows: int) -> Prediction:
    """The cost model's word on a layer that meets x, or this many rows of activations."""
    if isinstance(x, SparseTensor):
        return Prediction("sparse", None, None)
    dtype = x.dtype
    if len(packed.shape) > 2:
        walk = (layer.stride, layer.padding, layer.dilation, layer.groups)
        g = geometry_of(len(packed.shape) - 2, x, packed.shape, None, *walk)
        images = x.shape if x.dim() == len(packed.shape) else (1, *x.shape)
        takes = g and takes_kernel(packed.shape, packed.density, g, images, dtype)
        return Prediction("sparse" if takes else "dense", None, None)
    p = counts_of(packed, n_rows)
    path = "sparse" if runs_packed(p, dtype) else "dense"
    return Prediction(path, 1e-6 * dense_ns(p, dtype), 1e-6 * sparse_ns(p))


@dataclass(frozen=True)
class LayerReport:
    """One masked layer; None where a layer has no such thing, or was not timed.

    Attributes:
        name: of the module.
        type: its class.
        shape: of its weight.
        pattern: of its mask.
        n_kept: weights that are kept.
        dense_bytes: of the weight in the layer's dtype.
        packed_bytes: of the `PackedWeight` that it is, or would be frozen to.
        n_rows: rows of activations: samples, or output positions of all samples.
        dense_ms: measured time of torch's dense layer with the same weight.
        sparse_ms: of the packed layer.
        path: "sparse" or "dense": which one runs, by the cost model.
        predicted_ms: the cost model's time for it.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    pattern: Pattern
    n_kept: int
    dense_bytes: int
    packed_bytes: int
    n_rows: int | None = None
    dense_ms: float | None = None
    sparse_ms: float | None = None
    path: str | None = None
    predicted_ms: float | None = None

    @property
    def kept(self) -> float:
        """Kept weights as a share of all."""
        return self.n_kept / max(torch.Size(self.shape).numel(), 1)

    @property
    def ms(self) -> float | None:
        """Measured time of what runs."""
        return self.sparse_ms if self.path == "sparse" else self.dense_ms

    @property
    def error(self) -> float | None:
        """Predicted time over the measured one, less 1."""
        return self.predicted_ms / self.ms - 1 if self.predicted_ms and self.ms else None


@dataclass(frozen=True)
class Report:
    """A model's masked layers; `print` it.

    Attributes:
        rows: one per masked layer, in the order of `named_modules`.
        skipped: {name: why} of the modules whose weights are dense.
    """

    rows: list[LayerReport]
    skipped: dict[str, str]

    @property
    def n_kept(self) -> int:
        """Weights that are kept, in all masked layers."""
        return sum(row.n_kept for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Of the dense weights of all masked layers."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Of their packed weights."""
        return sum(row.packed_bytes for row in self.rows)

    def __str__(self) -> str:
        """A table with a line of totals, and a line for each module that was skipped."""
        header = (
            *("layer", "type", "shape", "pattern", "kept", "dense B", "packed B", "rows"),
            *("dense ms", "sparse ms", "runs", "predicted ms", "error"),
        )
        body = [
            (
                *(row.name, row.type, "x".join(map(str, row.shape)), str(row.pattern)),
                *(share(row.kept), count(row.dense_bytes), count(row.packed_bytes)),
                *(count(row.n_rows), _ms(row.dense_ms), _ms(row.sparse_ms), row.path or "-"),
                *(_ms(row.predicted_ms), "-" if row.error is None else f"{row.error:+.0%}"),
            )
            for row in self.rows
        ]
        n_weights = sum(torch.Size(row.shape).numel() for row in self.rows)
        total = (
            *("total", f"{len(body)} layers", "", "", share(self.n_kept / max(n_weights, 1))),
            *(count(self.dense_bytes), count(self.packed_bytes), ""),
            *(_ms(_sum([getattr(row, name) for row in self.rows])) for name in _TIMES),
            *("", _ms(_sum([row.predicted_ms for row in self.rows])), ""),
        )
        lines = [f"{name}: {why}" for name, why in self.skipped.items()]
        return "\n".join([table(header, body, total, left=(0, 1, 2, 3, 10)), *lines])

    __repr__ = __str__


_TIMES = ("dense_ms", "sparse_ms")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _sum(values: list[float | None]) -> float | None:
    """None where nothing, or not everything, was timed."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def report(model: nn.Module, x: Any = None, *, batch: int | None = 512) -> Report:
    """What is kept of a model's weights, what that saves, and how fast it is.

    Every masked layer is timed twice, on one input: as torch's dense layer, and packed; the median
    of five runs each, after one to warm up. With `x` the input is what the layer gets when the
    model runs on it, once, in training or evaluation mode as it is; buffers and random numbers are
    left as they were. Without, linear layers get `batch` rows of random numbers and convolutions,
    whose images nobody knows, are not timed. The column "runs" is the cost model's choice, which
    depends on shapes alone, not on these times.

    Args:
        model: any module, frozen or not; it is not changed.
        x: an example input: what `model(x)` takes, or a tuple of its arguments.
        batch: rows for linear layers where there is no `x`; None: time nothing.

    Returns:
        a `Report`: `print` it, or read its `rows`.

    Raises:
        TypeError: `model` is no module, `batch` no int.
        ValueError: `batch` is below 1.

    Example:
        >>> import torch, doublesparse as ds
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.LazyLinear(2))
        >>> report = ds.prune.report(ds.prune.sparsify_(model, 0.75), batch=None)
        >>> [(row.name, row.kept, row.dense_bytes) for row in report.rows]
        [('0', 0.25, 8192)]
        >>> print(report)  # doctest: +ELLIPSIS
        layer  type          shape  pattern          kept  dense B  packed B  rows ...
        1: its shape is not known before its first call
    """
    check_model("report", model)
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int)):
        raise TypeError(f"report: batch must be an int or None, got {batch!r}; pass e.g. 512")
    if batch is not None and batch < 1:
        raise ValueError(f"report: batch must be at least 1, got {batch}; pass e.g. 512")
    dense = {
        name: "nobody pruned it"
        for name, module in selected("report", model, None).items()
        if not isinstance(module, Masked)
    }
    found: dict[str, LayerReport] = {}
    with watching(Watcher(), model):
        if x is not None:
            _run(model, x if isinstance(x, tuple) else (x,), found)
        for name, layer in masked_layers(model):
            if name not in found:
                rows = batch if x is None else None
                found[name] = _examine(name, layer, _random_rows(layer, rows))
    rows_in_order = [found[name] for name, _ in masked_layers(model)]
    return Report(rows_in_order, skipped(model) | dense)


def _run(model: nn.Module, arguments: tuple[Any, ...], found: dict[str, LayerReport]) -> None:
    """Examine every masked layer with the first input that it gets."""
    handles: list[Any] = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in found:
                found[name] = _examine(name, cast("Masked", module), (*args, *kwargs.values())[0])

        return hook

    try:
        for name, layer in masked_layers(model):
            module = cast("nn.Module", layer)
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        model(*arguments)
    finally:
        for handle in handles:
            handle.remove()


def _random_rows(layer: Masked, n_rows: int | None) -> Tensor | None:
    if n_rows is None or not isinstance(layer, nn.Linear):
        return None
    return torch.randn(n_rows, layer.in_features, dtype=_parameter(layer).dtype)


def _parameter(layer: Masked) -> Tensor:
    """The weight, or the Parameter without data that has its dtype."""
    return layer._parked.weight if isinstance(layer, Packed) else layer.weight


def _examine(name: str, layer: Masked, x: Any) -> LayerReport:
    packed = pack_layer(layer)
    shape, dtype = tuple(packed.shape), _parameter(layer).dtype
    row = LayerReport(
        name=name,
        type=type(layer).__name__,
        shape=shape,
        pattern=packed.pattern,
        n_kept=packed.n_kept,
        dense_bytes=packed.numel() * dtype.itemsize,
        packed_bytes=packed.nbytes,
    )
    if not isinstance(x, (Tensor, SparseTensor)):
        return row
    thawed = copy.deepcopy(layer)  # no hooks run, and the layer itself stays what it is
    thawed.thaw_()
    y, dense_ms = _time(lambda: layer.dense_class.forward(cast("nn.Module", thawed), x))
    sparse_ms = None
    if type(thawed) in PACKED_CLASSES:
        freeze_layer(thawed, packed)
        before = get_crossover()
        set_crossover(None)  # keeps everything on our kernels
        try:
            sparse_ms = _time(lambda: cast("Any", type(thawed)).forward(thawed, x))[1]
        finally:
            set_crossover(before)
    values = y.features if isinstance(y, SparseTensor) else y
    n_rows = values.numel() // max(shape[0], 1)
    said = _predict(layer, packed, x, n_rows)
    return LayerReport(
        **vars(row)
        | {
            "n_rows": n_rows,
            "dense_ms": dense_ms,
            "sparse_ms": sparse_ms,
            "path": said.path,
            "predicted_ms": said.sparse_ms if said.path == "sparse" else said.dense_ms,
        }
    )


def _time(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the median of some runs in milliseconds, after one to warm up."""
    result, times = run(), []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(times)
