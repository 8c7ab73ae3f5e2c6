"""Sparse convolutions on the device: cases of `conv_cases`, tiles, weights, orders of threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cases
from conv_cases import CONV_CASES
from doublesparse import _gpu_conv

CASES = {case.name: case for case in CONV_CASES if case.name in ("conv", "conv_input_grad")}


class TablePairs:
    """Pairs with a neighbour table that is made here, on the host."""

    def __init__(self, src_rows: Tensor, dst_rows: Tensor, offset_start: Tensor) -> None:
        self.src_rows, self.dst_rows, self.offset_start = src_rows, dst_rows, offset_start
        self.n_offsets = len(offset_start) - 1
        self.memo: dict = {}

    def table(self, n_src: int, n_dst: int) -> Tensor:
        table = torch.full((self.n_offsets, n_dst), -1, dtype=torch.int32)
        for k in range(self.n_offsets):
            at = slice(int(self.offset_start[k]), int(self.offset_start[k + 1]))
            table[k, self.dst_rows[at].long().cpu()] = self.src_rows[at].cpu()
        return table.to(self.src_rows.device)

    def reversed(self) -> TablePairs:
        return TablePairs(self.dst_rows, self.src_rows, self.offset_start)


def on(device: torch.device) -> SimpleNamespace:
    """The operators of the device, on tensors of the host."""

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def conv(pairs: TablePairs, **args: Any) -> Tensor:
        return _gpu_conv.conv(pairs=pairs, **{n: there(v) for n, v in args.items()}).cpu()

    def conv_input_grad(pairs: TablePairs, **args: Any) -> Tensor:
        args = {n: there(v) for n, v in args.items()}
        return _gpu_conv.conv_input_grad(pairs=pairs, **args).cpu()

    class Pairs(TablePairs):
        def __init__(self, *lists: Tensor) -> None:
            super().__init__(*[t.to(device) for t in lists])

    return SimpleNamespace(Pairs=Pairs, conv=conv, conv_input_grad=conv_input_grad)


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("dtype", CASES["conv"].dtypes)
@pytest.mark.parametrize("name", CASES)
def test_cases(gpu_device: torch.device, name: str, dtype: torch.dtype, integers: bool) -> None:
    rng = np.random.default_rng(0)
    case, ops = CASES[name], on(gpu_device)
    assert any([cases.check(case, s, ops) for s in case.samples(rng, dtype, integers)])
