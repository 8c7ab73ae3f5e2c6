"""CASIA .pot files: a writer that shares no code with the reader, damage of every kind, fuzz."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublesparse.data import pen

END, STROKE_END = (-1, -1), (-1, 0)


def sample(label, strokes, size=None, n_strokes=None, code=None, ends=(END,)):
    """One sample; every field can be given another value than the right one."""
    body = b"".join(
        struct.pack("<hh", *pair) for stroke in strokes for pair in (*stroke, STROKE_END)
    )
    body += b"".join(struct.pack("<hh", *pair) for pair in ends)
    if code is None:
        gbk = label.encode("gbk")
        code = gbk[0] << 8 | (gbk[1] if len(gbk) == 2 else 0)
    size = 8 + len(body) if size is None else size
    n_strokes = len(strokes) if n_strokes is None else n_strokes
    return struct.pack("<HIH", size, code, n_strokes) + body


GOOD = sample("啊", [[(3, 4), (5, 6)], [(7, 8)]])
OTHER = sample("8", [[(0, 0), (-1, 5), (-2, 0), (32767, -32768)]])


def write(tmp_path, data, name="w.pot"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_reads_samples(tmp_path):
    a, b = pen.read_pot(write(tmp_path, GOOD + OTHER))
    assert (a.label, b.label) == ("啊", "8")
    assert [s.tolist() for s in a.strokes] == [[[3, 4], [5, 6]], [[7, 8]]]
    assert [s.tolist() for s in b.strokes] == [[[0, 0], [-1, 5], [-2, 0], [32767, -32768]]]
    assert all(s.dtype == np.float64 for s in a.strokes + b.strokes)
    assert [c.label for c in pen.read_pot(str(write(tmp_path, OTHER * 3)))] == ["8"] * 3


def test_the_bytes_of_the_description(tmp_path):
    """The instance that the data base's page gives: code 0x0000B0A1, stored as A1 B0 00 00."""
    data = bytes.fromhex("1800 A1B00000 0100 0300 0400 0500 0600 FFFF 0000 FFFF FFFF")
    (character,) = pen.read_pot(write(tmp_path, data))
    assert character.label == "啊"
    assert [s.tolist() for s in character.strokes] == [[[3, 4], [5, 6]]]


@pytest.mark.parametrize(
    ("code", "label"),
    [(0x3800, "8"), (0x38, "8"), (0x7E00, "~"), (0xB0A1, "啊"), (0x8140, "丂"), (0xA3B1, "１")],
)
def test_labels(tmp_path, code, label):
    (character,) = pen.read_pot(write(tmp_path, sample("", [[(1, 2)]], code=code)))
    assert character.label == label


def test_every_character_of_the_first_level(tmp_path):
    """The 3755 classes of OLHWDB1.1: rows 16 to 55 of GB2312."""
    codes = [(0xA0 + row, 0xA0 + cell) for row in range(16, 56) for cell in range(1, 95)]
    codes = codes[:3755]
    data = b"".join(sample("", [[(1, 2)]], code=h << 8 | low) for h, low in codes)
    labels = [c.label for c in pen.read_pot(write(tmp_path, data))]
    assert labels == [bytes(code).decode("gb2312") for code in codes]
    assert len(set(labels)) == 3755


EMPTY = sample("8", [[(1, 1)], []])

# name: (bytes of the bad sample, its first bad byte, what the message says)
DAMAGE = {
    "cut in the header": (GOOD[:5], 0, "5 to the end of the file"),
    "cut in the body": (GOOD[:-4], 0, "32 bytes, as the sample's size says"),
    "cut between numbers": (GOOD[:-1], 0, "cut short"),
    "bytes after the last sample": (b"\0\0", 0, "2 to the end of the file"),
    "zeros": (bytes(64), 0, "size"),
    "size too small": (sample("8", [[(1, 1)]], size=8), 0, "got 8"),
    "size odd": (sample("8", [[(1, 1)]], size=19), 0, "multiple of 4"),
    "size too large": (sample("8", [[(1, 1)]], size=24), 0, "24 bytes"),
    "size skips the end": (sample("8", [[(1, 1)]], size=16), 12, "end mark"),
    "size runs into the next": (
        sample("8", [[(1, 1)]], size=20 + len(GOOD)) + GOOD,
        16,
        "an end mark at byte",
    ),
    "no end": (sample("8", [[(1, 1)]], ends=()), 12, r"\(-1, 0\) at byte"),
    "open stroke": (sample("8", [[(1, 1)]], ends=((2, 2), END)), 16, r"\(2, 2\)"),
    "too few strokes": (sample("8", [[(1, 1)]], n_strokes=2), 6, "2 strokes.*got 1"),
    "too many strokes": (sample("8", [[(1, 1)]] * 3, n_strokes=0), 6, "0 strokes.*got 3"),
    "empty stroke": (EMPTY, 16, "drop_empty=True"),
    "no strokes": (sample("8", []), 8, "at least one stroke"),
    "code 0": (sample("", [[(1, 1)]], code=0), 2, "0x00000000"),
    "code of a control character": (sample("", [[(1, 1)]], code=0x0A00), 2, "0x00000a00"),
    "code outside GBK": (sample("", [[(1, 1)]], code=0x80FF), 2, "0x000080ff"),
    "second byte outside GBK": (sample("", [[(1, 1)]], code=0xB000), 2, "0x0000b000"),
    "two ASCII bytes": (sample("", [[(1, 1)]], code=0x3838), 2, "0x00003838"),
    "code of four bytes": (sample("", [[(1, 1)]], code=0x1B0A1), 2, "0x0001b0a1"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("before", [0, 3])
def test_damage_names_file_sample_and_byte(tmp_path, name, before):
    bad, at, words = DAMAGE[name]
    path = write(tmp_path, GOOD * before + bad)
    with pytest.raises(ValueError, match=words) as error:
        pen.read_pot(path)
    place = f"{path}: sample {before} at byte {before * len(GOOD) + at}: "
    assert str(error.value).startswith("read_pot: " + place)
    assert "; " in str(error.value)


def test_empty_file_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="read_pot: .*empty file"):
        pen.read_pot(write(tmp_path, b""))
    with pytest.raises(FileNotFoundError):
        pen.read_pot(tmp_path / "absent.pot")


def test_drop_empty(tmp_path):
    path = write(tmp_path, EMPTY + sample("7", []) + sample("6", [[]]) + GOOD)
    characters = pen.read_pot(path, drop_empty=True)
    assert [c.label for c in characters] == ["8", "啊"]
    assert [s.tolist() for s in characters[0].strokes] == [[[1, 1]]]
    with pytest.raises(ValueError, match="2 strokes"):
        pen.read_pot(write(tmp_path, sample("8", [[(1, 1)]], n_strokes=2)), drop_empty=True)


def test_upright_keeps_what_points_down():
    (stroke,) = pen.upright([[[3, 10]]], y_up=False)
    assert stroke.tolist() == [[10, 3]]


# ---------------------------------------------------------------- fuzz
numbers = st.integers(-(2**15), 2**15 - 1)
points = st.tuples(numbers, numbers).filter(lambda p: p not in (END, STROKE_END))
strokes = st.lists(st.lists(points, min_size=1, max_size=9), min_size=1, max_size=5)
labels = st.sampled_from("啊一8aA~丂中１。")


@settings(max_examples=60)
@given(written=st.lists(st.tuples(labels, strokes), min_size=1, max_size=6))
def test_round_trip(tmp_path, written):
    read = pen.read_pot(write(tmp_path, b"".join(sample(*character) for character in written)))
    assert [c.label for c in read] == [label for label, _ in written]
    for character, (_, wanted) in zip(read, written):
        assert [list(map(tuple, s.tolist())) for s in character.strokes] == wanted


def survives(path):
    """Reads, or says what is wrong: nothing else."""
    try:
        characters = pen.read_pot(path)
    except ValueError as error:
        assert str(error).startswith(f"read_pot: {path}: "), error
        return
    assert characters and all(len(s) for c in characters for s in c.strokes)
    assert sum(len(s) for c in characters for s in c.strokes) * 4 < path.stat().st_size


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path, data):
    survives(write(tmp_path, data))


@settings(max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 3 * len(GOOD) + len(OTHER)),
)
def test_damaged_files(tmp_path, changes, cut):
    data = bytearray((GOOD + OTHER + GOOD * 2)[:cut])
    for at, byte in changes:
        if data:
            data[at % len(data)] = byte
    survives(write(tmp_path, bytes(data)))


def test_a_large_file(tmp_path):
    path = write(tmp_path, sample("中", [[(i, i) for i in range(5000)]] * 3) * 100)
    assert sum(len(s) for c in pen.read_pot(path) for s in c.strokes) == 1_500_000
