"""Sums over segments, rows added and set, on the device: oracle, CPU, and what is special there."""

from __future__ import annotations

import pytest
import torch
from on_device import DeviceOps, bits, check

import cases
from doublesparse import ops

NAMES = ("segment_sum", "segment_sum_sq", "scatter_rows", "join_rows", "add_rows")
BY_NAME = {case.name: case for case in cases.OP_CASES}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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


def starts_of(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [2, 8, 9])
def test_long_segments_are_added_in_the_cpus_order(dtype, channels, any_order) -> None:
    """Chunks of 1024: one less, exactly as many, one more; trees of 1, 2, 3 and 5 chunks."""
    start = starts_of([1023, 0, 1024, 1025, 1, 2100, 4097, 3])
    values = torch.randn(int(start[-1]), channels).to(dtype)
    bias = torch.randn(channels).to(dtype)
    got = DeviceOps(any_order).segment_sum(values, None, start, bias)
    assert torch.equal(bits(got), bits(ops.segment_sum(values, None, start, bias)))


def test_long_segments_of_squares_and_of_gathered_rows(any_order: torch.device) -> None:
    start = starts_of([5, 2049, 1025])
    n = int(start[-1])
    values = torch.randint(-3, 4, (n, 12)).float()
    mean = torch.randint(-3, 4, (3, 12)).float()
    on_device = DeviceOps(any_order)
    got = on_device.segment_sum_sq(values, start, mean)
    assert torch.equal(got, ops.segment_sum_sq(values, start, mean))
    rows = torch.randint(0, n, (n,), dtype=torch.int32)
    got = on_device.segment_sum(values, rows, start)
    assert torch.equal(got, ops.segment_sum(values, rows, start))


@pytest.mark.parametrize("channels", [0, 1, 7, 8, 260])
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_width_and_any_alignment(dtype, channels, gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    values = torch.randint(-3, 4, (70, channels)).to(dtype)
    start = starts_of([0, 20, 50])
    assert torch.equal(
        on_device.segment_sum(values, None, start), ops.segment_sum(values, None, start)
    )
    place = torch.arange(70) * 2 + 1
    assert torch.equal(
        on_device.scatter_rows(values, place, 150), ops.scatter_rows(values, place, 150)
    )
    storage = torch.zeros(70 * channels + 1, dtype=dtype, device=gpu_device)
    storage[1:] = values.flatten().to(gpu_device)
    shifted = storage[1:].view(70, channels)  # no pack of two lies at its size
    got = on_device.segment_sum(shifted, None, start)
    assert torch.equal(got, ops.segment_sum(values, None, start))


def test_wrong_numbers_read_nothing(gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    values = torch.ones(3, 4)
    rows = torch.tensor([0, -1, 3, 2**31 - 1, 2], dtype=torch.int32)
    start = torch.tensor([-5, 2, 99, 4])
    got = on_device.segment_sum(values, rows, start)
    assert torch.equal(got[:, 0], torch.tensor([1.0, 1.0, 0.0]))
    got = on_device.scatter_rows(values, torch.tensor([-1, 2, 9]), 4)
    assert torch.equal(got[:, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    here = torch.tensor([3, 0, -9], dtype=torch.int32)
    got = on_device.add_rows(values, None, here, values, None, here, 2.0)
    assert torch.equal(got[:, 0], torch.tensor([0.0, 3.0, 0.0]))


def test_what_is_absent_is_not_scaled(gpu_device: torch.device) -> None:
    """0 * inf would be NaN."""
    values, here = torch.ones(1, 4), torch.zeros(1, dtype=torch.int32)
    for scale in (float("inf"), 2.0):
        got = DeviceOps(gpu_device).add_rows(values, None, here, values, None, here - 1, scale)
        assert torch.equal(got, values)


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    on_device = DeviceOps(gpu_device)
    values, start = torch.ones(3, 4), torch.tensor([0, 3])
    with pytest.raises(TypeError, match="segment_sum: start must be int64"):
        on_device.segment_sum(values, None, start.int())
    with pytest.raises(ValueError, match="segment_sum: bias must have shape"):
        on_device.segment_sum(values, None, start, torch.ones(3))
    with pytest.raises(TypeError, match="join_rows: b must be int64"):
        on_device.join_rows(start, start.int())
    with pytest.raises(TypeError, match="add_rows: y must be float32 or float64"):
        half = values.half()
        on_device.add_rows(half, None, torch.zeros(1).int(), half, None, torch.zeros(1).int())
