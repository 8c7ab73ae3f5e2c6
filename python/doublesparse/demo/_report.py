"""What the demo shows: progress (tqdm), tables (rich), picture (matplotlib), where installed."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..tensor import SparseTensor
from ._show import BLUE, GREEN, INK, ORANGE, Table, new_figure, save, say, tables

if TYPE_CHECKING:
    from ._train import Data


class Progress:
    """A bar over the training steps; without tqdm or a terminal, a line per point of the curve."""

    def __init__(self, n_steps: int) -> None:
        self.bar: Any = None
        self.start = time.perf_counter()
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=n_steps, unit="step", leave=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, loss: float) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()

    def note(self, point: dict[str, float]) -> None:
        """A point of the error curve."""
        text = (
            f"epoch {point['epoch']:3.0f}  loss {point['loss']:.4f}  "
            f"test error {point['error']:7.2%}  {time.perf_counter() - self.start:6.1f} s"
        )
        if self.bar is not None:
            self.bar.write(text)
        else:
            say(text)


def _summary(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the first table."""
    settings, n = results["settings"], results["n_test"]
    rows: list[tuple[str, ...]] = []
    rows.append(("test error", f"{results['n_wrong'] / n:.2%}  ({results['n_wrong']} of {n})"))
    if "n_wrong_views" in results:
        wrong = results["n_wrong_views"]
        rows.append(
            (f"test error, with {settings['views']} distorted views", f"{wrong / n:.2%}  ({wrong})")
        )
    for what, label in (("test", "images/s"), ("train", "images/s, training")):
        speed = results["speed"][what]
        rows.append(
            (
                label,
                f"sparse {speed['sparse']:,.0f}   dense {speed['dense']:,.0f}   "
                f"{speed['ratio']:.1f} x",
            )
        )
    rows += [
        (
            "largest difference of outputs",
            f"{results['difference']:.1e}  (largest output {results['largest_logit']:.1f}; "
            f"dense float32 against float64 {results['dense_rounding']:.1e})",
        ),
        (
            "time",
            f"{results['train_s']:.0f} s training, {results['total_s']:.0f} s in all, "
            f"{results['threads']} threads",
        ),
    ]
    return rows


def _layer_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the second table."""
    return [
        (
            row["layer"],
            " x ".join(map(str, row["grid"])),
            str(row["channels"]),
            f"{row['sites']:.1f}",
            f"{row['share']:.1%}",
        )
        for row in results["layers"]
    ]


_LAYER_COLUMNS = ("layer", "grid", "channels", "sites per image", "active")


def table(results: dict[str, Any]) -> None:
    """Prints both tables, with rich where it is installed."""
    settings = results["settings"]
    title = f"{settings['network']}({settings['levels']}, {settings['width']}): {results['title']}"
    tables(Table(title, (), _summary(results)), Table("", _LAYER_COLUMNS, _layer_rows(results)))


# ---------------------------------------------------------------- the picture
_N_SHOWN = 8


def picture(path: Path, net: nn.Module, data: Data, results: dict[str, Any]) -> None:
    """Draws strokes, active sites per layer and error curve, where matplotlib is installed."""
    figure = new_figure(14, 9)
    if figure is None:
        return
    from ._measure import layer_outputs

    rows: Any = figure.subfigures(3, 1, height_ratios=[1, 1.15, 1.5])
    top, middle, bottom = rows
    _draw_strokes(top, data, results)
    maps = layer_outputs(net, data.test.batch([0])[0])
    _draw_layers(middle, {name: out for name, out in maps.items() if "nin" not in name})
    _draw_curves(bottom, results)
    save(figure, path)


def _draw_strokes(figure: Any, data: Data, results: dict[str, Any]) -> None:
    """Test characters as the pen drew them, the wrong ones first; then distorted ones."""
    labels, predicted = data.test.labels.tolist(), results["predicted"]
    wrong = [i for i, (a, b) in enumerate(zip(labels, predicted, strict=True)) if a != b]
    right = [i for i, (a, b) in enumerate(zip(labels, predicted, strict=True)) if a == b]
    wrong = wrong[: _N_SHOWN // 2]
    shown = right[: _N_SHOWN - len(wrong)] + wrong
    figure.suptitle("test characters: strokes, what the network reads (mistakes in orange)")
    for axes, index in zip(figure.subplots(1, len(shown)), shown, strict=True):
        is_wrong = labels[index] != predicted[index]
        for stroke in data.test.ink([index]).strokes(0):
            axes.plot(
                stroke[:, 1], stroke[:, 0], color=ORANGE if is_wrong else INK, marker=".", ms=3
            )
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.margins(0.15)
        axes.invert_yaxis()
        names = data.test.classes
        title = names[predicted[index]]
        axes.set_title(f"{title}, is {names[labels[index]]}" if is_wrong else title)


def _draw_layers(figure: Any, maps: dict[str, SparseTensor | Tensor]) -> None:
    """Active sites of one character after every layer."""
    figure.suptitle("active sites of the first test character, layer by layer")
    for axes, (name, out) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        n = out.shape[-1]
        if isinstance(out, SparseTensor):
            active = out.replace(features=out.features[:, :1] * 0 + 1, ground=0.0).to_dense()[0, 0]
        else:
            active = out[0, 0] * 0 + 1
        axes.imshow(active.detach().numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name)
        axes.set_xlabel(f"{n} x {n}\n{int(active.sum())} ({float(active.mean()):.0%})")


def _draw_curves(figure: Any, results: dict[str, Any]) -> None:
    """Test error over the epochs; active share by layer."""
    left, right = figure.subplots(1, 2)
    epochs = [point["epoch"] for point in results["curve"]]
    errors = [100 * point["error"] for point in results["curve"]]
    left.plot(epochs, errors, color=BLUE, marker="o")
    for epoch, error in zip(epochs, errors, strict=True):
        left.annotate(f"{error:.2f}", (epoch, error), (0, 7), textcoords="offset points")
    left.set(xlabel="epoch", ylabel="test error (%)", title="test error")
    if min(errors, default=0) > 0:
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter("{x:g}")
    left.grid(alpha=0.3, which="both")
    layers = results["layers"]
    names = [row["layer"] for row in layers]
    bars = right.bar(names, [100 * row["share"] for row in layers], color=GREEN)
    right.bar_label(bars, [f"{row['sites']:.0f}" for row in layers])
    right.set(ylabel="active sites (%)", ylim=(0, 112), title="active share and sites per image")
    right.tick_params(axis="x", rotation=60)
