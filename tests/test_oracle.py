"""The oracles against each other: none is trusted alone, and none is the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracle
import semantics
from inputs import make_input
from layer_cases import layer_cases

# A masked convolution is an unmasked one with zeros in its weight: for both oracles.
CONVOLUTIONS = [c for c in layer_cases() if c.name.startswith("conv")]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.name)
def test_dictionary_equals_dense_torch(case, rng):
    for number, geometry in enumerate(case.geometries):
        ground = "channels" if number % 2 else "zero"
        options = dict(ground=ground, batch=1 + (case.n_axes < 3), dtype=torch.float64)
        x = make_input(rng, case.n_axes, geometry, **options)
        p = case.parameters(rng, x.features.shape[1], geometry, torch.float64)
        dense = case.dense(x.dense(), p, geometry)
        transposed = "transpose" in case.name
        plan = {
            k: oracle.per_axis(geometry[k], case.n_axes) for k in ("stride", "padding", "dilation")
        }
        groups = geometry["groups"]
        weight, bias = p["weight"].numpy(), p["bias"].numpy()
        if transposed:
            weight = oracle.transposed_weight(weight, groups)
        sites = [tuple(s) for s in x.coords.tolist()]
        everywhere = [tuple(map(int, s)) for s in np.ndindex(dense.shape[0], *dense.shape[2:])]
        at = None if ground == "zero" else np.asarray(x.ground)
        y = oracle.site_conv(
            x.features.numpy(), sites, x.shape, weight, bias, everywhere,
            groups=groups, transposed=transposed, ground=at, **plan,
        )  # fmt: skip
        got = torch.from_numpy(y).reshape(dense.shape[0], *dense.shape[2:], -1).movedim(-1, 1)
        assert torch.equal(got, dense), geometry
        assert dense.abs().sum() > 0, "this proves nothing"
        _, out_sites = oracle.pairs(
            sites, dense.shape[2:], weight.shape[2:], transposed=transposed, **plan
        )
        reading, active = [], set(sites)
        for site in everywhere:
            taps = oracle.reads(site, x.shape, weight.shape[2:], transposed=transposed, **plan)
            if any(source in active for _, source in taps):
                reading.append(site)
        assert out_sites == reading


@pytest.mark.parametrize("case", [c for c in layer_cases() if c.spec], ids=lambda c: c.name)
@pytest.mark.parametrize("ground", ["channels", "image"])
def test_specification_equals_dense_torch(case, ground, rng):
    for geometry in case.geometries:
        x = make_input(rng, case.n_axes, geometry, ground=ground, dtype=torch.float64)
        p = case.parameters(rng, x.features.shape[1], geometry, torch.float64)
        g = x.ground if x.ground is not None else 0.0
        sparse = semantics.SparseTensor.build(x.features, x.coords.long(), x.shape, x.batch, g)
        assert torch.allclose(
            case.spec(sparse, p, geometry).to_dense(),
            case.dense(x.dense(), p, geometry),
            rtol=1e-13,
            atol=1e-13,
        ), geometry
