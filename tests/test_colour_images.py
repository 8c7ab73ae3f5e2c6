"""Colour images for demos: CIFAR-10 in both of its formats, class folders, broken files."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

from doublesparse.demo import _colour_images as colour


def cifar_arrays(n, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, 3072), dtype=np.uint8), random.integers(0, 10, n)


def write_binary(folder, parts):
    folder.mkdir(parents=True)
    for name, (pixels, labels) in parts.items():
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def write_python(folder, parts):
    """The original has byte strings for keys, as Python 2 wrote them."""
    folder.mkdir(parents=True)
    for name, (pixels, labels) in parts.items():
        batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


PARTS = {
    "data_batch_1": cifar_arrays(7, 1),
    "data_batch_2": cifar_arrays(5, 2),
    "test_batch": cifar_arrays(4, 3),
}


@pytest.mark.parametrize(
    ("write", "inside"),
    [
        (write_binary, "cifar-10-batches-bin"),
        (write_binary, "."),
        (write_python, "cifar-10-batches-py"),
    ],
)
def test_cifar(tmp_path, write, inside):
    write(tmp_path / "data" / inside, PARTS)
    images = colour.load_folder(tmp_path / "data")
    assert images.title == "CIFAR-10"
    for (x, y), names in (
        (images.train, ("data_batch_1", "data_batch_2")),
        (images.test, ("test_batch",)),
    ):
        pixels = np.concatenate([PARTS[name][0] for name in names])
        labels = np.concatenate([PARTS[name][1] for name in names])
        assert x.dtype == torch.float32 and x.shape == (len(labels), 3, 32, 32)
        assert y.dtype == torch.int64 and y.tolist() == labels.tolist()
        # red at row 2, column 5 of the second image: byte 2 * 32 + 5; blue is 2048 further on
        assert float(x[1, 0, 2, 5]) == pytest.approx(pixels[1, 69] / 255 - 0.5, abs=1e-7)
        assert float(x[1, 2, 2, 5]) == pytest.approx(pixels[1, 2117] / 255 - 0.5, abs=1e-7)


def test_cifar_without_a_test_batch(tmp_path):
    write_binary(tmp_path / "few", {"data_batch_1": PARTS["data_batch_1"]})
    images = colour.load_folder(tmp_path / "few")
    assert images.test is None and len(images.split(4, seed=0)[1][1]) == 3


class Touch:
    """A pickle that would run a function."""

    def __reduce__(self):
        return (open, ("/nonexistent/touched", "w"))


@pytest.mark.parametrize("change", ["short", "empty", "label"])
def test_broken_binary(tmp_path, change):
    write_binary(tmp_path / "c", PARTS)
    path = tmp_path / "c" / "data_batch_2.bin"
    raw = path.read_bytes()
    path.write_bytes({"short": raw[:-1], "empty": b"", "label": b"\x0b" + raw[1:]}[change])
    with pytest.raises(ValueError, match="data_batch_2.bin is no CIFAR-10 batch"):
        colour.load_folder(tmp_path / "c")


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        pickle.dumps(Touch()),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
        pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}),
    ],
)
def test_broken_pickle(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1 is no CIFAR-10 batch"):
        colour.load_folder(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither MNIST, nor CIFAR-10"):
        colour.load_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        colour.load_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no data_batch_1"):
        colour.load_cifar(tmp_path)


# ------------------------------------------------------------------ class folders
@pytest.fixture
def animals(tmp_path):
    pil = pytest.importorskip("PIL.Image", reason="class folders are read with Pillow")
    random = np.random.default_rng(0)
    for part, n in (("train", 3), ("test", 2)):
        for i, name in enumerate(("cat", "dog")):
            inside = tmp_path / "animals" / part / name
            inside.mkdir(parents=True)
            for j in range(n + i):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[0, 0] = (255 * i, 0, 255)
                pil.fromarray(pixels).save(inside / f"{j}.png")
            (inside / "notes.txt").write_text("no image")
    return tmp_path / "animals"


def test_class_folders(animals):
    images = colour.load_folder(animals)
    assert images.train[1].tolist() == [0, 0, 0, 1, 1, 1, 1] and images.title == "animals"
    assert images.test[1].tolist() == [0, 0, 1, 1, 1]
    assert images.train[0].shape == (7, 3, 32, 32) and images.train[0].dtype == torch.float32
    assert images.train[0][4, :, 0, 0].tolist() == [0.5, -0.5, 0.5]
    single = colour.load_folder(animals / "test")
    assert single.test is None and torch.equal(single.train[0], images.test[0])
    small = colour.load_class_folders(animals, extent=8)
    assert small.train[0].shape == (7, 3, 8, 8)


def test_broken_class_folders(animals, monkeypatch):
    (animals / "test" / "dog").rename(animals / "test" / "horse")
    with pytest.raises(ValueError, match="classes in .*test are not those"):
        colour.load_folder(animals)
    with pytest.raises(ValueError, match="two classes or more"):
        (animals / "lone").mkdir()
        colour.load_class_folders(animals / "lone")
    (animals / "train" / "cat" / "0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="0.png is no image"):
        colour.load_folder(animals / "train")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError):
        colour.load_folder(animals)
