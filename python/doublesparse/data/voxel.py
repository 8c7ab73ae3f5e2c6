"""Point clouds: scans of synthetic scenes that need no files, and a reader of KITTI's scans.

`scan` gives points and labels; `doublesparse.functional.voxelize` makes them a sparse tensor:

    >>> import doublesparse as ds
    >>> points, labels = scan(n_points=5000, seed=0)
    >>> ones = torch.ones(len(points), 1)
    >>> x, voxel = ds.functional.voxelize(points, ones, 0.2, origin=points.amin(0), ground=None)
    >>> y = ds.nn.SubmanifoldConv3d(1, 8, kernel_size=3)(x)
    >>> y.features[voxel].shape
    torch.Size([5000, 8])
"""

from __future__ import annotations

import operator
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._ink import Floats, Ints
from ._scene import CLASSES, SCENES, Scene

__all__ = ["CLASSES", "Scan", "read_kitti", "scan"]

# A ray takes a hundred bytes or two on its way; more points than this are several scans.
_MAX_POINTS = 1 << 23
_MAX_RINGS = 4096


class Scan(NamedTuple):
    """One turn of a spinning scanner.

    Attributes:
        points: float32 (n, 3), metres: x ahead, y left, z up, the scanner at 0; column by column
            as the head turns, from the lowest ring to the highest.
        labels: int64 (n,), what was hit: numbers into `CLASSES[scene]`.
    """

    points: Tensor
    labels: Tensor


def scan(
    n_points: int = 50_000,
    seed: int = 0,
    scene: str = "street",
    *,
    n_rings: int = 64,
    noise: float = 0.02,
) -> Scan:
    """Scans a random scene of planes, boxes, cylinders and spheres with a spinning head.

    Every point is the first surface on a laser's ray, moved along the ray by the noise. The head
    takes as many steps a turn as it needs for n_points echoes; the few too many are lost at random.

    Args:
        n_points: echoes to return.
        seed: of every choice; the same arguments give the same scan.
        scene: "street" (outdoors, 80 m, most rays on the ground) or "room".
        n_rings: lasers, at equal steps of elevation.
        noise: standard deviation of a distance, in metres.

    Returns:
        `Scan(points, labels)`.

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: an unknown scene, or numbers out of range.

    Example:
        >>> points, labels = scan(n_points=1000, seed=2, scene="room")
        >>> points.shape, [CLASSES["room"][i] for i in labels.unique()]
        (torch.Size([1000, 3]), ['floor', 'wall', 'ceiling', 'furniture', 'column'])
    """
    n = _number("n_points", n_points, 0, _MAX_POINTS)
    rings = _number("n_rings", n_rings, 1, _MAX_RINGS)
    start = _number("seed", seed, 0, 2**128 - 1)
    if not isinstance(scene, str) or scene not in SCENES:
        raise ValueError(
            f"scan: scene must be one of {', '.join(map(repr, SCENES))}, got {scene!r}; "
            "use one of these"
        )
    if isinstance(noise, bool) or not isinstance(noise, (int, float, np.floating)):
        raise TypeError(f"scan: noise must be a number, got {type(noise).__name__}; use 0.02")
    if not 0 <= noise < np.inf:
        raise ValueError(f"scan: noise must be finite and >= 0, got {noise}; use 0.02")
    generator = np.random.Generator(np.random.Philox(start))
    world = SCENES[scene](generator)
    rays, distance, labels = _echoes(world, n, rings, generator.uniform(0, 2 * np.pi))
    kept = np.sort(generator.permutation(len(labels))[:n])
    distance = distance[kept] + noise * generator.standard_normal(n)
    points = rays[kept] * np.maximum(distance, 0.0)[:, None]
    return Scan(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(labels[kept].astype(np.int64)),
    )


def _echoes(world: Scene, n: int, n_rings: int, phase: float) -> tuple[Floats, Floats, Ints]:
    """Rays with an echo, at least n of them: unit rays (m, 3), lengths, labels."""
    n_columns = -(-n // n_rings)
    while True:
        azimuths = phase + 2 * np.pi / max(n_columns, 1) * np.arange(n_columns, dtype=np.float64)
        rays, distance, labels = world.cast(azimuths, n_rings)
        found = np.isfinite(distance)
        n_found = int(found.sum())
        if n_found >= n:
            return rays[found], distance[found], labels[found]
        # The floor below the scanner answers in every column, so this comes to an end.
        n_columns += max(n_columns * (n - n_found) // max(n_found, 1), n_columns // 64) + 1


def _number(name: str, value: int, low: int, high: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"scan: {name} must be an integer, got {type(value).__name__}; round it"
        ) from None
    if not low <= number <= high:
        raise ValueError(f"scan: {name} must be in [{low}, {high}], got {number}; correct it")
    return number


def read_kitti(path: str | os.PathLike[str]) -> Tensor:
    """Reads a scan as KITTI's `velodyne/*.bin` stores it: float32 x, y, z, reflectance, no header.

    Args:
        path: the file.

    Returns:
        float32 (n, 4). Values are passed on as they are; `voxelize(..., outside="drop")` leaves
        out points that are not finite.

    Raises:
        OSError: the file cannot be read.
        ValueError: its size is no multiple of a point's 16 bytes.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "000000.bin"
        >>> _ = path.write_bytes(np.array([[1, 2, 3, 0.5]], "<f4").tobytes())
        >>> read_kitti(path)
        tensor([[1.0000, 2.0000, 3.0000, 0.5000]])
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read()
    if len(data) % 16:
        raise ValueError(
            f"read_kitti: {name}: size must be a multiple of 16 bytes (4 float32 a point), "
            f"got {len(data)}; the file is cut short or of another kind"
        )
    return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, 4))
