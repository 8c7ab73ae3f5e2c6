"""What one call costs before any arithmetic: 10 sites, a cached rulebook, a ground of zero."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.bench import interleave
from report import Report


@pytest.mark.parametrize("grad", [False, True], ids=["no-grad", "grad"])
def test_call(report: Report, benchmark: Any, grad: bool) -> None:
    coords = torch.stack([torch.zeros(10), torch.arange(10.0), torch.arange(10.0)], 1).int()
    x = ds.SparseTensor(torch.rand(10, 8), coords, (64, 64), 1)
    layer = ds.nn.SparseConv2d(8, 8, 3, padding=1)
    dense = torch.rand(1, 8, 8, 8)
    with torch.set_grad_enabled(grad):
        layer(x)
        benchmark(layer, x)
        peer = interleave({"torch": lambda: F.conv2d(dense, layer.weight, layer.bias)}, 200)[
            "torch"
        ]
    us = 1e6 * benchmark.stats.stats.median
    report.add(
        "call-grad" if grad else "call-no-grad",
        us,
        ms=us / 1e3,
        peer="F.conv2d on 8 x 8",
        peer_ms=1e3 * statistics.median(peer),
    )


def test_call_and_backward(report: Report, benchmark: Any) -> None:
    coords = torch.stack([torch.zeros(10), torch.arange(10.0), torch.arange(10.0)], 1).int()
    x = ds.SparseTensor(torch.rand(10, 8), coords, (64, 64), 1).requires_grad_()
    layer = ds.nn.SparseConv2d(8, 8, 3, padding=1)
    dy = torch.rand_like(layer(x).features)
    benchmark(lambda: layer(x).features.backward(dy))
    us = 1e6 * benchmark.stats.stats.median
    report.add(
        "call-backward",
        us,
        what="SparseConv2d call and its backward, 10 sites",
        unit="us",
        ms=us / 1e3,
    )
