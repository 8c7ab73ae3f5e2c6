"""Generated from `cases.py`: every raw operator, exact on integers, bounded on floats, the same
bits on any number of threads, on every instruction set of this machine.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cases
import doublesparse as ds
from doublesparse import info
from inputs import random_plan

THREADS = (1, 2, 3, 5, 16)
ISAS = ("reference", "baseline", "avx2", "avx512", "amx")
EMULATED = "amx-emulated"  # runs on every machine
by_case = pytest.mark.parametrize("case", cases.OP_CASES, ids=lambda c: c.name)
by_case_and_type = pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(c, d, id=f"{c.name}-{d}") for c in cases.OP_CASES for d in c.dtypes],
)


def bits(t: torch.Tensor) -> torch.Tensor:
    """Bits as integers, so that NaN equals itself and -0.0 differs from 0.0."""
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@by_case_and_type
def test_exact_on_integers(case, dtype, rng):
    proofs = [cases.check(case, s, ds.ops) for s in case.samples(rng, dtype, True)]
    assert any(proofs), "this proves nothing: the oracle's answers are all zero or empty"


@by_case_and_type
def test_bounded_on_floats(case, dtype, rng):
    if case.indices:
        return  # exact, whatever the values: the test above
    proofs = [cases.check(case, s, ds.ops) for s in case.samples(rng, dtype, False)]
    assert any(proofs), "this proves nothing: the oracle's answers are all zero or empty"


@by_case_and_type
def test_same_bits_for_any_number_of_threads(case, dtype, rng):
    sample = case.large(rng, dtype)
    first = None
    for threads in (*THREADS, 1):
        torch.set_num_threads(threads)
        out = [bits(y) for y in sample.call(ds.ops, case.name)]
        first = out if first is None else first
        assert all(torch.equal(a, b) for a, b in zip(first, out)), f"{threads} threads"
    assert any(y.numel() > 1 and len(y.unique()) > 1 for y in first), "this proves nothing"


@by_case
def test_large_problems_are_right_too(case, rng):
    """The sizes of the test above, on four threads, against the oracle (several tiles)."""
    torch.set_num_threads(4)
    assert cases.check(case, case.large(rng, torch.float32), ds.ops)


@functools.cache
def report_of(isa: str) -> dict:
    env = dict(os.environ, DOUBLESPARSE_ISA=isa, OMP_NUM_THREADS="1")
    child = Path(__file__).with_name("isa_child.py")
    done = subprocess.run(
        [sys.executable, child], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("isa", (*ISAS, EMULATED))
def test_every_instruction_set(isa):
    """All cases again under DOUBLESPARSE_ISA; the kernels of that set are the ones that ran."""
    here = info.collect()["isa"]
    if isa != EMULATED and isa not in here["compiled"]:
        pytest.skip(f"this build has no {isa} kernels, only {here['compiled']}")
    if isa != EMULATED and ISAS.index(isa) > ISAS.index(here["found"]):
        pytest.skip(f"this machine has no {isa}, only {here['found']}")
    refusal = info.collect()["amx"]["refusal"]
    if isa == "amx" and refusal:
        pytest.skip(refusal)
    report = report_of(isa)
    assert report["isa"]["chosen"] == isa
    failures = {name: text for name, text in report["failures"].items() if text}
    assert not failures, "\n".join(f"{name}:\n{text}" for name, text in failures.items())


def test_an_unknown_instruction_set_is_no_crash():
    env = dict(os.environ, DOUBLESPARSE_ISA="quantum")
    code = "from doublesparse import info; print(info.collect()['isa']['chosen'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (0, 1)
    if done.returncode:
        assert "DOUBLESPARSE_ISA" in done.stderr, "the error must name the variable"


@pytest.mark.slow
@by_case
@pytest.mark.parametrize("seed_shift", range(30))
def test_fuzz(case, seed_shift, seed):
    rng = np.random.default_rng(seed + seed_shift)
    for sample in case.samples(rng, torch.float32, True):
        cases.check(case, sample, ds.ops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "n_rows"),
    [(64, 48, 1, 49), (24, 64, 2, 300), (5, 3, 1, 40), (8, 8, 8, 40), (512, 32, 1, 20)],
)
def test_packed_and_channels_last_weights_give_the_same_bits(
    c_in, c_out, groups, n_rows, transposed, dtype
):
    """A weight packed before, by panels or whole, and one whose channels lie together."""
    rng = np.random.default_rng(0)
    plan = random_plan(rng, n_rows, n_rows, 9, 0.5)
    pairs = ds.ops.Pairs(plan.src_rows, plan.dst_rows, plan.offset_start)
    x = torch.randn(n_rows, c_in, dtype=dtype)
    shape = (c_in, c_out // groups, 9) if transposed else (c_out, c_in // groups, 9)
    weight = torch.randn(shape, dtype=dtype)
    last = weight.transpose(1, 2).contiguous().transpose(1, 2)
    options = dict(groups=groups, transposed=transposed)
    y = ds.ops.conv(x, weight, pairs, n_rows, **options)
    for given in (weight, last):
        packed = ds.ops.pack_weight(given, groups, transposed)
        assert torch.equal(y, ds.ops.conv(x, given, pairs, n_rows, **options))
        assert torch.equal(y, ds.ops.conv(x, given, pairs, n_rows, **options, packed=packed))
    with pytest.raises(ValueError, match="workspace"):
        ds.ops.conv(x, weight, pairs, n_rows, **options, packed=packed[:-1])
