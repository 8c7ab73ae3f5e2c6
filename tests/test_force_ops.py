"""`constant_forces`: the kernel under the l1 force, against the definition in float64."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import doublesparse as ds
from doublesparse import _C
from doublesparse._force_ops import constant_forces
from doublesparse.lowrank import _force as private

ISAS = [name for name in _C.isa_compiled() if name in ("reference", "baseline", "avx2", "avx512")]
DTYPES = (torch.float32, torch.float64)


def unit_rows(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    lengths = rows.norm(dim=1)
    return (rows / lengths[:, None]).to(dtype), lengths.to(dtype)


def definition(unit: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
    """Every pair in turn, in float64."""
    w, out = unit.double().numpy(), np.zeros(unit.shape)
    for i in range(len(w)):
        apart = w - w[i]
        distance = np.sqrt((apart**2).sum(1))
        near = distance <= 1e-4
        force = (apart / np.where(near, np.inf, distance)[:, None]).sum(0)
        out[i] = lengths[i].double().item() * (force - (force @ w[i]) * w[i])
    return out


def bound(unit: torch.Tensor, lengths: torch.Tensor) -> float:
    """Of the absolute error, for rows whose distances are `near` or more.

    A_ij: (256 + d / 256 + 3) u / 2 + 3 u relative. A_ij w_j: n + 1 roundings of sums of terms
    of at most A_ij. Then the subtraction of a sum of n, and the projection, d / 16 + 8 roundings.
    """
    n, d = unit.shape
    u = torch.finfo(unit.dtype).eps / 2
    w = unit.double()
    distance = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.where(distance > 1e-4, 1 / distance, 0.0).sum(1).max().item()
    roundings = (min(d, 256) + d / 256 + 3) / 2 + 3 + (n + 1) + (n / 16 + 8) + 2 * (d / 16 + 8) + 8
    return lengths.max().item() * roundings * u * weights


# ------------------------------------------------------------------ results
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 33, 255, 256, 257, 600])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 13, 31, 33, 48, 50, 65])
def test_tails_of_tiles(n, d, dtype):
    unit, lengths = unit_rows(n, d, dtype)
    got = constant_forces(unit, lengths)
    assert got.dtype is dtype and got.shape == (n, d)
    error = np.abs(got.numpy() - definition(unit, lengths)).max()
    assert error <= bound(unit, lengths)
    if n == 1:
        assert not got.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_filters_than_a_pass(dtype):
    unit, lengths = unit_rows(301, 70, dtype)
    error = np.abs(constant_forces(unit, lengths).numpy() - definition(unit, lengths)).max()
    assert error <= bound(unit, lengths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_rows_exert_nothing(dtype):
    unit, lengths = unit_rows(20, 70, dtype)
    alone = constant_forces(unit[:10].contiguous(), lengths[:10].contiguous())
    same = unit[3].expand(20, 70).contiguous()
    assert not constant_forces(same, lengths).any()  # exactly: distances are of differences
    twice = constant_forces(unit[:10].repeat(2, 1), lengths[:10].repeat(2))
    u = torch.finfo(dtype).eps
    assert torch.equal(twice[:10], twice[10:])
    torch.testing.assert_close(twice[:10], 2 * alone, rtol=0, atol=2000 * u)


def test_distances_beyond_a_threshold_only():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.99e-4], [1.0, -1.1e-4]], dtype=torch.float64)
    force = constant_forces(near, torch.ones(3, dtype=torch.float64))
    # The first feels the third alone, the second the third too; the third feels both.
    torch.testing.assert_close(force[:, 1].sign(), torch.tensor([-1.0, -1, 1]).double())
    torch.testing.assert_close(force[2, 1].item(), 2.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(force[0, 1].item(), -1.0, rtol=1e-6, atol=0)


def test_rows_of_zeros_take_part():
    unit, lengths = unit_rows(9, 20, torch.float64)
    unit[4] = 0
    lengths[4] = 0
    got = constant_forces(unit, lengths)
    assert not got[4].any()
    np.testing.assert_allclose(got.numpy(), definition(unit, lengths), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_devices_go_the_way_of_torch(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 6, 3, generator=generator, dtype=dtype)
    kernel = ds.lowrank.force(weight, "l1")
    monkeypatch.setattr(private, "_KERNELS", ())
    u = torch.finfo(dtype).eps
    for rows in (40, 7):
        monkeypatch.setattr(private, "_PAIR_BYTES", rows * 40 * dtype.itemsize)
        torch.testing.assert_close(ds.lowrank.force(weight, "l1"), kernel, rtol=0, atol=2000 * u)


# ------------------------------------------------------------------ the same bits
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(131, 300), (4, 1000), (50, 7)])
def test_bits_do_not_depend_on_threads_and_blocks(shape, dtype):
    unit, lengths = unit_rows(*shape, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for rows in (None, 1, 3, shape[0] - 1):
                results.append(constant_forces(unit, lengths, table_rows=rows))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_out_is_written_and_returned():
    unit, lengths = unit_rows(12, 30, torch.float32)
    out = torch.full((3, 12, 30), 7.0)
    assert constant_forces(unit, lengths, out[1]).data_ptr() == out[1].data_ptr()
    assert torch.equal(out[1], constant_forces(unit, lengths))
    assert (out[[0, 2]] == 7).all()


CHILD = """
import sys, torch, test_force_ops as t
from doublesparse import _C
torch.set_num_threads(2)
parts = [t.constant_forces(*t.unit_rows(n, d, dtype)).double().numpy().tobytes()
         for n, d in t.SHAPES for dtype in t.DTYPES]
sys.stdout.buffer.write(_C.isa_chosen().encode().ljust(16) + b"".join(parts))
"""
SHAPES = ((1, 9), (37, 301), (70, 40))


@functools.cache
def by(isa: str) -> tuple[str, list[np.ndarray]]:
    env = {**os.environ, "DOUBLESPARSE_ISA": isa, "OMP_NUM_THREADS": "2"}
    env["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    values = np.frombuffer(done.stdout[16:])
    sizes = np.cumsum([n * d for n, d in SHAPES for _ in DTYPES])
    return done.stdout[:16].decode().strip(), np.split(values, sizes)[:-1]


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """Within the bound everywhere; the same bits wherever multiply-adds are fused."""
    used, results = by(isa)
    if used != isa:
        pytest.skip(f"this machine runs {used}")
    cases = [(n, d, dtype) for n, d in SHAPES for dtype in DTYPES]
    for case, got, exact in zip(cases, results, by("reference")[1], strict=True):
        unit, lengths = unit_rows(*case)
        limit = 2 * bound(unit, lengths)  # the baseline rounds products as well
        assert np.abs(got - definition(unit, lengths).ravel()).max() <= limit
        if isa != "baseline":
            assert np.array_equal(got, exact)


# ------------------------------------------------------------------ wrong calls
WRONG = [
    (TypeError, "torch.Tensor", {"unit": [[1.0]]}),
    (TypeError, "torch.Tensor", {"lengths": None}),
    (TypeError, "float32 or float64", {"unit": torch.ones(5, 4).half()}),
    (TypeError, "lengths must be float32", {"lengths": torch.ones(5).double()}),
    (TypeError, "out must be float32", {"out": torch.ones(5, 4).double()}),
    (ValueError, "2 dimensions", {"unit": torch.ones(5)}),
    (ValueError, "2 dimensions", {"unit": torch.ones(0, 4)}),
    (ValueError, "contiguous", {"unit": torch.ones(4, 5).T}),
    (ValueError, "shape", {"lengths": torch.ones(4)}),
    (ValueError, "shape", {"out": torch.ones(4, 5)}),
    (ValueError, "table_rows must be at least 1", {"table_rows": 0}),
    (ValueError, "table_rows must be at most", {"table_rows": 6}),
    (RuntimeError, "CPU", {"unit": torch.ones(5, 4, device="meta")}),
]


@pytest.mark.parametrize(("error", "text", "change"), WRONG)
def test_wrong_calls(error, text, change):
    arguments = {"unit": torch.ones(5, 4), "lengths": torch.ones(5)} | change
    with pytest.raises(error, match=text):
        constant_forces(**arguments)


def test_out_lies_apart():
    unit = torch.ones(5, 4)
    with pytest.raises(ValueError, match="overlap"):
        constant_forces(unit, torch.ones(5), unit)
