"""Colour images from a folder: CIFAR-10's own files, or a folder of images per class."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._images import Images, load_mnist

_EXTENT, _COLOURS = 32, 3
_PIXELS = _COLOURS * _EXTENT**2
_INSIDE = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
# What the pickles of CIFAR-10 name, and nothing else: a pickle can name any function to call.
_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def load_folder(folder: str | Path) -> Images:
    """MNIST, CIFAR-10 or class folders, whichever the folder holds.

    Raises:
        FileNotFoundError: none of these is there.
        ValueError: a file is broken.
        ImportError: class folders, and Pillow is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if cifar_files(folder)[0]:
        return load_cifar(folder)
    if any(list((folder / inside).glob("train-images-idx3-ubyte*")) for inside in ("", "mnist")):
        return load_mnist(folder)
    if _class_folders(folder):
        return load_class_folders(folder)
    raise FileNotFoundError(
        f"neither MNIST, nor CIFAR-10, nor folders of images by class in {folder}"
    )


# ------------------------------------------------------------------ CIFAR-10
def cifar_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of the training and of the test batches, binary or Python, in order."""
    for inside in _INSIDE:
        for suffix in (".bin", ""):
            train = sorted((folder / inside).glob(f"data_batch_[0-9]{suffix}"))
            test = sorted((folder / inside).glob(f"test_batch{suffix}"))
            if train:
                return train, test
    return [], []


def load_cifar(folder: str | Path) -> Images:
    """CIFAR-10 (Krizhevsky 2009) from its binary or its Python batches; some of them will do.

    They lie in the folder itself, in `cifar-10-batches-bin/` or in `cifar-10-batches-py/`. Without
    `test_batch` there is one set, split for every seed.

    Raises:
        FileNotFoundError: no training batch is there.
        ValueError: a file is not CIFAR-10's.
    """
    train, test = cifar_files(Path(folder))
    if not train:
        raise FileNotFoundError(f"no data_batch_1(.bin) of CIFAR-10 in {folder}")
    return Images("CIFAR-10", _joined(train), _joined(test) if test else None)


def _joined(paths: list[Path]) -> tuple[Tensor, Tensor]:
    parts = [_binary(path) if path.suffix == ".bin" else _pickled(path) for path in paths]
    pixels = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    images = pixels.reshape(-1, _COLOURS, _EXTENT, _EXTENT).astype(np.float32) / 255 - 0.5
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label byte and 3072 bytes: red, green, blue, each row by row."""
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not raw.size or raw.size % (1 + _PIXELS):
        raise ValueError(f"{path} is no CIFAR-10 batch: its size is no multiple of {1 + _PIXELS}")
    records = raw.reshape(-1, 1 + _PIXELS)
    return records[:, 1:], _ten(path, records[:, 0])


class _Unpickler(pickle.Unpickler):
    """Arrays, and what Python itself has; no function that a file brings along."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dict with `data`, (n, 3072) uint8, and `labels`, a list."""
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[b"labels"])
    except Exception as wrong:  # whatever a broken pickle raises
        raise ValueError(f"{path} is no CIFAR-10 batch: {wrong}") from wrong
    shape = getattr(pixels, "shape", None)
    if shape != (len(labels), _PIXELS) or pixels.dtype != np.uint8 or not len(labels):
        raise ValueError(f"{path} is no CIFAR-10 batch: data of shape {shape}")
    return pixels, _ten(path, labels)


def _ten(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "ui" or labels.ndim != 1 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path} is no CIFAR-10 batch: labels are not 0 to 9")
    return labels


# ------------------------------------------------------------------ folders of images
def load_class_folders(folder: str | Path, extent: int = _EXTENT) -> Images:
    """A folder of images per class, each image scaled to extent x extent, in colour.

    `train/` and `test/`, with the same classes, are taken for what their names say; without them
    there is one set, split for every seed.

    Raises:
        FileNotFoundError: no image is there.
        ValueError: a file is no image, there are less than two classes, or the test set has
            others.
        ImportError: Pillow is not installed.
    """
    folder = Path(folder)
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    classes = _class_folders(folder / "train" if split else folder)
    if len(classes) < 2:
        raise ValueError(f"{folder} must hold folders of images for two classes or more")
    train = _read_classes(classes, extent)
    if not split:
        return Images(folder.name, train, None)
    test_classes = _class_folders(folder / "test")
    if [path.name for path in test_classes] != [path.name for path in classes]:
        raise ValueError(f"the classes in {folder / 'test'} are not those in {folder / 'train'}")
    return Images(folder.name, train, _read_classes(test_classes, extent))


def _class_folders(folder: Path) -> list[Path]:
    """Folders with images inside, by name; those of `train/` where that is one."""
    inside = folder / "train" if (folder / "train").is_dir() else folder
    return sorted(path for path in inside.iterdir() if path.is_dir() and _image_files(path))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _read_classes(classes: list[Path], extent: int) -> tuple[Tensor, Tensor]:
    from PIL import Image  # Pillow, an extra

    arrays, labels = [], []
    for label, inside in enumerate(classes):
        for path in _image_files(inside):
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB").resize((extent, extent)))
            except OSError as wrong:
                raise ValueError(f"{path} is no image: {wrong}") from wrong
            arrays.append(np.moveaxis(pixels, -1, 0))
            labels.append(label)
    images = np.stack(arrays).astype(np.float32) / 255 - 0.5
    return torch.from_numpy(images), torch.tensor(labels)
