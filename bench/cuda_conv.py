"""Convolutions on a GPU: scenes against spconv and the dense GEMM's rate, strokes against cuDNN."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import doublesparse as ds
import workloads
from cuda_harness import Bench, rate_share, rows_close
from doublesparse import _gpu_ops as ops
from doublesparse.bench import Action
from peers_cuda import Spconv

CUBE = ((3,) * 3, (1,) * 3, (1,) * 3, (1,) * 3)
SQUARE = ((3,) * 2, (1,) * 2, (1,) * 2, (1,) * 2)
Scene = tuple[Tensor, tuple[int, ...]]


def lidar() -> Scene:
    """The scan of the CPU benchmarks: sorted int32 sites, extents."""
    scene = workloads.load("lidar")
    return scene.coords, scene.spatial_shape


def cloud(n_points: int = 198_130, voxel: float = 0.05) -> Scene:
    """A synthetic scan of a street, in small voxels."""
    points, _ = ds.data.voxel.scan(n_points=n_points, seed=0)
    ones = torch.ones(len(points), 1)
    x, _ = ds.functional.voxelize(points, ones, voxel, origin=points.amin(0), ground=None)
    return x.coords, tuple(x.spatial_shape)


def submanifold(bench: Bench, name: str, scene: Scene, widths: tuple[int, ...] = (64, 128)) -> None:
    """Forward and backward of one layer, and its rulebook, against spconv where it is installed."""
    coords, shape = scene[0].contiguous().to(bench.device), scene[1]
    narrow, narrow_weight = (
        torch.ones(n, dtype=torch.bfloat16, device=bench.device) for n in (len(coords) * 8, 1728)
    )

    def rulebook() -> Any:
        return ops.build_pairs(coords, coords, shape, *CUBE, symmetric=True).reversed()

    def rulebook_and_order() -> None:
        # What spconv's index has too: rows sorted by the offsets they have. Ours are sorted by the
        # first convolution, so one of 8 channels is in our time.
        ops.conv(narrow.view(-1, 8), narrow_weight.view(8, 8, 27), rulebook(), len(coords))

    pairs = rulebook()
    peer = Spconv.found(coords, shape)
    builders: dict[str, Action] = {"ours": rulebook_and_order}
    if peer:
        builders["spconv"] = peer.rulebook(3)
    sites = f"{len(coords)} sites, batch 1, {pairs.n_pairs} pairs"
    times = bench.wall_times(builders)
    bench.add(f"{name}-rulebook", times, note=f"{sites}; ours with a pass of 8 channels")
    for c in widths:
        x, dy = (_values(len(coords), c, bench, seed) for seed in (1, 2))
        weight = _values(c * c * 27, 1, bench, 3).view(c, c, 27)
        forward: dict[str, Action] = {"ours": lambda x=x, w=weight: ops.conv(x, w, pairs, len(x))}

        def gradients(x: Tensor = x, dy: Tensor = dy, w: Tensor = weight) -> None:
            ops.conv_input_grad(dy, w, pairs, len(x))
            ops.conv_weight_grad(x, dy, pairs)

        backward: dict[str, Action] = {"ours": gradients}
        if peer:
            run, back = peer.submanifold(weight.view(c, c, 3, 3, 3), x, dy)
            rows_close(forward["ours"](), run(), 0.05)
            forward["spconv fp16"], backward["spconv fp16"] = run, back
        flops = 2.0 * pairs.n_pairs * c * c
        note = f"{sites}, rulebook remembered"
        bench.add(f"{name}-forward-{c}", bench.device_times(forward), flops, note=note)
        bench.add(f"{name}-backward-{c}", bench.device_times(backward), 2 * flops, note=note)


def gemm_share(bench: Bench, scene: Scene, c: int, size: int = 8192) -> None:
    """The useful rate of the forward pass, of that of a large dense product in the same rounds."""
    coords = scene[0].contiguous().to(bench.device)
    pairs = ops.build_pairs(coords, coords, scene[1], *CUBE, symmetric=True).reversed()
    x, a = _values(len(coords), c, bench, 1), _values(size, size, bench, 2)
    weight = _values(c * c * 27, 1, bench, 3).view(c, c, 27)
    times = bench.device_times(
        {"ours": lambda: ops.conv(x, weight, pairs, len(x)), "mm": lambda: a @ a}
    )
    flops = 2.0 * pairs.n_pairs * c * c
    bench.report.add(
        f"gemm-share-{c}",
        rate_share(times, flops, 2.0 * size**3),
        ms=1e3 * sorted(times["ours"])[len(times["ours"]) // 2],
        note=f"lidar, {len(coords)} sites, mm is {size}^3 bf16",
    )


def strokes(bench: Bench, batch: int = 256, c: int = 64) -> None:
    """A padded 3x3 layer on pen strokes: its run, and its run with the rulebook, against cuDNN."""
    height, width = workloads.STROKE_SHAPE
    one = torch.from_numpy(workloads.strokes(0.05))
    n_images = int(one[:, 0].max()) + 1
    shift = torch.tensor([n_images, 0, 0], dtype=torch.int32)
    copies = [one + i * shift for i in range(-(-batch // n_images))]
    coords = torch.cat(copies)
    coords = coords[coords[:, 0] < batch].contiguous().to(bench.device)
    shape = (height, width)

    def rulebook() -> tuple[Any, int]:
        out = ops.output_coords(coords, shape, shape, *SQUARE, False)
        return ops.build_pairs(out, coords, shape, *SQUARE).reversed(), len(out)

    pairs, n_out = rulebook()
    x = _values(len(coords), c, bench, 1)
    weight = _values(c * c * 9, 1, bench, 3).view(c, c, 9)
    dense = torch.zeros(batch, c, height, width, dtype=x.dtype, device=bench.device)
    dense = dense.contiguous(memory_format=torch.channels_last)
    place = coords.long().unbind(1)
    dense[place[0], :, place[1], place[2]] = x
    kernel = weight.view(c, c, 3, 3).contiguous(memory_format=torch.channels_last)
    y = F.conv2d(dense, kernel, padding=1)
    at = ops.output_coords(coords, shape, shape, *SQUARE, False).long().unbind(1)
    rows_close(ops.conv(x, weight, pairs, n_out), y[at[0], :, at[1], at[2]], 0.05)
    name = "cuDNN channels_last" if bench.on_gpu else "torch channels_last"
    peer = {name: lambda: F.conv2d(dense, kernel, padding=1)}
    times = bench.device_times({"ours": lambda: ops.conv(x, weight, pairs, n_out), **peer})
    note = f"{len(coords)} of {batch * height * width} pixels"
    bench.add("strokes", times, 2.0 * pairs.n_pairs * c * c, note=f"{note}, rulebook remembered")

    def both() -> None:
        fresh, n = rulebook()
        ops.conv(x, weight, fresh, n)

    what = "strokes 5 %, 64->64 3x3, with output sites and rulebook"
    times = bench.wall_times({"ours": both, **peer})
    bench.add("strokes-with-rulebook", times, what=what, unit="x", note=note)


def _values(rows: int, columns: int, bench: Bench, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).bfloat16().to(bench.device)
