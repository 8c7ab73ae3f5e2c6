"""Convolutions with pruned weights on the device: cases, and offsets that are left out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import cases
from conv_cases import CONV_CASES, conv_sample
from doublesparse import _gpu_ops
from inputs import random_plan

CASES = {case.name: case for case in CONV_CASES if case.name.startswith("masked")}


def on(device: torch.device) -> SimpleNamespace:
    """The operators, on tensors that are sent to the device and fetched."""

    def sent(value):
        return value.to(device) if isinstance(value, Tensor) else value

    def op(name):
        plain = getattr(_gpu_ops, name)

        def call(pairs, **args):
            return plain(pairs=pairs, **{n: sent(v) for n, v in args.items()}).cpu()

        return call

    class Pairs(_gpu_ops.Pairs):
        def __init__(self, *lists: Tensor) -> None:
            super().__init__(*map(sent, lists))

    return SimpleNamespace(Pairs=Pairs, **{name: op(name) for name in CASES})


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("dtype", next(iter(CASES.values())).dtypes, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name)
def test_cases(gpu_device, rng, case, dtype, integers) -> None:
    ops = on(gpu_device)
    samples = [s for i, s in enumerate(case.samples(rng, dtype, integers)) if i % 2 == integers]
    assert any([cases.check(case, s, ops) for s in samples])


def pruned(rng, kept: tuple[int, ...], groups: int = 1):
    """Arguments of a convolution of 5 offsets; the weight is NaN where it is pruned."""
    plan = random_plan(rng, 40, 50, 5, 0.9)
    x, weight, src, dst, start, *_ = conv_sample(
        rng, plan, 8, 8, groups, torch.float32, True
    ).args.values()
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask[:, ::2, list(kept)] = True
    return x, torch.where(mask, weight, torch.nan), mask, (src, dst, start)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kept", [(), (0,), (1, 4), (0, 1, 2, 3, 4)])
def test_offsets_that_keep_nothing_are_left_out(gpu_device, rng, kept, groups) -> None:
    x, weight, mask, lists = pruned(rng, kept, groups)
    x, weight, mask, *lists = (t.to(gpu_device) for t in (x, weight, mask, *lists))
    pairs = _gpu_ops.Pairs(*lists)
    zeroed = torch.where(mask, weight, 0.0)
    bias = torch.arange(8.0, device=gpu_device)
    want = _gpu_ops.conv(x, zeroed, pairs, 50, bias, groups)
    assert torch.equal(_gpu_ops.masked_conv(x, weight, mask, pairs, 50, bias, groups), want)
    packed = _gpu_ops.pack_masked_weight(weight, mask, groups)
    rest = dict(bias=bias, groups=groups, packed=packed)
    assert torch.equal(_gpu_ops.masked_conv(x, weight, mask, pairs, 50, **rest), want)
    dy = _gpu_ops.conv(x, zeroed, pairs, 50, bias, groups)
    dx = _gpu_ops.masked_conv_input_grad(dy, weight, mask, pairs, 40, groups)
    assert torch.equal(dx, _gpu_ops.conv_input_grad(dy, zeroed, pairs, 40, groups))
    dw = _gpu_ops.masked_conv_weight_grad(x, dy, mask, pairs, groups)
    assert torch.equal(dw, torch.where(mask, _gpu_ops.conv_weight_grad(x, dy, pairs, groups), 0.0))


def test_left_out_offsets_cost_nothing_and_are_remembered(gpu_device, rng) -> None:
    """Features that only a pruned offset reads are not touched: NaN in them does not show."""
    x, weight, mask, lists = pruned(rng, (1, 4))
    src, _, start = lists
    read = torch.cat([src[start[k] : start[k + 1]] for k in (1, 4)]).unique().long()
    x = torch.full_like(x, torch.nan).index_copy(0, read, x[read])
    x, weight, mask, *lists = (t.to(gpu_device) for t in (x, weight, mask, *lists))
    pairs = _gpu_ops.Pairs(*lists)
    y = _gpu_ops.masked_conv(x, weight, mask, pairs, 50)
    assert y.isfinite().all()
    before = dict(pairs.memo)
    assert torch.equal(y, _gpu_ops.masked_conv(x, weight, mask.clone(), pairs, 50))
    assert len(before) == len(pairs.memo) == 1
    part = next(iter(pairs.memo.values()))
    assert part.n_offsets == 2


def test_a_mask_that_was_written_to_is_read_again(gpu_device, rng) -> None:
    x, weight, mask, lists = pruned(rng, (1, 4))
    x, mask, *lists = (t.to(gpu_device) for t in (x, mask, *lists))
    weight = torch.ones(weight.shape, device=gpu_device)
    pairs = _gpu_ops.Pairs(*lists)
    first = _gpu_ops.masked_conv(x, weight, mask, pairs, 50)
    mask[:, :, 0] = True
    again = _gpu_ops.masked_conv(x, weight, mask, pairs, 50)
    assert not torch.equal(first, again)
    assert torch.equal(again, _gpu_ops.conv(x, mask.float(), pairs, 50))


def test_errors_name_the_argument(gpu_device) -> None:
    x = torch.zeros(4, 6, device=gpu_device)
    table = torch.zeros(1, 4, dtype=torch.int32, device=gpu_device)
    pairs = _gpu_ops.Pairs.of_table(table, 4)
    weight = x.new_zeros(6, 6, 1)
    with pytest.raises(TypeError, match="mask must be a strided tensor of torch.bool"):
        _gpu_ops.masked_conv(x, weight, weight, pairs, 4)
    with pytest.raises(ValueError, match="mask must have the shape of the weight"):
        _gpu_ops.masked_conv_weight_grad(x, x, weight[1:] == 0, pairs)
