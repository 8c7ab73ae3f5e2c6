"""Pen strokes: UNIPEN reader, geometry, rasteriser, Pendigits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublesparse.data import pen
from strokes import oracle, random_strokes, walk

DATA = os.environ.get("DOUBLESPARSE_DATA")
HAS_PENDIGITS = DATA is not None and (Path(DATA) / "pendigits-orig").is_dir()
pendigits = pytest.mark.skipif(
    not HAS_PENDIGITS, reason="DOUBLESPARSE_DATA names no folder with pendigits-orig/"
)

UNIPEN = """.INCLUDE dene.doc
.LEXICON "7" "4"
.SEGMENT DIGIT 0 ? "7"
.COMMENT free text
that goes on
.PEN_DOWN
 0 9
 5 9

 2 0
.PEN_UP
.DT 100
 7 7
.SEGMENT DIGIT 1 ? "4"
.PEN_DOWN
1.5 -2
.PEN_UP
.PEN_DOWN
 3 4
 5 6
.PEN_UP
"""


# ---------------------------------------------------------------- reader
def test_reads_unipen(tmp_path):
    path = tmp_path / "two.txt"
    path.write_text(UNIPEN)
    seven, four = pen.read_unipen(path)
    assert (seven.label, four.label) == ("7", "4")
    assert [s.tolist() for s in seven.strokes] == [[[0, 9], [5, 9], [2, 0]]]
    assert [s.tolist() for s in four.strokes] == [[[1.5, -2]], [[3, 4], [5, 6]]]
    assert all(s.dtype == np.float64 for s in four.strokes)


def test_reads_columns_and_line_ends(tmp_path):
    path = tmp_path / "columns.txt"
    text = '.COORD T X Y P\n.SEGMENT CHAR 0 ? "a b"\n.PEN_DOWN\n9 1 2 0\n9 3 4 0\n.PEN_UP'
    path.write_bytes(text.replace("\n", "\r\n").encode())
    (character,) = pen.read_unipen(str(path))
    assert character.label == "a b"
    assert character.strokes[0].tolist() == [[1, 2], [3, 4]]


SEGMENT = '.SEGMENT DIGIT 0 ? "7"\n'


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (SEGMENT, 1, "strokes"),
        (SEGMENT + ".PEN_DOWN\n1 2\n", 2, "end of the file"),
        (SEGMENT + ".PEN_DOWN\n.PEN_UP\n", 2, "points"),
        (SEGMENT + ".PEN_DOWN\n1 2\n3\n.PEN_UP\n", 4, "'3'"),
        (SEGMENT + ".PEN_DOWN\n1 2\n3 x\n.PEN_UP\n", 4, "'3 x'"),
        (SEGMENT + ".PEN_DOWN\n1 2\n\nnan 3\n.PEN_UP\n", 5, "finite"),
        (SEGMENT + ".PEN_DOWN\n1e999 3\n.PEN_UP\n", 3, "finite"),
        (SEGMENT + ".PEN_DOWN\n1 2\n.PEN_DOWN\n", 4, "PEN_UP"),
        (SEGMENT + ".PEN_DOWN\n1 2\n" + SEGMENT, 4, "PEN_UP"),
        (".PEN_DOWN\n1 2\n.PEN_UP\n", 1, "SEGMENT"),
        (".SEGMENT DIGIT 0 ?\n", 1, "label"),
        (".COORD T X\n", 1, "X and Y"),
    ],
)
def test_malformed_unipen_names_file_and_line(tmp_path, text, line, word):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="read_unipen") as error:
        pen.read_unipen(path)
    message = str(error.value)
    assert f"{path}:{line}:" in message
    assert word in message


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 8])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no|SEGMENT"):
        pen.read_unipen(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        pen.read_unipen(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"pendigits-orig\.tra"):
        pen.load_pendigits(tmp_path)


# ---------------------------------------------------------------- geometry
def test_normalize():
    a, b = pen.normalize([[[0, 0], [10, 0]], [[5, 20]]], 16)
    assert a.tolist() == [[-4, -8], [4, -8]]
    assert b.tolist() == [[0, 8]]
    assert pen.normalize([[[3, 3]]], 16)[0].tolist() == [[0, 0]]  # a dot
    assert pen.normalize([], 16) == []


def test_constant_speed():
    stroke = random_strokes(0, 1)[0] / 50
    length = np.hypot(*np.diff(stroke, axis=0).T).sum()
    path = pen.constant_speed(stroke, 0.1)
    n = int(0.5 + length / 0.1)
    assert path.shape == (n + 1, 2)
    expected = np.array(walk(stroke.tolist(), 0.1))
    assert np.abs(path - expected).max() < 1e-12
    assert pen.constant_speed([[1, 1], [1, 1.01]]).tolist() == [[1, 1]]  # shorter than half a step
    assert pen.constant_speed([[0, 0], [0, 0], [1, 0], [1, 0]], 0.5).tolist() == [
        [0, 0],
        [0.5, 0],
        [1, 0],
    ]


# ---------------------------------------------------------------- rasteriser
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(3, 60),
    encoding=st.sampled_from(["pen", "octogram"]),
    share=st.floats(0.1, 1.5),
)
def test_rasterize_equals_the_oracle(seed, size, encoding, share):
    strokes = random_strokes(seed)
    scale = size * share  # beyond 1 the character is clamped to the grid
    coords, features = pen.rasterize(strokes, size, encoding, scale)
    expected = oracle([s.tolist() for s in strokes], size, encoding, scale)
    assert coords.dtype == np.int32 and features.dtype == np.float32
    assert [tuple(c) for c in coords.tolist()] == sorted(expected)
    wanted = np.array([expected[cell] for cell in sorted(expected)])
    # Single precision, and acos near 1 in the oracle's formula: sqrt(2^-52) per step, ten per cell.
    assert np.abs(features - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("direction", range(8))
def test_octogram_of_a_straight_stroke_is_one_direction(direction):
    step = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)][direction]
    _, features = pen.rasterize([[(0, 0), step]], 48, "octogram")
    n_steps = features[:, 1:].sum(axis=0)
    length = 16 * math.hypot(*step)
    assert n_steps[direction] == pytest.approx(int(0.5 + length / 0.1), rel=1e-6)
    others = np.delete(n_steps, direction)
    assert np.abs(others).max() < 1e-6 * n_steps[direction]
    if direction % 2 == 0:
        assert not others.any()  # along an axis: exactly


def test_octogram_splits_between_directions():
    angle = math.radians(22.5)
    _, features = pen.rasterize([[(0, 0), (math.cos(angle), math.sin(angle))]], 48, "octogram")
    n_steps = features[:, 1:].sum(axis=0)
    assert n_steps[0] == pytest.approx(n_steps[1], rel=1e-6)
    assert n_steps[0] + n_steps[1] == pytest.approx(n_steps.sum())


def test_rasterize_small_and_empty_input():
    coords, features = pen.rasterize([], 9, "octogram")
    assert coords.shape == (0, 2) and features.shape == (0, 9)
    coords, features = pen.rasterize([[[5, 5]]], 9, "octogram")  # a dot has no direction
    assert coords.tolist() == [[4, 4]]
    assert features.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    coords, _ = pen.rasterize([[[-100, 0], [100, 0.4]]], 9, fitted=False)  # clamped
    assert coords.tolist() == [[row, 4] for row in range(9)]
    huge = np.finfo(np.float64).max
    assert len(pen.rasterize([[[-huge, 0], [huge, 0]]], 9)[0]) == 4
    tiny = np.finfo(np.float64).smallest_subnormal
    assert pen.rasterize([[[0, 0], [tiny, tiny]]], 9)[0].tolist() == [[4, 4]]


STROKE = [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(strokes=[STROKE], size=0), ValueError, "size"),
        (dict(strokes=[STROKE], size=2**31), ValueError, "size"),
        (dict(strokes=[STROKE], size=4.5), TypeError, "size"),
        (dict(strokes=[STROKE], size=9, scale=0), ValueError, "scale"),
        (dict(strokes=[STROKE], size=9, scale=math.nan), ValueError, "scale"),
        (dict(strokes=[STROKE], size=9, scale="3"), TypeError, "scale"),
        (dict(strokes=[STROKE], size=9, density=0), ValueError, "density"),
        (dict(strokes=[STROKE], size=9, density=1e-300), ValueError, "steps"),
        (dict(strokes=[STROKE], size=9, encoding="octagon"), ValueError, "octogram"),
        (dict(strokes=[STROKE], size=9, encoding=3), TypeError, "encoding"),
        (dict(strokes=[STROKE], size=9, encoding="signature", level=5), ValueError, "level"),
        (dict(strokes=[STROKE], size=9, encoding="signature", level=-1), ValueError, "level"),
        (dict(strokes=[STROKE], size=9, encoding="signature", level=2.0), TypeError, "level"),
        (dict(strokes=[STROKE], size=9, encoding="signature", level=True), TypeError, "level"),
        (dict(strokes=[STROKE], size=2**30, encoding="signature"), ValueError, "steps"),
        (dict(strokes=STROKE, size=9), ValueError, r"\(n, 2\)"),
        (dict(strokes=[[[1, 2, 3]]], size=9), ValueError, r"\(1, 3\)"),
        (dict(strokes=[[[1, 2], [3]]], size=9), ValueError, "lengths"),
        (dict(strokes=[[[1, math.nan]]], size=9), ValueError, "finite"),
        (dict(strokes=[[[1, math.inf]]], size=9), ValueError, "finite"),
        (dict(strokes=[[["a", "b"]]], size=9), TypeError, "real numbers"),
        (dict(strokes=[[[1j, 2]]], size=9), TypeError, "real numbers"),
        (dict(strokes="12", size=9), TypeError, "list"),
        (dict(strokes=None, size=9), TypeError, "list"),
    ],
)
def test_rasterize_refuses(arguments, error, word):
    with pytest.raises(error, match=word) as caught:
        pen.rasterize(**arguments)
    assert "rasterize: " in str(caught.value) and "; " in str(caught.value)


# ---------------------------------------------------------------- Pendigits
@pytest.fixture(scope="module")
def digits():
    return pen.load_pendigits(DATA)


@pendigits
def test_pendigits_is_complete(digits):
    train, test = digits
    assert (len(train), len(test)) == (7494, 3498)
    assert {c.label for c in train} == set("0123456789")
    raw = pen.read_unipen(Path(DATA) / "pendigits-orig" / "pendigits-orig.tes")
    assert raw[0].strokes[0][0].tolist() == [273, 323]
    assert test[0].strokes[0][0].tolist() == [-323, 273]
    assert raw[0].label == "8"
    assert repr(raw[0]) == "Character(label='8', strokes=1, points=[58])"


@pendigits
@pytest.mark.parametrize("encoding", ["pen", "octogram"])
def test_pendigits_equals_the_oracle(digits, encoding):
    for character in digits[1][::250]:
        strokes = [s.tolist() for s in character.strokes]
        coords, features = pen.rasterize(character.strokes, 48, encoding)
        expected = oracle(strokes, 48, encoding, 16)
        wanted = np.array(
            [expected.get(tuple(c), [0] * features.shape[1]) for c in coords.tolist()]
        )
        # Points of a tablet do lie on cell borders: single steps may be counted next door.
        assert len(set(map(tuple, coords.tolist())) ^ set(expected)) <= 1
        assert np.abs(features - wanted).mean() < 0.05
