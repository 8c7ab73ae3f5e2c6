"""Reader of UNIPEN text files, as far as isolated characters need it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ._ink import Floats


@dataclass(frozen=True, eq=False)
class Character:
    """One handwritten character.

    Attributes:
        strokes: one float64 array (n, 2) per pen stroke, in writing order.
        label: what was written, as the file names it (`"8"`).
    """

    strokes: list[Floats]
    label: str

    def __repr__(self) -> str:
        """Label and sizes, not the points."""
        points = [len(stroke) for stroke in self.strokes]
        return f"Character(label={self.label!r}, strokes={len(points)}, points={points})"


class _Reader:
    """State of one pass over a file: the characters so far, and whether the pen is down."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.line = 0
        self.pen_down_line = 0  # 0: the pen is up
        self.segment_line = 0
        self.label = ""
        self.columns = (0, 1)  # of X and Y in a line of coordinates
        self.rows: list[
            tuple[int, list[str]]
        ] = []  # line number and fields of each point of the stroke
        self.strokes: list[Floats] = []
        self.characters: list[Character] = []
        self.actions = {
            ".SEGMENT": self.segment,
            ".PEN_DOWN": self.pen_down,
            ".PEN_UP": self.pen_up,
            ".COORD": self.coord,
        }

    def fail(self, expected: str, got: str, fix: str, line: int = 0) -> NoReturn:
        where = f"{self.path}:{line or self.line}"
        raise ValueError(f"read_unipen: {where}: expected {expected}, got {got}; {fix}")

    def segment(self, rest: str) -> None:
        if self.pen_down_line:
            self.fail(".PEN_UP", ".SEGMENT", f"close the stroke of line {self.pen_down_line}")
        self.finish_segment()
        opening = rest.find('"')
        closing = rest.rfind('"')
        if opening < 0 or closing <= opening + 1:
            self.fail('a quoted label (.SEGMENT DIGIT 0 ? "8")', repr(rest), "add the label")
        self.label = rest[opening + 1 : closing]
        self.segment_line = self.line

    def finish_segment(self) -> None:
        if not self.segment_line:
            return
        if not self.strokes:
            self.fail(
                "pen strokes after .SEGMENT",
                "none",
                "write its strokes below it (references to numbered strokes are not read)",
                self.segment_line,
            )
        self.characters.append(Character(self.strokes, self.label))
        self.strokes = []

    def pen_down(self, rest: str) -> None:
        if self.pen_down_line:
            self.fail(".PEN_UP", ".PEN_DOWN", f"close the stroke of line {self.pen_down_line}")
        if not self.segment_line:
            self.fail(".SEGMENT before the first stroke", ".PEN_DOWN", "label the strokes")
        self.pen_down_line = self.line
        self.rows = []

    def pen_up(self, rest: str) -> None:
        # A file may begin with the pen in the air; .PEN_UP then closes nothing.
        if not self.pen_down_line:
            return
        if not self.rows:
            self.fail("points since .PEN_DOWN", "none", "drop the empty stroke", self.pen_down_line)
        self.strokes.append(self.stroke())
        self.pen_down_line = 0

    def coord(self, rest: str) -> None:
        names = rest.upper().split()
        if "X" not in names or "Y" not in names:
            self.fail("X and Y among the columns of .COORD", repr(rest), "name both")
        self.columns = (names.index("X"), names.index("Y"))

    def stroke(self) -> Floats:
        """The points since .PEN_DOWN, (n, 2)."""
        x, y = self.columns
        try:
            points = np.array([(float(fields[x]), float(fields[y])) for _, fields in self.rows])
            if np.isfinite(points).all():
                return points
        except (IndexError, ValueError):
            pass
        for line, fields in self.rows:
            self.check_point(line, fields)
        raise AssertionError("some row is bad")

    def check_point(self, line: int, fields: list[str]) -> None:
        """Fails if this line is no point."""
        try:
            numbers = [float(fields[column]) for column in self.columns]
        except (IndexError, ValueError):
            needed = max(self.columns) + 1
            expected = f"a point with at least {needed} numbers"
            self.fail(expected, repr(" ".join(fields)[:60]), "repair the line", line)
        if not all(map(math.isfinite, numbers)):
            self.fail("finite coordinates", repr(" ".join(fields)[:60]), "drop the point", line)

    def read(self, text: str) -> list[Character]:
        for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            self.line += 1
            if line.startswith("."):
                keyword, _, rest = line.strip().partition(" ")
                action = self.actions.get(keyword.upper())
                if action is not None:
                    action(rest.strip())
            # Free text continues the keyword above it, and points drawn in the air are not ink.
            elif self.pen_down_line:
                fields = line.split()
                if fields:
                    self.rows.append((self.line, fields))
        if self.pen_down_line:
            opened = self.pen_down_line
            self.fail(".PEN_UP", "the end of the file", "close the stroke", opened)
        self.finish_segment()
        return self.characters


def read_unipen(path: str | os.PathLike[str]) -> list[Character]:
    """Reads a UNIPEN file of isolated characters, such as UCI's `pendigits-orig.tra`.

    Every `.SEGMENT` line names a label in quotes; the strokes between `.PEN_DOWN` and `.PEN_UP`
    below it, up to the next `.SEGMENT`, are its ink. `.COORD` says which columns hold X and Y
    (the first two without it). Other keywords are skipped. Coordinates are returned as the file
    has them: in UNIPEN x points right and y up (`upright` turns them into the order of the grid,
    rows down and columns right).

    Args:
        path: the file.

    Returns:
        The characters in file order, `strokes` as float64 arrays (n, 2) with columns x, y.

    Raises:
        OSError: the file cannot be read.
        ValueError: a malformed file; the message names file and line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.txt"
        >>> lines = ['.SEGMENT DIGIT 0 ? "7"', ".PEN_DOWN", " 0 9", " 5 9", " 2 0", ".PEN_UP"]
        >>> _ = path.write_text(chr(10).join(lines))
        >>> read_unipen(path)
        [Character(label='7', strokes=1, points=[3])]
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read()
    # latin-1 reads any byte: comments in old files are in no declared encoding, and a binary file
    # must end in the error below, not in a UnicodeDecodeError.
    characters = _Reader(name).read(data.decode("latin-1"))
    if not characters:
        raise ValueError(
            f"read_unipen: {name}: expected at least one .SEGMENT, got none in {len(data)} bytes; "
            "check that this is a UNIPEN text file"
        )
    return characters
