"""`ds.PackedWeight`: what is packed comes back, in few bytes."""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import doublesparse as ds
from packed import DTYPES, PATTERNS, SHAPES, examples, mask_of, rows_of, same


def saved(packed: ds.PackedWeight) -> int:
    """Bytes of the stored tensors, counted here."""
    return sum(t.numel() * t.element_size() for t in packed.tensors().values())


# ------------------------------------------------------------------ there and back
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_round_trip(pattern, share: float) -> None:
    """Weight, mask and compressed rows: exactly what went in, for every shape and dtype."""
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        weight = torch.randn(shape, dtype=torch.float64).to(dtype)
        mask = mask_of(shape, pattern, share)
        packed = ds.PackedWeight.pack(weight, mask, pattern)
        want = torch.where(mask, weight, 0)
        assert same(packed.unpack(), want) and packed.unpack().is_contiguous()
        assert torch.equal(packed.mask(), mask)
        assert (packed.shape, packed.pattern, packed.dtype) == (weight.shape, pattern, dtype)
        assert packed.n_kept == int(mask.sum()) and packed.numel() == weight.numel()
        assert packed.density == int(mask.sum()) / max(mask.numel(), 1)
        assert packed.nbytes == saved(packed)
        start, columns, values = packed.csr()
        assert (start.dtype, columns.dtype, values.dtype) == (torch.int64, torch.int32, dtype)
        kept = [[(c, f) for c, f in enumerate(row) if mask.view(-1)[f]] for row in rows_of(weight)]
        assert start.tolist() == np.cumsum([0, *map(len, kept)]).tolist()
        assert columns.tolist() == [c for row in kept for c, _ in row]
        assert torch.equal(values, weight.reshape(-1)[[f for row in kept for _, f in row]])


@pytest.mark.parametrize("pattern", [ds.Block(2, 2), ds.Block(4, 1), ds.Block(3, 8)], ids=str)
def test_blocks_of_rows(pattern) -> None:
    """`bsr` holds the same weights as `csr`."""
    for shape in SHAPES:
        mask = mask_of(shape, pattern, 0.5)
        packed = ds.PackedWeight.pack(torch.randn(shape), mask, pattern)
        start, columns, values = packed.bsr()
        r, c = values.shape[1:]
        matrix = torch.zeros(shape[0] + r, math.prod(shape[1:]) + c)
        for top in range(len(start) - 1):
            for i in range(int(start[top]), int(start[top + 1])):
                left = int(columns[i])
                matrix[top * r : (top + 1) * r, left : left + c] += values[i]
        flat = packed.unpack().reshape(-1)
        for row, indices in enumerate(rows_of(mask)):
            assert torch.equal(matrix[row, : len(indices)], flat[indices])
        assert not matrix[shape[0] :].any() and not matrix[:, math.prod(shape[1:]) :].any()
    with pytest.raises(ValueError, match="PackedWeight.bsr: pattern must be a Block"):
        ds.PackedWeight.pack(torch.ones(2, 2)).bsr()


def test_without_a_mask() -> None:
    """What is not zero is kept; of blocks, all of those that are not zero."""
    weight = torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, -0.0]])
    packed = ds.PackedWeight.pack(weight)
    assert packed.mask().tolist() == [[False, True, False, False], [True, False, False, False]]
    packed = ds.PackedWeight.pack(weight, pattern=ds.Block(2, 2))
    assert packed.mask().tolist() == [[True, True, False, False]] * 2 and packed.n_kept == 4
    assert torch.equal(packed.unpack(), weight)


def test_special_values() -> None:
    """Kept NaN, infinities, zeros and their signs stay; pruned ones are gone."""
    weight = torch.tensor([[math.nan, math.inf, -math.inf, -0.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    for pattern, dtype in itertools.product((None, ds.Block(1, 2)), DTYPES):
        got = ds.PackedWeight.pack(weight, mask, pattern, dtype).unpack()
        assert got[0, 0].isnan() and got[0, 1:].tolist() == [math.inf, -math.inf, 0, 0, 0]
        assert math.copysign(1, got[0, 3]) == -1
    with pytest.raises(ValueError, match="weight must be finite for dtype=torch.int8"):
        ds.PackedWeight.pack(weight, mask, dtype=torch.int8)
    kept = ds.PackedWeight.pack(weight, weight == 0, dtype=torch.int8)  # pruned ones do not matter
    assert kept.n_kept == 1 and not kept.unpack().any()


def test_strides_do_not_matter() -> None:
    """Transposed, expanded, channels-last and sliced weights and masks."""
    for weight in (
        torch.randn(6, 4).t(),
        torch.randn(1, 6).expand(4, 6),
        torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(8, 12, 2)[::2, ::3],
        torch.nn.Parameter(torch.randn(3, 5)),
    ):
        mask = (torch.rand(tuple(reversed(weight.shape))) < 0.5).permute(*range(weight.dim())[::-1])
        for dtype in (None, torch.int8):
            want = ds.PackedWeight.pack(
                weight.detach().contiguous(), mask.contiguous(), None, dtype
            )
            got = ds.PackedWeight.pack(weight, mask, None, dtype)
            assert got == want and not got.unpack().requires_grad


@pytest.mark.parametrize("pattern", [ds.Unstructured(), ds.Block(2, 2), ds.NM(2, 4)], ids=str)
def test_int8(pattern) -> None:
    """Half a step of max|w| / 127 per row; bits as the definition says."""
    for shape, dtype in itertools.product([(8, 16), (5, 8, 3)], DTYPES):
        weight = torch.randn(shape, dtype=torch.float64).to(dtype)
        weight[3] = 0
        mask = mask_of(shape, pattern, 0.5)
        packed = ds.PackedWeight.pack(weight, mask, pattern, torch.int8)
        kept = torch.where(mask, weight, 0)
        kept = kept if dtype == torch.float64 else kept.float()
        scales = kept.abs().amax(tuple(range(1, len(shape)))) / 127
        scales[scales == 0] = 1
        assert packed.dtype == torch.int8 and torch.equal(packed.scales, scales)
        got, s = packed.unpack(), scales.view(-1, *[1] * (len(shape) - 1))
        steps = np.rint((kept / s).numpy())  # half to even
        assert got.dtype == kept.dtype and torch.equal(got, torch.from_numpy(steps).to(got) * s)
        assert bool(((got - kept).abs() <= 0.5001 * s).all())
        assert torch.equal(packed.mask(), mask)
    assert ds.PackedWeight.pack(torch.ones(2, 2)).scales is None


def test_int8_of_tiny_and_huge_rows() -> None:
    """Scales that underflow are 1; nothing overflows."""
    weight = torch.tensor([[1e-45, 0.0], [3.4e38, -3.4e38], [0.5, 1.0]])
    packed = ds.PackedWeight.pack(weight, dtype=torch.int8)
    assert packed.scales.tolist()[0] == 1.0
    got = packed.unpack()
    assert got[0].tolist() == [0, 0] and bool(got.isfinite().all())
    assert got[2].tolist()[1] == 1.0


def test_narrower_values() -> None:
    """Rounded as torch rounds; what float16 cannot hold is refused."""
    weight = torch.randn(5, 7)
    for dtype in (torch.bfloat16, torch.float16):
        got = ds.PackedWeight.pack(weight, dtype=dtype)
        assert torch.equal(got.unpack(), weight.to(dtype)) and got.scales is None
    with pytest.raises(ValueError, match="weight must fit dtype=torch.float16"):
        ds.PackedWeight.pack(weight * 1e6, dtype=torch.float16)


# ------------------------------------------------------------------ few bytes
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_bytes(sparsity: float) -> None:
    """At 90 % an eighth of the dense weight; 2 bytes a kept weight in int8, 3 in bfloat16."""
    weight = torch.randn(512, 1024)
    mask = ds.prune.magnitude_mask(weight, ds.Unstructured(), sparsity)
    n_kept, dense = int(mask.sum()), weight.numel() * 4
    sizes = {
        dtype: ds.PackedWeight.pack(weight, mask, None, dtype).nbytes
        for dtype in (torch.float32, torch.bfloat16, torch.int8)
    }
    position = min(1 / 8 / (1 - sparsity), 1.1)  # bytes a kept weight
    rows = 512 * 4 + 200  # scales and meta
    for dtype, size in sizes.items():
        assert size <= (dtype.itemsize + position) * n_kept + rows
    if sparsity >= 0.9:
        assert sizes[torch.float32] <= 0.126 * dense
        assert sizes[torch.bfloat16] <= 3.1 * n_kept + rows
        assert sizes[torch.int8] <= 2.1 * n_kept + rows
    block = ds.prune.magnitude_mask(weight, ds.Block(16, 16), sparsity)
    packed = ds.PackedWeight.pack(weight, block, ds.Block(16, 16))
    assert packed.nbytes <= 4 * packed.n_kept + 512 * 1024 / 256 / 8 + 200


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.003, 0.02, 0.1, 0.5])
def test_long_gaps(share: float) -> None:
    """Distances of all sizes, on both sides of every escape."""
    weight = torch.zeros(3, 150_000)
    flat = weight.view(-1)
    flat[torch.rand(flat.shape) < share] = 1.0
    for distance in (1, 254, 255, 256, 510, 511, 32766, 32767, 32768, 65535, 100_000):
        flat[200_000 + distance] = 2.0
    flat[-1] = 3.0
    packed = ds.PackedWeight.pack(weight)
    assert torch.equal(packed.unpack(), weight)
    assert packed.nbytes <= 4 * packed.n_kept + flat.numel() / 8 + 100


def peak() -> int:
    """The most bytes of memory since `reset_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells the peak")
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_memory_while_packing(share: float) -> None:
    """No temporaries beyond a few times the weight."""
    weight = torch.randn(2048, 2048)
    mask = torch.rand(weight.shape) < share
    packed = ds.PackedWeight.pack(weight, mask)
    for f in (
        lambda: ds.PackedWeight.pack(weight, mask),
        lambda: ds.PackedWeight.pack(weight, mask, None, torch.int8),
        lambda: ds.PackedWeight.pack(weight, None, ds.Block(16, 1)),
        lambda: ds.PackedWeight.from_tensors(packed.tensors()),
        packed.unpack,
        packed.mask,
        packed.csr,
    ):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        f()
        assert peak() - before <= 5 * 4 * weight.numel()


# ------------------------------------------------------------------ files, copies, threads
def test_stored_and_read_again() -> None:
    """Pickle, torch.save with weights_only, tensors: equal, and equal bits."""
    for packed in examples():
        buffer = io.BytesIO()
        torch.save({"w": packed}, buffer)
        buffer.seek(0)
        for again in (
            pickle.loads(pickle.dumps(packed)),
            torch.load(buffer, weights_only=True)["w"],
            ds.PackedWeight.from_tensors(packed.tensors()),
        ):
            assert again == packed and hash(again) == hash(packed) and again is not packed
            assert same(again.unpack(), packed.unpack()) and again.pattern == packed.pattern
            assert repr(again) == repr(packed)
        assert copy.deepcopy(packed) is packed and copy.copy(packed) is packed
        assert packed.to("cpu") is packed


def test_safetensors() -> None:
    """Every stored tensor is one that a safetensors file can hold."""
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    for packed in examples():
        data = files.save(packed.tensors())
        assert ds.PackedWeight.from_tensors(files.load(data)) == packed


def test_equality() -> None:
    """By shape, pattern, mask, dtype and bits."""
    weight = torch.tensor([[1.0, 0.0, math.nan]])
    a = ds.PackedWeight.pack(weight)
    assert a == ds.PackedWeight.pack(weight.clone()) and a != 3
    others = [
        ds.PackedWeight.pack(weight, dtype=torch.float64),
        ds.PackedWeight.pack(weight, torch.ones(1, 3, dtype=torch.bool)),
        ds.PackedWeight.pack(weight, pattern=ds.TopKRows(2)),
        ds.PackedWeight.pack(-weight),
        ds.PackedWeight.pack(weight.view(1, 3, 1)),
        ds.PackedWeight.pack(weight[:, [1, 0, 2]]),
    ]
    assert len({a, *others}) == 1 + len(others)


def test_it_never_changes() -> None:
    """No attribute, and no constructor."""
    packed = ds.PackedWeight.pack(torch.ones(2, 2))
    for name in ("shape", "dtype", "_layout", "new"):
        with pytest.raises(AttributeError):
            setattr(packed, name, 1)
    with pytest.raises(AttributeError):
        del packed._layout
    with pytest.raises(TypeError, match="use PackedWeight.pack"):
        ds.PackedWeight()
    weight = torch.ones(2, 2)
    packed = ds.PackedWeight.pack(weight)
    weight.zero_()
    assert packed.unpack().sum() == 4
    packed.tensors().clear()
    assert packed.unpack().sum() == 4


def test_representation() -> None:
    packed = ds.PackedWeight.pack(torch.eye(4), pattern=ds.Block(2, 2), dtype=torch.int8)
    assert repr(packed) == (
        "PackedWeight(shape=(4, 4), kept=8, density=50.0%, Block(r=2, c=2), int8, "
        f"{packed.nbytes} bytes)"
    )


def test_threads() -> None:
    """One packed weight read by several threads at once."""
    packed = ds.PackedWeight.pack(torch.randn(200, 300), torch.rand(200, 300) < 0.1)
    want, wrong = packed.unpack(), []

    def work() -> None:
        for _ in range(20):
            csr, again = packed.csr(), ds.PackedWeight.from_tensors(packed.tensors())
            if not torch.equal(again.unpack(), want) or len(csr[1]) != packed.n_kept:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
