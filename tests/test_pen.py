"""Pen strokes: reader, geometry, rasteriser, augmentation, data set, synthetic characters."""

from __future__ import annotations

import math
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import doublesparse as ds
from doublesparse.data import glyphs, pen

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


# ---------------------------------------------------------------- an oracle in plain Python
def oracle(strokes, size, encoding, scale, density=0.1):
    """PAPERS 1.3 point by point: {cell: features}."""
    points = [p for stroke in strokes for p in stroke]
    low = [min(p[a] for p in points) for a in range(2)]
    high = [max(p[a] for p in points) for a in range(2)]
    factor = scale / max(high[0] - low[0], high[1] - low[1], 1e-4)
    cells: dict[tuple[int, int], list[float]] = {}
    for stroke in strokes:
        path = [[(p[a] - (low[a] + high[a]) / 2) * factor for a in range(2)] for p in stroke]
        path = walk(path, density)
        for i, p in enumerate(path):
            cell = tuple(max(0, min(size - 1, int(x + size / 2))) for x in p)
            features = cells.setdefault(cell, [0.0] * 9)
            features[0] = 1.0
            if i + 1 == len(path):
                continue
            d = [path[i + 1][a] - p[a] for a in range(2)]
            length = math.hypot(*d)
            for k in range(8 if length else 0):
                cos = (math.cos(k * math.pi / 4) * d[0] + math.sin(k * math.pi / 4) * d[1]) / length
                share = 1 - math.acos(max(-1.0, min(1.0, cos))) / (math.pi / 4)
                features[k + 1] += max(share, 0.0)
    return {cell: f[: 9 if encoding == "octogram" else 1] for cell, f in cells.items()}


def walk(path, density):
    """Equal arc-length steps."""
    arc = [0.0]
    for p, q in zip(path[:-1], path[1:], strict=True):
        arc.append(arc[-1] + math.dist(p, q))
    n = int(0.5 + arc[-1] / density)
    out = [path[0]]
    for i in range(1, n + 1):
        at = i * arc[-1] / n
        j = next((j for j in range(len(arc) - 1) if arc[j + 1] >= at), len(arc) - 2)
        t = (at - arc[j]) / (arc[j + 1] - arc[j])
        out.append([path[j][a] + min(t, 1.0) * (path[j + 1][a] - path[j][a]) for a in range(2)])
    return out


# Random points have no rounding ties: a sample on a cell's border may fall on either side of it.
def random_strokes(seed, n_strokes=2, n_points=12):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(n_points, 2)) * 100 for _ in range(n_strokes)]


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
        (dict(strokes=[STROKE], size=9, encoding="signature"), NotImplementedError, "octogram"),
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


# ---------------------------------------------------------------- augmentation
def only(**kwargs):
    return pen.Augment(**{**dict(jiggle=0, stretch=0, turn=0, translate=0), **kwargs})


def augmented(augment, seed=0, n=400):
    """The same character n times, scale 16, distorted; and undistorted."""
    character = pen.Character(random_strokes(1), "x")
    data = pen.PenDataset([character], 48, scale=16, augment=augment)
    torch.manual_seed(seed)
    after = data.ink([0] * n)
    before = pen.PenDataset([character], 48, scale=16).ink([0])
    return before.points, after.points.reshape(n, -1, 2), before.stroke_start


def test_no_distortion_is_the_identity():
    before, after, _ = augmented(only())
    assert np.array_equal(after, np.broadcast_to(before, after.shape))


def test_jiggle_moves_strokes_apart():
    before, after, start = augmented(only(jiggle=0.125))
    moved = after - before
    for a, b in zip(start[:-1], start[1:], strict=True):
        assert np.abs(moved[:, a:b] - moved[:, a : a + 1]).max() < 1e-12
    first, second = moved[:, start[0]], moved[:, start[1]]
    for shift in (first, second):
        assert np.abs(shift).max() <= 2 and np.abs(shift).max() > 1.9
        assert abs(shift.mean()) < 0.2
    assert abs((first * second).mean()) < 0.2  # independent


def test_translate_moves_the_character():
    before, after, _ = augmented(only(translate=0.25))
    moved = after - before
    assert np.abs(moved - moved[:, :1]).max() < 1e-12
    assert 3.9 < np.abs(moved).max() <= 4


def test_stretch_scales_the_axes_independently():
    before, after, _ = augmented(only(stretch=0.3))
    factor = after / before
    assert np.abs(factor - factor[:, :1]).max() < 1e-9
    factor = factor[:, 0]
    assert factor.min() >= 0.7 and factor.max() <= 1.3
    assert abs(np.corrcoef(factor.T)[0, 1]) < 0.2


def test_turn_is_a_rotation_or_one_of_two_slants():
    before, after, _ = augmented(only(turn=0.3))
    kinds = []
    for points in after:
        matrix = np.linalg.lstsq(before, points, rcond=None)[0].T
        assert np.abs(points - before @ matrix.T).max() < 1e-9
        rotation = np.allclose(matrix @ matrix.T, np.eye(2))
        slants = [np.allclose(matrix[a], np.eye(2)[a]) for a in range(2)]
        assert np.allclose(np.diag(matrix), 1) or rotation
        assert np.abs(matrix - np.diag(np.diag(matrix))).max() <= 0.3 + 1e-9
        kinds.append((rotation, *slants).index(True))
    assert min(np.bincount(kinds, minlength=3)) > 90  # a third each


def test_elastic_moves_points_smoothly():
    before, after, _ = augmented(only(elastic=0.05))
    moved = after - before
    assert 0.5 < np.sqrt((moved**2).mean()) / (0.05 * 16) < 2
    assert np.abs(moved - moved[:, :1]).max() > 0.1  # not a translation


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.inf, ValueError), ("1", TypeError)]
)
def test_augment_refuses(value, error):
    with pytest.raises(error, match="Augment: stretch"):
        pen.Augment(stretch=value)


# ---------------------------------------------------------------- data set
@pytest.fixture(scope="module")
def characters():
    return glyphs.make_characters(60, seed=3)


def test_batch_equals_single_characters(characters):
    data = pen.PenDataset(characters, 48, "octogram")
    order = [5, 59, 0, -1, 5]
    batch, labels = data.batch(order)
    assert tuple(batch.shape) == (5, 9, 48, 48)
    for position, index in enumerate(order):
        image, label = data[index]
        assert label == labels[position] == data.labels[index]
        assert data.classes[label] == characters[index].label
        assert torch.equal(image.to_dense()[0], batch.to_dense()[position])
        coords, features = pen.rasterize(characters[index].strokes, 48, "octogram")
        assert np.array_equal(image.coords[:, 1:].numpy(), coords)
        assert np.array_equal(image.features.numpy(), features)


def test_characters_without_ink_are_empty_samples(characters):
    empty = pen.Character([], "0")
    data = pen.PenDataset([empty, characters[0], empty], 48, augment=pen.Augment())
    batch, _ = data.batch([0, 1, 2])
    assert batch.batch_size == 3
    assert set(batch.coords[:, 0].tolist()) == {1}
    assert len(data[0][0].coords) == 0
    assert len(pen.PenDataset([], 48)) == 0


def test_feature_scale(characters):
    data = pen.PenDataset(characters, 48, "octogram")
    largest = data.feature_maximum()
    batch, _ = data.batch(range(len(characters)))
    assert np.array_equal(largest, batch.features.abs().amax(0).numpy())
    scaled = pen.PenDataset(characters, 48, "octogram", feature_scale=largest)
    assert scaled.batch(range(len(characters)))[0].features.amax(0).tolist() == [1.0] * 9


def test_distortions_follow_the_seed(characters):
    data = pen.PenDataset(characters, 48, augment=pen.Augment())
    torch.manual_seed(0)
    one, two = data.batch(range(9))[0], data.batch(range(9))[0]
    torch.manual_seed(0)
    again = data.batch(range(9))[0]
    assert torch.equal(one.coords, again.coords)
    assert not torch.equal(one.coords, two.coords)


@pytest.mark.parametrize("workers", ["none", "fork", "spawn"])
def test_data_loader(characters, workers):
    data = pen.PenDataset(characters, 48)
    options = {}
    if workers != "none":
        options = dict(num_workers=1, multiprocessing_context=workers)
    loader = DataLoader(data, batch_size=25, collate_fn=ds.collate, **options)
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == [(25, 1, 48, 48)] * 2 + [(10, 1, 48, 48)]
    expected, labels = data.batch(range(60))
    assert torch.equal(torch.cat([x.to_dense() for x, _ in batches]), expected.to_dense())
    assert torch.equal(torch.cat([torch.as_tensor(y) for _, y in batches]), labels)


def test_data_set_pickles(characters):
    data = pen.PenDataset(characters, 48, augment=pen.Augment(elastic=0.05))
    again = pickle.loads(pickle.dumps(data))
    torch.manual_seed(1)
    a = data.batch(range(5))[0]
    torch.manual_seed(1)
    assert torch.equal(again.batch(range(5))[0].coords, a.coords)
    assert repr(again) == repr(data)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["pen", "octogram"])
def test_rasterises_2000_characters_a_second(encoding):
    data = pen.PenDataset(glyphs.make_characters(500), 96, encoding, augment=pen.Augment())
    times = []
    for first in range(0, 500, 100):
        start = time.perf_counter()
        data.batch(range(first, first + 100))
        times.append(time.perf_counter() - start)
    assert 100 / min(times) > 2000


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(size=0), ValueError, "size"),
        (dict(size=9, encoding="signature"), NotImplementedError, "signature"),
        (dict(size=9, scale=-1), ValueError, "scale"),
        (dict(size=9, classes=["0"]), ValueError, "classes"),
        (dict(size=9, feature_scale=[1, 2]), ValueError, "feature_scale"),
        (dict(size=9, feature_scale=[0]), ValueError, "feature_scale"),
    ],
)
def test_data_set_refuses(characters, arguments, error, word):
    with pytest.raises(error, match=word):
        pen.PenDataset(characters, **arguments)


def test_index_out_of_range(characters):
    data = pen.PenDataset(characters, 48)
    for ask in (lambda: data[60], lambda: data.batch([0, -61])):
        with pytest.raises(IndexError, match="60"):
            ask()


# ---------------------------------------------------------------- synthetic characters
def test_glyphs_are_deterministic_and_balanced():
    a, b = glyphs.make_characters(200, seed=1), glyphs.make_characters(200, seed=1)
    assert len(glyphs.CLASSES) >= 10
    assert [c.label for c in a] == list(glyphs.CLASSES) * (200 // len(glyphs.CLASSES))
    for one, other in zip(a, b, strict=True):
        assert one.label == other.label
        assert all(np.array_equal(s, t) for s, t in zip(one.strokes, other.strokes, strict=True))
    c = glyphs.make_characters(200, seed=2)
    assert not np.array_equal(a[0].strokes[0], c[0].strokes[0])
    assert not np.array_equal(a[0].strokes[0], a[len(glyphs.CLASSES)].strokes[0])


def test_glyphs_of_chosen_classes():
    assert [c.label for c in glyphs.make_characters(3, classes=["A", "0"])] == ["A", "0", "A"]
    for arguments, error in [
        (dict(n=-1), ValueError),
        (dict(n=1.5), TypeError),
        (dict(n=1, classes=["?"]), ValueError),
        (dict(n=1, classes=[]), ValueError),
        (dict(n=1, seed=-1), ValueError),
    ]:
        with pytest.raises(error, match="make_characters"):
            glyphs.make_characters(**arguments)


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
