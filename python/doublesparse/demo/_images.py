"""Small real images: MNIST files in a folder, or the digits that scikit-learn brings along."""

from __future__ import annotations

import gzip
import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Name of a file: shape of its items. Each may also be gzipped (.gz).
_MNIST = {
    "train-images-idx3-ubyte": (28, 28),
    "train-labels-idx1-ubyte": (),
    "t10k-images-idx3-ubyte": (28, 28),
    "t10k-labels-idx1-ubyte": (),
}
_UBYTE = 0x08  # the only type of element that MNIST has


@dataclass(frozen=True)
class Images:
    """Images to train on and to test on: float32 (n, colours, height, width), labels int64 (n,).

    Where `test` is None there is one set, and a split of it is drawn for every seed.
    """

    title: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None

    def split(self, n_train: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A random training subset, and what to test on: everything else, or the test set.

        Raises:
            ValueError: there are not more images than that, or it is not positive.
        """
        images, labels = self.train
        if n_train < 1:
            raise ValueError(f"train size must be positive, got {n_train}; use e.g. 100")
        if n_train >= len(labels):
            raise ValueError(
                f"train size must be below the {len(labels)} images there are, got {n_train}; "
                "use a smaller --train-size"
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        chosen, rest = order[:n_train], order[n_train:]
        test = self.test if self.test is not None else (images[rest], labels[rest])
        return (images[chosen], labels[chosen]), test


def read_idx(path: Path, item: tuple[int, ...]) -> Tensor:
    """The array of an IDX file of bytes (LeCun's format), gzipped or not.

    Args:
        path: the file.
        item: shape of each item.

    Raises:
        ValueError: it is no such file.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    n_axes = 1 + len(item)
    head = np.frombuffer(raw[: 4 + 4 * n_axes], dtype=">u1")
    shape = np.frombuffer(raw[4 : 4 + 4 * n_axes], dtype=">u4").tolist() if len(raw) > 7 else []
    valid = len(shape) == n_axes and tuple(head[:4]) == (0, 0, _UBYTE, n_axes)
    if not valid or tuple(shape[1:]) != item or len(raw) != 4 + 4 * n_axes + math.prod(shape):
        raise ValueError(
            f"{path} is no IDX file of bytes with items of shape {item}; use MNIST's own files"
        )
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * n_axes)
    return torch.from_numpy(values.reshape(shape).copy())


def load_mnist(folder: str | Path) -> Images:
    """MNIST from its four files, in the folder itself or in `mnist/`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not MNIST's.
    """
    arrays = []
    for name, item in _MNIST.items():
        places = [
            Path(folder) / inside / f"{name}{suffix}"
            for inside in ("", "mnist")
            for suffix in ("", ".gz")
        ]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"no {name}(.gz) in {folder} or {Path(folder) / 'mnist'}")
        arrays.append(read_idx(path, item))
    images, labels, test_images, test_labels = arrays
    return Images(
        "MNIST",
        (_scaled(images, 255.0), labels.long()),
        (_scaled(test_images, 255.0), test_labels.long()),
    )


def load_digits() -> Images:
    """The 1797 digits of 8 x 8 pixels that scikit-learn has inside (UCI optdigits, test part).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(np.asarray(bunch.images))
    labels = torch.from_numpy(np.asarray(bunch.target)).long()
    return Images("scikit-learn's digits", (_scaled(images, 16.0), labels), None)


def _scaled(images: Tensor, largest: float) -> Tensor:
    """Pixels in [-0.5, 0.5], with one channel."""
    return images.to(torch.float32)[:, None] / largest - 0.5
