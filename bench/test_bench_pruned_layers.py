"""Pruned layers: a training step, a convolution on images, one that is sparse in sites too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import doublesparse as ds
import peers
import peers_pruned
import pruned_weights
import workloads
from doublesparse.bench import interleave, milliseconds
from report import Report
from test_bench_pruned import HALF, ROWS, few, half_row

Duel = Callable[..., dict[str, list[float]]]
BATCH, CHANNELS, SIZE = 16, 256, 14


@pytest.mark.parametrize("size", [1024, 4096])
def test_training_step(duel: Duel, report: Report, size: int) -> None:
    """Forward and both gradients, 90 % pruned.

    The kept values are gathered from the dense parameter in every step, and the gradient goes back
    into a dense one.
    """
    weight, mask = pruned_weights.pruned(size, size, 0.9)
    weight = weight.clone().requires_grad_()
    x = pruned_weights.activations(ROWS, size).requires_grad_()
    dy = pruned_weights.activations(ROWS, size).flip(0)

    def ours() -> tuple[torch.Tensor, ...]:
        y = ds.functional.masked_linear(x, weight, mask)
        return torch.autograd.grad(y, (x, weight), dy)

    def dense() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(F.linear(x, weight), (x, weight), dy)

    for got, want in zip(ours(), (dense()[0], dense()[1] * mask), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    report.add_best(
        f"train-{size}", duel(ours, {"torch F.linear": dense}, at_most=few(weight, ROWS))
    )


def test_backward(duel: Duel, report: Report) -> None:
    """Both gradients by the raw operators: where every other library loses to dense."""
    size = 4096
    weight, mask = pruned_weights.pruned(size, size, 0.9)
    x = pruned_weights.activations(ROWS, size)
    dy = x.flip(0)
    packed = ds.PackedWeight.pack(weight, mask, ds.Unstructured())
    peers_pruned.check("spmm_t", ds.functional.spmm_t(packed, dy), weight.t(), dy)
    times = duel(
        lambda: (ds.functional.spmm_t(packed, dy), ds.functional.sddmm(dy, x, packed)),
        {"torch mm": lambda: (dy @ weight, dy.t() @ x)},
        at_most=5,
    )
    report.add_best("backward-4096", times)


def conv_layer(pattern: object, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
    """Images, the pruned weight, and a frozen layer of it; the layer's answer is checked."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, CHANNELS, SIZE, SIZE, generator=generator) - 0.5
    torch.manual_seed(0)
    layer = ds.nn.MaskedConv2d(
        *(CHANNELS, CHANNELS, 3), padding=1, bias=False, pattern=pattern, sparsity=0.9
    )
    model = nn.Sequential(layer).to(dtype).eval()
    weight = torch.where(layer.mask, layer.weight.detach(), 0)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    frozen = ds.prune.freeze(model)
    model = frozen if isinstance(frozen, nn.Module) else model
    with torch.no_grad():
        want = F.conv2d(x.double(), weight.double(), padding=1)
        scale = F.conv2d(x.double().abs(), weight.double().abs(), padding=1)
        unit = torch.finfo(torch.float32).eps / 2
        bound = 2 * (weight[0].numel() + 2) * unit * scale + torch.finfo(dtype).eps * want.abs()
        assert ((model(x).double() - want).abs() <= bound).all()
    return x, weight, model


def test_masked_conv(duel: Duel, report: Report) -> None:
    """256 -> 256, 3x3 on 14 x 14, unstructured; DeepSparse's own convolution beside it."""
    x, weight, model = conv_layer(ds.Unstructured(), torch.float32)
    flops = 2.0 * (weight != 0).sum().item() * BATCH * SIZE**2
    others: dict[str, Callable[[], object]] = {
        name: peers.DenseConv2d(x, weight, layout).forward
        for name, layout in peers.dense_formats().items()
    }
    (deepsparse,) = peers_pruned.SPARSE["DeepSparse 1.8"]
    rival = {}
    if deepsparse.unavailable() is None:
        shape = {"kernel_shape": [3, 3], "pads": [1] * 4}
        rival["DeepSparse 1.8"] = peers_pruned.compile_onnx("Conv", x.contiguous(), weight, **shape)
    with torch.no_grad():
        times = duel(lambda: model(x), others | rival)
    theirs = {name: times.pop(name) for name in rival}
    rate = flops / milliseconds(times["ours"]) / 1e6
    report.add_best("masked-conv", times, gflops=rate)
    if theirs:
        what = "the same, against DeepSparse"
        report.add_best(
            "masked-conv-deepsparse", theirs | {"ours": times["ours"]}, what=what, unit="x"
        )


def test_half_masked_conv(duel: Duel, report: Report) -> None:
    """The same in bfloat16, in blocks that matrix tiles like."""
    half_row(report, "bf16-masked-conv")
    x, weight, model = conv_layer(ds.Block(32, 32), HALF)
    name = "torch bfloat16 channels_last"
    dense = peers.DenseConv2d(x, weight, torch.channels_last)
    with torch.no_grad():
        report.add_best("bf16-masked-conv", duel(lambda: model(x), {name: dense.forward}))


@pytest.mark.parametrize("kind", ["submanifold", "conv"])
def test_sites_and_weights(report: Report, kind: str) -> None:
    """80 % of a sparse layer's weight pruned in blocks, over the same layer unpruned.

    Both run on the same sites and find their rulebook remembered, as in every layer of a network
    but the first.
    """
    x = workloads.load("strokes_d05").tensor(64, ground=0.0)
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)) / 24
    masks = {
        f"Block({r}, {c})": ds.prune.magnitude_mask(weight, ds.Block(r, c), 0.8)
        for r, c in ((16, 16), (16, 1), (1, 16))
    }

    def layer(weight: torch.Tensor, mask: torch.Tensor | None = None) -> ds.SparseTensor:
        if kind == "submanifold":
            return ds.functional.submanifold_conv2d(x, weight, mask=mask)
        return ds.functional.conv2d(x, weight, padding=1, mask=mask)

    actions = {name: partial(layer, weight, mask) for name, mask in masks.items()}
    ds.set_crossover(None)
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                want = layer(weight * mask).features
                torch.testing.assert_close(actions[name]().features, want, rtol=1e-3, atol=1e-3)
            times = interleave({"unpruned": partial(layer, weight)} | actions, rounds=9, warmup=2)
    finally:
        ds.set_crossover("auto")
    best = min(masks, key=lambda name: milliseconds(times[name]))
    fight = {"unpruned": times["unpruned"], "ours": times[best]}
    if kind == "submanifold":
        report.add_best("sites-and-weights", fight, note=best)
    for name in masks:
        what = f"strokes 5 %, {kind}, 80 % in {name}, against unpruned"
        fight = {"unpruned": times["unpruned"], "ours": times[name]}
        report.add_best(f"sites-and-weights-{kind}-{name}", fight, what=what, unit="x")
