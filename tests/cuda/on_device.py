"""The operators on a device as a namespace for `Sample.call`: arguments and results on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cases
from doublesparse import _gpu_ops as gpu_ops
from doublesparse import ops


class TablePairs:
    """Pairs of rows and the table that the device's operators read of them."""

    def __init__(self, src_rows: Tensor, dst_rows: Tensor, offset_start: Tensor) -> None:
        self.src_rows, self.dst_rows, self.offset_start = src_rows, dst_rows, offset_start
        self.n_offsets = len(offset_start) - 1

    def to(self, device: torch.device) -> TablePairs:
        lists = (self.src_rows, self.dst_rows, self.offset_start)
        return TablePairs(*(t.to(device) for t in lists))

    def table(self, n_src: int, n_dst: int) -> Tensor:
        """int32 (n_offsets, n_dst): the source row of each, or -1."""
        device = self.src_rows.device
        table = torch.full((self.n_offsets, n_dst), -1, dtype=torch.int32, device=device)
        offset = torch.arange(self.n_offsets, device=device)
        offset = offset.repeat_interleave(self.offset_start.diff())
        table[offset, self.dst_rows.long()] = self.src_rows
        return table


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(v, device) for v in value)
    return value.to(device) if isinstance(value, (Tensor, TablePairs)) else value


class DeviceOps:
    """`gpu_ops`, whose tensors are on `device`, for tensors on the CPU."""

    Pairs = TablePairs

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(gpu_ops, name)

        @functools.wraps(operator)
        def call(*args: Any, **named: Any) -> Any:
            there = {k: _moved(v, self._device) for k, v in named.items()}
            return _moved(operator(*_moved(args, self._device), **there), "cpu")

        return call


def check(case: cases.OpCase, sample: cases.Sample, device: torch.device) -> bool:
    """The oracle's check and, for integers and selections, equality with the CPU's operator."""
    on_device = DeviceOps(device)
    proof = cases.check(case, sample, on_device)
    if case.indices or sample.integers:
        for y, want in zip(sample.call(on_device, case.name), sample.call(ops, case.name)):
            assert y.dtype == want.dtype, sample.note
            assert torch.equal(bits(y), bits(want)), f"{case.name} of {sample.note}"
    return proof


def bits(t: Tensor) -> Tensor:
    """As integers, -0.0 and 0.0 apart, one NaN for all."""
    if not t.is_floating_point():
        return t
    one = torch.where(t.isnan(), torch.full_like(t, float("nan")), t)
    return one.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])
