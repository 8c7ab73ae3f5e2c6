"""bfloat16: on AMX against torch's bfloat16 and spconv's float32, elsewhere against float32.

Without matrix tiles torch multiplies bfloat16 at 1 GFLOP/s on some machines: no peer there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
import peers
import workloads
from doublesparse import info
from doublesparse.bench import matmul_action, milliseconds, paired_ratio
from report import Report
from test_bench_conv import KERNEL, work

Duel = Callable[..., dict[str, list[float]]]
HALF = torch.bfloat16
AMX = info.collect()["isa"]["chosen"] == "amx"
needs_amx = pytest.mark.skipif(not AMX, reason="the bars of bfloat16 are for AMX, not found here")


def add(
    report: Report, key: str, times: dict[str, list[float]], peer: str, **parts: object
) -> None:
    """The peer's time over ours."""
    report.add(
        key,
        paired_ratio(times[peer], times["ours"]),
        ms=milliseconds(times["ours"]),
        peer=peer,
        peer_ms=milliseconds(times[peer]),
        **parts,
    )


def lidar(channels: int) -> tuple[ds.SparseTensor, ds.nn.SubmanifoldConv3d]:
    """The scan in float32, and a bfloat16 layer."""
    layer = ds.nn.SubmanifoldConv3d(channels, channels, KERNEL, bias=False, dtype=HALF)
    return workloads.load("lidar").tensor(channels, ground=None), layer


@needs_amx
@pytest.mark.parametrize("channels", [64, 128])
def test_lidar(duel: Duel, report: Report, channels: int) -> None:
    """Share of torch.mm bfloat16, and times spconv's float32."""
    x, layer = lidar(channels)
    half, (flops, _) = x.to(HALF), work(x, channels)
    matmul, matmul_flops = matmul_action(dtype=HALF)
    others = {"torch.mm bfloat16": matmul}
    if peers.Spconv.unavailable() is None:
        load = workloads.load("lidar")
        spconv = peers.Spconv(load.coords, load.spatial_shape, load.batch_size)
        peer, _ = spconv.submanifold(layer.weight.detach().float())
        others["spconv float32"] = lambda: peer(x.features)
    with torch.no_grad():
        times = duel(lambda: layer(half), others)
    ratio = paired_ratio(times["torch.mm bfloat16"], times["ours"])
    report.add(
        f"bf16-lidar-{channels}",
        ratio * flops / matmul_flops,
        ms=milliseconds(times["ours"]),
        gflops=flops / milliseconds(times["ours"]) / 1e6,
        peer="torch.mm bfloat16",
        peer_ms=milliseconds(times["torch.mm bfloat16"]),
    )
    if "spconv float32" in times:
        add(report, f"bf16-spconv-{channels}", times, "spconv float32")


@needs_amx
def test_strokes(duel: Duel, report: Report) -> None:
    """64 -> 64, 3x3 on strokes of 5 %, rulebook included."""
    load = workloads.load("strokes_d05")
    layer = ds.nn.SparseConv2d(64, 64, 3, padding=1, bias=False, dtype=HALF)
    dense = load.tensor(64, ground=0.0).to_dense().to(HALF, memory_format=torch.channels_last)
    weight = layer.weight.detach().to(memory_format=torch.channels_last)
    peer = "torch bfloat16 channels_last"
    with torch.no_grad():
        times = duel(
            layer,
            {peer: lambda: F.conv2d(dense, weight, padding=1)},
            fresh=lambda: load.tensor(64, ground=0.0).to(HALF),
        )
    add(report, "bf16-strokes-d05", times, peer)


@pytest.mark.skipif(AMX, reason="AMX has rows of its own")
@pytest.mark.parametrize("channels", [64, 128])
def test_widened(duel: Duel, report: Report, channels: int) -> None:
    """What bfloat16 costs where it is widened: the same layer in float32."""
    x, layer = lidar(channels)
    wide = ds.nn.SubmanifoldConv3d(channels, channels, KERNEL, bias=False)
    half = x.to(HALF)
    with torch.no_grad():
        times = duel(lambda: layer(half), {"ours float32": lambda: wide(x)})
    what = f"lidar forward, {channels} channels, bfloat16 widened, against float32"
    add(report, f"widened-lidar-{channels}", times, "ours float32", what=what, unit="x")
