"""The arithmetic of bench/calibrate.py, on times that are made up."""

from __future__ import annotations

import importlib
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
TRUTH = {
    "sparse": {"call": 5e3, "mac": 0.04, "weight": 0.5, "moved": 0.3, "segment": 2.0},
    "dense": {"call": 3e3, "mac": 0.016, "weight": 0.1, "moved": 0.1},
}


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("calibrate")


def records(calibrate: Any, held_out: bool, noise: float) -> list[dict[str, Any]]:
    """Times of TRUTH for part of the grid, each off by a random factor."""
    rng, found = random.Random(1), []
    for case in calibrate.grid(("spmm",), held_out)[::3]:
        record = dict(vars(case)) | {"kind": case.kind}
        record["kept"] = round((1 - case.sparsity) * case.n * case.k)
        for path, costs in TRUTH.items():
            counts = calibrate.features(record, path)
            exact = 1e-6 * sum(costs[name] * counts.get(name, 0) for name in costs)
            record[f"{path}_ms"] = exact * math.exp(rng.gauss(0, noise))
        found.append(record)
    return found


def test_finds_the_coefficients_of_exact_times(calibrate: Any) -> None:
    costs = calibrate.fit(records(calibrate, held_out=False, noise=0.0))
    for name, coefficients in costs.items():
        truth = TRUTH["dense" if name.endswith("dense") else "sparse"]
        for record in records(calibrate, held_out=True, noise=0.0):
            path = "dense" if name.endswith("dense") else "sparse"
            if calibrate.family(record, path) == name:
                assert calibrate.predict(record, path, costs) == pytest.approx(
                    record[f"{path}_ms"], rel=1e-2
                )
        assert coefficients["mac"] == pytest.approx(truth["mac"], rel=1e-2)


def test_choices_on_other_shapes_with_noise(calibrate: Any) -> None:
    costs = calibrate.fit(records(calibrate, held_out=False, noise=0.05))
    share, text = calibrate.judge(records(calibrate, held_out=True, noise=0.05), costs)
    assert share >= 0.95, text
    assert "rows " in text


def test_a_wrong_model_is_told_so(calibrate: Any) -> None:
    found = records(calibrate, held_out=True, noise=0.0)
    costs = calibrate.fit(found)
    upside_down = {
        name: {key: 1e3 * ns if name.endswith("dense") else ns for key, ns in each.items()}
        for name, each in costs.items()
    }
    assert calibrate.judge(found, upside_down)[0] < 0.95


def test_judging_what_was_not_fitted_is_refused(calibrate: Any) -> None:
    with pytest.raises(ValueError, match="no case belongs to a family"):
        calibrate.judge(records(calibrate, held_out=True, noise=0.0), {})


def test_the_margin_decides_ties_for_dense(calibrate: Any) -> None:
    record = records(calibrate, held_out=True, noise=0.0)[0]
    record |= {"sparse_ms": 3.0, "dense_ms": 1.0}
    flat = {"call": 1e6}
    sparse, dense = calibrate.family(record, "sparse"), calibrate.family(record, "dense")
    assert calibrate.regret(record, {sparse: {"call": 0.95e6}, dense: flat}) == 1.0
    assert calibrate.regret(record, {sparse: {"call": 0.85e6}, dense: flat}) == 3.0


def test_coefficients_are_not_negative(calibrate: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    b = a @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = calibrate.nonnegative_least_squares(a.numpy(), b.numpy())
    assert (x >= 0).all()
    # The conditions of Karush, Kuhn and Tucker.
    gradient = a.numpy().T @ (a.numpy() @ x - b.numpy())
    assert (gradient >= -1e-6).all()
    assert abs(gradient @ x) <= 1e-6


def test_held_out_cases_share_nothing_with_the_grid(calibrate: Any) -> None:
    fitted = calibrate.grid((*calibrate.PRODUCTS, "conv"), held_out=False)
    others = calibrate.grid((*calibrate.PRODUCTS, "conv"), held_out=True)
    assert len(set(fitted)) == len(fitted) > len(others) > 0
    for name in ("sparsity", "n"):
        assert not {getattr(c, name) for c in fitted} & {getattr(c, name) for c in others}


@pytest.mark.parametrize(
    ("ratios", "want"),
    [
        ({0.3: 1.1, 0.5: 1.2}, 0.3),
        ({0.3: 0.5, 0.5: 0.9}, 1.0),
        ({0.4: 0.5, 0.6: 1.5}, 0.5),
        # Once above is not for good.
        ({0.3: 1.1, 0.4: 0.5, 0.6: 1.5}, 0.5),
    ],
)
def test_break_even(
    monkeypatch: pytest.MonkeyPatch, ratios: dict[float, float], want: float
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    repeats = importlib.import_module("repeats")
    assert repeats.break_even(ratios) == pytest.approx(want)
