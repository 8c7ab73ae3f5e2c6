"""Reader of CASIA-OLHWDB `.pot` files: isolated online characters, one file per writer.

Little-endian, sample after sample, nothing between them (Liu, Yin, Wang and Wang 2011, and the
data base's own description):

    bytes 0-1    uint16, size of the sample in bytes, this header and the end mark included
    bytes 2-5    uint32, GBK code of the character: the first byte of the code is the high byte of
                 the low half (0xB0A1 is stored as A1 B0 00 00)
    bytes 6-7    uint16, number of strokes
    then         int16 pairs (x, y), x right and y down; (-1, 0) ends a stroke, (-1, -1) the sample
"""

from __future__ import annotations

import os
import struct
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ._ink import Floats
from ._unipen import Character

_HEADER = struct.Struct("<HIH")
_MARK = 4  # bytes of a point or of an end mark
_SMALLEST = _HEADER.size + _MARK
_DROP = "pass drop_empty=True to leave such strokes out"


class _Sample:
    """One sample of a file, by where it starts; knows what to say of it."""

    def __init__(self, path: str, number: int, offset: int) -> None:
        self.path, self.number, self.offset = path, number, offset

    def fail(self, expected: str, got: str, fix: str, at: int = 0) -> NoReturn:
        """Raises; `at` is the distance in bytes from the start of the sample."""
        raise ValueError(
            f"read_pot: {self.path}: sample {self.number} at byte {self.offset + at}: "
            f"expected {expected}, got {got}; {fix}"
        )

    def read(self, data: bytes) -> tuple[int, str, list[Floats]]:
        """The sample that starts here: its size in bytes, its label and its strokes."""
        left = len(data) - self.offset
        if left < _SMALLEST:
            self.fail(
                f"a sample of at least {_SMALLEST} bytes",
                f"{left} to the end of the file",
                "the file is cut short or has bytes after its last sample: fetch it again",
            )
        size, code, n_strokes = _HEADER.unpack_from(data, self.offset)
        if size < _SMALLEST or size % _MARK:
            self.fail(
                f"a size of at least {_SMALLEST} bytes that is a multiple of {_MARK}",
                f"{size}",
                "check that this is a .pot file",
            )
        if size > left:
            self.fail(
                f"{size} bytes, as the sample's size says",
                f"{left} to the end of the file",
                "the file is cut short: fetch it again",
            )
        label = self.label(code)
        n_numbers = (size - _HEADER.size) // 2
        body = np.frombuffer(data, "<i2", n_numbers, self.offset + _HEADER.size)
        return size, label, self.strokes(body.reshape(-1, 2), n_strokes)

    def label(self, code: int) -> str:
        """The character of a tag code."""
        high, low = code >> 8 & 0xFF, code & 0xFF
        if code >> 16 == 0:
            try:
                if high >= 0x81:
                    return bytes((high, low)).decode("gbk")
                # An ASCII symbol fills one byte; readers differ in which, so either will do.
                if (high == 0) != (low == 0) and 0x20 < high + low < 0x7F:
                    return chr(high + low)
            except UnicodeDecodeError:
                pass
        self.fail("a GBK or ASCII code", f"{code:#010x}", "check that this is a .pot file", at=2)

    def strokes(self, body: NDArray[np.int16], n_strokes: int) -> list[Floats]:
        """The strokes between the marks; strokes without points are empty arrays.

        Args:
            body: (n, 2), all pairs of the sample, end marks included.
            n_strokes: what the header says.
        """

        def at(row: int) -> int:
            return _HEADER.size + row * _MARK

        x, y = body.T
        ends = np.flatnonzero((x == -1) & (y == -1))
        last = len(body) - 1
        if not len(ends) or ends[0] != last:
            row = int(ends[0]) if len(ends) else last
            found = "an end mark" if len(ends) else f"({x[last]}, {y[last]})"
            self.fail(
                f"the end mark (-1, -1) at byte {self.offset + at(last)}, where the size says",
                f"{found} at byte {self.offset + at(row)}",
                "the sample is damaged: cut it out, or fetch the file again",
                at(row),
            )
        cuts = np.flatnonzero((x == -1) & (y == 0))
        if len(cuts) != n_strokes:
            self.fail(
                f"{n_strokes} strokes, as the header says",
                f"{len(cuts)} stroke marks (-1, 0)",
                "the sample is damaged: cut it out, or fetch the file again",
                at=6,
            )
        closed = int(cuts[-1]) + 1 if len(cuts) else 0
        if closed != last:
            self.fail(
                "a stroke mark (-1, 0) before the end mark",
                f"({x[last - 1]}, {y[last - 1]})",
                "the last stroke is cut short: cut the sample out, or fetch the file again",
                at(last - 1),
            )
        points = body[:last].astype(np.float64)
        return [part[:-1] for part in np.split(points, cuts[:-1] + 1)] if len(cuts) else []

    def refuse_empty(self, strokes: list[Floats]) -> None:
        """Raises where a stroke, or the whole sample, has no points."""
        at = _HEADER.size
        for stroke in strokes:
            if not len(stroke):
                self.fail("points in every stroke", "a stroke without any", _DROP, at)
            at += (len(stroke) + 1) * _MARK
        if not strokes:
            self.fail("at least one stroke", "none", _DROP, at)


def read_pot(path: str | os.PathLike[str], *, drop_empty: bool = False) -> list[Character]:
    """Reads a CASIA-OLHWDB `.pot` file: the isolated characters of one writer.

    Coordinates are returned as the file has them, x right and y down; `upright(strokes,
    y_up=False)` turns them into the order of the grid. Memory is a small multiple of the file.

    Args:
        path: the file.
        drop_empty: leave out strokes without points, and characters without strokes, instead of
            refusing the file.

    Returns:
        The characters in file order: `strokes` as float64 arrays (n, 2) with columns x, y; `label`
        is the character itself.

    Raises:
        OSError: the file cannot be read.
        ValueError: a malformed file (cut short, a size, a number of strokes or a mark that does not
            fit, an unknown code, no points); the message names file, sample and byte.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.pot"
        >>> header = bytes([24, 0, 0xA1, 0xB0, 0, 0, 1, 0])
        >>> body = np.array([[3, 4], [5, 6], [-1, 0], [-1, -1]], "<i2").tobytes()
        >>> _ = path.write_bytes(header + body)
        >>> read_pot(path)
        [Character(label='啊', strokes=1, points=[2])]
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read()
    characters: list[Character] = []
    offset = number = 0
    while offset < len(data):
        sample = _Sample(name, number, offset)
        size, label, strokes = sample.read(data)
        if drop_empty:
            strokes = [stroke for stroke in strokes if len(stroke)]
        else:
            sample.refuse_empty(strokes)
        if strokes:
            characters.append(Character(strokes, label))
        offset += size
        number += 1
    if not number:
        raise ValueError(
            f"read_pot: {name}: expected at least one sample, got an empty file; fetch it again"
        )
    return characters
