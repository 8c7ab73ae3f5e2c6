"""All GPU benchmarks, cheapest first: `python bench/cuda_bench.py [--rounds N] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import cuda_conv
import cuda_network
import cuda_pruned
from cuda_harness import Bench


def benchmarks(bench: Bench) -> dict[str, Callable[[], None]]:
    """By name, scenes made when they are needed."""
    pruned = cuda_pruned
    return {
        "lidar": lambda: cuda_conv.submanifold(bench, "lidar", cuda_conv.lidar()),
        "cloud": lambda: cuda_conv.submanifold(bench, "cloud", cuda_conv.cloud()),
        "gemm share 128": lambda: cuda_conv.gemm_share(bench, cuda_conv.lidar(), 128),
        "gemm share 256": lambda: cuda_conv.gemm_share(bench, cuda_conv.lidar(), 256),
        "strokes": partial(cuda_conv.strokes, bench),
        "minkunet": lambda: cuda_network.minkunet(bench, cuda_conv.lidar()),
        **{f"spmm {p}": partial(pruned.spmm, bench, p) for p in (90, 95)},
        **{
            f"bitmap {p} {n}": partial(pruned.bitmap, bench, p, (4096, n))
            for n in (4096, 14336)
            for p in (50, 70, 90)
        },
        **{
            f"blocks of {size} {p}": partial(pruned.blocks, bench, p, size)
            for size in (64, 128)
            for p in (70, 90)
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them.

    Returns:
        1 where one failed, or where there is no GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=None, help="where to write rows and table")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("cuda_bench: no GPU that torch can use", file=sys.stderr)
        return 1
    bench = Bench(torch.device("cuda"), args.rounds)
    name = torch.cuda.get_device_name()
    for title, benchmark in benchmarks(bench).items():
        print(f"{title} ...", flush=True)
        bench.run(title, benchmark)
        _write(bench, name, args.json)  # what there is, should the next one not end
    print(bench.report.text())
    print("\n".join(f"FAILED {line}" for line in bench.failures))
    print(f"{len(bench.report.rows)} rows on {name}, {len(bench.failures)} benchmarks failed")
    return int(bool(bench.failures))


def _write(bench: Bench, name: str, path: Path | None) -> None:
    if path is None:
        return
    rows = [asdict(row) | {"verdict": row.verdict} for row in bench.report.ordered()]
    content = {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rounds": bench.rounds,
        "rows": rows,
        "failures": bench.failures,
        "table": bench.report.text(),
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
