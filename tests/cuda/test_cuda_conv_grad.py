"""Weight gradients and depthwise convolutions on the device, from the cases of the CPU's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import cases
import doublesparse
import oracle
from conv_cases import conv_sample, with_dy
from doublesparse import _gpu_conv_grad, _gpu_ops
from inputs import numbers, random_plan
from op_case import Sample

FLOATS = (torch.float32, torch.float64, *oracle.HALF)
GRAD = next(c for c in cases.OP_CASES if c.name == "conv_weight_grad")
CONV = next(c for c in cases.OP_CASES if c.name == "conv")
by_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def on(device: torch.device) -> SimpleNamespace:
    """The operators, on tensors that are sent to the device and fetched."""

    def sent(value):
        return value.to(device) if isinstance(value, Tensor) else value

    class Pairs(_gpu_ops.Pairs):
        def __init__(self, *lists: Tensor) -> None:
            super().__init__(*map(sent, lists))

    def conv_weight_grad(x, dy, pairs, groups=1):
        return _gpu_ops.conv_weight_grad(sent(x), sent(dy), pairs, groups).cpu()

    def conv(x, weight, pairs, n_dst, bias=None, groups=1, u=None, u_start=None, u_rows=None):
        assert groups == x.shape[1] == weight.shape[0]
        rest = (sent(t) for t in (bias, u, u_start, u_rows))
        return _gpu_conv_grad.depthwise(sent(x), sent(weight), pairs, n_dst, *rest).cpu()

    return SimpleNamespace(Pairs=Pairs, conv_weight_grad=conv_weight_grad, conv=conv)


def grad_sample(rng, sizes, dtype, integers, n_rows=300, n_offsets=3, share=0.6) -> Sample:
    plan = random_plan(rng, n_rows, n_rows + 20, n_offsets, share)
    return with_dy(conv_sample(rng, plan, *sizes, dtype, integers), rng, dtype, ("weight",))


# ------------------------------------------------------------------ weight gradient
@by_dtype
@pytest.mark.parametrize("integers", [True, False])
def test_weight_gradients(gpu_device, rng, dtype, integers) -> None:
    ops = on(gpu_device)
    assert any([cases.check(GRAD, s, ops) for s in GRAD.samples(rng, dtype, integers)])


@by_dtype
@pytest.mark.parametrize(
    "sizes", [(32, 16, 1), (64, 64, 1), (136, 144, 1), (96, 64, 2), (72, 66, 1)]
)
def test_every_tile(any_order, rng, dtype, sizes) -> None:
    """Narrow, middle and wide; parts of tiles; rows that are not of 16 bytes."""
    assert cases.check(GRAD, grad_sample(rng, sizes, dtype, True), on(any_order))


@by_dtype
@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 32, 33, 511, 513])
def test_numbers_of_rows_around_a_stage_and_a_scan(gpu_device, rng, dtype, n_rows) -> None:
    sample = grad_sample(rng, (8, 8, 1), dtype, True, n_rows, 2, 1.0)
    cases.check(GRAD, sample, on(gpu_device))


@by_dtype
def test_chunks_and_the_same_bits_in_any_order(gpu_device, rng, dtype, monkeypatch) -> None:
    """Several chunks, a queue that goes around, sums that depend on their order."""
    sample = grad_sample(rng, (8, 24, 1), dtype, False, 9000, 2, 0.9)
    ops = on(gpu_device)
    assert cases.check(GRAD, sample, ops)
    (first,) = sample.call(ops, "conv_weight_grad")
    monkeypatch.setenv("DOUBLESPARSE_EMULATION_ORDER", "5")
    assert torch.equal(first, sample.call(ops, "conv_weight_grad")[0])


def test_tf32_is_exact_on_small_integers(any_order, rng, tf32) -> None:
    for sizes in ((32, 16, 1), (64, 40, 1), (136, 132, 1), (9, 10, 1)):
        sample = grad_sample(rng, sizes, torch.float32, True)
        assert cases.check(GRAD, sample, on(any_order))


def test_tf32_rounds_factors_to_11_bits(gpu_device, rng, tf32) -> None:
    sample = grad_sample(rng, (8, 12, 1), torch.float32, False)
    truth = sample.call(doublesparse.ops, "conv_weight_grad")[0]
    got = sample.call(on(gpu_device), "conv_weight_grad")[0]
    assert not torch.equal(got, truth)
    assert torch.allclose(got, truth, rtol=0, atol=2e-3 * float(truth.abs().max()))


@by_dtype
def test_rows_that_no_pair_reads_do_not_count(gpu_device, rng, dtype) -> None:
    """NaN in rows of x and dy that no offset joins; wrong rows of the table are left out."""
    for channels, groups in ((16, 1), (5, 1), (16, 16)):
        x, dy = (numbers(rng, (40, channels), dtype, True) for _ in range(2))
        table = torch.full((2, 40), -1, dtype=torch.int32)
        table[0, 3:20] = torch.arange(17, dtype=torch.int32)
        table[1, 5], table[1, 6], table[1, 7] = 40, 2**31 - 1, -7
        want = torch.einsum("do,di->oi", dy[3:20].double(), x[:17].double())
        if groups > 1:
            want = want.diagonal()[:, None]
        x[17:], dy[20:], dy[:3] = torch.nan, torch.inf, torch.nan
        pairs = SimpleNamespace(n_offsets=2, table=lambda *_: table.to(gpu_device))
        dw = _gpu_ops.conv_weight_grad(x.to(gpu_device), dy.to(gpu_device), pairs, groups).cpu()
        assert torch.equal(dw[:, :, 0], want.to(dtype))
        assert (dw[:, :, 1] == 0).all()


# ------------------------------------------------------------------ depthwise
@by_dtype
@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("channels", [1, 7, 8, 48, 264])
def test_depthwise(any_order, rng, dtype, integers, channels) -> None:
    ops = on(any_order)
    plan = random_plan(rng, 70, 60, 9, 0.8)
    rest = dict(bias=True, ground=True)
    sample = conv_sample(rng, plan, channels, channels, channels, dtype, integers, **rest)
    assert cases.check(CONV, sample, ops)
    bare = conv_sample(rng, plan, channels, channels, channels, dtype, integers)
    assert cases.check(CONV, bare, ops)
    assert cases.check(GRAD, with_dy(bare, rng, dtype, ("weight",)), ops)


@by_dtype
def test_depthwise_weight_gradient_in_chunks(gpu_device, rng, dtype) -> None:
    sample = grad_sample(rng, (8, 8, 8), dtype, False, 5000, 2, 0.9)
    assert cases.check(GRAD, sample, on(gpu_device))


@by_dtype
def test_depthwise_leaves_out_what_is_absent(gpu_device, rng, dtype) -> None:
    """A weight that is not finite meets no absent row, and a wrong row is none."""
    x, weight = numbers(rng, (9, 8), dtype, True), numbers(rng, (8, 1, 5), dtype, True)
    weight[:, :, 1:4] = torch.inf
    table = torch.full((5, 9), -1, dtype=torch.int32)
    table[0] = torch.arange(9, dtype=torch.int32)
    table[1], table[2] = 9, -2
    pairs = SimpleNamespace(n_offsets=5, table=lambda *_: table.to(gpu_device))
    y = _gpu_conv_grad.depthwise(x.to(gpu_device), weight.to(gpu_device), pairs, 9).cpu()
    assert torch.equal(y, x * weight[:, 0, 0])


# ------------------------------------------------------------------ wrong input
def test_errors_name_the_argument(gpu_device) -> None:
    pairs = SimpleNamespace(
        n_offsets=1, table=lambda *_: torch.zeros(1, 4, dtype=torch.int32, device=gpu_device)
    )
    x = torch.zeros(4, 6, device=gpu_device)
    with pytest.raises(ValueError, match="conv_weight_grad: groups = 4 must divide 6"):
        _gpu_ops.conv_weight_grad(x, x, pairs, 4)
    with pytest.raises(TypeError, match="dy must be float32"):
        _gpu_ops.conv_weight_grad(x, x.double(), pairs)
    with pytest.raises(ValueError, match="table"):
        _gpu_ops.conv_weight_grad(x, x[:3], pairs)
    with pytest.raises(ValueError, match="weight"):
        _gpu_conv_grad.depthwise(x, x.new_zeros(5, 1, 1), pairs, 4)
    with pytest.raises(ValueError, match="u needs u_start and u_rows"):
        _gpu_conv_grad.depthwise(x, x.new_zeros(6, 1, 1), pairs, 4, None, x)
