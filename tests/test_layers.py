"""Generated from `layer_cases.py`: operators on whole sparse tensors against dense torch."""

from __future__ import annotations

import pytest
import torch

import doublesparse as ds
import oracle
from checks import (
    assert_close_gradients,
    assert_same_as_specification,
    both_ways,
    differentiate,
    integer_like,
)
from inputs import KINDS, make_input
from layer_cases import CASES, layer_cases

GROUNDS = ("zero", "number", "channels", "image")
by_case = pytest.mark.parametrize("case", layer_cases(), ids=lambda c: c.name)
exact_cases = [c for c in layer_cases() if c.exact]
linear_cases = [c for c in layer_cases() if c.linear]


@pytest.mark.parametrize("case", exact_cases, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_exact_on_integers(case, dtype, rng):
    """Every geometry with every ground; the result is the dense one to the last bit."""
    proof = 0.0
    for number, geometry in enumerate(case.geometries):
        for ground in GROUNDS:
            kind = KINDS[number % 4]
            x = make_input(rng, case.n_axes, geometry, ground=ground, kind=kind, dtype=dtype)
            p = case.parameters(rng, x.features.shape[1], geometry, dtype)
            got, want = both_ways(case, x, p, geometry)
            assert got.dtype == dtype
            assert torch.equal(got.to(torch.float64), want), x.note
            proof += float(want.abs().sum())
    assert proof > 0, "this proves nothing"


@by_case
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch(case, kind, rng):
    """Empty sample, one pixel, none, all active, also a batch without samples."""
    geometry = case.geometries[1]
    for batch in (3, 1, 0):
        if batch == 0 and not case.linear:
            continue  # torch itself refuses most of these; what we do there is in test_malformed
        for ground in ("zero", "channels"):
            options = dict(ground=ground, kind=kind, batch=batch, dtype=torch.float64)
            x = make_input(rng, case.n_axes, geometry, **options)
            p = case.parameters(rng, x.features.shape[1], geometry, torch.float64)
            got, want = both_ways(case, x, p, geometry)
            assert integer_like(got, want, case.exact), x.note


@pytest.mark.parametrize("case", linear_cases, ids=lambda c: c.name)
def test_bounded_on_floats(case, rng):
    """|y - y64| <= 2 (n + 2) u_acc sum|a||b| + u_out |y|, inactive taps included."""
    for geometry in case.geometries:
        for ground in ("zero", "channels"):
            options = dict(ground=ground, integers=False)
            x = make_input(rng, case.n_axes, geometry, **options)
            p = case.parameters(rng, x.features.shape[1], geometry, torch.float32, False)
            got, want = both_ways(case, x, p, geometry)
            p64 = {name: v.to(torch.float64) for name, v in p.items()}
            x64 = x.to(torch.float64)
            absolute = {name: v.abs() for name, v in p64.items()}
            magnitude = case.dense(x64.apply(torch.abs).dense(), absolute, geometry)
            if "pool" in case.name:
                n_terms = torch.tensor(float(256))  # a window of a pool here has at most 4^3 taps
            else:
                ones = {name: torch.ones_like(v) for name, v in p64.items()}
                n_terms = case.dense(x64.apply(torch.ones_like).dense(), ones, geometry)
            allowed = oracle.bound(want, n_terms, magnitude, torch.float32)
            error = (got.to(torch.float64) - want).abs()
            assert bool((error <= allowed).all()), (x.note, float((error - allowed).max()))


@by_case
def test_gradients(case, rng):
    """Features at active sites, ground, parameters; float64, every geometry."""
    for number, geometry in enumerate(case.geometries):
        for ground in ("channels", "image"):
            kind = KINDS[number % 3]
            options = dict(ground=ground, kind=kind, dtype=torch.float64, integers=False)
            x = make_input(rng, case.n_axes, geometry, **options)
            p = case.parameters(rng, x.features.shape[1], geometry, torch.float64, False)
            assert_close_gradients(*differentiate(case, x, p, geometry), x.note)


@pytest.mark.parametrize("case", exact_cases, ids=lambda c: c.name)
def test_integer_gradients_are_exact(case, rng):
    """float32, zero ground: the gradient path without any ground is its own code."""
    for geometry in case.geometries:
        x = make_input(rng, case.n_axes, geometry, dtype=torch.float32)
        p = case.parameters(rng, x.features.shape[1], geometry, torch.float32)
        got, want = differentiate(case, x, p, geometry, ground=False, integers=True)
        for name in want:
            assert torch.equal(got[name].to(torch.float64), want[name]), (x.note, name)


@pytest.mark.parametrize("case", [c for c in layer_cases() if c.spec], ids=lambda c: c.name)
def test_sites_classes_and_ground_values(case, rng):
    """Output sites, the classes of every axis and the ground of every class, as specified."""
    for geometry in case.geometries:
        for ground in ("channels", "image"):
            x = make_input(rng, case.n_axes, geometry, ground=ground, dtype=torch.float64)
            p = case.parameters(rng, x.features.shape[1], geometry, torch.float64)
            out = case.sparse(ds, x.sparse(ds), p, geometry)
            assert_same_as_specification(case, x, p, geometry, out)


@pytest.mark.parametrize(
    "name", ("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool3d", "pad2d")
)
def test_dense_input_gives_torchs_dense_output(name, rng):
    """The functional twins take a dense tensor and return torch's answer itself."""
    case = CASES[name]
    for geometry in case.geometries:
        x = make_input(rng, case.n_axes, geometry, dtype=torch.float32)
        p = case.parameters(rng, x.features.shape[1], geometry, torch.float32)
        dense = x.dense()
        got = case.sparse(ds, dense, p, geometry)
        assert type(got) is torch.Tensor
        assert torch.equal(got, case.dense(dense, p, geometry)), geometry


@pytest.mark.parametrize("case", layer_cases(), ids=lambda c: c.name)
def test_same_bits_for_any_number_of_threads(case, rng):
    """Forward and backward of the whole layer, ground included."""
    geometry = case.geometries[1]
    shape = {1: (3000,), 2: (60, 50), 3: (16, 14, 12), 4: (7, 6, 6, 6)}[case.n_axes]
    if "adaptive" not in case.name:
        geometry = {**geometry, "shape": shape}
    options = dict(ground="channels", integers=False)
    x = make_input(rng, case.n_axes, geometry, **options)
    p = case.parameters(rng, x.features.shape[1], geometry, torch.float32, False)
    first = None
    for threads in (1, 2, 3, 5, 16, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        out, _ = differentiate(case, x, p, geometry, sparse_only=True)
        first = out if first is None else first
        for key in first:
            same = torch.equal(first[key].view(torch.int32), out[key].view(torch.int32))
            assert same, (case.name, key, threads)
