"""Sparse libraries on the same pruned weight, activations by rows in and out, one thread."""

from __future__ import annotations

import warnings

import pytest

import peers_pruned
import pruned_weights
from report import Report
from test_bench_pruned import Duel, few, ours


@pytest.mark.parametrize("rows", [128, 512])
@pytest.mark.parametrize("size", [1024, 4096])
def test_libraries(duel: Duel, report: Report, size: int, rows: int) -> None:
    """90 % pruned. Each library prints a row, by the fastest of its ways; the best one counts.

    What they prepare per weight, DeepSparse's compilation too, is outside the time.
    """
    weight, mask = pruned_weights.pruned(size, size, 0.9)
    x = pruned_weights.activations(rows, size)
    actions, missing = {}, {}
    for library, ways in peers_pruned.SPARSE.items():
        for peer in ways:
            if reason := peer.unavailable():
                missing[library] = reason
                continue
            with warnings.catch_warnings():
                # torch: CSR is in beta state.
                warnings.simplefilter("ignore")
                actions[peer.name] = peer.action(weight, x)
    times = duel(ours(weight, mask, x), actions, at_most=few(weight, rows))
    mine = {"ours": times["ours"]}
    for library, ways in peers_pruned.SPARSE.items():
        key = f"{library}-{size}-{rows}"
        what = f"90 % pruned, {size} x {size}, M = {rows}, {library}"
        theirs = {peer.name: times[peer.name] for peer in ways if peer.name in times}
        if theirs:
            report.add_best(key, theirs | mine, what=what, unit="x")
        else:
            report.add(key, None, what=what, unit="x", note=missing[library])
    report.add_best(f"peers-{size}-{rows}", times, note=_absent(missing))


def _absent(missing: dict[str, str]) -> str:
    return f"without {', '.join(missing)}" if missing else ""
