"""Nearest centres: one clustering of the first layer of a multilayer bootstrap network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from doublesparse._code_ops import nearest_centers
from doublesparse.bench import interleave, milliseconds
from report import Report

POINTS, FEATURES, PART, CENTERS = 2048, 784, 392, 4000
LAYER_POINTS, CLUSTERINGS = 70000, 400  # of MNIST


def images(rng: np.random.Generator, density: float) -> torch.Tensor:
    """(POINTS + CENTERS, 784): blobs whose brightest pixels are kept, as strokes are; or dense."""
    count = POINTS + CENTERS
    grid = np.linspace(-1, 1, 28, dtype=np.float32)
    shape = rng.standard_normal((4, count, 1)).astype(np.float32) / 2
    rows, columns = grid - shape[0], grid - shape[1]
    bright = -np.abs(rows[:, :, None] - columns[:, None, :] * shape[2][:, :, None])
    bright += 0.2 * rng.random(bright.shape, dtype=np.float32) - 0.3 * (grid**2)[:, None]
    flat = bright.reshape(count, FEATURES)
    least = np.quantile(flat, 1 - density, axis=1, keepdims=True)
    return torch.from_numpy(np.where(flat >= least, flat - least + 0.1, 0).astype(np.float32))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("density", [0.19, 1.0])
def test_nearest_centers(report: Report, density: float, threads: int) -> None:
    """Dense operations per second, and those of a product and argmax by torch and by numpy."""
    rng = np.random.default_rng(0)
    both = images(rng, density)
    columns = torch.from_numpy(np.sort(rng.permutation(FEATURES)[:PART]))
    points, centers = both[:POINTS], both[POINTS:][:, columns].contiguous()
    half_norms = (centers * centers).sum(1) / 2
    torch.set_num_threads(threads)

    def by_torch() -> torch.Tensor:
        return (points[:, columns] @ centers.T - half_norms).argmax(1)

    def by_numpy() -> np.ndarray:
        part = points.numpy()[:, columns.numpy()]
        return (part @ centers.numpy().T - half_norms.numpy()).argmax(1)

    # Sums in another order choose another centre on near ties only.
    scores = points[:, columns].double() @ centers.double().T - half_norms.double()
    chosen = nearest_centers(points, centers, columns).long()
    gaps = scores.amax(1) - scores.gather(1, chosen[:, None])[:, 0]
    assert gaps.amax() < 1e-5 * scores.abs().amax()
    actions = {
        "ours": lambda: nearest_centers(points, centers, columns),
        "torch": by_torch,
        "numpy": by_numpy,
    }
    times = interleave(actions, 5)
    operations = 2.0 * POINTS * CENTERS * PART
    rates = {name: operations / milliseconds(times[name]) / 1e6 for name in actions}
    scale = CLUSTERINGS * LAYER_POINTS / POINTS / 1e3
    layers = ", ".join(f"{name} {scale * milliseconds(times[name]):.0f} s" for name in actions)
    report.add(
        f"nearest-{round(100 * density)}-{threads}",
        rates["ours"],
        note=f"torch {rates['torch']:.0f}, numpy {rates['numpy']:.0f}; a layer of MNIST: {layers}",
        what=f"nearest of {CENTERS} centres, {density:.0%} non-zero, {threads} threads",
        unit="GFLOP/s of a dense product",
    )
