"""Windows on the device: index work and reductions, against the oracle and the CPU."""

from __future__ import annotations

import pytest
import torch
from on_device import DeviceOps, bits, check

import cases
from doublesparse import _gpu_ops as gpu_ops
from doublesparse import ops
from inputs import random_table

NAMES = (
    "window_table",
    "ground_taps",
    "every_tap",
    "invert_rows",
    "window_max",
    "window_max_grad",
    "window_sum",
)
BY_NAME = {case.name: case for case in cases.OP_CASES}
by_case_and_type = pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(BY_NAME[n], d, id=f"{n}-{d}") for n in NAMES for d in BY_NAME[n].dtypes],
)


@by_case_and_type
def test_cases(case, dtype, rng, gpu_device: torch.device) -> None:
    proofs = [check(case, s, gpu_device) for s in case.samples(rng, dtype, True)]
    if not case.indices:
        proofs += [check(case, s, gpu_device) for s in case.samples(rng, dtype, False)]
    assert any(proofs), "this proves nothing: the oracle's answers are all zero or empty"


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("n_out", [1, 255, 256, 300])
@pytest.mark.parametrize("n_offsets", [1, 16, 27])
def test_tables_around_a_tile(n_out, n_offsets, rng, any_order: torch.device) -> None:
    """A tile has 256 rows and 16 offsets."""
    on_device = DeviceOps(any_order)
    table = random_table(rng, n_out, n_offsets, 8, 5)
    for name in ("ground_taps", "every_tap"):
        got, want = getattr(on_device, name)(table, 5), getattr(ops, name)(table, 5)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), name
    neighbours = table.t().clamp(min=-1).contiguous()
    pairs = gpu_ops.Pairs.of_table(neighbours.to(any_order), 8)
    classes = torch.zeros(n_out, dtype=torch.int32)
    taps = torch.arange(-1, n_offsets - 1, dtype=torch.int32)[None]
    there = (classes.to(any_order), taps.to(any_order))
    got = gpu_ops.window_table(pairs, n_out, *there).cpu()
    want = torch.where(table < 0, torch.where(taps < 0, -1, -2 - taps), table)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [4, 130])
def test_reductions_have_the_cpus_bits(dtype, channels, rng, gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    table = random_table(rng, 60, 9, 25, 4)
    x, ground = torch.randn(25, channels).to(dtype), torch.randn(4, channels).to(dtype)
    x[::3] = float("nan")
    x[1::4] = -float("inf")
    x[2::4] = -0.0
    for name in ("window_max", "window_sum"):
        got, want = (getattr(o, name)(x, ground, table) for o in (on_device, ops))
        for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (got, want)), strict=True):
            assert torch.equal(bits(a), bits(b)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_that_thousands_of_windows_read(dtype, any_order: torch.device) -> None:
    """Its gradient is a long segment."""
    table = torch.zeros(2100, 1, dtype=torch.int32)
    start, index = ops.invert_rows(table.flatten(), 1)
    dy, arg = torch.randn(2100, 4).to(dtype), torch.randint(-1, 1, (2100, 4), dtype=torch.int32)
    dy[7] = float("inf")
    arg[7] = -1  # did not win: not in the sum
    got, want = (
        o.window_max_grad(dy, arg, start, index, 1, 1) for o in (DeviceOps(any_order), ops)
    )
    assert torch.equal(bits(got), bits(want)) and bool(want.isfinite().all())


def test_errors_in_the_data_come_with_what_is_read_back(gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    table = torch.tensor([[0, -1, -4]], dtype=torch.int32)
    for name in ("ground_taps", "every_tap"):
        with pytest.raises(ValueError, match=rf"{name}: table must lie in \[-3, "):
            getattr(on_device, name)(table, 2)
    with pytest.raises(ValueError, match="invert_rows: rows must be below 4"):
        on_device.invert_rows(torch.tensor([4], dtype=torch.int32), 4)


def test_wrong_numbers_read_nothing(gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    table = torch.tensor([[0, 9, -9]], dtype=torch.int32)
    x = torch.ones(1, 4)
    y, arg = on_device.window_max(x, None, table)
    assert torch.equal(y, x) and not arg.any()
    assert torch.equal(on_device.window_sum(x, None, table), x)
    index = torch.tensor([-1, 0, 7])
    got = on_device.window_max_grad(x, arg, torch.tensor([-3, 9]), index, 3, 1)
    assert torch.equal(got, x)


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    table, x = torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 4)
    with pytest.raises(TypeError, match="window_max: table must be int32"):
        on_device.window_max(x, None, table.long())
    with pytest.raises(ValueError, match="window_sum: ground_rows must have shape"):
        on_device.window_sum(x, torch.ones(1, 3), table)
    with pytest.raises(ValueError, match="every_tap: n_class_rows = "):
        on_device.every_tap(table, 2**31 - 1)
