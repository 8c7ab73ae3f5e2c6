"""Windows on the device: index work and reductions, against the oracle and the CPU."""

from __future__ import annotations

import pytest
import torch
from on_device import check

import cases

NAMES = (
    "window_table",
    "ground_taps",
    "every_tap",
    "invert_rows",
    "window_max",
    "window_max_grad",
    "window_sum",
)
BY_NAME = {case.name: case for case in cases.OP_CASES}
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
