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


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(v, device) for v in value)
    if isinstance(value, gpu_ops.Pairs):
        lists = (value.src_rows, value.dst_rows, value.offset_start)
        return gpu_ops.Pairs(*(t.to(device) for t in lists))
    return value.to(device) if isinstance(value, Tensor) else value


class DeviceOps:
    """`gpu_ops`, whose tensors are on `device`, for tensors on the CPU."""

    Pairs = gpu_ops.Pairs

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
