"""Tables and picture of the double sparsity encoder's demo."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ._encoders import FAMILIES, NEURONS
from ._show import BLUE, GREEN, INK, ORANGE, Table, new_figure, save, say, tables

_NOTES = (
    "LISTA: dense, of the same width. LISTA small: dense, of as many parameters. LISTA pruned: the "
    "first, pruned to as many weights and trained on. random, pretrained: the dictionary that the "
    "network starts as; pretrained ones (sparse K-SVD) saw images without labels. parameters: not "
    "zero, thresholds and classifier included. bytes: of the state_dict, packed where sparse."
)


def show(results: dict[str, Any]) -> None:
    """A table of errors by number of labels, and one of sizes and speed."""
    names = list(dict.fromkeys(row["arm"] for row in results["rows"]))
    labels = sorted({row["labels"] for row in results["rows"]}, key=lambda n: n or 10**9)
    by = {(row["arm"], row["labels"]): row for row in results["rows"]}
    errors: list[tuple[str, ...]] = []
    sizes: list[tuple[str, ...]] = []
    for name in sorted(names, key=lambda name: FAMILIES.index(name.split(", ")[0])):
        found = [by[name, n] for n in labels]
        last = found[-1]
        errors.append((name, *(f"{r['mean']:.2f} +- {r['sd']:.2f}" for r in found)))
        sizes.append(
            (
                name,
                f"{last['parameters']:.0f}",
                f"{last['bytes']:.0f}",
                f"{last['images_per_second']:.0f}",
                f"{100 * last['active']:.0f}",
                " ".join(f"{r['lr']:g}/{r['penalty']:g}" for r in found),
            )
        )
    settings = results["settings"]
    title = (
        f"{results['title']}: test error %, mean and sd of {settings['seeds']} seeds, "
        f"n = {settings['n_codes']}, s = {settings['nonzeros']}"
    )
    heads = tuple(f"{n} labels" if n else f"all {results['pool']}" for n in labels)
    best: list[tuple[str, ...]] = []
    for family in FAMILIES:
        cells = []
        for n in labels:
            rows = [by[k] for k in by if k[1] == n and k[0].split(", ")[0] == family]
            row = min(rows, key=lambda row: row["mean"])
            cells.append(f"{row['mean']:.2f} +- {row['sd']:.2f}, {row['arm'].partition(', ')[2]}")
        best.append((family, *cells))
    tables(
        Table(title, ("arm", *heads), errors),
        Table("the best of each, chosen by the test error", ("", *heads), best),
        Table(
            "",
            ("arm", "parameters", "bytes", "images/s", "active %", "lr/penalty"),
            sizes,
        ),
    )
    say(_NOTES)
    say(f"{results['seconds']:.0f} s")


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy against parameters, a panel for each number of labels."""
    labels = sorted({row["labels"] for row in results["rows"]}, key=lambda n: n or 10**9)
    figure = new_figure(4.0 * len(labels), 3.6)
    if figure is None:
        return
    colours = dict(zip(FAMILIES, (ORANGE, INK, BLUE, GREEN), strict=True))
    markers = dict(zip(NEURONS, "o^s", strict=True))
    for i, n in enumerate(labels):
        axes = figure.add_subplot(1, len(labels), i + 1)
        for row in (r for r in results["rows"] if r["labels"] == n):
            family, neuron, start = row["arm"].split(", ")
            axes.errorbar(
                row["parameters"],
                100 - row["mean"],
                yerr=row["sd"],
                fmt=markers[neuron],
                color=colours[family],
                fillstyle="full" if start == "pretrained" else "none",
                label=f"{family}, {neuron}" if start == "pretrained" else None,
            )
        sizes = [row["parameters"] for row in results["rows"]]
        axes.set_xscale("log")
        axes.set_xlim(
            10 ** math.floor(math.log10(min(sizes))), 10 ** math.ceil(math.log10(max(sizes) + 1))
        )
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("parameters that are not zero")
        axes.set_title(f"{n} labels" if n else f"all {results['pool']} labels")
        if i == 0:
            axes.set_ylabel("test accuracy, %")
            axes.legend(fontsize=6, title="filled: pretrained", title_fontsize=6)
    save(figure, path)
