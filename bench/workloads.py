"""Active sites to measure on: read from a folder, or generated of the same kind.

`DOUBLESPARSE_WORKLOADS=DIR` names a folder of `.npy` files (int32 rows: batch, spatial...), one
per workload, `lidar.npy`, `strokes_d05.npy` and so on. What is not found there is generated: thin
smooth pen strokes, and a scan by a 64-beam LiDAR in a street. The generated sites have the same
density, the same extents and neighbourhoods of the same size, so that the ratios mean the same; the
report says which were used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

import doublesparse as ds

STROKE_DENSITIES = {"strokes_d02": 0.02, "strokes_d05": 0.05, "strokes_d10": 0.10}
STROKE_DENSITIES |= {"strokes_d20": 0.20, "strokes_d40": 0.40}
STROKE_SHAPE, STROKE_BATCH = (96, 96), 32
LIDAR_SHAPE = (48, 1407, 1126)


@dataclass(frozen=True)
class Workload:
    """Sorted unique sites, and where they come from ("file" or "generated")."""

    name: str
    coords: torch.Tensor
    spatial_shape: tuple[int, ...]
    batch_size: int
    origin: str

    @property
    def n_sites(self) -> int:
        return len(self.coords)

    def tensor(self, channels: int, ground: float | None) -> ds.SparseTensor:
        """Positive random features on fresh Sites: nothing is cached yet."""
        features = (
            torch.rand(self.n_sites, channels, generator=torch.Generator().manual_seed(1)) + 0.1
        )
        return ds.SparseTensor(
            features, self.coords, self.spatial_shape, self.batch_size, ground=ground
        )


@cache
def load(name: str) -> Workload:
    """The workload of that name.

    Raises:
        ValueError: no workload has this name, or its file does not hold such sites.
    """
    if name == "lidar":
        shape, batch_size = LIDAR_SHAPE, 1
    elif name in STROKE_DENSITIES:
        shape, batch_size = STROKE_SHAPE, STROKE_BATCH
    else:
        raise ValueError(
            f"workloads.load: name must be lidar or one of {list(STROKE_DENSITIES)}, got {name}"
        )
    folder = os.environ.get("DOUBLESPARSE_WORKLOADS", "")
    path = Path(folder) / f"{name}.npy"
    if folder and path.is_file():
        coords, origin = np.load(path), "file"
        extents = np.array((batch_size, *shape))
        if coords.ndim != 2 or coords.shape[1] != len(extents) or (coords >= extents).any():
            raise ValueError(f"workloads.load: {path} must hold rows below {extents.tolist()}")
    else:
        coords = lidar() if name == "lidar" else strokes(STROKE_DENSITIES[name])
        origin = "generated"
    coords = np.unique(coords.astype(np.int32), axis=0)
    return Workload(name, torch.from_numpy(coords), shape, batch_size, origin)


def strokes(density: float, seed: int = 0) -> np.ndarray:
    """Smooth random pen strokes, one pixel wide, until each image has this share of its pixels.

    Returns:
        int32 (n_sites, 3): batch, row, column.
    """
    rng = np.random.default_rng(seed)
    sites = []
    for sample in range(STROKE_BATCH):
        image = np.zeros(STROKE_SHAPE, bool)
        wanted = round(density * image.size)
        while (missing := wanted - np.count_nonzero(image)) > 0:
            # The last stroke stops where the image has enough pixels.
            for row, column in _stroke(rng):
                if not image[row, column]:
                    image[row, column] = True
                    missing -= 1
                    if missing == 0:
                        break
        rows, columns = np.nonzero(image)
        sites.append(np.stack([np.full(len(rows), sample), rows, columns], 1))
    return np.concatenate(sites).astype(np.int32)


def _stroke(rng: np.random.Generator, n_steps: int = 120) -> np.ndarray:
    """Pixels under a pen that moves half a pixel a step, turns slowly, and stays inside."""
    curvature = rng.normal(0.0, 0.04) + rng.normal(0.0, 0.03, n_steps).cumsum() / np.sqrt(n_steps)
    heading = rng.uniform(0, 2 * np.pi) + curvature.cumsum()
    extents = np.array(STROKE_SHAPE)
    path = rng.uniform(0, extents) + 0.5 * np.stack([np.sin(heading), np.cos(heading)], 1).cumsum(0)
    # Reflected at the borders, so that strokes do not end there.
    path = np.abs(path) % (2 * extents)
    return np.minimum(np.minimum(path, 2 * extents - 1e-6 - path), extents - 1).astype(int)


def blobs(batch_size: int, size: int, density: float, seed: int = 0) -> torch.Tensor:
    """Smooth random regions that cover exactly this share: bool (batch_size, size, size)."""
    if density >= 1:
        return torch.ones(batch_size, size, size, dtype=torch.bool)
    noise = np.random.default_rng(seed).normal(size=(batch_size, size, size))
    frequency = np.fft.fftfreq(size) ** 2
    blur = np.exp(-(frequency[:, None] + frequency[None]) * (size / 8) ** 2)
    smooth = np.fft.ifft2(np.fft.fft2(noise) * blur).real
    return torch.from_numpy(smooth > np.quantile(smooth, 1 - density))


def lidar(seed: int = 0, voxel: float = 0.1) -> np.ndarray:
    """A 64-beam scan in a street of boxes (houses, cars, poles, bushes), 0.1 m voxels.

    Beams between -25 and 3 degrees, 4000 azimuths, a sensor 1.8 m above a slightly uneven ground;
    every ray ends at the nearest of the ground and the boxes, with 2 cm of range noise.

    Returns:
        int32 (n_sites, 4): batch, z, y, x.
    """
    rng = np.random.default_rng(seed)
    elevation = np.radians(np.linspace(-25.0, 3.0, 64))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, 4000, endpoint=False)[None, :]
    direction = np.stack(
        np.broadcast_arrays(
            np.sin(elevation) + 0 * azimuth,
            np.cos(elevation) * np.sin(azimuth),
            np.cos(elevation) * np.cos(azimuth),
        ),
        -1,
    ).reshape(-1, 3)
    height = 1.8
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(direction[:, 0] < -1e-3, -height / direction[:, 0], np.inf)
        for low, high in _street(rng):
            # Slab test: where the ray is inside all three pairs of planes at once.
            near, far = (low - (height, 0, 0)) / direction, (high - (height, 0, 0)) / direction
            enter, leave = np.minimum(near, far).max(1), np.maximum(near, far).min(1)
            distance = np.where(
                (enter < leave) & (enter > 0.5), np.minimum(distance, enter), distance
            )
    hit = distance < 75.0
    distance = distance[hit] + rng.normal(0, 0.02, np.count_nonzero(hit))
    points = direction[hit] * distance[:, None]
    points[:, 0] += 0.15 * np.sin(points[:, 1] / 7) * np.cos(points[:, 2] / 9)
    origin = np.array([2.4, LIDAR_SHAPE[1] * voxel / 2, LIDAR_SHAPE[2] * voxel / 2])
    voxels = np.floor((points + origin) / voxel).astype(np.int32)
    inside = ((voxels >= 0) & (voxels < LIDAR_SHAPE)).all(1)
    voxels = np.unique(voxels[inside], axis=0)
    return np.concatenate([np.zeros((len(voxels), 1), np.int32), voxels], 1)


def _street(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Low and high corners (z, y, x) of boxes beside a road along y; the ground is z = 0."""
    boxes = []

    def add(y: float, x: float, depth: float, width: float, height: float) -> None:
        boxes.append((np.array([0.0, y, x]), np.array([height, y + depth, x + width])))

    for side in (-1, 1):
        y = -72.0
        while y < 70:
            depth = rng.uniform(8, 20)
            front = side * rng.uniform(9, 16)
            add(y, front if side > 0 else front - 12, depth, 12.0, rng.uniform(4, 12))
            y += depth + rng.uniform(0, 6)
        for y in rng.uniform(-60, 60, 12):
            add(y, side * rng.uniform(3.5, 6), 4.2, 1.8, 1.5)
        for y in rng.uniform(-60, 60, 15):
            add(y, side * 7.5, 0.25, 0.25, rng.uniform(3, 6))
        for y in rng.uniform(-40, 40, 60):
            add(y, side * rng.uniform(7, 9), *rng.uniform(0.4, 1.5, 3))
    return boxes
