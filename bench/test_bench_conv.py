"""3-D submanifold convolution of a LiDAR scan: shares of torch.mm, and two threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

import doublesparse as ds
import workloads
from doublesparse.bench import Action, interleave, matmul_action, milliseconds, paired_ratio
from report import Report

KERNEL = 3
Duel = Callable[..., dict[str, list[float]]]


def work(x: ds.SparseTensor, c_out: int) -> tuple[float, float]:
    """Useful flops of one pass, and the bytes it cannot avoid moving through the caches.

    Every pair reads one input row and two row numbers; every output row is written once; the weight
    is read once.
    """
    geometry = ds.Geometry((KERNEL,) * 3, padding=(KERNEL // 2,) * 3)
    n_pairs = ds.build_rulebook(x.sites, geometry, kind="submanifold").n_pairs
    c_in = x.features.shape[1]
    moved = n_pairs * (4 * c_in + 8) + 4 * x.sites.n_sites * c_out + 4 * KERNEL**3 * c_in * c_out
    return 2.0 * n_pairs * c_in * c_out, float(moved)


def share(
    duel: Duel, report: Report, key: str, ours: Action, x: ds.SparseTensor, c_out: int, **parts: Any
) -> None:
    """Times `ours` against torch.mm 2048^3 and reports the ratio of the two rates."""
    matmul, matmul_flops = matmul_action()
    times = duel(ours, {"mm": matmul})
    flops, moved = work(x, c_out)
    ms = milliseconds(times["ours"])
    report.add(
        key,
        paired_ratio(times["mm"], times["ours"]) * flops / matmul_flops,
        ms=ms,
        gflops=flops / ms / 1e6,
        gbs=moved / ms / 1e6,
        peer="torch.mm",
        peer_ms=milliseconds(times["mm"]),
        **parts,
    )


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 32), (16, 16), (32, 32), (64, 64), (128, 128)])
def test_forward(duel: Duel, report: Report, c_in: int, c_out: int) -> None:
    x = workloads.load("lidar").tensor(c_in, ground=None)
    layer = ds.nn.SubmanifoldConv3d(c_in, c_out, KERNEL, bias=False)
    square = c_in == c_out
    with torch.no_grad():
        share(
            duel,
            report,
            f"lidar-forward-{c_in}" if square else f"lidar-forward-{c_in}-{c_out}",
            lambda: layer(x),
            x,
            c_out,
            **{}
            if square and c_in >= 32
            else {"what": f"subm 3x3x3 lidar, forward, {c_in} -> {c_out}", "unit": "of torch.mm"},
        )


def test_forward_float64(duel: Duel, report: Report) -> None:
    x = workloads.load("lidar").tensor(64, ground=None)
    x = x.replace(features=x.features.double())
    layer = ds.nn.SubmanifoldConv3d(64, 64, KERNEL, bias=False, dtype=torch.float64)
    parts = {
        "what": "subm 3x3x3 lidar, forward, 64, float64",
        "unit": "of torch.mm",
        "note": "mm is float32",
    }
    with torch.no_grad():
        share(duel, report, "lidar-forward-float64", lambda: layer(x), x, 64, **parts)


@pytest.mark.parametrize("wanted", ["input", "weight"])
def test_gradient(duel: Duel, report: Report, wanted: str) -> None:
    """One gradient alone: the other operand does not require one."""
    x = workloads.load("lidar").tensor(64, ground=None)
    layer = ds.nn.SubmanifoldConv3d(64, 64, KERNEL, bias=False)
    layer.weight.requires_grad_(wanted == "weight")
    features = x.features.requires_grad_(wanted == "input")
    leaf = features if wanted == "input" else layer.weight
    y = layer(x.replace(features=features)).features
    dy = torch.rand_like(y) - 0.5
    share(
        duel,
        report,
        f"lidar-{wanted}-grad-64",
        lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True),
        x,
        64,
    )


def test_two_threads(report: Report, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """Scaling from one thread to two, over the scaling of torch.mm in the same rounds."""
    if len(os.sched_getaffinity(0)) < 2:
        reason = "this process may use one core only"
        report.add("two-threads", None, note=reason)
        pytest.skip(reason)
    x = workloads.load("lidar").tensor(64, ground=None)
    layer = ds.nn.SubmanifoldConv3d(64, 64, KERNEL, bias=False)
    matmul, _ = matmul_action()

    def on(threads: int, action: Action) -> Action:
        def run() -> None:
            torch.set_num_threads(threads)
            action()

        return run

    rounds = request.config.getoption("--rounds")
    with torch.no_grad():
        layer(x)
        actions = {"mm 1": on(1, matmul), "ours 1": on(1, lambda: layer(x))}
        actions |= {"mm 2": on(2, matmul), "ours 2": on(2, lambda: layer(x))}
        times = interleave(actions, rounds, warmup=2)
        torch.set_num_threads(2)
        benchmark.pedantic(layer, args=(x,), rounds=rounds)
    ours = [one / two for one, two in zip(times["ours 1"], times["ours 2"], strict=True)]
    matmuls = [one / two for one, two in zip(times["mm 1"], times["mm 2"], strict=True)]
    report.add(
        "two-threads",
        paired_ratio(ours, matmuls),
        ms=milliseconds(times["ours 2"]),
        peer="torch.mm on two",
        peer_ms=milliseconds(times["mm 2"]),
        note=f"ours x{sorted(ours)[rounds // 2]:.2f}, torch.mm x{sorted(matmuls)[rounds // 2]:.2f}",
    )
