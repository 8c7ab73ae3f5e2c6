"""The operators `torch.ops.doublesparse.*`, generated from `cases.py`.

Implementation, fake, gradient and tracing of each by `torch.library.opcheck`; the bits of eager
calls, which never come here; and what torch.func and dispatch modes meet.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import cases
import doublesparse as ds
from doublesparse import _autograd, _autograd_spmm, _library, ops
from doublesparse._autograd import Segments
from doublesparse._autograd_masked_conv import masked_conv
from doublesparse._autograd_windows import Table, window_max, window_sum
from doublesparse._masked_conv import Geometry
from inputs import grid_plan, numbers, random_segments, random_table, weight_mask

OP = torch.ops.doublesparse
FLOATS = (torch.float32, torch.float64)


# ------------------------------------------------------------------ operators
def gradient_samples(rng, dtype):
    """Arguments of the operators that only backward passes call, and of other small ones."""
    for n_out, n_rows, c in ((9, 7, 3), (0, 5, 2), (4, 0, 1)):
        table = random_table(rng, n_out, 4, n_rows, 3)
        rows = torch.from_numpy(rng.integers(0, max(n_out, 1), n_rows if n_out else 0))
        rows, n_rows = rows.to(torch.int32), len(rows)
        start = random_segments(rng, n_rows, n_out)
        dy = numbers(rng, (n_out, c), dtype, False)
        values = numbers(rng, (n_rows, c), dtype, False)
        mean = numbers(rng, (n_out, c), dtype, False)
        arg = torch.from_numpy(rng.integers(-1, 4, (n_out, c)).astype(np.int32))
        size = dict(n_rows=7, ground=False), dict(n_rows=3, ground=True)
        yield "segment_sum_grad", dict(dy=dy, rows=rows, start=start, n_values=max(n_out, 1))
        yield "segment_sum_grad", dict(dy=dy, rows=None, start=start, n_values=n_rows)
        yield "segment_sum_sq_grads", dict(dy=dy, values=values, start=start, mean=mean)
        yield "column_sum", dict(rows=values)
        yield "gather_rows", dict(values=dy, rows=rows)
        places = torch.from_numpy(np.sort(rng.choice(n_rows + 5, n_rows, replace=False)))
        yield "scatter_rows", dict(rows=values, place=places, n_out=n_rows + 5)
        yield "gather_rows_grad", dict(dy=values, rows=rows, n_values=n_out)
        for which in size:
            yield "window_max_rows_grad", dict(dy=dy, arg=arg, table=table, **which)
            yield "window_sum_rows_grad", dict(dy=dy, table=table, **which)
        yield "every_tap", dict(table=table, n_class_rows=3)
        keys = torch.unique(torch.from_numpy(rng.integers(0, 60, n_rows)))
        yield "coords_of_keys", dict(keys=keys, shape=(5, 6))
    yield from masked_conv_samples(rng, dtype)
    yield from masked_linear_samples(rng, dtype)


def masked_conv_samples(rng, dtype):
    """Convolutions with a pruned weight: one for torch's kernels, one for ours."""
    for c_in, c_out, last in ((1, 2, False), (6, 9, True)):
        x, dy = (numbers(rng, (2, c, 5, 4), dtype, False) for c in (c_in, c_out))
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        weight = numbers(rng, (c_out, c_in, 3, 3), dtype, False)
        mask = torch.from_numpy(rng.random(weight.shape) < 0.3)
        walk = dict(stride=(1, 1), before=(1, 1), after=(1, 1), dilation=(1, 1), groups=1)
        both = dict(weight=weight, mask=mask)
        bias = numbers(rng, (c_out,), dtype, False)
        yield "masked_dense_conv", dict(x=x, **both, bias=bias, **walk)
        yield "masked_dense_conv_input_grad", dict(dy=dy, **both, shape=(5, 4), **walk)
        yield "masked_dense_conv_weight_grad", dict(x=x, dy=dy, **both, **walk)


def masked_linear_samples(rng, dtype):
    """Linear layers with a pruned weight: the smallest, and one for our kernels."""
    for m, c_in, c_out, density in ((2, 3, 2, 0.5), (40, 64, 96, 0.02)):
        x, dy = (numbers(rng, (m, c), dtype, False) for c in (c_in, c_out))
        mask = torch.from_numpy(rng.random((c_out, c_in)) < density)
        both = dict(weight=numbers(rng, (c_out, c_in), dtype, False), mask=mask)
        yield "masked_linear", dict(x=x, **both, bias=numbers(rng, (c_out,), dtype, False))
        yield "masked_linear_input_grad", dict(dy=dy, **both)
        yield "masked_linear_weight_grad", dict(dy=dy, x=x, mask=mask)


def n_elements(args: dict) -> int:
    return sum(a.numel() for a in args.values() if isinstance(a, torch.Tensor))


def finite(args: dict) -> bool:
    floats = [a for a in args.values() if isinstance(a, torch.Tensor) and a.is_floating_point()]
    return all(bool(torch.isfinite(a).all()) for a in floats)


def samples_of(name: str, rng, dtype) -> list[dict]:
    """One ordinary set of arguments and the smallest one: no site, no pair, no tap."""
    found = [a for n, a in gradient_samples(rng, dtype) if n == name]
    for case in cases.OP_CASES:
        if case.name == name:
            found = [s.args for s in case.samples(rng, dtype, False) if finite(s.args)]
    found.sort(key=n_elements)
    return [found[0], found[len(found) // 2]]


def leaves(args: dict) -> dict:
    """The same arguments, float tensors with gradients."""
    return {
        name: a.clone().requires_grad_()
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for name, a in args.items()
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", _library.SCHEMAS)
def test_opcheck(name, dtype, rng):
    for args in samples_of(name, rng, dtype):
        with_gradients = name in _library._GRADIENTS
        torch.library.opcheck(getattr(OP, name), (), leaves(args) if with_gradients else args)


@pytest.mark.parametrize("case", cases.OP_CASES, ids=lambda c: c.name)
def test_operators_give_the_bits_of_eager_calls(case, rng):
    for dtype in case.dtypes:
        for sample in case.samples(rng, dtype, False):
            got = getattr(OP, case.name)(**sample.args)
            got = got if isinstance(got, tuple) else (got,)
            for a, b in zip(got, sample.call(ops, case.name), strict=True):
                assert torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5)), sample.note
                assert torch.equal(a.isnan(), b.isnan()), sample.note


def test_wrong_arguments_are_refused_as_in_eager_calls(rng):
    x, w = torch.ones(3, 2), torch.ones(4, 2, 1)
    rows, start = torch.arange(3, dtype=torch.int32), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="ascend"):
        OP.conv(x, w, rows.flip(0), rows, start, 3)
    with pytest.raises(ValueError, match="row 2"):
        OP.conv(x, w, rows, rows, start, 2)
    with pytest.raises(TypeError, match="float"):
        OP.conv(x, w.double(), rows, rows, start, 3)
    with pytest.raises(ValueError, match="contiguous"):
        OP.conv(torch.ones(2, 3).t(), w, rows, rows, start, 3)


def test_eager_calls_go_straight_to_the_kernels():
    """A hop through the dispatcher would show up in the profiler, as it does when asked for."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Sigmoid())
    x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 3, 4]]), (8, 8))
    rows, start = torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1])

    def seen(f) -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            f()
        return {e.name for e in profile.events() if e.name.startswith("doublesparse::")}

    assert seen(lambda: net(x).features.sum().backward()) == set()
    called = seen(lambda: OP.conv(torch.ones(1, 1), torch.ones(1, 1, 1), rows, rows, start, 1))
    assert called == {"doublesparse::conv"}


# ------------------------------------------------------------------ gradients
def gradient_cases(rng):
    """name -> (operator on float leaves, leaves, the same through `_autograd`)."""
    plan = grid_plan(rng, (5, 6), density=0.3)
    pairs, n_src, n_dst = ops.Pairs(*plan.lists), plan.n_src, plan.n_dst
    f64 = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    n_u = 5
    u_rows = torch.from_numpy(rng.integers(0, n_u, 2 * n_dst).astype(np.int32))
    taps = Segments(u_rows, random_segments(rng, 2 * n_dst, n_dst), n_u)
    x, w, b, u = f64(n_src, 4), f64(6, 2, 9), f64(6), f64(n_u, 6)
    yield (
        "conv",
        lambda x, w, b, u: OP.conv(x, w, *plan.lists, n_dst, b, 2, u, taps.start, u_rows),
        (x, w, b, u),
        lambda x, w, b, u: _autograd.conv(x, w, b, pairs, n_dst, 2, False, u, taps),
    )
    yield (
        "conv transposed",
        lambda x, w: OP.conv(x, w, *plan.lists, n_dst, transposed=True),
        (x, f64(4, 3, 9)),
        lambda x, w: _autograd.conv(x, w, None, pairs, n_dst, 1, True),
    )
    mask = weight_mask(rng, (6, 2, 9), "random")
    yield (
        "masked_conv",
        lambda x, w, b, u: OP.masked_conv(
            x, w, mask, *plan.lists, n_dst, b, 2, u, taps.start, u_rows
        ),
        (x, w, b, u),
        lambda x, w, b, u: _autograd.conv(x, w, b, pairs, n_dst, 2, False, u, taps, mask=mask),
    )
    lists = weight_mask(rng, (5, 6, 9), "blocks")  # few enough for lists, both ways
    for name, transposed in (("masked_conv", False), ("masked_conv transposed", True)):
        options = dict(n_dst=n_dst, transposed=transposed)
        yield (
            name,
            lambda x, w, o=options: OP.masked_conv(x, w, lists, *plan.lists, **o),
            (f64(n_src, 5 if transposed else 6), f64(5, 6, 9)),
            lambda x, w, o=options: _autograd.conv(x, w, None, pairs, mask=lists, **o),
        )
    start, rows = random_segments(rng, 12, 5), torch.from_numpy(rng.integers(0, 7, 12))
    segments = Segments(rows.to(torch.int32), start, 7)
    yield (
        "segment_sum",
        lambda v, b: OP.segment_sum(v, segments.rows, start, b),
        (f64(7, 3), f64(3)),
        lambda v, b: _autograd.segment_sum(v, segments, b),
    )
    yield (
        "segment_sum_sq",
        lambda v, m: OP.segment_sum_sq(v, start, m),
        (f64(12, 3), f64(5, 3)),
        lambda v, m: _autograd.segment_sum_sq(v, start, m),
    )
    yield (
        "gather_rows",
        lambda v: OP.gather_rows(v, segments.rows),
        (f64(7, 3),),
        lambda v: _autograd.gather_rows(v, segments.rows),
    )
    place = torch.tensor([0, 2, 3, 4, 7, 8, 10])
    yield (
        "scatter_rows",
        lambda v: OP.scatter_rows(v, place, 11),
        (f64(7, 3),),
        lambda v: _autograd.scatter_rows(v, place, 11),
    )
    yield "column_sum", OP.column_sum, (f64(7, 3),), lambda v: v.sum(0)
    table = Table(random_table(rng, 9, 4, 7, 3)[1:])
    table.rows = table.rows[(table.rows != -1).any(1)].contiguous()  # -inf has no gradient
    operands = (f64(7, 3), f64(3, 3))
    yield (
        "window_max",
        lambda x, g: OP.window_max(x, g, table.rows)[0],
        operands,
        lambda x, g: window_max(x, g, table),
    )
    yield (
        "window_sum",
        lambda x, g: OP.window_sum(x, g, table.rows),
        operands,
        lambda x, g: window_sum(x, g, table),
    )
    mask = torch.from_numpy(rng.random((9, 6, 3, 3)) < 0.3)
    walk = (1, 1), (1, 0), (1, 1), (1, 1), 1
    kept = weight_mask(rng, (7, 6), "random")
    yield (
        "masked_linear",
        lambda x, w, b: OP.masked_linear(x, w, kept, b),
        (f64(5, 6), f64(7, 6), f64(7)),
        lambda x, w, b: _autograd_spmm.masked_linear(x, w, kept, b),
    )
    yield (
        "masked_dense_conv",
        lambda x, w, b: OP.masked_dense_conv(x, w, mask, b, *walk),
        (f64(2, 6, 4, 3), f64(9, 6, 3, 3), f64(9)),
        lambda x, w, b: masked_conv(x, w, mask, b, Geometry(*walk)),
    )


def with_gradients(f, args, weight=None):
    args = [a.detach().clone().requires_grad_() for a in args]
    y = f(*args)
    weight = torch.arange(1.0, 1 + y.numel(), dtype=y.dtype).view(y.shape) % 7
    (y * weight).sum().backward()
    return [y.detach(), *[a.grad for a in args]]


def test_gradients_of_operators(rng):
    seen = set()
    for name, operator, args, twin in gradient_cases(rng):
        seen.add(name.split()[0])
        args = [a.requires_grad_() for a in args]
        assert torch.autograd.gradcheck(operator, args), name
        for a, b in zip(with_gradients(operator, args), with_gradients(twin, args), strict=True):
            equal = torch.allclose if name == "column_sum" else torch.equal  # torch's own sum
            assert equal(a, b), name
        y = operator(*args).pow(2).sum()
        first = torch.autograd.grad(y, args[0], create_graph=True)[0]
        with pytest.raises(RuntimeError):  # second derivatives are not defined: never silent
            torch.autograd.grad(first.pow(2).sum(), args[0])
    assert seen == set(_library._GRADIENTS)


def test_autocast_is_that_of_a_dense_convolution():
    x, w, b = torch.randn(3, 4), torch.randn(5, 4, 1), torch.randn(5)
    rows, start = torch.arange(3, dtype=torch.int32), torch.tensor([0, 3])
    exact = OP.conv(x, w, rows, rows, start, 3, b)
    for dtype in (torch.bfloat16, torch.float16):
        want = OP.conv(x.to(dtype), w.to(dtype), rows, rows, start, 3, b.to(dtype))
        with torch.autocast("cpu", dtype=dtype):
            y = OP.conv(x, w, rows, rows, start, 3, b)
            assert nn.functional.conv1d(x.t()[None], w, b).dtype == y.dtype == dtype
            raw = ops.conv(x, w, ops.Pairs(rows, rows, start), 3, b)
            wide = OP.conv(x.double(), w.double(), rows, rows, start, 3, b.double())
        assert torch.equal(y, want) and torch.equal(raw, exact) and wide.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = w.clone().requires_grad_()
        OP.conv(x, weight, rows, rows, start, 3, b).float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


# ------------------------------------------------------------------ what else looks at operators
def chain():
    plan = dict(kernel=(3,), stride=(1,), padding=(1,), dilation=(1,), symmetric=True)
    coords = torch.stack([torch.zeros(5, dtype=torch.int32), torch.arange(5, dtype=torch.int32)], 1)
    pairs = ops.build_pairs(coords, coords, (5,), **plan)
    return torch.randn(5, 3), torch.randn(4, 3, 3), pairs


def test_torch_func_is_refused():
    """In words, never by a wrong answer; the operators under vmap are looped over by torch."""
    x, w, pairs = chain()
    sparse = ds.SparseTensor(x, torch.tensor([[0, i] for i in range(5)]), (9,))
    layer, trained = nn.Conv1d(3, 4, 3, padding=1), w.clone().requires_grad_()

    def layers(features):
        return layer(sparse.replace(features=features)).features

    def raw(x):
        return ops.conv(x, w, pairs, 5)

    def autograd(x):
        return _autograd.conv(x, trained, None, pairs, 5)

    for f in (layers, raw, autograd):
        for transform in (
            lambda f: torch.func.vmap(f)(torch.stack([x, x])),
            lambda f: torch.func.grad(lambda x: f(x).sum())(x),
            lambda f: torch.func.jvp(f, (x,), (x,)),
            lambda f: torch.func.jacrev(f)(x),
            lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).sum()))(torch.stack([x, x])),
        ):
            with pytest.raises((RuntimeError, NotImplementedError), match="doublesparse:|conv: m"):
                transform(f)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            f(forward_ad.make_dual(x, x))
    lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
    batch = torch.randn(2, 5, 3)
    y = torch.func.vmap(lambda x: OP.conv(x, w, *lists, 5))(batch)
    assert torch.equal(y, torch.stack([raw(x) for x in batch]))


def test_modes_see_the_operators():
    """make_fx and dispatch modes: the operator is recorded, and not what it does inside."""
    x, w, pairs = chain()
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: ops.conv(x, w, pairs, 5))(x)
    assert OP.conv.default in {n.target for n in traced.graph.nodes}
    assert torch.equal(traced(2 * x), ops.conv(2 * x, w, pairs, 5))
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2))
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 2:5] = 1.0
    with FlopCounterMode(display=False):
        y = net(ds.SparseTensor.from_dense(image))
    assert torch.equal(y.to_dense(), net(ds.SparseTensor.from_dense(image)).to_dense())
