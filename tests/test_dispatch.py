"""What torch functions and methods do with a SparseTensor: DESIGN's table, row by row, and a walk
over every function that torch lets a class override.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import doublesparse as ds
import overridable
from checks import densify
from inputs import make_input

GEOMETRY = dict(shape=(6, 7), c_in=4)
SHAPES = {1: (7,), 2: (6, 7), 3: (4, 5, 6)}


def tensor_pair(rng, ground="channels", dtype=torch.float64, n_axes=2, **options):
    """The same values sparse and dense."""
    options = dict(ground=ground, dtype=dtype, integers=False, shape=SHAPES[n_axes]) | options
    x = make_input(rng, n_axes, dict(c_in=4), **options)
    return x.sparse(ds), x.dense()


def same(got, want, exact: bool = False) -> bool:
    if isinstance(want, (tuple, list)):
        return len(got) == len(want) and all(same(a, b) for a, b in zip(got, want, strict=True))
    if not isinstance(want, Tensor):
        return got == want
    got = densify(got)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    return torch.allclose(got, want, rtol=1e-12, atol=1e-12, equal_nan=True)


# ------------------------------------------------------------------ the walk
def test_every_overridable_function_is_handled_or_refused(rng):
    """Refused: NotImplementedError that names the operation and `.to_dense()`."""
    x, _ = tensor_pair(rng)
    refused = handled = 0
    for func in overridable.functions():
        if func in ds.tensor.HANDLERS:
            handled += 1
            continue
        name = overridable.operation(func)
        with pytest.raises(NotImplementedError) as error:
            ds.SparseTensor.__torch_function__(func, (ds.SparseTensor,), (x,), {})
        assert name in str(error.value), f"{name}: the refusal says {error.value}"
        assert ".to_dense()" in str(error.value), str(error.value)
        refused += 1
    assert handled > 150 and refused > 500, (handled, refused)


@pytest.mark.parametrize("ground", ("zero", "channels"))
def test_every_handler_equals_the_dense_function(ground, rng):
    """Each handled function with the arguments of `overridable.CALLS`, against torch itself."""
    missing, wrong, called = [], [], 0
    for func in overridable.functions():
        if func not in ds.tensor.HANDLERS:
            continue
        calls = overridable.calls_of(func)
        if calls is None:
            missing.append(overridable.full_name(func))
        for call in calls or ():
            x, dense = tensor_pair(rng, ground, n_axes=call.n_axes)
            if call.positive:
                x, dense = x.map(torch.abs) + 0.5, dense.abs() + 0.5
            x, dense = x * call.scale + call.shift, dense * call.scale + call.shift
            sparse_args, dense_args = call.arguments(x, dense, rng)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(5)
                want = func(*dense_args[0], **dense_args[1])
                torch.manual_seed(5)
                args, kwargs = sparse_args
                got = ds.SparseTensor.__torch_function__(func, (ds.SparseTensor,), args, kwargs)
            called += 1
            if not same(got, want):
                wrong.append(f"{overridable.full_name(func)} {call.note}")
    assert not missing, f"handlers that no call in overridable.CALLS tests: {missing}"
    assert not wrong, f"not the dense answer: {wrong}"
    assert called > 150


def test_methods_that_models_call(rng):
    """x.relu(), x.add_(y), x.mean([2, 3]), ... are the functions' handlers."""
    x, dense = tensor_pair(rng)
    for name in overridable.METHODS:
        call = overridable.METHODS[name]
        assert same(call(x), call(dense)), name


def test_methods_without_a_sparse_meaning_say_what_to_do(rng):
    x, _ = tensor_pair(rng)
    for name in ("sort", "cumsum", "unfold", "index_select", "gather", "transpose", "matmul"):
        with pytest.raises((NotImplementedError, AttributeError)) as error:
            getattr(x, name)(1)
        assert name in str(error.value) and ".to_dense()" in str(error.value), str(error.value)


@pytest.mark.parametrize(
    "call",
    (
        lambda x: x[0],
        lambda x: x @ x,
        lambda x: torch.sort(x),
        lambda x: torch.einsum("bchw->bc", x),
        lambda x: F.unfold(x, 3),
        lambda x: F.grid_sample(x, torch.zeros(2, 6, 7, 2)),
        lambda x: x.permute(0, 3, 2, 1),
        lambda x: x.transpose(2, 3),
        lambda x: torch.fft.fft2(x),
    ),
)
def test_refusals_through_the_front_door(call, rng):
    with pytest.raises((NotImplementedError, TypeError, AttributeError)) as error:
        call(tensor_pair(rng)[0])
    if isinstance(error.value, NotImplementedError):
        assert ".to_dense()" in str(error.value)


# ------------------------------------------------------------------ the table of DESIGN 3
def test_reductions_to_one_value_per_channel_are_dense(rng):
    x, dense = tensor_pair(rng)
    for f in (
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        lambda t: t.mean([2, 3]),
        lambda t: t.mean((-1, -2), keepdim=True),
        lambda t: torch.mean(t, (2, 3)),
        lambda t: t.view(2, -1),
        lambda t: t.reshape(t.size(0), -1),
        lambda t: torch.flatten(t, 1),
        lambda t: t.flatten(1),
        nn.AdaptiveMaxPool2d(1),
    ):
        out = f(x)
        assert type(out) is Tensor
        assert same(out, f(dense))


def test_sparse_with_dense_per_channel_and_per_sample(rng):
    """The ground becomes per sample if it must."""
    x, dense = tensor_pair(rng)
    for shape in ((4, 1, 1), (1, 4, 1, 1), (2, 4, 1, 1), (2, 1, 1, 1), (1, 1, 1, 1), ()):
        gate = torch.rand(shape, dtype=torch.float64) + 0.5
        for f in (torch.add, torch.sub, torch.mul, torch.div):
            for a, b, c, d in ((x, gate, dense, gate), (gate, x, gate, dense)):
                out = f(a, b)
                assert isinstance(out, ds.SparseTensor)
                assert same(out, f(c, d)), (f, shape)
        assert same(x * gate, dense * gate) and same(gate - x, gate - dense)
        per_sample = len(shape) == 4 and shape[0] == 2
        assert (x * gate).ground.values.shape[0] == (2 if per_sample else 1)


def test_sparse_with_sparse_is_the_union_of_sites(rng):
    x, dense = tensor_pair(rng)
    y, other = tensor_pair(rng, "number")
    z, third = tensor_pair(rng, "image")
    for a, b, c, d in ((x, y, dense, other), (x, z, dense, third), (z, y, third, other)):
        for f in (torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum):
            assert same(f(a, b), f(c, d)), f
        out = a + b
        both = torch.unique(torch.cat([a.coords, b.coords]), dim=0)
        assert torch.equal(out.coords, both)
        assert same(torch.cat([a, b], 1), torch.cat([c, d], 1))
        assert same(torch.add(a, b, alpha=0.5), torch.add(c, d, alpha=0.5))
        assert same(2 - a, 2 - c) and same(a / 3, c / 3) and same(-a, -c) and same(a**2, c**2)
        assert same(1 / (a * a + 1), 1 / (c * c + 1))


def test_gradients_of_sums_over_the_union(rng):
    a = make_input(rng, 2, GEOMETRY, ground="channels", dtype=torch.float64)
    b = make_input(rng, 2, GEOMETRY, ground="channels", dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (a.features, b.features, a.ground, b.ground)]
    fa, fb, ga, gb = leaves
    w = torch.randn(2, 4, 6, 7, dtype=torch.float64)

    def loss(x, y):
        return (densify(x * y + x / (y * y + 1) - y) * w).sum()

    mine = torch.autograd.grad(loss(a.sparse(ds, fa, ga), b.sparse(ds, fb, gb)), leaves)
    theirs = torch.autograd.grad(loss(a.dense(fa, ga), b.dense(fb, gb)), leaves)
    for got, want in zip(mine, theirs, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_full_dense_image_is_refused_with_the_way_out(rng):
    x, dense = tensor_pair(rng)
    for call in (
        lambda: x + dense,
        lambda: dense * x,
        lambda: torch.cat([x, x], 0),
        lambda: torch.cat([x, dense], 1),
        lambda: F.max_pool2d(x, 2, return_indices=True),
        lambda: nn.MaxPool2d(2, return_indices=True)(x),
        lambda: torch.stack([x, x]),
    ):
        with pytest.raises(NotImplementedError) as error:
            call()
        assert "to_dense" in str(error.value) or "collate" in str(error.value)


def test_in_place_operations_are_seen_by_aliases(rng):
    x, dense = tensor_pair(rng)
    y, other = tensor_pair(rng, "number")
    for change in (
        lambda t, u: nn.ReLU(inplace=True)(t),
        lambda t, u: t.add_(u),
        lambda t, u: t.mul_(2.0),
        lambda t, u: F.relu_(t),
        lambda t, u: torch.relu_(t),
        lambda t, u: t.sub_(u, alpha=2),
        lambda t, u: t.__iadd__(u),
        lambda t, u: t.__imul__(3),
        lambda t, u: nn.Hardswish(inplace=True)(t),
        lambda t, u: nn.LeakyReLU(0.1, inplace=True)(t),
    ):
        alias, dense_alias = x, dense
        out, want = change(x, y), change(dense, other)
        assert out is x and alias is x
        assert same(alias, dense_alias) and same(out, want)
        assert same(y, other)


def test_in_place_keeps_autograd_and_refuses_another_shape(rng):
    x = make_input(rng, 2, GEOMETRY, ground="channels", dtype=torch.float64)
    leaf = x.features.clone().requires_grad_()
    s = x.sparse(ds, leaf)
    before = s * 1.0
    s += before
    s *= 2
    s.to_dense().sum().backward()
    assert torch.allclose(leaf.grad, torch.full_like(leaf, 4.0))
    y, _ = tensor_pair(rng)
    with pytest.raises(ValueError, match="shape"):
        y += ds.SparseTensor(torch.ones(1, 1), torch.zeros(1, 3, dtype=torch.int64), (9, 9), 2)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype, rng):
    """A convolution runs in the low type; norms compute in float32 and return the input's type."""
    x = make_input(rng, 2, GEOMETRY, ground="channels", integers=False).sparse(ds)
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    with torch.autocast("cpu", dtype=dtype):
        y = conv(x)
        z = norm(y)
        w = nn.GroupNorm(2, 4)(y)
        pooled = F.max_pool2d(y, 2)
        dense = conv(x.to_dense())
    assert y.dtype == dtype == dense.dtype
    assert z.dtype == w.dtype == pooled.dtype == dtype
    assert norm.running_mean.dtype == torch.float32
    error = (y.to_dense().float() - dense.float()).abs().max()
    step = 2 * torch.finfo(dtype).eps * dense.float().abs().max()
    assert error <= 4 * step, "beyond a few roundings of the low type"
    out = conv(x)
    assert out.dtype == torch.float32


def test_autocast_gradients_reach_float32_parameters(rng):
    x = make_input(rng, 2, GEOMETRY, ground="channels", integers=False).sparse(ds)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = conv(x).to_dense().float().square().mean()
    loss.backward()
    assert conv.weight.grad.dtype == torch.float32 and bool(conv.weight.grad.isfinite().all())


def test_dropout(rng):
    """Active sites draw independently, the ground keeps its expectation; eval is the identity."""
    x, dense = tensor_pair(rng)
    out = F.dropout(x, 0.5, True)
    assert same(densify(out.replace(features=x.features)), dense)
    kept = out.features != 0
    assert torch.allclose(out.features[kept], 2 * x.features[kept])
    assert 0.2 < float(kept.double().mean()) < 0.8
    assert same(F.dropout(x, 0.5, False), dense) and same(nn.Dropout(0.3).eval()(x), dense)


@pytest.mark.parametrize("n_axes", (1, 2, 3))
def test_feature_dropout_draws_as_the_dense_layer_does(n_axes, rng):
    options = dict(ground="channels", dtype=torch.float64, shape=(4, 5, 3)[:n_axes])
    x = make_input(rng, n_axes, dict(c_in=4), batch=3, **options)
    layer = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[n_axes - 1](0.5)
    torch.manual_seed(9)
    want = layer(x.dense())
    torch.manual_seed(9)
    assert same(layer(x.sparse(ds)), want)


def test_layer_norm_over_channels(rng):
    """A ConvNeXt-style norm: over dim 1, written out of mean, pow and rsqrt by its authors."""
    x, dense = tensor_pair(rng)
    weight = torch.rand(4, 1, 1, dtype=torch.float64)

    def channel_norm(t):
        mean = t.mean(1, keepdim=True)
        var = (t - mean).pow(2).mean(1, keepdim=True)
        return (t - mean) / torch.sqrt(var + 1e-6) * weight

    assert same(channel_norm(x), channel_norm(dense))


def test_batch_norm_counts_inactive_sites_and_updates_buffers_once(rng):
    x, dense = tensor_pair(rng)
    norm, twin = nn.BatchNorm2d(4).double(), nn.BatchNorm2d(4).double()
    assert same(norm(x), twin(dense))
    assert same(norm.running_mean, twin.running_mean) and same(norm.running_var, twin.running_var)
    assert norm.num_batches_tracked == 1
    for options in (dict(momentum=None), dict(affine=False), dict(track_running_stats=False)):
        a, b = (nn.BatchNorm2d(4, **options).double() for _ in range(2))
        assert same(a(x), b(dense)) and same(a(x), b(dense)) and same(a.eval()(x), b.eval()(dense))
    one = ds.SparseTensor(torch.ones(1, 4), torch.zeros(1, 3, dtype=torch.int32), (1, 1), 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(4)(one)


def test_instance_norm_with_running_statistics(rng):
    x, dense = tensor_pair(rng)
    a, b = (nn.InstanceNorm2d(4, track_running_stats=True).double() for _ in range(2))
    try:
        out = a(x)
    except NotImplementedError as error:
        assert ".to_dense()" in str(error)
    else:
        assert same(out, b(dense)) and same(a.running_var, b.running_var)


def test_nan_is_active_and_wins(rng):
    """A NaN pixel survives from_dense, convolution and max pool as in the dense network."""
    image = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    image[0, 0, 2, 3] = float("nan")
    image[0, 0, 4, 1] = -1.0
    x = ds.SparseTensor.from_dense(image)
    assert x.coords.tolist() == [[0, 2, 3], [0, 4, 1]]
    assert same(F.max_pool2d(x, 2), F.max_pool2d(image, 2))
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert same(F.conv2d(x, weight, padding=1), F.conv2d(image, weight, padding=1))


def test_negative_values_do_not_lose_to_an_implicit_zero(rng):
    """The mistake of libraries whose max pool starts from 0: ground -3, features around -5."""
    coords = torch.tensor([[0, 1, 1], [0, 1, 2]])
    x = ds.SparseTensor(torch.tensor([[-5.0], [-4.0]]), coords, (4, 4), 1, ground=-3.0)
    assert same(F.max_pool2d(x, 2), F.max_pool2d(x.to_dense(), 2))
    alone = ds.SparseTensor(torch.tensor([[-5.0], [-4.0]]), coords, (4, 4), 1, ground=None)
    assert float(F.max_pool2d(alone, 4).features) == -4.0


# ------------------------------------------------------------------ ground=None
def test_missing_sites_are_seen_by_nobody(rng):
    """Batch norm, pools and global means see active sites only; bias at active sites only."""
    x = make_input(rng, 2, GEOMETRY, ground="none", dtype=torch.float64, integers=False)
    s = x.sparse(ds)
    f = x.features
    norm = nn.BatchNorm2d(4).double()
    assert torch.allclose(norm(s).features, F.batch_norm(f, None, None, training=True))
    assert torch.allclose(norm.running_mean, 0.1 * f.mean(0))
    means = torch.stack([f[x.coords[:, 0] == b].mean(0) for b in range(2)])
    peaks = torch.stack([f[x.coords[:, 0] == b].amax(0) for b in range(2)])
    assert torch.allclose(ds.functional.global_avg_pool(s), means)
    assert torch.equal(ds.functional.global_max_pool(s), peaks)
    assert torch.allclose(s.mean([2, 3]), means)
    w, b = torch.randn(3, 4, 3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    out = ds.functional.conv2d(s, w, b, stride=2, padding=1)
    assert out.ground is None
    dense = F.conv2d(x.dense(), w, b, stride=2, padding=1)
    mask = torch.zeros(2, 1, 6, 7, dtype=torch.float64)
    mask[x.coords[:, 0].long(), 0, x.coords[:, 1].long(), x.coords[:, 2].long()] = 1
    reached = F.conv2d(mask, torch.ones(1, 1, 3, 3, dtype=torch.float64), stride=2, padding=1)
    assert torch.equal(out.coords.long(), (reached[:, 0] > 0).nonzero())
    at = tuple(out.coords.long().unbind(1))
    assert torch.allclose(out.features, dense.movedim(1, -1)[at])
    pooled = ds.functional.max_pool2d(s, 2)
    low = torch.where(mask.bool(), x.dense(), -torch.inf)
    at = tuple(pooled.coords.long().unbind(1))
    assert torch.equal(pooled.features, F.max_pool2d(low, 2).movedim(1, -1)[at])
    average = ds.functional.avg_pool2d(s, 2)
    at = tuple(average.coords.long().unbind(1))
    ratio = F.avg_pool2d(x.dense(), 2) / F.avg_pool2d(mask, 2)
    assert torch.allclose(average.features, ratio.movedim(1, -1)[at])


def test_missing_sites_stay_missing_through_activations(rng):
    x = make_input(rng, 2, GEOMETRY, ground="none", dtype=torch.float64).sparse(ds)
    for f in (torch.sigmoid, F.softplus, lambda t: t + 1, lambda t: 2 * t, nn.GELU()):
        out = f(x)
        assert out.ground is None and torch.equal(out.features, f(x.features))
    both = x + x.map(torch.neg)
    assert both.ground is None and not both.features.any()
