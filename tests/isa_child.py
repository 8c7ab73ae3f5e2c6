"""Every raw operator against its oracle, in a process of its own: DOUBLESPARSE_ISA is read once.

Prints a JSON object: the instruction set that was chosen, and a failure text or null per operator.
usage: DOUBLESPARSE_ISA=avx2 python isa_child.py
"""

from __future__ import annotations

import json
import sys
import traceback

import numpy as np
import torch

import cases
import doublesparse as ds
from doublesparse import info


def main() -> None:
    torch.set_num_threads(1)
    report = {}
    for case in cases.OP_CASES:
        report[case.name] = None
        try:
            for dtype in case.dtypes:
                for integers in (True, False):
                    rng = np.random.default_rng(7)
                    for sample in case.samples(rng, dtype, integers):
                        cases.check(case, sample, ds.ops)
                    if case.indices and not integers:
                        break
        except Exception:
            report[case.name] = traceback.format_exc()
    json.dump({"isa": info.collect()["isa"], "failures": report}, sys.stdout)


if __name__ == "__main__":
    main()
