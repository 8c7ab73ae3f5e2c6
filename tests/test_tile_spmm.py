"""Pruned bfloat16 weights in 32 x 32 blocks, beyond the rows of `tile_cases.py`.

Packing, cuts into chunks and panels, values that are no numbers, wrong calls. By the last test the
file runs on AMX's matrix tiles in plain C++ as well; `DOUBLESPARSE_ISA=amx pytest
tests/test_tile_spmm.py` runs it on real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tile_cases
from doublesparse import info, ops
from inputs import numbers
from test_ops import EMULATED, bits

BF16 = torch.bfloat16
INF = float("inf")


def csr(weight: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    start = torch.zeros(len(mask) + 1, dtype=torch.int64)
    start[1:] = mask.sum(1).cumsum(0)
    return start, mask.nonzero()[:, 1].int().contiguous(), weight[mask]


def pack(weight: torch.Tensor, mask: torch.Tensor, channels: int | None = None):
    return ops.tile_blocks(*csr(weight, mask), weight.shape[1], channels)


def random_weight(rng, n_out: int, n_in: int, density: float, integers: bool = True):
    weight = numbers(rng, (n_out, n_in), BF16, integers)
    return weight, torch.from_numpy(rng.random((n_out, n_in)) < density)


# ------------------------------------------------------------------ packing
@pytest.mark.parametrize("density", tile_cases.DENSITIES)
@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 100), (70, 31), (130, 257)])
def test_packing_is_what_the_layout_says(shape, density, rng):
    weight, mask = random_weight(rng, *shape, density, False)
    if shape[0] > 64:
        mask[32:64] = False  # a block row of nothing
    blocks = pack(weight, mask)
    want = tile_cases.layout(weight.double().numpy(), mask.numpy())
    assert (blocks.n_out, blocks.n_in) == shape
    for name, truth in want.items():
        got = getattr(blocks, name)
        assert got.dtype == truth.dtype and torch.equal(got, truth), name


def test_packing_rounds_float32_to_nearest_even(rng):
    weight = torch.randn(40, 70) * 2.0 ** torch.randint(-90, 90, (40, 70))
    mask = torch.rand(40, 70) < 0.5
    low, wide = pack(weight.bfloat16(), mask), pack(weight, mask)
    assert torch.equal(bits(low.values), bits(wide.values))


def test_a_kept_zero_stays_kept(rng):
    """What is kept is what the lists name, whatever the values."""
    mask = torch.rand(32, 64) < 0.5
    blocks = pack(torch.zeros(32, 64), mask)
    kept = sum(np.unpackbits(m.numpy().view(np.uint8)).sum() for m in blocks.masks)
    assert kept == int(mask.sum())


def test_packing_takes_two_bytes_a_value_and_masks(rng):
    weight, mask = random_weight(rng, 512, 512, 0.1)
    blocks = pack(weight, mask)
    tensors = (blocks.start, blocks.columns, blocks.place, blocks.masks, blocks.values)
    size = sum(t.numel() * t.element_size() for t in tensors)
    assert size <= 0.2 * weight.numel() * 2


# ------------------------------------------------------------------ products
def linear(x, weight, mask, bias=None):
    wide = None if bias is None else bias.double()
    return F.linear(x.double(), torch.where(mask, weight, 0).double(), wide).to(BF16)


@pytest.mark.parametrize("n_rows", (1, 16, 32, 33, 300))
@pytest.mark.parametrize("n_blocks", (1, 4, 5, 16, 17, 33))
def test_any_number_of_blocks_in_a_row(n_rows, n_blocks, rng):
    """One chunk or several, of whole blocks and of packed ones; sums stay exact between."""
    for density in (0.3, 1.0):
        weight, mask = random_weight(rng, 64, 32 * n_blocks, density)
        x, bias = numbers(rng, (n_rows, 32 * n_blocks), BF16), numbers(rng, (64,), BF16)
        assert torch.equal(
            ops.tile_spmm(x, pack(weight, mask), bias), linear(x, weight, mask, bias)
        )


def test_more_rows_than_a_panel(rng):
    """A panel is at most 512 rows, and fewer where rows are long."""
    for n_rows, n_in in ((1040, 64), (130, 13000)):
        weight, mask = random_weight(rng, 40, n_in, 0.02)
        x = numbers(rng, (n_rows, n_in), BF16)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ops.tile_spmm(x, pack(weight, mask)), linear(x, weight, mask))


def test_a_row_has_the_same_bits_in_any_company(rng):
    weight, mask = random_weight(rng, 70, 700, 0.4, False)
    blocks, x = pack(weight, mask), torch.randn(100, 700).to(BF16)
    whole = ops.tile_spmm(x, blocks)
    for rows in (slice(0, 1), slice(3, 19), slice(40, 100)):
        assert torch.equal(bits(whole[rows]), bits(ops.tile_spmm(x[rows].contiguous(), blocks)))


def test_the_blocks_of_the_transpose_give_the_input_gradient(rng):
    weight, mask = random_weight(rng, 70, 100, 0.3)
    dy = numbers(rng, (33, 70), BF16)
    got = ops.tile_spmm(dy, pack(weight.t().contiguous(), mask.t().contiguous()))
    leaf = torch.zeros(33, 100, dtype=torch.float64, requires_grad=True)
    F.linear(leaf, torch.where(mask, weight, 0).double()).backward(dy.double())
    assert torch.equal(got, leaf.grad.to(BF16))


def test_float32_bias_joins_the_sum_unrounded(rng):
    weight, mask = random_weight(rng, 32, 32, 0.5)
    x, bias = torch.zeros(3, 32, dtype=BF16), torch.rand(32) + 1
    x[:, 0], weight[:, 0], mask[:, 0] = 1.0, 256.0, True
    y = ops.tile_spmm(x, pack(weight, mask), bias)
    assert torch.equal(y, (256 + bias.double()).expand(3, 32).to(BF16))


def test_a_row_of_blocks_without_blocks_is_its_bias(rng):
    weight, mask = random_weight(rng, 96, 64, 0.5)
    mask[32:64] = False
    x, bias = torch.randn(40, 64).to(BF16), torch.randn(96).to(BF16)
    bias[33] = 1e-40  # less than the least normal number
    y = ops.tile_spmm(x, pack(weight, mask), bias)
    assert torch.equal(y[:, 32:64], bias[32:64].expand(40, 32))


# ------------------------------------------------------------------ values that are no numbers
@pytest.mark.parametrize("value", (float("nan"), INF))
def test_non_finite_weights_reach_their_output_alone(value, rng):
    weight, mask = random_weight(rng, 70, 100, 0.4)
    mask[37, 50], weight[37, 50] = True, value
    for n_rows in (5, 40):
        x = numbers(rng, (n_rows, 100), BF16).abs() + 1
        y = ops.tile_spmm(x, pack(weight, mask))
        assert bool((~y[:, 37].isfinite()).all())
        rest = torch.arange(70) != 37
        assert torch.equal(y[:, rest], linear(x, weight[rest], mask[rest]))


def test_non_finite_inputs_reach_their_row_alone(rng):
    """And, past a row's end or a matrix's, nobody: what tiles hold there are zeros."""
    for n_in in (64, 70):
        weight, mask = random_weight(rng, 40, n_in, 0.5)
        x = numbers(rng, (21, n_in), BF16)
        x[7, n_in - 1], x[20, 0] = INF, float("nan")
        mask[:, 0] = mask[:, n_in - 1] = True
        weight[:, 0] = weight[:, n_in - 1] = 1
        y = ops.tile_spmm(x, pack(weight, mask))
        assert bool((~y[[7, 20]].isfinite()).all())
        rest = torch.tensor([i not in (7, 20) for i in range(21)])
        assert torch.equal(y[rest], linear(x[rest], weight, mask))


def test_padding_of_a_convolution_is_zero_whatever_memory_held(rng):
    weight, mask = random_weight(rng, 32, 9 * 20, 0.5)
    blocks, x = pack(weight, mask, 20), numbers(rng, (2, 20, 30, 30), BF16)
    walk = ((3, 3), (1, 1), (1, 1), (1, 1))
    first = ops.tile_conv(x, blocks, *walk)
    ops.tile_conv(torch.full((2, 20, 31, 29), INF, dtype=BF16), blocks, *walk)  # the same scratch
    assert torch.equal(first, ops.tile_conv(x, blocks, *walk))
    assert bool(first.isfinite().all())


# ------------------------------------------------------------------ convolutions
def test_convolution_packs_any_number_of_channels(rng):
    for c_in in (3, 32, 50):
        weight, mask = random_weight(rng, 40, 9 * c_in, 0.4)
        x, bias = numbers(rng, (2, c_in, 9, 10), BF16), numbers(rng, (40,), BF16)
        y = ops.tile_conv(x, pack(weight, mask, c_in), (3, 3), (1, 1), (1, 1), (1, 1), bias)
        wide = torch.where(mask, weight, 0).double().view(40, 3, 3, c_in).movedim(-1, 1)
        assert torch.equal(y, F.conv2d(x.double(), wide, bias.double(), padding=1).to(BF16))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_raw_operators_know_no_autograd(rng):
    weight, mask = random_weight(rng, 32, 9 * 32, 0.5)
    x = numbers(rng, (1, 32, 24, 24), BF16).requires_grad_()
    for _ in range(2):  # memory that is used again must not remember x
        y = ops.tile_conv(x, pack(weight, mask, 32), (3, 3), (1, 1), (1, 1), (1, 1))
        assert not y.requires_grad


def test_every_output_of_a_convolution_is_in_one_tile():
    from doublesparse._tile_ops import conv_rows

    for extents, stride in (((14, 14), (1, 1)), ((9, 40), (2, 2)), ((5, 3), (3, 1)), ((50,), (4,))):
        n = len(extents)
        one = (1,) * n
        rows = conv_rows(3, extents, 32, (3,) * n, stride, one, one)
        out = rows.out_rows[rows.out_rows >= 0]
        sizes = [(e - 1) // s + 1 for e, s in zip(extents, stride)]
        assert torch.equal(out, torch.arange(3 * int(np.prod(sizes)), dtype=torch.int32))
        assert bool((rows.out_rows[:, 0] >= 0).all())
    assert len(conv_rows(1, (14, 14), 32, (3, 3), (1, 1), (1, 1), (1, 1)).half_start) == 14


# ------------------------------------------------------------------ wrong calls
def test_wrong_packing_is_refused(rng):
    start, columns, values = csr(torch.ones(40, 40), torch.ones(40, 40, dtype=torch.bool))
    for changes, error, name in (
        (dict(row_start=start.int()), TypeError, "row_start"),
        (dict(row_start=start + 1), ValueError, "row_start"),
        (dict(row_start=start[:0]), ValueError, "n_out"),
        (dict(columns=columns.long()), TypeError, "columns"),
        (dict(columns=columns + 1), ValueError, "columns"),
        (dict(columns=columns.flip(0)), ValueError, "columns"),
        (dict(columns=torch.zeros_like(columns)), ValueError, "columns"),
        (dict(values=values.double()), TypeError, "values"),
        (dict(values=values[1:]), ValueError, "values"),
        (dict(n_in=0), ValueError, "n_in"),
        (dict(n_in=2**31), ValueError, "2\\^31"),
        (dict(n_in=39), ValueError, "columns"),
        (dict(channels=7), ValueError, "channels"),
        (dict(channels=0), ValueError, "channels"),
    ):
        args = dict(row_start=start, columns=columns, values=values, n_in=40) | changes
        with pytest.raises(error, match=name):
            ops.tile_blocks(**args)


def test_wrong_blocks_are_refused(rng):
    mask = rng.random((64, 64)) < np.repeat([1.0, 0.5], 32)
    parts = tile_cases.layout(np.ones((64, 64)), mask) | dict(n_out=64, n_in=64)
    assert (parts["place"] < 0).tolist() == [True, False, True, False]
    wrong_place = [parts["place"].clone() for _ in range(4)]
    for at, (b, to) in enumerate(((1, 2**62), (0, ~(2**62)), (3, len(parts["values"])), (2, ~1))):
        wrong_place[at][b] = to
    for changes in (
        dict(start=parts["start"][:-1]),
        dict(start=parts["start"].flip(0)),
        dict(columns=parts["columns"].flip(0)),
        dict(columns=parts["columns"] + 1),
        dict(columns=parts["columns"] - 1),
        *(dict(place=place) for place in wrong_place),
        dict(masks=torch.full_like(parts["masks"], -1)),
        dict(masks=parts["masks"][:-1]),
        dict(values=parts["values"][:-33].contiguous()),
        dict(values=parts["values"].float()),
        dict(n_out=65),
        dict(n_in=32),
        dict(n_in=2**62),
        dict(n_out=-1),
    ):
        with pytest.raises((ValueError, TypeError), match="TileBlocks"):
            ops.TileBlocks(*(parts | changes).values())


def test_wrong_products_are_refused(rng):
    blocks = pack(*random_weight(rng, 40, 64, 0.5))
    x = torch.ones(3, 64, dtype=BF16)
    for args, error, name in (
        ((x.float(), blocks), TypeError, "x"),
        ((x[:, :63].contiguous(), blocks), ValueError, "x"),
        ((x.t(), blocks), ValueError, "x"),
        ((torch.stack([x, x], 2)[..., 0], blocks), ValueError, "contiguous"),
        ((x[0], blocks), ValueError, "x"),
        ((x, blocks, torch.ones(39)), ValueError, "bias"),
        ((x, blocks, torch.ones(40).double()), TypeError, "bias"),
    ):
        with pytest.raises(error, match=f"tile_spmm: {name}|{name}"):
            ops.tile_spmm(*args)


def test_wrong_convolutions_are_refused(rng):
    blocks = pack(*random_weight(rng, 40, 9 * 32, 0.5), 32)
    given = dict(x=torch.ones(2, 32, 6, 6, dtype=BF16), blocks=blocks, kernel=(3, 3))
    given |= dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    for changes, error, name in (
        (dict(x=given["x"].float()), TypeError, "x"),
        (dict(x=given["x"][:, :30]), None, ""),  # padded to 32 channels
        (dict(x=torch.ones(2, 33, 6, 6, dtype=BF16)), ValueError, "blocks"),
        (dict(x=given["x"][0, 0]), ValueError, "x"),
        (dict(kernel=(3,)), ValueError, "kernel"),
        (dict(kernel=(5, 3)), ValueError, "blocks"),
        (dict(stride=(0, 1)), ValueError, "stride"),
        (dict(padding=(-1, 1)), ValueError, "padding"),
        (dict(dilation=(4, 1)), ValueError, "kernel"),
        (dict(bias=torch.ones(41)), ValueError, "bias"),
    ):
        if error is None:
            assert ops.tile_conv(**(given | changes)).shape == (2, 40, 6, 6)
            continue
        with pytest.raises(error, match=f"tile_conv: {name}"):
            ops.tile_conv(**(given | changes))


# ------------------------------------------------------------------ matrix tiles
@pytest.mark.skipif("DOUBLESPARSE_ISA" in os.environ, reason="one instruction set was asked for")
def test_on_matrix_tiles():
    """The whole file again; `test_ops.py` runs the operators' own cases on every set, too."""
    if info.collect()["isa"]["chosen"] == EMULATED:
        pytest.skip("they run here anyway")
    env = dict(os.environ, DOUBLESPARSE_ISA=EMULATED, OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
