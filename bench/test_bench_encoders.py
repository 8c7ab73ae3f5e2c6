"""The double sparsity encoder against a dense one (LISTA) of the same width, inference."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from doublesparse.bench import interleave, milliseconds, paired_ratio
from doublesparse.demo._encoders import Arm, Shape, make, packed
from report import Report

ATOMS, KEPT = (32, 32), 20  # of 28 x 28 pixels; weights kept in a row or column


@pytest.mark.parametrize("batch", [1, 500])
@pytest.mark.parametrize("neuron", ["soft", "topm"])
@pytest.mark.parametrize("width", [256, 1024, 2048])
def test_encoder(
    request: pytest.FixtureRequest, report: Report, width: int, neuron: str, batch: int
) -> None:
    """Two unfolded steps, packed weights; the dense one's time over ours."""
    shape = Shape(784, ATOMS, width, KEPT, 2, learnt={})
    x = torch.randn(batch, 784, generator=torch.Generator().manual_seed(0))
    models = {f: packed(make(Arm(f, neuron, "random"), shape, 2.8, 0)) for f in ("DDSE", "LISTA")}
    for model in models.values():
        model.set_progress(1.0)
    with torch.no_grad():
        calls = {name: partial(model, x) for name, model in models.items()}
        times = interleave(calls, request.config.getoption("--rounds"), warmup=3)
    us = {name: 1e3 * milliseconds(times[name]) / batch for name in times}
    report.add(
        f"encoder-{width}-{neuron}-{batch}",
        paired_ratio(times["LISTA"], times["DDSE"]),
        note=f"us an image: DDSE {us['DDSE']:.1f}, LISTA {us['LISTA']:.1f}",
        what=f"double sparsity encoder over LISTA, {width} codes, {neuron}, batch {batch}",
        unit="x",
    )
