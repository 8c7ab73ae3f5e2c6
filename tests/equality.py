"""A function of sparse tensors against the same function of dense ones: values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import doublesparse as ds
from checks import densify
from inputs import make_input

C, SHAPE, BATCH = 8, (6, 12), 3
GROUNDS = ("zero", "channels", "image")
KINDS = ("random", "empty sample", "one", "none", "all")


def per_sample(x):
    """Another value in every sample, so that the ground has several samples."""
    return x * torch.arange(1.0, BATCH + 1, dtype=torch.float64).view(-1, 1, 1, 1)


def many_classes(x):
    """Classes along the borders, and one ground per sample."""
    return per_sample(F.avg_pool2d(x, 3, 1, 1))


def leaves_of(x) -> list[Tensor]:
    leaves = [x.features.clone().requires_grad_()]
    if isinstance(x.ground, Tensor):
        leaves.append(x.ground.clone().requires_grad_())
    return leaves


def check(call, x, before=None, gradients: bool = True) -> None:
    """Value, gradient at active sites and of the ground, in float64."""
    mine, theirs = leaves_of(x), leaves_of(x)
    sparse, dense = x.sparse(ds, *mine), x.dense(*theirs)
    if before is not None:
        sparse, dense = before(sparse), before(dense)
    got, want = densify(call(sparse)), call(dense)
    assert got.shape == want.shape, (x.note, got.shape, want.shape)
    scale = float(want.detach().abs().max()) if want.numel() else 0.0
    assert torch.allclose(got, want, rtol=0, atol=1e-12 * max(scale, 1.0)), x.note
    if not gradients or not want.numel():
        return
    weights = torch.randn(want.shape, dtype=want.dtype)
    options = dict(allow_unused=True, materialize_grads=True)
    if not got.requires_grad:  # a zero ground, and no site: nothing to differentiate in
        assert not x.features.numel()
        return
    a = torch.autograd.grad((got * weights).sum(), mine, **options)
    b = torch.autograd.grad((want * weights).sum(), theirs, **options)
    for g, truth in zip(a, b, strict=True):
        assert torch.allclose(g, truth, rtol=1e-10, atol=1e-11), x.note


def crossovers(kind: str):
    """Set what decides about dense kernels: the shipped rule differs on saturated inputs alone."""
    for crossover in ("auto", None) if kind == "all" else (None,):
        ds.set_crossover(crossover)
        yield crossover


def float_input(rng, ground="channels", kind="random", shape=SHAPE, c=C, batch=BATCH):
    options = dict(ground=ground, kind=kind, shape=shape, batch=batch, integers=False)
    return make_input(rng, len(shape), dict(c_in=c), dtype=torch.float64, **options)
