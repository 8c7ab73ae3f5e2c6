"""`nearest_centers` and `most_agreeing` on every instruction set that this machine has.

A child process for each: the choice is made once. Oracles are those of test_nearest and test_agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from doublesparse import _C
from test_nearest import mixed, scores

COMPILED = _C.isa_compiled()  # ascending
ISAS = COMPILED[: COMPILED.index(_C.isa_detected()) + 1]

CHILD = """
import json, sys, numpy as np, torch, test_agree, test_nearest
from doublesparse import _C
torch.set_num_threads(1)
for dtype in (torch.uint8, torch.uint16):
    for s in (7, 300):
        test_agree.check(test_agree.sample(70, s, 33, 50, dtype))
test_agree.check(test_agree.sample(70, 9, 300, 60, torch.uint16))
points, centers = test_nearest.mixed(np.random.default_rng(11), 150)
whole = np.rint(4 * points), np.rint(4 * centers)
json.dump([_C.isa_chosen(), test_nearest.nearest(*whole).tolist(),
           test_nearest.nearest(points, centers).tolist()], sys.stdout)
"""


@pytest.fixture(scope="module")
def wanted() -> tuple[list[int], list[int]]:
    """Nearest centres of whole numbers, where sums are exact, and of floats by the contract."""
    points, centers = mixed(np.random.default_rng(11), 150)
    whole, around = np.rint(4 * points), np.rint(4 * centers)
    squares = (whole**2).sum(1)[:, None] - 2 * whole @ around.T + (around**2).sum(1)
    return squares.argmin(1).tolist(), scores(points, centers).argmax(1).tolist()


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, wanted: tuple[list[int], list[int]]) -> None:
    """Exact everywhere on integers; the same bits wherever multiply-adds are fused."""
    environment = {**os.environ, "DOUBLESPARSE_ISA": isa, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, exact, floats = json.loads(done.stdout)
    assert used == isa
    assert exact == wanted[0]
    if isa != "baseline":
        assert floats == wanted[1]
