"""F.interpolate by weights, for one to three axes, with zero, constant and many-class grounds."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
import semantics
from checks import class_maps, expanded, same_partition
from equality import GROUNDS, KINDS, check, crossovers, float_input, many_classes
from inputs import make_input

MODES = {1: ("linear", "area"), 2: ("bilinear", "bicubic", "area"), 3: ("trilinear", "area")}
MODES_OF = [(n, mode) for n, modes in MODES.items() for mode in modes]
TARGETS = (
    dict(scale_factor=2),
    dict(size=(9, 4, 7)),
    dict(size=(3, 11, 5)),
    dict(size=(6, 5, 4)),
    dict(size=(1, 1, 1)),
    dict(scale_factor=0.7),
    dict(scale_factor=1.7, recompute_scale_factor=True),
    dict(scale_factor=(1.5, 2.3, 1.1)),
)


def targets(n: int, mode: str):
    """Arguments of F.interpolate for n axes."""
    for target, corners in product(TARGETS, (None, False, True)):
        if corners is None or mode != "area":
            cut = {k: v[:n] if isinstance(v, tuple) else v for k, v in target.items()}
            yield dict(**cut, mode=mode, align_corners=corners)


@pytest.mark.parametrize(("n", "mode"), MODES_OF)
def test_interpolate_equals_torch(n, mode, rng):
    """Every target and corner rule, with every ground; values, gradients, saturated inputs."""
    for number, kwargs in enumerate(targets(n, mode)):
        for ground in GROUNDS[number % 2 :]:
            kind = KINDS[number % len(KINDS)]
            x = float_input(rng, ground, kind, shape=(6, 5, 4)[:n], c=2, batch=2)
            for _ in crossovers(kind):
                check(lambda t: F.interpolate(t, **kwargs), x)


def test_interpolate_after_layers_with_borders_and_samples(rng):
    for ground, corners in product(GROUNDS, (True, False)):
        x = float_input(rng, ground)
        for size in ((13, 5), (4, 30)):
            kwargs = dict(size=size, mode="bilinear", align_corners=corners)
            check(lambda t: F.interpolate(t, **kwargs), x, many_classes)
            check(nn.Upsample(**kwargs), x, many_classes)


@pytest.mark.parametrize("corners", (False, True))
def test_active_sites_are_those_that_read_an_active_site(corners, rng):
    for n, mode in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        for kwargs in targets(n, mode):
            kwargs["align_corners"] = corners
            x = float_input(rng, "zero", shape=(6, 5, 4)[:n], c=1, batch=2)
            x.features.fill_(1.0)
            out = F.interpolate(x.sparse(ds), **kwargs)
            want = (F.interpolate(x.dense(), **kwargs)[:, 0] != 0).nonzero()
            assert torch.equal(out.coords.long(), want), kwargs


def test_dyadic_weights_are_exact_on_integers(rng):
    """scale 2: weights 1/4 and 3/4; float32, to the last bit."""
    for ground in GROUNDS:
        x = make_input(rng, 2, dict(c_in=3), ground=ground, shape=(6, 7))
        for corners in (False, None):
            kwargs = dict(scale_factor=2, mode="bilinear", align_corners=corners)
            assert torch.equal(
                F.interpolate(x.sparse(ds), **kwargs).to_dense(),
                F.interpolate(x.dense(), **kwargs),
            )


def test_classes_of_a_resampled_ground(rng):
    """As specified: equal where the input classes with their weights are; an interior stays one."""
    x = float_input(rng, "channels", shape=(15, 14), c=2)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    given = semantics.SparseTensor.build(x.features, x.coords.long(), x.shape, x.batch, x.ground)
    sparse = ds.functional.conv2d(x.sparse(ds), weight, padding=1)
    given = semantics.conv(given, weight, padding=1)
    for size, corners in product(((30, 28), (37, 6), (9, 14)), (False, True)):
        out = F.interpolate(sparse, size=size, mode="bilinear", align_corners=corners)
        spec = semantics.interpolate_linear(given, size, corners)
        assert torch.equal(out.coords.long(), spec.coords)
        for mine, truth in zip(class_maps(out.ground), spec.ground.axes, strict=True):
            assert same_partition(mine, truth)
        assert torch.allclose(expanded(out.ground), spec.ground.expand(), rtol=1e-12)
        assert torch.allclose(out.features, spec.features, rtol=1e-12, atol=1e-12)


def test_a_large_target_keeps_the_ground_small(rng):
    """DeepLab's 65 to 513: classes near the border alone."""
    x = float_input(rng, "channels", "one", shape=(65, 65), c=2, batch=1).sparse(ds)
    x = F.conv2d(x, torch.ones(2, 2, 3, 3, dtype=torch.float64), padding=1)
    out = F.interpolate(x, size=(513, 513), mode="bilinear", align_corners=False)
    assert max(out.ground.n_classes) < 25 and len(out.coords) < 3 * 64 * 64


def test_long_axes_take_torchs_own_float32_weights():
    coords = torch.tensor([[0, 1000], [0, 70000]])
    x = ds.SparseTensor(torch.ones(2, 1), coords, (100_000,), ground=0.5)
    for corners in (True, False):
        kwargs = dict(scale_factor=3.3, mode="linear", align_corners=corners)
        out = F.interpolate(x, **kwargs)
        assert torch.equal(out.to_dense(), F.interpolate(x.to_dense(), **kwargs))
        assert out.ground.n_classes == (1,) and len(out.coords) < 20


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_interpolate_in_other_dtypes(dtype, rng):
    """Computed in float32 and rounded once: two sums of at most sixteen terms differ by little."""
    x = float_input(rng, "image").to(dtype)
    for mode in ("bilinear", "bicubic", "area"):
        got = F.interpolate(x.sparse(ds), size=(11, 7), mode=mode)
        want = F.interpolate(x.dense().double(), size=(11, 7), mode=mode)
        assert got.dtype == dtype
        bound = (64 * 2**-24 + torch.finfo(dtype).eps) * 2 * float(x.dense().abs().max())
        assert float((got.to_dense().double() - want).abs().max()) <= bound


def test_interpolate_of_missing_sites_is_a_mean_over_active_ones(rng):
    x = float_input(rng, "none")
    kwargs = dict(size=(9, 17), mode="bilinear", align_corners=False)
    out = F.interpolate(x.sparse(ds), **kwargs)
    ones = ds.SparseTensor(torch.ones_like(x.features), x.coords, x.shape, x.batch)
    mass = F.interpolate(ones.to_dense(), **kwargs)
    want = F.interpolate(x.dense(), **kwargs) / mass
    assert out.ground is None
    at = out.coords.long()
    assert torch.equal(at, (mass[:, 0] != 0).nonzero())
    assert torch.allclose(out.features, want.movedim(1, -1)[tuple(at.unbind(1))], rtol=1e-12)
    with pytest.raises(NotImplementedError, match="bicubic"):
        F.interpolate(x.sparse(ds), size=(9, 9), mode="bicubic")


def test_the_functional_twin_takes_both(rng):
    x = float_input(rng)
    kwargs = dict(size=(9, 4), mode="bilinear")
    dense = ds.functional.interpolate(x.dense(), **kwargs)
    assert torch.equal(dense, F.interpolate(x.dense(), **kwargs))
    assert torch.allclose(ds.functional.interpolate(x.sparse(ds), **kwargs).to_dense(), dense)
    assert torch.equal(F.interpolate(input=x.sparse(ds), **kwargs).to_dense().isfinite(), dense < 9)


def test_wrong_arguments_of_interpolate(rng):
    x = float_input(rng).sparse(ds)
    for kwargs, error in (
        (dict(size=(3, 3), mode="linear"), ValueError),
        (dict(size=(3, 3), mode="trilinear"), ValueError),
        (dict(size=(0, 3), mode="bilinear"), ValueError),
        (dict(size=(3, 3), scale_factor=2, mode="bilinear"), ValueError),
        (dict(mode="bilinear"), ValueError),
        (dict(size=(3, 3, 3), mode="bilinear"), ValueError),
        (dict(size=(3, 3), mode="area", align_corners=True), ValueError),
        (dict(size=(3, 2**40), mode="bilinear"), ValueError),
        (dict(scale_factor=1e12, mode="bilinear"), ValueError),
        (dict(scale_factor=math.nan, mode="bilinear"), ValueError),
        (dict(size=(3, 3), mode="sinc"), NotImplementedError),
        (dict(size=(3, 3), mode="bilinear", antialias=True), NotImplementedError),
    ):
        with pytest.raises(error, match="interpolate|mode|align_corners|sinc"):
            F.interpolate(x, **kwargs)
    with pytest.raises(TypeError, match="interpolate: x must be"):
        ds.functional.interpolate(None, size=3)
