"""Slices, shuffles, channel norms and reductions, pooled operands: the dense function's answer, and
its gradients, with zero, constant and many-class grounds.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from equality import (
    BATCH,
    GROUNDS,
    KINDS,
    SHAPE,
    C,
    check,
    crossovers,
    float_input,
    many_classes,
)
from inputs import make_input

CHANNELS = torch.tensor([3, 0, 3, 7])


# ------------------------------------------------------------------ slices, shuffles, channels
def shuffled(x, groups: int, how: str):
    b, c, h, w = x.size()
    if how == "view":
        x = x.view(b, groups, c // groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)
    if how == "permute":
        return x.reshape(b, groups, -1, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)
    return x.unflatten(1, (groups, -1)).transpose(2, 1).reshape(x.shape)


def focus(x):
    """YOLO v5's first layer: four strided slices."""
    parts = [x[..., i::2, j::2] for j, i in product((0, 1), (0, 1))]
    return torch.cat(parts, 1)


CALLS = {
    "channels": lambda x: x[:, 1:5],
    "last channels": lambda x: x[:, -3:],
    "every other channel": lambda x: x[:, ::2],
    "channels by list": lambda x: x[:, [1, 3]],
    "channels by mask": lambda x: x[:, torch.arange(C) % 3 == 0],
    "channels by tensor": lambda x: x[:, CHANNELS],
    "samples": lambda x: x[1:],
    "every other sample": lambda x: x[::2],
    "no sample": lambda x: x[0:0],
    "everything": lambda x: x[:, :, :, :],
    "ellipsis": lambda x: x[..., 1:5, 2:],
    "center crop": lambda x: x[:, :, 2:-2, 3:-3],
    "strided": lambda x: x[:, :, ::2, 1::3],
    "all at once": lambda x: x[:2, 3:, 1:4:2, -5:],
    "focus": focus,
    "narrow channels": lambda x: x.narrow(1, 2, 3),
    "narrow space": lambda x: torch.narrow(x, 2, -4, 3),
    "narrow samples": lambda x: x.narrow(0, 1, 1),
    "index_select": lambda x: torch.index_select(x, 1, CHANNELS),
    "flip": lambda x: x.flip(3),
    "flip several": lambda x: torch.flip(x, (1, -2)),
    "chunk": lambda x: torch.cat(x.chunk(3, dim=1)[::-1], 1),
    "split": lambda x: torch.cat([t * 2 for t in x.split([3, 5], 1)], dim=1),
    "shuffle by view": lambda x: shuffled(x, 2, "view"),
    "shuffle by permute": lambda x: shuffled(x, 4, "permute"),
    "shuffle by unflatten": lambda x: shuffled(x, 4, "unflatten"),
    "nn.ChannelShuffle": nn.ChannelShuffle(2),
    "nn.PixelShuffle": nn.PixelShuffle(2),
    "nn.PixelUnshuffle": nn.PixelUnshuffle(2),
    "pixel_unshuffle 3": lambda x: F.pixel_unshuffle(x, 3),
    "pixel_shuffle and back": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "nn.ZeroPad2d": nn.ZeroPad2d((1, -2, 0, 3)),
    "pad and crop": lambda x: F.pad(x, (-1, 2, -2, 1), value=0.5),
    "nn.LocalResponseNorm": nn.LocalResponseNorm(3, alpha=0.2),
    "avg_pool ceil": lambda x: F.avg_pool2d(x, 5, 3, 2, ceil_mode=True, count_include_pad=False),
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "sum of channels": lambda x: x - x.sum(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True, unbiased=False),
    "var_mean": lambda x: torch.var_mean(x, dim=1, keepdim=True, correction=0)[0],
    "norm": lambda x: x / (x.norm(2, 1, True) + 1),
    "torch.norm": lambda x: torch.norm(x, p=1, dim=1, keepdim=True),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(1,), keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "prod": lambda x: (x + 2).prod(1, keepdim=True),
    "max of channels": lambda x: x.max(1, keepdim=True)[0],
    "max without keepdim": lambda x: torch.max(x, 1).values,
    "min of channels": lambda x: x.min(dim=1, keepdim=True).values,
    "max of two": lambda x: torch.max(x, 0.5 * x + 1),
    "softmax": lambda x: x.softmax(1),
    "normalize": lambda x: F.normalize(x + 1, dim=1),
    "silu, hard": lambda x: F.hardswish(F.silu(x)) * F.hardsigmoid(x),
    "gate": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "gate.expand_as": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid().expand_as(x),
    "flatten": lambda x: torch.flatten(x, 1),
}
KINKS = {"norm", "torch.norm", "vector_norm", "max of two"}  # at zero any subgradient is right


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_dense_function(name, rng):
    for ground, kind in product(GROUNDS, KINDS):
        x = float_input(rng, ground, kind)
        smooth = not (name in KINKS and ground == "zero")
        for _ in crossovers(kind):
            check(CALLS[name], x, many_classes if ground == "image" else None, smooth)
    check(CALLS[name], float_input(rng, "channels"), many_classes)


@pytest.mark.parametrize("ground", GROUNDS)
def test_which_channel_is_largest(ground, rng):
    """argmax, argmin and the indices of max: dense integers, as a mask of classes."""
    for kind in KINDS:
        x = float_input(rng, ground, kind)
        sparse, dense = many_classes(x.sparse(ds)), many_classes(x.dense())
        assert torch.equal(sparse.argmax(1), dense.argmax(1)), x.note
        assert torch.equal(torch.argmin(sparse, 1, keepdim=True), dense.argmin(1, keepdim=True))
        assert torch.equal(sparse.max(1, keepdim=True)[1], dense.max(1, keepdim=True)[1])
        assert torch.equal(sparse.max(), dense.max()) and torch.equal(sparse.min(), dense.min())


def test_rearrangements_are_exact_and_keep_missing_sites_missing(rng):
    x = make_input(rng, 2, dict(c_in=C), ground="none", shape=SHAPE, batch=BATCH)
    exact = ("channels", "samples", "strided", "flip", "shuffle by view", "nn.PixelShuffle")
    for name in (*exact, "index_select", "pixel_shuffle and back", "center crop"):
        out = CALLS[name](x.sparse(ds))
        assert out.ground is None
        assert torch.equal(out.to_dense(), CALLS[name](x.dense())), name
        assert out.coords.tolist() == sorted(out.coords.tolist())


def test_sites_of_pixel_shuffles(rng):
    """r * r sites of one, and one of any of r * r."""
    x = float_input(rng)
    mask = x.sparse(ds).map(torch.ones_like).replace(ground=0.0)
    for f in (nn.PixelShuffle(2), nn.PixelUnshuffle(2)):
        want = (f(mask.to_dense()).amax(1) > 0).nonzero()
        assert torch.equal(f(x.sparse(ds)).coords.long(), want)


# ------------------------------------------------------------------ channels last
LAST = {
    "layer_norm": lambda v: F.layer_norm(v, (C,), torch.arange(1.0, C + 1).double()),
    "mean, std": lambda v: (v - v.mean(-1, keepdim=True)) / (v.std(-1, keepdim=True) + 1),
    "mean of space": lambda v: v * v.mean((1, 2), keepdim=True),
    "to vectors": lambda v: v.mean(dim=(1, 2)),
    "var": lambda v: torch.var(v, -1, keepdim=True),
    "softmax": lambda v: v.softmax(-1) + F.softmax(v, dim=3),
    "normalize": lambda v: F.normalize(v + 1, dim=-1),
    "glu": lambda v: F.glu(v),
    "chunk": lambda v: v.chunk(2, -1)[0] * v.chunk(2, dim=-1)[1],
    "split, cat": lambda v: torch.cat(v.split([3, 5], -1)[::-1], -1),
    "norm": lambda v: (v + 1).norm(dim=-1, keepdim=True),
    "linear": lambda v: F.linear(v, torch.arange(3.0 * C).double().view(3, C)),
}


@pytest.mark.parametrize("name", LAST)
def test_channels_last(name, rng):
    for ground in GROUNDS:
        for kind in ("random", "none", "all"):
            x = float_input(rng, ground, kind)
            check(lambda t: LAST[name](t.permute(0, 2, 3, 1)), x, many_classes)


# ------------------------------------------------------------------ pooled branches at full size
POOLED = {
    "bilinear": lambda x, p: F.interpolate(p, size=x.shape[-2:], mode="bilinear"),
    "corners": lambda x, p: F.interpolate(p, x.shape[-2:], mode="bilinear", align_corners=True),
    "nearest": lambda x, p: F.interpolate(p, size=x.shape[-2:]),
    "expand": lambda x, p: p.expand(-1, -1, *x.shape[2:]),
    "expand_as": lambda x, p: p.expand_as(x),
}


@pytest.mark.parametrize("name", POOLED)
def test_a_pooled_branch_at_full_size(name, rng):
    """DeepLab's image pooling, next to the features or added to them."""

    def join(x):
        pooled = POOLED[name](x, F.adaptive_avg_pool2d(x, 1).sin())
        out = torch.cat([pooled, x, pooled, F.relu(x)], dim=1)
        return torch.cat([out, x * pooled, x + pooled], 1) if "expand" in name else out

    for ground, kind in product(GROUNDS, ("random", "none", "all")):
        for _ in crossovers(kind):
            x = float_input(rng, ground, kind)
            check(join, x, many_classes if ground == "image" else None)


def test_a_dense_image_that_varies_stays_refused(rng):
    x = float_input(rng)
    image = torch.ones(BATCH, C, *SHAPE, dtype=torch.float64)
    image[0, 0, 0, 1] += 1e-6
    for call in (
        lambda: x.sparse(ds) + image,
        lambda: x.sparse(ds) * torch.ones_like(image),  # its numbers are not looked at
        lambda: torch.cat([image, x.sparse(ds)], 1),
    ):
        with pytest.raises(NotImplementedError, match="to_dense"):
            call()
    with pytest.raises(ValueError, match="expand_as"):
        x.sparse(ds)[:, :1].expand_as(x.sparse(ds))


# ------------------------------------------------------------------ refusals
REFUSED = {
    "__getitem__ of a sample": lambda x: x[0],
    "__getitem__ of a channel": lambda x: x[:, 0],
    "__getitem__ with None": lambda x: x[:, None],
    "__getitem__ of rows": lambda x: x[:, :, [1, 2]],
    "__getitem__ by mask": lambda x: x[torch.tensor([True, False, True])],
    "__getitem__ of a view": lambda x: x.permute(0, 2, 3, 1)[..., 0],
    "stack": lambda x: torch.stack([x, x]),
    "unbind": lambda x: torch.unbind(x, 1),
    "unbind method": lambda x: x.unbind(1),
    "split of samples": lambda x: x.split(2),
    "chunk of space": lambda x: x.chunk(2, 3),
    "index_select of space": lambda x: x.index_select(2, CHANNELS),
    "argmax": lambda x: x.argmax(),
    "max": lambda x: x.max(2),
    "var": lambda x: x.var((2, 3)),
    "norm": lambda x: x.norm(),
    "flip": lambda x: x.flip(0),
    "view": lambda x: x.view(BATCH, C, -1),
    "sum": lambda x: x.view(BATCH, 2, 4, *SHAPE).sum(2),
    "__add__": lambda x: x.view(BATCH, 2, 4, *SHAPE) + 1,
    "transpose": lambda x: x.view(BATCH, 2, 4, *SHAPE).transpose(2, 3),
    "cumsum": lambda x: x.permute(0, 2, 3, 1).cumsum(1),
    "flatten": lambda x: torch.flatten(x.permute(0, 2, 3, 1), 1, 2),
    "cat": lambda x: torch.cat([x, x.permute(0, 2, 3, 1)], 1),
    "unflatten": lambda x: x.unflatten(2, (2, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operation_and_the_way_out(name, rng):
    with pytest.raises(NotImplementedError) as error:
        REFUSED[name](float_input(rng).sparse(ds))
    assert name.split()[0] in str(error.value) and ".to_dense()" in str(error.value)


def test_wrong_arguments(rng):
    x = float_input(rng).sparse(ds)
    for call, error in (
        (lambda: x[:, :, 4:2], ValueError),
        (lambda: x[:, :, ::-1], ValueError),
        (lambda: x[:, :, :, :, 1:], IndexError),
        (lambda: x.narrow(1, 7, 3), ValueError),
        (lambda: x.narrow(4, 0, 1), IndexError),
        (lambda: x.flip(5), IndexError),
        (lambda: F.pixel_shuffle(x, 3), ValueError),
        (lambda: F.pixel_shuffle(x, 0), ValueError),
        (lambda: F.pixel_shuffle(x, 2.0), TypeError),
        (lambda: F.pixel_unshuffle(x, 5), ValueError),
        (lambda: nn.PixelShuffle(2)(ds.SparseTensor(torch.ones(1, 4), torch.zeros(1, 2), (9,))),
         NotImplementedError),
    ):
        with pytest.raises(error):
            call()


# ------------------------------------------------------------------ promises
def test_same_bits_for_any_number_of_threads(rng):
    x = make_input(rng, 2, dict(c_in=C), ground="channels", integers=False, shape=(41, 30))

    def work():
        f = x.features.clone().requires_grad_()
        g = x.ground.clone().requires_grad_()
        y = F.avg_pool2d(x.sparse(ds, f, g), 3, 1, 1)
        y = F.interpolate(y, size=(60, 41), mode="bilinear")[:, ::2, 1:, ::3]
        y = F.pixel_unshuffle(F.pixel_shuffle(y[:, :, 1:], 2), 4)
        return (y.to_dense(), *torch.autograd.grad(y.to_dense().square().sum(), (f, g)))

    first = work()
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for a, b in zip(work(), first, strict=True):
            assert torch.equal(a.view(torch.int32), b.view(torch.int32)), threads


def test_plans_are_remembered_and_cost_sites_alone():
    """A grid of 10^10 cells: nothing here may be as large as the grid."""
    coords = torch.tensor([[0, 5, 7], [0, 99_990, 3], [1, 40_000, 99_999]])
    x = ds.SparseTensor(torch.ones(3, 4), coords, (100_000, 100_000), ground=0.25)
    y = F.interpolate(x, scale_factor=0.75, mode="bilinear")
    z = x[1:, ::2, 30_000:, 1::2]
    assert y.spatial_shape == (75_000, 75_000) and math.prod(y.ground.n_classes) == 1
    assert z.coords.tolist() == [[0, 10_000, 49_999]] and z.shape[:2] == (1, 2)
    assert nn.PixelShuffle(2)(x).coords.shape == (12, 3)
    assert F.pixel_unshuffle(x, 2).features.shape == (3, 16)
    again = F.interpolate(x, scale_factor=0.75, mode="bilinear")
    assert again.sites is y.sites
