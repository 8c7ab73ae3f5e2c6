"""Pen strokes to train on: augmentation, data set, synthetic characters."""

from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import doublesparse as ds
from doublesparse.data import glyphs, pen
from strokes import random_strokes


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


@pytest.mark.parametrize(("encoding", "channels"), [("pen", 1), ("octogram", 9), ("signature", 7)])
def test_batch_equals_single_characters(characters, encoding, channels):
    data = pen.PenDataset(characters, 48, encoding)
    order = [5, 59, 0, -1, 5]
    batch, labels = data.batch(order)
    assert tuple(batch.shape) == (5, channels, 48, 48)
    assert channels == data.n_features == pen.ENCODINGS[encoding]
    for position, index in enumerate(order):
        image, label = data[index]
        assert label == labels[position] == data.labels[index]
        assert data.classes[label] == characters[index].label
        assert torch.equal(image.to_dense()[0], batch.to_dense()[position])
        coords, features = pen.rasterize(characters[index].strokes, 48, encoding)
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


def test_level_of_signatures(characters):
    data = pen.PenDataset(characters, 48, "signature", level=4, augment=pen.Augment())
    largest = data.feature_maximum()
    assert data.n_features == len(largest) == 31 and largest[0] == 1
    batch, _ = pen.PenDataset(characters, 48, "signature", level=4, feature_scale=largest).batch(
        [0]
    )
    assert batch.shape[1] == 31 and batch.features.abs().max() <= 1
    assert pen.PenDataset(characters, 48, "signature", level=0).batch([0])[0].features.unique() == 1


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
@pytest.mark.parametrize("encoding", ["pen", "octogram", "signature"])
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
        (dict(size=9, encoding="signatures"), ValueError, "signature"),
        (dict(size=9, encoding="signature", level=9), ValueError, "level"),
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
