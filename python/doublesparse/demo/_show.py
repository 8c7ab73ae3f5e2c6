"""What every demo shows things with: lines, tables (rich), pictures (matplotlib), if installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

# Colours that remain apart for the colour-blind (Okabe and Ito).
INK, ORANGE, BLUE, GREEN = "black", "#d55e00", "#0072b2", "#009e73"


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {number}")
    return number


class Table(NamedTuple):
    """Cells as text. Without names of columns: names and values."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(*parts: Table) -> None:
    """Prints tables, with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        for part in parts:
            _plain(part)
        return
    console = Console()
    if not console.is_terminal:  # a pipe has no width of its own
        console = Console(width=110)
    for part in parts:
        shown = RichTable(title=part.title or None, show_header=bool(part.columns))
        for i in range(len(part.rows[0])):
            name = part.columns[i] if part.columns else ""
            shown.add_column(name, justify="right" if part.columns and i else "left")
        for row in part.rows:
            shown.add_row(*row)
        console.print(shown)


def _plain(table: Table) -> None:
    lines = [*([table.columns] if table.columns else []), *table.rows]
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if table.title:
        print(f"\n{table.title}")
    for line in lines:
        cells = (cell.ljust(w) for cell, w in zip(line, width, strict=True))
        print(("  " + "   ".join(cells)).rstrip())


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure; None where matplotlib is not installed, with a line about it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("no picture: matplotlib is not installed; pip install 'doublesparse[demo]'")
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes a figure, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    say(f"picture: {path}")
