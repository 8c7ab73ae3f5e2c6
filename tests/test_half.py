"""bfloat16 and float16: summed in float32, rounded once; matrix tiles where there are any.

Everything runs on the instruction set of the process and, by the last test, on the others that this
machine has: `DOUBLESPARSE_ISA=amx pytest tests/test_half.py` runs it on matrix tiles alone,
`amx-emulated` on tiles in plain C++, on any machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cases
import conv_cases
import doublesparse as ds
import oracle
from doublesparse import _C, info, ops
from inputs import grid_plan, make_input, numbers, random_plan, random_table
from test_ops import EMULATED, ISAS, bits

THREADS = (1, 2, 3, 5, 16)
both = pytest.mark.parametrize("dtype", oracle.HALF)
CASES = {case.name: case for case in cases.OP_CASES}
EXTRAS = ("bias", "u", "u_start", "u_rows")
ON_TILES = info.collect()["isa"]["chosen"].startswith("amx")


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


# ------------------------------------------------------------------ conversions
@both
def test_every_value_passes_unchanged(dtype):
    """A sum of one value, widened and rounded again, is that value: subnormals, infinities too."""
    values = every_pattern(dtype)
    for channels in (1, 64):
        x = values.view(-1, channels)
        y = ops.segment_sum(x, None, torch.arange(len(x) + 1)).view(-1)
        numbers_only = ~values.isnan()
        # -0 + 0 is 0
        assert torch.equal(bits(y)[numbers_only], bits(values + 0)[numbers_only])
        assert bool(y[values.isnan()].isnan().all())


@both
def test_sums_round_to_nearest_even(dtype, rng):
    """Two values of any exponents: ties, overflow to infinity and NaN as torch rounds them."""
    values = every_pattern(dtype)
    a, b = (values[torch.from_numpy(rng.permutation(2**16))] for _ in range(2))
    a, b = torch.cat([a, values]), torch.cat([b, values.roll(1)])  # neighbours: many ties
    want = (a.float() + b.float()).to(dtype)
    for channels in (1, 64):
        pairs = torch.stack([a.view(-1, channels), b.view(-1, channels)], 1).flatten(0, 1)
        got = ops.segment_sum(pairs, None, torch.arange(0, len(pairs) + 1, 2)).view(-1)
        same = (bits(got) == bits(want)) | (got.isnan() & want.isnan())
        assert bool(same.all()), (a[~same][:5], b[~same][:5], got[~same][:5], want[~same][:5])


# ------------------------------------------------------------------ one rounding
def half_sample(rng, dtype, c_in, c_out, plan, integers=True, **rest):
    return conv_cases.conv_sample(rng, plan, c_in, c_out, 1, dtype, integers, **rest)


@pytest.mark.parametrize("c_out", (1, 3, 16, 31, 33, 64, 100))
@pytest.mark.parametrize("c_in", (1, 16, 31, 32, 33, 100))
@both
def test_convolution_of_any_width(dtype, c_in, c_out, rng):
    plan = random_plan(rng, 20, 33, 9)
    for integers in (True, False):
        s = half_sample(rng, dtype, c_in, c_out, plan, integers, bias=True, ground=True)
        assert cases.check(CASES["conv"], s, ops)
        back = conv_cases.with_dy(s, rng, dtype, ("x", *EXTRAS), n_src=20)
        assert cases.check(CASES["conv_input_grad"], back, ops)
        weights = conv_cases.with_dy(s, rng, dtype, ("weight", *EXTRAS))
        assert cases.check(CASES["conv_weight_grad"], weights, ops)


@pytest.mark.parametrize("n_dst", (0, 1, 15, 16, 17, 33, 64, 65))
@pytest.mark.parametrize("n_offsets", (1, 9, 27, 125))
def test_convolution_of_any_extent(n_dst, n_offsets, rng):
    for n_src in (n_dst + 3, 1, 0):
        plan = random_plan(rng, n_src, n_dst, n_offsets)
        for rest in ({}, dict(bias=True, ground=True)):
            cases.check(CASES["conv"], half_sample(rng, torch.bfloat16, 32, 48, plan, **rest), ops)


def test_more_channels_than_a_buffer_holds(rng):
    """Several passes over depth and over columns."""
    plan = random_plan(rng, 30, 40, 5)
    for c_in, c_out in ((300, 16), (16, 300), (257, 257), (512, 32)):
        for integers in (True, False):
            s = half_sample(rng, torch.bfloat16, c_in, c_out, plan, integers, bias=True)
            assert cases.check(CASES["conv"], s, ops)
            weights = conv_cases.with_dy(s, rng, torch.bfloat16, ("weight", *EXTRAS))
            assert cases.check(CASES["conv_weight_grad"], weights, ops)


def test_many_rows(rng):
    """Several stretches of sorted rows, several jobs."""
    plan = random_plan(rng, 9000, 9000, 9, 0.3)
    s = half_sample(rng, torch.bfloat16, 16, 16, plan, bias=True, ground=True)
    torch.set_num_threads(2)
    assert cases.check(CASES["conv"], s, ops)
    weights = conv_cases.with_dy(s, rng, torch.bfloat16, ("weight", *EXTRAS))
    assert cases.check(CASES["conv_weight_grad"], weights, ops)


@both
def test_float32_bias_and_ground_rows(dtype, rng):
    """They join the sum unrounded: that of a float32 layer's parts."""
    s = half_sample(rng, dtype, 16, 32, random_plan(rng, 20, 30, 3), bias=True, ground=True)
    args = dict(s.args)
    args["bias"] = 1 + torch.rand(32) / 512  # not representable in 16 bits
    args["u"] = torch.randn(6, 32) / 512
    pairs = ops.Pairs(*[args.pop(n) for n in cases.LISTS])
    got = ops.conv(**args, pairs=pairs)
    wide = dict(args)
    for name in ("x", "weight", "bias", "u"):
        wide[name] = args[name].double()
    want = ops.conv(**wide, pairs=pairs)
    assert got.dtype == dtype
    error = (got.double() - want).abs()
    assert bool((error <= want.abs() * oracle.unit_roundoff(dtype) * (1 + 1e-4) + 1e-6).all())


# ------------------------------------------------------------------ wide sums in the row kernels
@both
@pytest.mark.parametrize("channels", (1, 33, 600))
def test_long_windows_and_segments_are_rounded_once(dtype, channels, rng):
    """More taps than one list, more rows than one chunk, more columns than one strip."""
    table = random_table(rng, 5, 200, 40, 3)
    args = dict(x=torch.rand(40, channels).to(dtype), ground_rows=torch.rand(3, channels).to(dtype))
    s = cases.Sample(dict(**args, table=table), False, "long windows")
    assert cases.check(CASES["window_sum"], s, ops)
    assert cases.check(CASES["window_max"], s, ops)
    values = torch.rand(3000, channels).to(dtype)
    start = torch.tensor([0, 40, 40, 2500, 3000])
    s = cases.Sample(dict(values=values, rows=None, start=start, bias=values[0].clone()), False, "")
    assert cases.check(CASES["segment_sum"], s, ops)
    index = torch.arange(0, 3000, dtype=torch.int64)
    arg = torch.zeros(3000, channels, dtype=torch.int32)
    grads = dict(dy=values, arg=arg, start=torch.tensor([0, 2000, 3000]), index=index)
    s = cases.Sample(dict(**grads, K=1, n_rows=2), False, "long gradients")
    assert cases.check(CASES["window_max_grad"], s, ops)


# ------------------------------------------------------------------ values that are no numbers
@both
@pytest.mark.parametrize("where", ("x", "weight"))
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_non_finite_values_reach_what_reads_them(dtype, where, value, rng):
    """And no other row: a missing neighbour is not a product with zero."""
    plan = grid_plan(rng, (12, 11))
    s = half_sample(rng, dtype, 32, 33, plan)
    s.args["x"], s.args["weight"] = s.args["x"].abs() + 1, s.args["weight"].abs() + 1
    if where == "x":
        s.args["x"][len(s.args["x"]) // 2, 3] = value
    else:
        s.args["weight"][5, 3, 0] = value
    (got,) = s.call(ops, "conv")
    (want,) = conv_cases.conv_oracle(**cases.arrays(s.args))
    want = torch.from_numpy(want.astype(np.float64)).to(dtype)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
    assert bool(got.isfinite().any()) and not bool(got.isfinite().all())
    assert torch.equal(got[got.isfinite()], want[got.isfinite()])


def test_float16_overflows_to_infinity():
    x, weight = torch.full((1, 16), 200.0).half(), torch.full((16, 16, 1), 200.0).half()
    rows = torch.zeros(1, dtype=torch.int32)
    y = ops.conv(x, weight, ops.Pairs(rows, rows, torch.tensor([0, 1])), 1)
    assert bool((y == float("inf")).all())


# ------------------------------------------------------------------ reproducibility
@both
def test_same_bits_for_any_number_of_threads(dtype, rng):
    s = half_sample(rng, dtype, 33, 48, random_plan(rng, 3000, 3000, 9, 0.5), False, bias=True)
    weights = conv_cases.with_dy(s, rng, dtype, ("weight", *EXTRAS))
    first = None
    for threads in THREADS:
        torch.set_num_threads(threads)
        out = [bits(*s.call(ops, "conv")), bits(*weights.call(ops, "conv_weight_grad"))]
        first = out if first is None else first
        assert all(map(torch.equal, first, out)), f"{threads} threads"


def test_a_row_has_the_same_bits_in_any_company(rng):
    """Which rows share its tiles does not show in a row's sum."""
    plan = random_plan(rng, 300, 300, 9, 0.5)
    x, weight = torch.randn(300, 64).bfloat16(), torch.randn(64, 64, 9).bfloat16()
    whole = ops.conv(x, weight, ops.Pairs(*plan.lists), 300)
    keep = plan.dst_rows >= 123
    offset = torch.repeat_interleave(torch.arange(9), plan.offset_start.diff())[keep]
    start = torch.searchsorted(offset, torch.arange(10))
    part = ops.Pairs(plan.src_rows[keep], plan.dst_rows[keep] - 123, start)
    assert torch.equal(bits(whole[123:]), bits(ops.conv(x, weight, part, 177)))


# ------------------------------------------------------------------ row groups
def test_row_groups_hold_every_pair_once(rng):
    for n_dst, n_offsets in ((100, 9), (5000, 3), (40, 70), (1, 1), (0, 4)):
        plan = random_plan(rng, n_dst + 5, n_dst, n_offsets)
        pairs = ops.Pairs(*plan.lists)
        table, n_groups = ops.window_table(pairs, n_dst), -(-n_dst // 32)
        order = torch.empty(32 * n_groups, dtype=torch.int32)
        start = torch.empty(n_groups + 1, dtype=torch.int64)
        n = _C.plan_row_groups(pairs, table, torch.empty(n_dst, dtype=torch.int64), order, start, 2)
        taps, rows = torch.empty(n, dtype=torch.int32), torch.empty(n, 32, dtype=torch.int32)
        assert not _C.has_row_groups(pairs, n_dst)
        _C.fill_row_groups(pairs, table, order, start, taps, rows, 2)
        assert _C.has_row_groups(pairs, n_dst) and not _C.has_row_groups(pairs.reversed(), n_dst)
        assert _C.has_row_groups(pairs.reversed().reversed(), n_dst)
        assert torch.equal(order[order >= 0].sort().values, torch.arange(n_dst, dtype=torch.int32))
        group = torch.repeat_interleave(torch.arange(n_groups), start.diff())
        found = []
        for e in range(n):
            for slot in range(32):
                if rows[e, slot] >= 0:
                    assert taps[e] & (1 << slot // 16), "a half that reads was left out"
                    dst = int(order[32 * group[e] + slot])
                    found.append((int(taps[e]) // 4, int(rows[e, slot]), dst))
        offset = torch.repeat_interleave(torch.arange(n_offsets), plan.offset_start.diff())
        lists = (offset.tolist(), plan.src_rows.tolist(), plan.dst_rows.tolist())
        assert sorted(found) == sorted(zip(*lists))


def test_row_groups_of_a_wrong_plan_are_refused(rng):
    plan = random_plan(rng, 50, 40, 3)
    pairs = ops.Pairs(*plan.lists)
    table = ops.window_table(pairs, 40)
    order, start = torch.empty(64, dtype=torch.int32), torch.empty(3, dtype=torch.int64)
    keys = torch.empty(40, dtype=torch.int64)
    n = _C.plan_row_groups(pairs, table, keys, order, start, 1)
    taps, rows = torch.empty(n, dtype=torch.int32), torch.empty(n, 32, dtype=torch.int32)
    fill = dict(table=table, order=order, start=start, taps=taps, rows=rows)
    for changes in (
        dict(order=order + 40),
        dict(order=order[:-1]),
        dict(start=start.flip(0)),
        dict(start=torch.tensor([0, 0, n])),
        dict(taps=taps[:-1]),
        dict(rows=rows[:, :-1].contiguous()),
        dict(rows=torch.empty(n, 32)),
        dict(table=table + 60),
        dict(table=torch.full_like(table, -1)),
        dict(taps=None),
    ):
        with pytest.raises((ValueError, TypeError), match=r"row_groups|Tensor"):
            _C.fill_row_groups(pairs, *(fill | changes).values(), 1)
    assert not _C.has_row_groups(pairs, 40)


@pytest.mark.skipif(not ON_TILES, reason="only matrix tiles need row groups")
def test_convolution_without_row_groups_is_refused(rng):
    pairs = ops.Pairs(*random_plan(rng, 9, 9, 3).lists)
    x, weight = torch.ones(9, 16).bfloat16(), torch.ones(16, 16, 3).bfloat16()
    work = torch.empty(_C.conv_workspace(x, 16, 3, 1, 9))
    with pytest.raises(ValueError, match="row groups"):
        _C.conv(x, weight, None, None, None, None, pairs, 1, False, work, torch.empty_like(x), 1)


# ------------------------------------------------------------------ wrong calls
@both
def test_mixtures_of_types_are_refused(dtype, rng):
    s = half_sample(rng, dtype, 16, 16, random_plan(rng, 9, 9, 3), bias=True, ground=True)
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    for name in ("x", "weight", "bias", "u"):
        for wrong in (other, torch.float64, torch.int32):
            with pytest.raises(TypeError, match=r"must be (b?float|int)"):
                cases.Sample(s.args | {name: s.args[name].to(wrong)}).call(ops, "conv")
    with pytest.raises(TypeError, match="weight"):
        cases.Sample(s.args | {"weight": s.args["weight"].float()}).call(ops, "conv")
    x, table = s.args["x"], torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="ground_rows"):
        ops.window_max(x, x.float(), table)
    with pytest.raises(TypeError, match="bias"):
        ops.segment_sum(x, None, torch.tensor([0, 2]), torch.ones(16))
    with pytest.raises(TypeError, match="dy"):
        pairs = ops.Pairs(*[s.args[n] for n in cases.LISTS])
        ops.conv_weight_grad(x, torch.ones(9, 16), pairs)


@both
def test_non_contiguous_operands_are_refused_by_name(dtype, rng):
    s = half_sample(rng, dtype, 16, 16, random_plan(rng, 9, 9, 3), bias=True)
    for name in ("x", "weight"):
        strided = torch.stack([s.args[name]] * 2, -1)[..., 0]
        with pytest.raises(ValueError, match=f"{name} must be contiguous"):
            cases.Sample(s.args | {name: strided}).call(ops, "conv")


# ------------------------------------------------------------------ layers
@both
@pytest.mark.parametrize("ground", ("none", "zero", "channels", "image"))
def test_layers_are_exact_on_integers(dtype, ground, rng):
    """Convolutions and max pools on sparse tensors, the ground included, rounded once."""
    x = make_input(rng, 2, dict(c_in=16), ground=ground, dtype=dtype, shape=(9, 8))
    sparse = x.sparse(ds, features=x.features.clone().requires_grad_())
    weight = numbers(rng, (24, 16, 3, 3), dtype).requires_grad_()
    bias = numbers(rng, (24,), dtype)
    y = ds.functional.conv2d(sparse, weight, bias, padding=1)
    wide = x.to(torch.float64)
    leaf = wide.features.clone().requires_grad_()
    wide_weight = weight.detach().double().requires_grad_()
    want = ds.functional.conv2d(
        wide.sparse(ds, features=leaf), wide_weight, bias.double(), padding=1
    )
    assert y.dtype == dtype
    assert torch.equal(y.features, want.features.to(dtype))
    if ground != "none":
        assert torch.equal(y.to_dense(), want.to_dense().to(dtype))
    dy = numbers(rng, tuple(y.features.shape), dtype)
    (y.features * dy).sum().backward()
    (want.features * dy.double()).sum().backward()
    assert torch.equal(sparse.features.grad, leaf.grad.to(dtype))
    if ground in ("none", "zero"):
        assert torch.equal(weight.grad, wide_weight.grad.to(dtype))
    pooled, full = (ds.functional.max_pool2d(t, 2) for t in (y, want))
    assert torch.equal(pooled.features, full.features.to(dtype))


def test_autocast_rounds_operands_and_result(rng):
    x = make_input(rng, 2, dict(c_in=16), ground="channels", integers=False).sparse(ds)
    layer = torch.nn.Conv2d(16, 32, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    low = ds.functional.conv2d(
        x.to(torch.bfloat16), layer.weight.bfloat16(), layer.bias.bfloat16(), padding=1
    )
    assert y.dtype == torch.bfloat16 and torch.equal(y.features, low.features)
    assert torch.equal(y.ground.values, low.ground.values)


# ------------------------------------------------------------------ the other instruction sets
def slow(isa: str):
    return pytest.param(isa, marks=pytest.mark.slow)


def usable(isa: str) -> bool:
    here = info.collect()["isa"]
    if isa in (EMULATED, "reference"):
        return True
    if isa not in here["compiled"] or ISAS.index(isa) > ISAS.index(here["found"]):
        return False
    return isa != "amx" or not info.collect()["amx"]["refusal"]


@pytest.mark.skipif("DOUBLESPARSE_ISA" in os.environ, reason="one instruction set was asked for")
@pytest.mark.parametrize("isa", [EMULATED, *map(slow, ISAS)])
def test_every_instruction_set(isa):
    """The whole file; `test_ops.py` runs the operators' own cases on each of them, too."""
    if isa == info.collect()["isa"]["chosen"] or not usable(isa):
        pytest.skip(f"{isa} is what runs here anyway, or this machine has none")
    env = dict(os.environ, DOUBLESPARSE_ISA=isa, OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
