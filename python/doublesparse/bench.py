"""Measuring: alternating timings, what the machine can do, and `python -m doublesparse bench`.

Absolute times mean little on shared machines, whose speed drifts by half within minutes. So
everything is measured against something else in the same run: the two alternate, round by round,
and the ratio of each round is taken before the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Action = Callable[[], object]


def interleave(
    actions: dict[str, Action], rounds: int = 7, warmup: int = 1
) -> dict[str, list[float]]:
    """Times several actions in turn.

    Args:
        actions: what to time, by name; each is called once per round, in the order given.
        rounds: how many rounds are kept.
        warmup: how many rounds run before those.

    Returns:
        Seconds of each round, by name. Entry i of every list comes from the same round.

    Raises:
        ValueError: rounds is not positive.

    >>> times = interleave({"a": lambda: None, "b": lambda: None}, rounds=3)
    >>> sorted(times), len(times["a"])
    (['a', 'b'], 3)
    """
    if rounds < 1:
        raise ValueError(f"interleave: rounds must be positive, got {rounds}; use rounds=7")
    times: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(warmup + rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            elapsed = time.perf_counter() - start
            if i >= warmup:
                times[name].append(elapsed)
    return times


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median over rounds of numerator / denominator, each taken within one round.

    >>> paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def milliseconds(seconds: Sequence[float]) -> float:
    """The median, in milliseconds.

    >>> milliseconds([0.001, 0.003, 0.002])
    2.0
    """
    return 1e3 * statistics.median(seconds)


def matmul_action(size: int = 2048, dtype: torch.dtype = torch.float32) -> tuple[Action, float]:
    """A square `torch.mm` to measure others against.

    Returns:
        The action and its floating-point operations.
    """
    a = torch.rand(size, size).to(dtype)
    b = torch.rand(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def ceilings(rounds: int = 5) -> dict[str, float]:
    """What this machine can do with the current number of threads.

    Returns:
        `mm_gflops`: `torch.mm` of 2048 x 2048 float32; `copy_gbs`: reading and writing 256 MiB;
        `gather_gbs`: reading random rows of 64 float32 out of 256 MiB and writing them in order.
    """
    matmul, flops = matmul_action()
    rows = torch.rand(1 << 20, 64)
    target = torch.empty_like(rows)
    index = torch.randint(len(rows), (len(rows),), generator=torch.Generator().manual_seed(0))
    moved = 2.0 * rows.numel() * rows.element_size()
    times = interleave(
        {
            "mm": matmul,
            "copy": lambda: target.copy_(rows),
            "gather": lambda: torch.index_select(rows, 0, index, out=target),
        },
        rounds,
    )
    middle = {name: statistics.median(values) for name, values in times.items()}
    return {
        "mm_gflops": flops / middle["mm"] / 1e9,
        "copy_gbs": moved / middle["copy"] / 1e9,
        "gather_gbs": moved / middle["gather"] / 1e9,
    }


def surface(extent: int = 192, n_rays: int = 60000, seed: int = 0) -> torch.Tensor:
    """A bumpy sheet in a cube: voxels of the kind that a depth sensor sees.

    Returns:
        int32 (n_sites, 4): batch 0 and three indices below `extent`, sorted and unique.
    """
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, n_rays, generator=generator, dtype=torch.float64)
    height = 0.5 + 0.2 * torch.sin(7 * u) * torch.cos(5 * v) + 0.05 * torch.sin(40 * u * v)
    voxels = (torch.stack([torch.zeros_like(u), height, u, v], 1) * extent).int()
    return torch.unique(voxels, dim=0)


def quick(channels: Sequence[int] = (32, 64, 128), rounds: int = 5) -> list[dict[str, Any]]:
    """Times a 3x3x3 submanifold convolution against `torch.mm`, one row per channel count."""
    import doublesparse as ds

    extent = 192
    coords = surface(extent)
    matmul, matmul_flops = matmul_action()
    table = []
    for c in channels:
        x = ds.SparseTensor(torch.rand(len(coords), c), coords, (extent,) * 3, ground=None)
        layer = ds.nn.SubmanifoldConv3d(c, c, 3, bias=False)
        geometry = ds.Geometry((3, 3, 3), padding=(1, 1, 1))
        n_pairs = ds.build_rulebook(x.sites, geometry, kind="submanifold").n_pairs
        with torch.no_grad():
            times = interleave({"mm": matmul, "conv": lambda: layer(x)}, rounds)  # noqa: B023
        flops = 2.0 * n_pairs * c * c
        table.append(
            {
                "channels": c,
                "sites": len(coords),
                "pairs": n_pairs,
                "ms": milliseconds(times["conv"]),
                "gflops": flops / milliseconds(times["conv"]) / 1e6,
                "share_of_mm": paired_ratio(times["mm"], times["conv"]) * flops / matmul_flops,
            }
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m doublesparse bench`: a minute's look; `make bench` is the full table."""
    parser = argparse.ArgumentParser(prog="python -m doublesparse bench", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        result = {"threads": args.threads, "machine": ceilings(), "submanifold_3x3x3": quick()}
    finally:
        torch.set_num_threads(before)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    machine: Any = result["machine"]
    print(
        f"torch.mm {machine['mm_gflops']:.0f} GFLOP/s, copy {machine['copy_gbs']:.1f} GB/s, "
        f"gather {machine['gather_gbs']:.1f} GB/s, {args.threads} thread(s)"
    )
    rows: Any = result["submanifold_3x3x3"]
    for row in rows:
        print(
            f"submanifold 3x3x3, {row['channels']:3d} channels, {row['sites']} sites: "
            f"{row['ms']:7.2f} ms, {row['gflops']:6.1f} GFLOP/s, "
            f"{row['share_of_mm']:.2f} of torch.mm"
        )
    return 0
