"""Sparse convolutions on the device: cases of `conv_cases`, tiles, weights, orders of threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cases
from conv_cases import CONV_CASES, conv_oracle, conv_sample
from doublesparse import _gpu_conv
from doublesparse._gpu_pairs import GpuPairs
from doublesparse._torch_compat import tf32_allowed
from inputs import random_plan
from op_case import Sample, arrays

CASES = {case.name: case for case in CONV_CASES if case.name in ("conv", "conv_input_grad")}
DTYPES = CASES["conv"].dtypes
HALF = (torch.bfloat16, torch.float16)
GENERAL = dict(bias=True, ground=True)


def on(device: torch.device) -> SimpleNamespace:
    """The operators of the device, for tensors of the host."""

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def conv(pairs: GpuPairs, **args: Any) -> Tensor:
        return _gpu_conv.conv(pairs=pairs, **{n: there(v) for n, v in args.items()}).cpu()

    def conv_input_grad(pairs: GpuPairs, **args: Any) -> Tensor:
        args = {n: there(v) for n, v in args.items()}
        return _gpu_conv.conv_input_grad(pairs=pairs, **args).cpu()

    class Pairs(GpuPairs):
        def __init__(self, *lists: Tensor) -> None:
            super().__init__(*[t.to(device) for t in lists])

    return SimpleNamespace(Pairs=Pairs, conv=conv, conv_input_grad=conv_input_grad)


def plan_of(rng: np.random.Generator, n_rows: int, n_offsets: int, density: float = 0.5) -> Any:
    return random_plan(rng, n_rows, n_rows, n_offsets, density)


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_cases(gpu_device: torch.device, name: str, dtype: torch.dtype, integers: bool) -> None:
    rng = np.random.default_rng(0)
    case, ops = CASES[name], on(gpu_device)
    assert any([cases.check(case, s, ops) for s in case.samples(rng, dtype, integers)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_rows", "n_offsets", "c_in", "c_out", "groups"),
    [(0, 3, 8, 8, 1), (1, 3, 8, 8, 1), (63, 2, 64, 64, 1), (65, 2, 72, 65, 1), (129, 2, 40, 128, 1)]
    + [(100, 33, 3, 40, 1), (40, 70, 1, 9, 1), (300, 1, 5, 130, 1), (20, 2, 31, 66, 1)]
    + [(70, 3, 20, 12, 2), (33, 40, 8, 6, 2), (90, 3, 16, 96, 2), (24, 3, 9, 12, 3)],
)
def test_sizes_around_tiles(
    gpu_device: torch.device,
    dtype: torch.dtype,
    n_rows: int,
    n_offsets: int,
    c_in: int,
    c_out: int,
    groups: int,
) -> None:
    rng = np.random.default_rng(n_rows)
    plan = plan_of(rng, n_rows, n_offsets, 0.1 if n_offsets > 9 else 0.5)
    sample = conv_sample(rng, plan, c_in, c_out, groups, dtype, True, **GENERAL)
    cases.check(CASES["conv"], sample, on(gpu_device))


def test_tf32_by_either_name(tf32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf32_allowed()
    old = SimpleNamespace(allow_tf32=True)  # of torch before 2.9
    monkeypatch.setattr(torch.backends.cuda, "matmul", old)
    assert tf32_allowed()
    old.allow_tf32 = False
    assert not tf32_allowed()
    old.fp32_precision = "tf32"
    assert tf32_allowed()


@pytest.mark.parametrize("dtype", (torch.float32, *HALF))
@pytest.mark.parametrize("c_out", [128, 64])
def test_large_tiles(
    gpu_device: torch.device, n_multiprocessors: int, tf32: None, dtype: torch.dtype, c_out: int
) -> None:
    """Two blocks of 128 rows for every multiprocessor."""
    rng, n_rows = np.random.default_rng(1), 2 * 128 * n_multiprocessors
    plan = plan_of(rng, n_rows - 1, 3, 0.4)
    x, weight = rng.integers(-4, 5, (n_rows - 1, 40)), rng.integers(-4, 5, (c_out, 40, 3))
    y = on(gpu_device).conv(
        x=torch.from_numpy(x).to(dtype),
        weight=torch.from_numpy(weight).to(dtype),
        pairs=on(gpu_device).Pairs(plan.src_rows, plan.dst_rows, plan.offset_start),
        n_dst=plan.n_dst,
    )
    lists = (plan.src_rows.numpy(), plan.dst_rows.numpy(), plan.offset_start.numpy())
    (truth,) = conv_oracle(x, weight, *lists, plan.n_dst)
    assert torch.equal(y, torch.from_numpy(truth.astype(np.float64)).to(dtype))


def run(sample: Sample, device: torch.device, **rest: Any) -> Tensor:
    return Sample({**sample.args, **rest}).call(on(device), "conv")[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c_in", "c_out"), [(3, 8), (40, 70)])
def test_orders_of_threads(
    any_order: torch.device, dtype: torch.dtype, c_in: int, c_out: int
) -> None:
    rng = np.random.default_rng(2)
    sample = conv_sample(rng, plan_of(rng, 70, 9), c_in, c_out, 1, dtype, True, **GENERAL)
    assert cases.check(CASES["conv"], sample, on(any_order))


@pytest.mark.parametrize("dtype", (torch.float32, *HALF))
def test_bits_do_not_depend_on_other_rows(
    gpu_device: torch.device, n_multiprocessors: int, dtype: torch.dtype
) -> None:
    """A row alone, and among others that make its tile larger and its steps more."""
    rng = np.random.default_rng(3)
    plan = plan_of(rng, 2 * 128 * n_multiprocessors + 76, 5, 0.4)
    sample = conv_sample(rng, plan, 24, 64, 1, dtype, False)
    n = 50
    keep = plan.dst_rows < n
    starts = [int(keep[: int(s)].sum()) for s in plan.offset_start]
    few = dict(src_rows=plan.src_rows[keep], dst_rows=plan.dst_rows[keep], n_dst=n)
    alone = run(sample, gpu_device, **few, offset_start=torch.tensor(starts))
    assert torch.equal(alone, run(sample, gpu_device)[:n])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite(
    gpu_device: torch.device, dtype: torch.dtype, bad: float
) -> None:
    """They reach the rows that have their offset, and no other."""
    rng = np.random.default_rng(4)
    sample = conv_sample(rng, plan_of(rng, 80, 3), 6, 9, 1, dtype, True, **GENERAL)
    plain = run(sample, gpu_device)
    weight = sample.args["weight"].clone()
    weight[2, :, 1] = bad
    y = run(sample, gpu_device, weight=weight)
    start = sample.args["offset_start"]
    hit = sample.args["dst_rows"][int(start[1]) : int(start[2])].long()
    reached = torch.zeros(y.shape, dtype=torch.bool)
    reached[hit, 2] = True
    assert 0 < len(hit) < len(y)
    assert torch.equal(y[~reached], plain[~reached])
    assert not y[reached].isfinite().any()


@pytest.mark.parametrize(("c_in", "c_out"), [(5, 3), (20, 33), (64, 64)])
def test_tf32(gpu_device: torch.device, tf32: None, c_in: int, c_out: int) -> None:
    rng = np.random.default_rng(5)
    plan = plan_of(rng, 600, 3)
    exact = conv_sample(rng, plan, c_in, c_out, 1, torch.float32, True, **GENERAL)
    assert cases.check(CASES["conv"], exact, on(gpu_device))
    sample = conv_sample(rng, plan, c_in, c_out, 1, torch.float32, False, **GENERAL)
    given = arrays(sample.args)
    (truth,), (size,) = conv_oracle(**given), conv_oracle(**arrays(sample.args, np.abs))
    error = np.abs(run(sample, gpu_device).numpy() - truth)
    assert (error <= size * 2**-10).all()
    assert (error > size * 2**-20).any(), "this is no tf32"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(24, 8, 2), (5, 3, 1), (8, 8, 8)])
def test_packed_and_channels_last_weights_give_the_same_bits(
    gpu_device: torch.device,
    c_in: int,
    c_out: int,
    groups: int,
    transposed: bool,
    dtype: torch.dtype,
) -> None:
    plan = plan_of(np.random.default_rng(6), 40, 9)
    pairs = on(gpu_device).Pairs(plan.src_rows, plan.dst_rows, plan.offset_start)
    x = torch.randn(40, c_in).to(gpu_device, dtype)
    shape = (c_in, c_out // groups, 9) if transposed else (c_out, c_in // groups, 9)
    weight = torch.randn(shape).to(gpu_device, dtype)
    last = weight.transpose(1, 2).contiguous().transpose(1, 2)
    options = dict(groups=groups, transposed=transposed)
    y = _gpu_conv.conv(x, weight, pairs, 40, **options)
    for given in (weight, last):
        packed = _gpu_conv.pack_weight(given, groups, transposed)
        assert torch.equal(y, _gpu_conv.conv(x, given, pairs, 40, **options))
        hidden = torch.full_like(given, torch.nan)  # only its shape is read
        assert torch.equal(y, _gpu_conv.conv(x, hidden, pairs, 40, **options, packed=packed))


@pytest.mark.parametrize("dtype", HALF)
def test_rows_that_are_not_aligned(gpu_device: torch.device, dtype: torch.dtype) -> None:
    plan = plan_of(np.random.default_rng(7), 40, 3)
    pairs = on(gpu_device).Pairs(plan.src_rows, plan.dst_rows, plan.offset_start)
    x = torch.randn(40, 16).to(gpu_device, dtype)
    weight = torch.randn(8, 16, 3).to(gpu_device, dtype)
    y = _gpu_conv.conv(x, weight, pairs, 40)
    for shift in (1, 2, 4):
        moved = x.new_empty(x.numel() + shift)[shift:].view_as(x).copy_(x)
        assert torch.equal(y, _gpu_conv.conv(moved, weight, pairs, 40))


def test_half_sums_of_either_type(gpu_device: torch.device) -> None:
    rng = np.random.default_rng(8)
    sample = conv_sample(rng, plan_of(rng, 40, 3), 8, 9, 1, torch.bfloat16, True, **GENERAL)
    wide = {name: sample.args[name].float() for name in ("bias", "u")}
    assert torch.equal(run(sample, gpu_device), run(sample, gpu_device, **wide))


def test_rows_that_do_not_exist_are_left_out(gpu_device: torch.device) -> None:
    """Numbers in device memory are not checked by the host."""
    rng = np.random.default_rng(9)
    sample = conv_sample(rng, plan_of(rng, 40, 3), 4, 4, 1, torch.float32, True, **GENERAL)
    u_rows = sample.args["u_rows"]
    none = run(sample, gpu_device, u=None)
    wrong = run(sample, gpu_device, u_rows=torch.full_like(u_rows, 2**30))
    assert torch.equal(none, wrong)


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    plan = plan_of(np.random.default_rng(10), 10, 3)
    pairs = on(gpu_device).Pairs(plan.src_rows, plan.dst_rows, plan.offset_start)
    x = torch.randn(10, 4, device=gpu_device)
    weight = torch.randn(6, 4, 3, device=gpu_device)
    with pytest.raises(TypeError, match="conv: packed must be float32"):
        _gpu_conv.conv(x, weight.double(), pairs, 10)
    with pytest.raises(ValueError, match="conv: weight must be"):
        _gpu_conv.conv(x, weight[:, :, :2], pairs, 10)
    with pytest.raises(ValueError, match="groups = 3 must divide"):
        _gpu_conv.conv(x, weight, pairs, 10, groups=3)
    with pytest.raises(ValueError, match="bias must"):
        _gpu_conv.conv(x, weight, pairs, 10, bias=x.new_zeros(5))
    with pytest.raises(ValueError, match="u needs u_start"):
        _gpu_conv.conv(x, weight, pairs, 10, u=x.new_zeros(1, 6))
