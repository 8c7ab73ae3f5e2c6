"""Pen strokes against torch's dense layers: one layer with its rulebook; a training step."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
import peers
import workloads
from doublesparse.bench import milliseconds
from report import Report

Duel = Callable[..., dict[str, list[float]]]
N_CLASSES, BATCH = 10, 100


@pytest.mark.parametrize("name", list(workloads.STROKE_DENSITIES))
def test_layer(duel: Duel, report: Report, name: str) -> None:
    """64 -> 64, 3x3, padding 1: every round has new Sites, so its rulebook is inside the time."""
    load = workloads.load(name)
    layer = ds.nn.SparseConv2d(64, 64, 3, padding=1, bias=False)
    dense = load.tensor(64, ground=0.0).to_dense()
    with torch.no_grad():
        x = load.tensor(64, ground=0.0)
        geometry = ds.Geometry((3, 3), padding=(1, 1))
        flops = 2.0 * ds.build_rulebook(x.sites, geometry, kind="conv").n_pairs * 64 * 64
        torch.testing.assert_close(
            layer(x).to_dense(), F.conv2d(dense, layer.weight, padding=1), rtol=1e-3, atol=1e-3
        )
        others = {
            peer: peers.DenseConv2d(dense, layer.weight, layout).forward
            for peer, layout in peers.dense_formats().items()
        }
        times = duel(layer, others, fresh=lambda: load.tensor(64, ground=0.0))
    percent = round(100 * workloads.STROKE_DENSITIES[name])
    key = name.replace("_", "-")
    what = (
        {"what": f"strokes {percent} %, the same", "unit": "x"}
        if key not in ("strokes-d05",)
        else {}
    )
    report.add_best(key, times, gflops=flops / milliseconds(times["ours"]) / 1e6, **what)


def pen_characters() -> tuple[list[ds.data.pen.Character], str]:
    """100 written characters of 10 classes, and where they come from."""
    folder = os.environ.get("DOUBLESPARSE_DATA")
    if folder:
        try:
            return ds.data.pen.load_pendigits(folder)[1][:BATCH], "Pendigits"
        except FileNotFoundError:
            pass
    glyphs = ds.data.glyphs
    return glyphs.make_characters(BATCH, classes=glyphs.CLASSES[:N_CLASSES]), "generated characters"


def test_deepcnet_step(duel: Duel, report: Report) -> None:
    """Forward, loss, backward and SGD step of DeepCNet(5, 64), rulebooks built anew every round."""
    torch.manual_seed(0)
    model = ds.models.DeepCNet(5, 64, N_CLASSES)
    characters, origin = pen_characters()
    data = ds.data.pen.PenDataset(characters, model.input_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def fresh() -> ds.SparseTensor:
        return data.batch(range(BATCH))[0]

    def step(x: torch.Tensor | ds.SparseTensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), data.labels).backward()
        optimizer.step()

    grid = fresh().to_dense()
    layouts = peers.dense_formats().items()
    dense = {name: grid.contiguous(memory_format=layout) for name, layout in layouts}
    with torch.no_grad():
        torch.testing.assert_close(model(fresh()), model(grid), rtol=1e-3, atol=1e-3)
    others = {name: lambda x=x: step(x) for name, x in dense.items()}
    times = duel(step, others, fresh=fresh)
    rate = 1e3 * BATCH / milliseconds(times["ours"])
    note = f"{origin}, {fresh().sites.n_sites / BATCH:.0f} pixels each, {rate:.0f} images/s"
    report.add_best("deepcnet-step", times, note=note)
