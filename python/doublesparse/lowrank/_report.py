"""What decomposing made of a model, layer by layer, and how fast it is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._table import count, share, table
from ..bench import interleave, paired_ratio
from ._pays import evaluate

_ROUNDS = 7


@dataclass
class LayerReport:
    """One layer that was examined; None where a layer has no such thing, or was not timed.

    Attributes:
        name: of the module.
        type: its class before.
        shape: of its weight.
        shapes: of the weights of basis and combine; None where the layer was left as it is.
        rank: filters of the basis, of each group.
        full_rank: the largest that can be.
        energy: the share of the sum of squared weights that the factors hold.
        error: ||W - product of the factors|| / ||W||.
        macs: multiply-adds before: of the example, or else of one output position.
        low_rank_macs: of the two layers.
        predicted: time before over time after, by the cost model.
        seconds, low_rank_seconds: medians measured, before and after.
        why: why the layer was left as it is; empty where it was not.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None
    rank: int
    full_rank: int
    energy: float
    error: float
    macs: int
    low_rank_macs: int
    predicted: float
    seconds: float | None = None
    low_rank_seconds: float | None = None
    why: str = ""

    @property
    def replaced(self) -> bool:
        """Whether two layers are in its place."""
        return self.shapes is not None

    @property
    def speedup(self) -> float | None:
        """Measured time before over time after."""
        if self.seconds is None or self.low_rank_seconds is None:
            return None
        return self.seconds / self.low_rank_seconds


@dataclass(frozen=True)
class Place:
    """Where a layer was replaced: attribute `key` of each of the parents."""

    before: nn.Module
    after: nn.Module
    parents: tuple[tuple[nn.Module, str], ...]

    def put(self, layer: nn.Module) -> None:
        """Put a layer there."""
        for parent, key in self.parents:
            parent._modules[key] = layer


@dataclass
class DecomposeReport:
    """What `decompose` did; `print` it. It keeps the layers that were replaced, for `measure`.

    Attributes:
        rows: one per layer that was examined, in the order of `named_modules`.
        skipped: {name: why} of modules with weights that were not examined.
        method: of the factors.
        speedup: measured time of the whole model before over after, the median of paired rounds;
            None before `measure`.
    """

    rows: list[LayerReport]
    skipped: dict[str, str]
    method: str
    model: nn.Module = field(repr=False)
    places: dict[str, Place] = field(repr=False)
    speedup: float | None = None
    seconds: float | None = None
    low_rank_seconds: float | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """{name: rank} of all layers examined."""
        return {row.name: row.rank for row in self.rows}

    def measure(self, example: Any, rounds: int = _ROUNDS) -> DecomposeReport:
        """Time each replaced layer and the whole model, before and after, in turn.

        In evaluation mode without gradients, on the inputs that the layers get; medians of
        `rounds`, after one to warm up. Times of a layer that is called several times are of its
        last call.

        Args:
            example: what the model takes, or a tuple of its arguments.
            rounds: how many are kept.

        Returns:
            the report itself.

        Raises:
            ValueError: `rounds` is not positive.

        Example:
            >>> import torch, doublesparse as ds
            >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
            >>> low, report = ds.lowrank.decompose(net, rank=4, return_report=True)
            >>> report.measure(torch.randn(128, 64)).speedup > 0
            True
        """
        arguments = self._arguments(example)
        by_name = {row.name: row for row in self.rows}
        with torch.no_grad():
            for name, (args, options) in arguments.items():
                before, after = self.places[name].before, self.places[name].after
                times = interleave(
                    {
                        "before": lambda b=before, a=args, o=options: b(*a, **o),  # type: ignore[misc]
                        "after": lambda b=after, a=args, o=options: b(*a, **o),  # type: ignore[misc]
                    },
                    rounds,
                )
                by_name[name].seconds = statistics.median(times["before"])
                by_name[name].low_rank_seconds = statistics.median(times["after"])
        times = interleave(
            {
                "before": lambda: self._run_before(example),
                "after": lambda: evaluate(self.model, example),
            },
            rounds,
        )
        self.seconds = statistics.median(times["before"])
        self.low_rank_seconds = statistics.median(times["after"])
        self.speedup = paired_ratio(times["before"], times["after"])
        return self

    def _arguments(self, example: Any) -> dict[str, tuple[Any, Any]]:
        """What each replaced layer is called with."""
        found: dict[str, tuple[Any, Any]] = {}
        handles = [
            place.after.register_forward_pre_hook(
                lambda _module, args, options, name=name: found.update({name: (args, options)}),
                with_kwargs=True,
            )
            for name, place in self.places.items()
        ]
        try:
            evaluate(self.model, example)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _run_before(self, example: Any) -> Any:
        with _original(self.model, self.places.values()) as model:
            return evaluate(model, example)

    def __str__(self) -> str:
        """A table with a line of totals, and a line for each module that was left alone."""
        header = (
            *("layer", "type", "weight", "basis + combine", "rank", "of", "energy", "error"),
            *("macs", "low-rank", "predicted", "ms", "low-rank ms", "measured"),
        )
        body = [_line(row) for row in self.rows]
        macs = sum(row.macs for row in self.rows)
        low = sum(row.low_rank_macs if row.replaced else row.macs for row in self.rows)
        total = (
            *("total", f"{len(body)} layers", "", "", str(sum(row.rank for row in self.rows))),
            *(str(sum(row.full_rank for row in self.rows)), "", "", count(macs), count(low), ""),
            *(_ms(self.seconds), _ms(self.low_rank_seconds), _times(self.speedup)),
        )
        lines = [f"{row.name}: {row.why}" for row in self.rows if row.why]
        lines += [f"{name}: {why}" for name, why in self.skipped.items()]
        return "\n".join([table(header, body, total, left=(0, 1, 2, 3)), *lines])

    __repr__ = __str__


def _line(row: LayerReport) -> tuple[str, ...]:
    shapes = "-" if row.shapes is None else " + ".join(map(_shape, row.shapes))
    return (
        *(row.name or "(model)", row.type, _shape(row.shape), shapes),
        *(str(row.rank), str(row.full_rank), share(row.energy), f"{row.error:.2g}"),
        *(count(row.macs), count(row.low_rank_macs), _times(row.predicted)),
        *(_ms(row.seconds), _ms(row.low_rank_seconds), _times(row.speedup)),
    )


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


@contextmanager
def _original(model: nn.Module, places: Iterable[Place]) -> Iterator[nn.Module]:
    """The model with the layers that were replaced."""
    places = list(places)
    for place in places:
        place.put(place.before)
    try:
        yield next((place.before for place in places if place.after is model), model)
    finally:
        for place in places:
            place.put(place.after)
