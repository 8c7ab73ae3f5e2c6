"""Pen characters as a torch data set of sparse tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from ..tensor import SparseTensor
from ._augment import Augment
from ._ink import Ink, fit, make_ink
from ._raster import LEVEL, check_encoding, rasterize_ink
from ._unipen import Character

# As many characters as the reference code looks at to find the largest value of each feature.
_N_FOR_MAXIMUM = 10_000
# Characters rasterised at once where a whole data set is walked through: their samples stay in
# the L2 cache.
_CHUNK = 100


def check_size(operation: str, size: SupportsIndex) -> int:
    """The extent of a grid as an int, checked."""
    try:
        value = operator.index(size)
    except TypeError as error:
        raise TypeError(
            f"{operation}: size must be an integer, got {type(size).__name__}; "
            "give the extent of the square grid in cells"
        ) from error
    if not 1 <= value < 1 << 31:
        raise ValueError(f"{operation}: size must be in [1, 2^31), got {value}; use e.g. 96")
    return value


def check_scale(operation: str, scale: float | None, size: int) -> float:
    """The character scale in cells, a third of the grid where none is given."""
    if scale is None:
        return size / 3
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{operation}: scale must be a number, got {type(scale).__name__}; "
            "give the longer side of a character in cells"
        )
    # 2^31 cells is the largest grid: beyond it a scale only overflows the step counts.
    if not 0 < scale <= 1 << 31:
        raise ValueError(
            f"{operation}: scale must be in (0, 2^31], got {scale}; leave it out for size / 3"
        )
    return float(scale)


class PenDataset(Dataset):
    """Characters, rasterised when they are asked for, each time with a new distortion.

    An item is `(SparseTensor of one sample, label number)`; a `DataLoader(...,
    collate_fn=ds.collate)` makes batches of them, with any number of workers. The whole list of
    indices that a loader asks for is distorted and rasterised in one pass; `batch` gives the
    result of that pass as one tensor, without the detour over single samples (`PenBatches`).

    Distortions draw from torch's random generator, which a loader seeds in each worker.

    Args:
        characters: what to show; strokes as `upright` gives them (rows down, columns right) or in
            any other orientation, so long as it is the same for all.
        size: extent of the square grid, e.g. `DeepCNet(...).input_size`.
        encoding: "pen" (1 feature per cell), "octogram" (9) or "signature" (7 at level 2).
        scale: longer side of a character in cells; `size / 3` by default.
        augment: random distortions, or None for none.
        classes: the labels, in the order of their numbers; by default those present, sorted.
        feature_scale: divisor of each feature, e.g. `feature_maximum()` of the training set; 1 by
            default.
        level: highest level of signatures, 0 to 4.

    Attributes:
        classes: tuple of labels.
        labels: int64 (n,), label number of each character.

    Raises:
        ValueError: a size, scale, encoding or label out of range, or strokes that are not finite
            (n, 2) arrays.

    Example:
        >>> from doublesparse.data import glyphs
        >>> data = PenDataset(glyphs.make_characters(20, seed=0), size=48)
        >>> image, label = data[3]
        >>> tuple(image.shape), data.classes[label]
        ((1, 1, 48, 48), '3')
        >>> images, labels = data.batch(range(20))
        >>> tuple(images.shape), tuple(labels.shape)
        ((20, 1, 48, 48), (20,))
    """

    def __init__(
        self,
        characters: Sequence[Character],
        size: int,
        encoding: str = "pen",
        scale: float | None = None,
        augment: Augment | None = None,
        classes: Sequence[str] | None = None,
        feature_scale: ArrayLike | None = None,
        level: int = LEVEL,
    ) -> None:
        self._n_features = check_encoding("PenDataset", encoding, level)
        self.level = level
        self.size = check_size("PenDataset", size)
        self.encoding = encoding
        self.scale = check_scale("PenDataset", scale, self.size)
        self.augment = augment
        names = [character.label for character in characters]
        self.classes = tuple(sorted(set(names)) if classes is None else classes)
        number = {name: i for i, name in enumerate(self.classes)}
        unknown = sorted(set(names) - set(number))
        if unknown:
            raise ValueError(
                f"PenDataset: labels must be among classes {list(self.classes)}, got {unknown}; "
                "drop these characters or name their classes"
            )
        self.labels = torch.tensor(
            [number[name] for name in names], dtype=torch.int64, device="cpu"
        )
        self._ink = fit(make_ink("PenDataset", [c.strokes for c in characters]), self.scale)
        self.feature_scale = self._check_feature_scale(feature_scale)

    def _check_feature_scale(self, feature_scale: ArrayLike | None) -> NDArray[np.float32]:
        n_features = self._n_features
        if feature_scale is None:
            return np.ones(n_features, dtype=np.float32)
        array = np.asarray(feature_scale, dtype=np.float32)
        if array.shape != (n_features,) or not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(
                f"PenDataset: feature_scale must be {n_features} positive numbers, "
                f"got {array.tolist()}; use feature_maximum() of the training set"
            )
        return array

    @property
    def n_features(self) -> int:
        """Channels of the samples."""
        return self._n_features

    def __len__(self) -> int:
        """Number of characters."""
        return len(self._ink)

    def __repr__(self) -> str:
        """Sizes and options."""
        return (
            f"PenDataset(characters={len(self)}, classes={len(self.classes)}, size={self.size}, "
            f"scale={self.scale:g}, encoding={self.encoding!r}, augment={self.augment})"
        )

    def ink(self, indices: Sequence[int] | NDArray) -> Ink:
        """Strokes of these characters in cells, 0 at the centre, after a new distortion."""
        ink = self._ink.take(indices)
        if self.augment is None:
            return ink
        seed = int(torch.randint(1 << 62, (), device="cpu"))
        return self.augment(ink, self.scale, np.random.Generator(np.random.Philox(seed)))

    def rasterize(self, indices: Sequence[int] | NDArray) -> tuple[NDArray, NDArray]:
        """Sites of these characters, int32 (n_sites, 3), position in `indices` first; features."""
        coords, features = self._rasterize(self.ink(indices))
        return coords, features / self.feature_scale

    def _rasterize(self, ink: Ink) -> tuple[NDArray, NDArray]:
        return rasterize_ink(
            "PenDataset", ink, self.size, self.encoding, self.scale, level=self.level
        )

    def batch(self, indices: Sequence[int] | NDArray) -> tuple[SparseTensor, torch.Tensor]:
        """These characters as one tensor (n, n_features, size, size), and their label numbers."""
        chosen = self._check_indices(indices)
        coords, features = self.rasterize(chosen)
        image = SparseTensor(
            torch.from_numpy(features), torch.from_numpy(coords), (self.size,) * 2, len(chosen)
        )
        return image, self.labels[torch.from_numpy(chosen)]

    def __getitem__(self, index: int) -> tuple[SparseTensor, int]:
        """One character; negative indices count from the end."""
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[SparseTensor, int]]:
        """Many characters; what a `DataLoader` calls."""
        chosen = self._check_indices(indices)
        coords, features = self.rasterize(chosen)
        start = np.searchsorted(coords[:, 0], np.arange(len(chosen) + 1))
        coords[:, 0] = 0
        shape = (self.size, self.size)
        items = []
        for i, (a, b) in enumerate(zip(start[:-1], start[1:], strict=True)):
            # Copies: a slice would drag the whole batch along when a worker sends the sample.
            image = SparseTensor(
                torch.from_numpy(features[a:b].copy()),
                torch.from_numpy(coords[a:b].copy()),
                shape,
                1,
            )
            items.append((image, int(self.labels[chosen[i]])))
        return items

    def _check_indices(self, indices: Sequence[int] | NDArray) -> NDArray[np.int64]:
        chosen, n = np.asarray(indices, dtype=np.int64), len(self)
        wrong = chosen[(chosen < -n) | (chosen >= n)]
        if len(wrong):
            raise IndexError(
                f"PenDataset: index must be in [{-n}, {n}), got {wrong[0]}; "
                f"there are {n} characters"
            )
        return chosen % n if n else chosen

    def feature_maximum(self) -> NDArray[np.float32]:
        """Largest |value| of each feature over the first 10000 undistorted characters."""
        largest = np.zeros(self.n_features, dtype=np.float32)
        n = min(len(self), _N_FOR_MAXIMUM)
        for first in range(0, n, _CHUNK):
            ink = self._ink.take(np.arange(first, min(first + _CHUNK, n)))
            features = self._rasterize(ink)[1]
            largest = np.maximum(largest, np.abs(features).max(axis=0, initial=0.0))
        return np.where(largest > 0, largest, 1.0).astype(np.float32)


class PenBatches(Dataset):
    """Batches of a `PenDataset` by lists of indices: nothing is made twice, nothing collated.

    Args:
        data: the characters.

    Example:
        >>> from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
        >>> from doublesparse.data import glyphs
        >>> data = PenDataset(glyphs.make_characters(10), size=48)
        >>> sampler = BatchSampler(SequentialSampler(data), batch_size=4, drop_last=False)
        >>> loader = DataLoader(PenBatches(data), sampler=sampler, batch_size=None)
        >>> [len(labels) for images, labels in loader]
        [4, 4, 2]
    """

    def __init__(self, data: PenDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        """Number of characters."""
        return len(self.data)

    def __getitem__(self, indices: Sequence[int]) -> tuple[SparseTensor, torch.Tensor]:
        """`data.batch(indices)`."""
        return self.data.batch(indices)
