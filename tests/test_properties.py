"""Random geometry (hypothesis): values, gradients, sites, classes, pairs against the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

import doublesparse as ds
import oracle
from checks import (
    assert_close_gradients,
    assert_same_as_specification,
    both_ways,
    differentiate,
    integer_like,
)
from inputs import KINDS, make_input, site_set
from layer_cases import CASES, draw_conv

GROUNDS = ("zero", "number", "channels", "image")
by_name = pytest.mark.parametrize("name", CASES)


def drawn(data, case, dtype, integers: bool = True, grounds=GROUNDS):
    """A random geometry, its input and its parameters."""
    geometry = case.draw(data.draw)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    ground, kind = data.draw(st.sampled_from(grounds)), data.draw(st.sampled_from(KINDS))
    batch = data.draw(st.integers(1, 3))
    event(f"{kind} ground={ground}")
    options = dict(ground=ground, kind=kind, batch=batch, dtype=dtype, integers=integers)
    x = make_input(rng, case.n_axes, geometry, **options)
    return geometry, x, case.parameters(rng, x.features.shape[1], geometry, dtype, integers)


@by_name
@given(data=st.data())
def test_values_sites_and_classes(name, data):
    """Dense torch to the last bit (operators that divide: to rounding), and the specification."""
    case = CASES[name]
    geometry, x, p = drawn(data, case, torch.float64)
    if x.batch * np.prod(x.shape) == 1 and case.name.startswith(("batch_norm", "instance_norm")):
        return  # torch refuses one value per channel; test_malformed holds us to the same
    got, want = both_ways(case, x, p, geometry)
    assert integer_like(got, want, case.exact), x.note
    if case.spec is not None:
        out = case.sparse(ds, x.sparse(ds), p, geometry)
        if isinstance(out, ds.SparseTensor):
            assert_same_as_specification(case, x, p, geometry, out)


@by_name
@given(data=st.data())
def test_gradients(name, data):
    """Features at active sites, ground, every parameter."""
    case = CASES[name]
    geometry, x, p = drawn(data, case, torch.float64, False, ("zero", "channels", "image"))
    assert_close_gradients(*differentiate(case, x, p, geometry), x.note)


# ------------------------------------------------------------------ rulebooks
def plan_of(geometry: dict) -> dict:
    return {k: geometry[k] for k in ("stride", "padding", "dilation")}


def assert_rulebook(sites, geometry: dict, kind: str) -> None:
    """Pairs and output sites of build_rulebook against the dictionary of sites."""
    sites_list = [tuple(s) for s in sites.coords.tolist()]
    plan, kernel, shape = plan_of(geometry), geometry["kernel_size"], sites.spatial_shape
    transposed, extra = kind == "transposed", geometry.get("output_padding", (0,) * len(shape))
    per_axis = zip(shape, kernel, *plan.values(), extra)
    out_shape = [oracle.out_extent(n, k, s, p, d, transposed, e) for n, k, s, p, d, e in per_axis]
    keep = sites_list if kind == "submanifold" else None
    found, out_sites = oracle.pairs(
        sites_list, out_shape, kernel, **plan, transposed=transposed, keep=keep
    )
    given = ds.Geometry(kernel, *plan.values(), **({"output_padding": extra} if transposed else {}))
    rulebook = ds.build_rulebook(sites, given, kind=kind)
    pairs = rulebook.pairs()
    assert pairs.dtype == torch.int32 and pairs.shape == (len(found), 3)
    assert pairs.tolist() == [list(p) for p in found]
    assert rulebook.n_pairs == len(found)
    assert rulebook.out_sites.coords.tolist() == [list(s) for s in out_sites]
    assert tuple(rulebook.out_sites.spatial_shape) == tuple(out_shape)


def sites_of(coords, shape, batch):
    features = torch.zeros(len(coords), 1)
    return ds.SparseTensor(features, coords, shape, batch).sites


@pytest.mark.parametrize("n_axes", (1, 2, 3, 4))
@pytest.mark.parametrize("kind", ("conv", "transposed"))
@given(data=st.data())
def test_rulebook_pairs(n_axes, kind, data):
    """Sorted by (offset, output row), equal to the dictionary's."""
    geometry = draw_conv(n_axes, transposed=kind == "transposed")(data.draw)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    batch, shape = data.draw(st.integers(0, 3)), geometry["shape"]
    coords = site_set(rng, batch, shape, data.draw(st.sampled_from(KINDS[:5])) if batch else "none")
    assert_rulebook(sites_of(coords, shape, batch), geometry, kind)


@pytest.mark.parametrize("n_axes", (1, 2, 3, 4))
@given(data=st.data())
def test_submanifold(n_axes, data):
    """Pairs, values, gradients: output sites are the input sites, inactive ones count as zero."""
    k = tuple(
        data.draw(st.sampled_from((1, 3, 5)[: 3 if n_axes < 4 else 2])) for _ in range(n_axes)
    )
    d = tuple(data.draw(st.integers(1, 2)) for _ in range(n_axes))
    p = tuple(dd * (kk - 1) // 2 for kk, dd in zip(k, d))
    shape = tuple(data.draw(st.integers(1, {1: 20, 2: 9, 3: 5, 4: 3}[n_axes])) for _ in k)
    groups = data.draw(st.integers(1, 3))
    c_in, c_out = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    coords = site_set(rng, 2, shape, data.draw(st.sampled_from(KINDS)), density=0.4)
    plan = dict(kernel_size=k, stride=(1,) * n_axes, padding=p, dilation=d)
    assert_rulebook(sites_of(coords, shape, 2), plan, "submanifold")

    def integers(*size):
        return torch.from_numpy(rng.integers(-4, 5, size)).double().requires_grad_()

    f, w, b = integers(len(coords), c_in), integers(c_out, c_in // groups, *k), integers(c_out)
    x = ds.SparseTensor(f, coords, shape, 2)
    function = getattr(ds.functional, f"submanifold_conv{n_axes}d")
    out = function(x, w, b, dilation=d, groups=groups)
    assert out.ground is None
    assert torch.equal(out.coords, coords)
    dense = oracle.dense_conv(
        oracle.scatter(f, coords, shape, 2), w, b, (1,) * n_axes, p, d, groups
    )
    want = oracle.at_sites(dense, coords)
    assert torch.equal(out.features, want)
    weights = torch.from_numpy(rng.integers(-3, 4, tuple(want.shape))).double()
    mine = torch.autograd.grad((out.features * weights).sum(), (f, w, b))
    theirs = torch.autograd.grad((want * weights).sum(), (f, w, b))
    for got, truth in zip(mine, theirs, strict=True):
        assert torch.equal(got, truth)


@given(data=st.data())
def test_inverse_convolution(data):
    """Back onto the sites of the layer that the convolution came from, values and gradients."""
    n_axes = data.draw(st.integers(1, 3))
    k = tuple(data.draw(st.integers(1, 3)) for _ in range(n_axes))
    s = tuple(data.draw(st.integers(1, 3)) for _ in range(n_axes))
    p = tuple(data.draw(st.integers(0, kk // 2)) for kk in k)
    shape = tuple(data.draw(st.integers(kk, kk + 5)) for kk in k)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    fine = site_set(rng, 2, shape, data.draw(st.sampled_from(KINDS)))
    like = ds.SparseTensor(torch.zeros(len(fine), 1), fine, shape, 2, ground=None)
    geometry = ds.Geometry(k, s, p)
    coarse = ds.build_rulebook(like.sites, geometry, kind="conv").out_sites
    f = torch.from_numpy(rng.integers(-4, 5, (len(coarse.coords), 3))).double().requires_grad_()
    x = ds.SparseTensor(f, coarse.coords, coarse.spatial_shape, 2, ground=None)
    layer = getattr(ds.nn, f"SparseInverseConv{n_axes}d")(3, 2, k, stride=s, padding=p).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.integers(-4, 5, tuple(parameter.shape))))
    out = layer(x, like=like)
    assert torch.equal(out.coords, fine)
    weight = oracle.transposed_weight(layer.weight.detach().numpy(), 1)
    want = oracle.site_conv(
        f.detach().numpy(),
        [tuple(c) for c in coarse.coords.tolist()],
        coarse.spatial_shape,
        weight,
        layer.bias.detach().numpy(),
        [tuple(c) for c in fine.tolist()],
        stride=s,
        padding=p,
        dilation=(1,) * n_axes,
        transposed=True,
    )
    assert torch.equal(out.features, torch.from_numpy(want))
    ours = torch.autograd.grad(out.features.sum(), f)[0]
    dense = oracle.CONV_TRANSPOSE[n_axes](
        oracle.scatter(f, coarse.coords, coarse.spatial_shape, 2),
        layer.weight,
        None,
        s,
        p,
        output_padding=inverse_padding(shape, coarse.spatial_shape, k, s, p),
    )
    theirs = torch.autograd.grad(oracle.at_sites(dense, fine).sum(), f)[0]
    assert torch.equal(ours, theirs)


def inverse_padding(fine, coarse, k, s, p) -> tuple[int, ...]:
    """What torch's conv_transpose calls output_padding, so that its grid covers the fine one."""
    rows = zip(fine, coarse, k, s, p)
    return tuple(n - oracle.out_extent(m, kk, ss, pp, 1, True) for n, m, kk, ss, pp in rows)


# ------------------------------------------------------------------ grids nothing dense can hold
def far_apart(rng: np.random.Generator, extent: int, n_sites: int, n_axes: int = 3):
    """Pairs of neighbours, borders and corners in a huge grid; int64 (n, 1 + D), unique."""
    coords = rng.integers(0, extent, (n_sites // 2, n_axes))
    near = np.clip(coords + rng.integers(-2, 3, coords.shape), 0, extent - 1)
    corners = np.array(list(np.ndindex(*(2,) * n_axes))) * (extent - 1)
    return np.unique(np.concatenate([coords, near, corners]), axis=0)


HUGE = {
    "same": dict(kernel_size=(3,) * 3, stride=(1,) * 3, padding=(1,) * 3, dilation=(1,) * 3),
    "strided": dict(kernel_size=(2,) * 3, stride=(2,) * 3, padding=(0,) * 3, dilation=(1,) * 3),
    "dilated": dict(kernel_size=(3, 1, 2), stride=(3, 1, 2), padding=(2, 0, 1), dilation=(2,) * 3),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kind", ("conv", "transposed", "submanifold"))
def test_rulebook_of_a_huge_grid(name, kind, rng):
    """1000 sites in 10^6 x 10^6 x 10^6, exactly the dictionary's pairs."""
    if kind == "submanifold" and name != "same":
        return  # it has odd kernels, stride 1 and centred padding by definition
    extent, batch = (
        10**6,
        2 if kind != "transposed" else 1,
    )  # int64 holds one grid of twice the extents
    coords = far_apart(rng, extent, 1000)
    coords = torch.from_numpy(np.insert(coords, 0, rng.integers(0, batch, len(coords)), 1))
    sites = sites_of(coords, (extent,) * 3, batch)
    assert len(sites.coords) == len(coords)
    assert_rulebook(sites, HUGE[name], kind)


@pytest.mark.parametrize("ground", ("zero", "channels"))
@pytest.mark.parametrize("name", HUGE)
def test_convolution_on_a_huge_grid(name, ground, rng):
    """Values at the output sites, and gradients that stay in memory; with a ground state too."""
    extent, geometry = 10**6, HUGE[name]
    at = far_apart(rng, extent, 60)
    coords = torch.from_numpy(np.insert(at, 0, 0, 1))
    f = torch.from_numpy(rng.integers(-4, 5, (len(coords), 2))).double().requires_grad_()
    w = torch.from_numpy(rng.integers(-4, 5, (3, 2, *geometry["kernel_size"]))).double()
    g = torch.tensor([1.0, -2.0], dtype=torch.float64) if ground == "channels" else 0.0
    x = ds.SparseTensor(f, coords, (extent,) * 3, 1, ground=g)
    bias = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    out = ds.functional.conv3d(x, w, bias, **plan_of(geometry))
    truth = oracle.site_conv(
        x.features.detach().numpy(),
        [tuple(c) for c in x.coords.tolist()],
        (extent,) * 3,
        w.numpy(),
        bias.numpy(),
        [tuple(c) for c in out.coords.tolist()],
        ground=np.asarray(g) if ground == "channels" else None,
        **plan_of(geometry),
    )
    assert torch.equal(out.features, torch.from_numpy(truth))
    pooled = ds.functional.max_pool3d(out, 3, 2, 1)
    normal = ds.functional.batch_norm(pooled, None, None, training=True)
    normal.features.sum().backward()
    assert f.grad is not None and bool(torch.isfinite(f.grad).all())


@pytest.mark.parametrize("shape", ((65536, 65536), (2**31 - 1, 3), (3, 2**31 - 1)))
def test_no_wrap_at_two_to_the_31(shape, rng):
    """Linear indices next to 2^31 and 2^32: neighbours across the wrap are no neighbours."""
    n = [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 0, 1, shape[0] * shape[1] - 1, shape[1], 2**31 - 2]
    at = np.unique([divmod(v, shape[1]) for v in n if v < shape[0] * shape[1]], axis=0)
    coords = torch.from_numpy(np.insert(at, 0, 0, 1))
    geometry = dict(kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    for kind in ("conv", "submanifold", "transposed"):
        assert_rulebook(sites_of(coords, shape, 1), geometry, kind)
    strided = dict(kernel_size=(2, 2), stride=(2, 2), padding=(1, 0), dilation=(1, 1))
    assert_rulebook(sites_of(coords, shape, 1), strided, "conv")


def test_extents_up_to_int64(rng):
    """2 x (2^31 - 1)^2 cells still fit int64; the keys are right to the last cell."""
    shape = (2**31 - 1, 2**31 - 1, 2)
    at = torch.tensor([[0, 0, 0, 0], [0, 2**31 - 2, 2**31 - 2, 1], [0, 2**31 - 2, 2**31 - 2, 0]])
    sites = sites_of(at, shape, 1)
    assert sites.coords.tolist() == sorted(at.tolist())
    geometry = dict(kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=(1, 1, 1), dilation=(1, 1, 1))
    assert_rulebook(sites, geometry, "submanifold")


@pytest.mark.parametrize("shape", ((2**31 - 1, 2**31 - 1, 3), (2**31 - 1,) * 4, (10**6,) * 4))
def test_extents_past_int64_are_refused(shape):
    coords = torch.zeros(1, 1 + len(shape), dtype=torch.int64)
    with pytest.raises(ValueError, match="2\\^63"):
        ds.SparseTensor(torch.ones(1, 1), coords, shape, 1)


def test_output_extents_past_int64_are_refused():
    """A transposed convolution that would leave int64, or int32 along one axis."""
    coords = torch.zeros(1, 4, dtype=torch.int64)
    x = ds.SparseTensor(torch.ones(1, 1), coords, (10**6,) * 3, 1)
    with pytest.raises(ValueError, match="conv_transpose3d"):
        ds.functional.conv_transpose3d(x, torch.ones(1, 1, 2, 2, 2), stride=1000)
    two = ds.SparseTensor(torch.ones(1, 1), coords, (10**6,) * 3, 2)  # one grid would fit
    with pytest.raises(ValueError, match="conv_transpose3d"):
        ds.functional.conv_transpose3d(two, torch.ones(1, 1, 2, 2, 2), stride=2)
    with pytest.raises(ValueError, match="build_rulebook"):
        ds.build_rulebook(two.sites, ds.Geometry((2, 2, 2), 2), kind="transposed")
    line = ds.SparseTensor(torch.ones(1, 1), coords[:, :2], (2**31 - 1,), 1)
    with pytest.raises(ValueError, match="conv_transpose1d"):
        ds.functional.conv_transpose1d(line, torch.ones(1, 1, 2), stride=2)


def test_class_maps_of_a_huge_axis_are_run_lengths():
    """A border of a few positions among 10^6 costs a few runs, not 10^6 entries."""
    coords = torch.zeros(1, 4, dtype=torch.int64)
    x = ds.SparseTensor(torch.ones(1, 1), coords, (10**6,) * 3, 1, ground=2.0)
    for _ in range(4):
        x = ds.functional.conv3d(x, torch.ones(1, 1, 3, 3, 3), padding=1)
        x = ds.functional.max_pool3d(x, 2, 2)
    for axis in x.ground.axes:
        assert axis.n_classes <= 16
        assert len(axis.starts) <= 32
