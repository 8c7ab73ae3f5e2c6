"""Unmodified dense networks on strokes and on frames that differ from a background."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import doublesparse as ds
import workloads
from doublesparse.bench import interleave, milliseconds
from doublesparse.demo._networks import ResNet18, UNet
from report import Report

Duel = Callable[..., dict[str, list[float]]]


def vgg16() -> nn.Sequential:
    """The layers of Simonyan & Zisserman 2014 (D), with a small head."""
    layers: list[nn.Module] = []
    channels = 3
    for width, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(n):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(512 * 49, 100))


def randomized(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms that change something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.bias.data, module.running_mean):
                values.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def drawing(size: int, share: float) -> torch.Tensor:
    """Pen strokes in one image (1, 3, size, size), until `share` of its pixels are set."""
    rng, image = np.random.default_rng(0), np.zeros((size, size), np.float32)
    while np.count_nonzero(image) < share * image.size:
        at, heading = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi)
        for turn in rng.normal(0, 0.1, int(0.4 * size)):
            heading += turn
            at = at + (np.sin(heading), np.cos(heading))
            if not ((at >= 1) & (at < size - 2)).all():
                break
            row, column = at.astype(int)
            image[row : row + 2, column : column + 2] = 1.0
            if np.count_nonzero(image) >= share * image.size:
                break
    return torch.from_numpy(image).repeat(1, 3, 1, 1)


def best_dense(model: nn.Module, image: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Torch's two layouts, of model and image."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    image_last = image.to(memory_format=torch.channels_last)
    return {
        "torch contiguous": lambda: model(image),
        "torch channels_last": lambda: last(image_last),
    }


def close(model: nn.Module, got: torch.Tensor, image: torch.Tensor) -> None:
    """The answers agree to float32 rounding of the largest."""
    want = model(image)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


STROKES = {
    "resnet18-strokes": (ResNet18, 224, 0.02, False),
    "resnet18-frozen": (ResNet18, 224, 0.02, True),
    "vgg16-strokes": (vgg16, 512, 0.01, False),
}


@pytest.mark.parametrize("key", list(STROKES))
def test_strokes(duel: Duel, report: Report, key: str) -> None:
    """One image; sites, rulebooks and, unless frozen, grounds inside the time."""
    make, size, share, frozen = STROKES[key]
    model, image = randomized(make()), drawing(size, share)
    ours = copy.deepcopy(model)
    if frozen:
        ds.freeze_ground(ours, (size, size))

    def run() -> torch.Tensor:
        return ours(ds.SparseTensor.from_dense(image))

    with torch.no_grad():
        close(model, run(), image)
        times = duel(run, best_dense(model, image))
    note = f"{(image[0, 0] != 0).float().mean():.1%} of pixels"
    report.add_best(key, times, note=note)


@pytest.mark.parametrize("make", [ResNet18, UNet])
def test_incremental(duel: Duel, report: Report, make: type[nn.Module]) -> None:
    """A frame that differs from its background in one object of 35 x 35 pixels."""
    model = randomized(make())
    background = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    frame = background.clone()
    frame[:, :, 80:115, 100:135] = 1 - frame[:, :, 80:115, 100:135]
    step = ds.Incremental(copy.deepcopy(model), background)
    with torch.no_grad():
        close(model, step(frame), frame)
        times = duel(lambda: step(frame), best_dense(model, frame))
    share = (frame != background).any(1).float().mean()
    key, note = f"incremental-{make.__name__.lower()}", f"{share:.1%} of pixels changed"
    report.add_best(key, times, note=note)


LAYERS = {
    "64 -> 64, 3x3, batch 8 at 96": (8, 96, 64, 64, 3, 1, 1),
    "16 -> 32, 3x3, batch 8 at 96": (8, 96, 16, 32, 3, 1, 1),
    "64 -> 64, 3x3, batch 1 at 56": (1, 56, 64, 64, 3, 1, 1),
    "128 -> 128, 3x3, batch 1 at 28": (1, 28, 128, 128, 3, 1, 1),
    "3 -> 64, 7x7 stride 2, batch 1 at 224": (1, 224, 3, 64, 7, 2, 1),
    "128 -> 256, 1x1, batch 4 at 56": (4, 56, 128, 256, 1, 1, 1),
    "64 -> 128, 3x3 stride 2, batch 4 at 56": (4, 56, 64, 128, 3, 2, 1),
    "64 depthwise, 3x3, batch 8 at 96": (8, 96, 64, 64, 3, 1, 64),
}
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)


@pytest.mark.parametrize("name", list(LAYERS))
def test_crossover(duel: Duel, report: Report, name: str) -> None:
    """The shipped choice over the better of sparse and dense, fresh sites every time."""
    batch, size, c_in, c_out, kernel, stride, groups = LAYERS[name]
    layer = ds.nn.SparseConv2d(
        *(c_in, c_out, kernel), stride=stride, padding=kernel // 2, groups=groups
    ).to(memory_format=torch.channels_last)
    worst = (0.0, 0.0, 0.0)
    for density in DENSITIES:
        active = workloads.blobs(batch, size, density)
        coords = active.nonzero().int().contiguous()
        x = ds.SparseTensor(torch.rand(len(coords), c_in), coords, (size, size), batch)
        dense = x.to_dense().to(memory_format=torch.channels_last)

        rounds, warmup = 9, 2
        copies = range(2 * (rounds + warmup))
        fresh = iter([ds.SparseTensor(x.features, coords, (size, size), batch) for _ in copies])

        def run(crossover: str | None, fresh: Iterator[ds.SparseTensor] = fresh) -> None:
            ds.set_crossover(crossover)
            layer(next(fresh))
            ds.set_crossover("auto")

        with torch.no_grad():
            actions = {
                "sparse": lambda: run(None),  # noqa: B023 (called in this turn)
                "auto": lambda: run("auto"),  # noqa: B023
                "dense": lambda: layer(dense),  # noqa: B023
            }
            times = interleave(actions, rounds, warmup)
        ratios = [
            auto / min(sparse, plain)
            for sparse, auto, plain in zip(*times.values(), strict=True)
        ]
        median = sorted(ratios)[len(ratios) // 2]
        worst = max(worst, (median, density, milliseconds(times["auto"])))
    report.add(
        f"crossover-{name}",
        worst[0],
        ms=worst[2],
        note=f"worst of 0.5 .. 100 %, at {worst[1]:.1%}",
    )
