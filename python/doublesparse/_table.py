"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence

Line = Sequence[str]


def table(header: Line, body: Sequence[Line], total: Line, left: Sequence[int]) -> str:
    """Columns as wide as they must be, rules below the header and above the totals.

    Args:
        header: a cell per column.
        body: lines of as many cells.
        total: the last line.
        left: columns whose cells start at the left; the others end at the right.
    """
    lines = [header, *body, total]
    width = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, width, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, text))
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def share(value: float | None) -> str:
    """As a percentage."""
    return "-" if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    """With separators."""
    return "-" if value is None else f"{value:,}"
