"""bfloat16: AMX where the machine has it, against torch's bfloat16 and spconv's float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
import peers
import workloads
from doublesparse.bench import matmul_action, milliseconds, paired_ratio
from report import Report
from test_bench_conv import KERNEL, work

Duel = Callable[..., dict[str, list[float]]]
HALF = torch.bfloat16


def key(name: str) -> str:
    """The bars are for AMX; without it the row is another one."""
    return name if ds.info.collect()["isa"]["chosen"] == "amx" else f"{name}-no-amx"


@pytest.mark.parametrize("channels", [64, 128])
def test_lidar(duel: Duel, report: Report, channels: int) -> None:
    """Share of torch.mm bfloat16, and times spconv's float32."""
    x = workloads.load("lidar").tensor(channels, ground=None)
    flops, _ = work(x, channels)
    half = x.to(HALF)
    layer = ds.nn.SubmanifoldConv3d(channels, channels, KERNEL, bias=False, dtype=HALF)
    matmul, matmul_flops = matmul_action(dtype=HALF)
    others = {"mm": matmul}
    if peers.Spconv.unavailable() is None:
        load = workloads.load("lidar")
        spconv = peers.Spconv(load.coords, load.spatial_shape, load.batch_size)
        peer, _ = spconv.submanifold(layer.weight.detach().float())
        others["spconv"] = lambda: peer(x.features)
    with torch.no_grad():
        times = duel(lambda: layer(half), others)
    ms = milliseconds(times["ours"])
    report.add(
        key(f"bf16-lidar-{channels}"),
        paired_ratio(times["mm"], times["ours"]) * flops / matmul_flops,
        ms=ms,
        gflops=flops / ms / 1e6,
        peer="torch.mm bfloat16",
        peer_ms=milliseconds(times["mm"]),
        note=ds.info.collect()["isa"]["chosen"],
    )
    if "spconv" in times:
        report.add(
            key(f"bf16-spconv-{channels}"),
            paired_ratio(times["spconv"], times["ours"]),
            ms=ms,
            peer="spconv float32",
            peer_ms=milliseconds(times["spconv"]),
        )


def test_strokes(duel: Duel, report: Report) -> None:
    """64 -> 64, 3x3 on strokes of 5 %, rulebook included."""
    load = workloads.load("strokes_d05")
    layer = ds.nn.SparseConv2d(64, 64, 3, padding=1, bias=False, dtype=HALF)
    dense = load.tensor(64, ground=0.0).to_dense().to(HALF)
    dense = dense.to(memory_format=torch.channels_last)
    weight = layer.weight.detach().to(memory_format=torch.channels_last)
    with torch.no_grad():
        times = duel(
            layer,
            {"dense": lambda: F.conv2d(dense, weight, padding=1)},
            fresh=lambda: load.tensor(64, ground=0.0).to(HALF),
        )
    report.add(
        key("bf16-strokes-d05"),
        paired_ratio(times["dense"], times["ours"]),
        ms=milliseconds(times["ours"]),
        peer="torch bfloat16 channels_last",
        peer_ms=milliseconds(times["dense"]),
    )
