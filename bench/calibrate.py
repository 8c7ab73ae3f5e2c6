"""Measures pruned weights against dense over a grid, fits their cost model, and judges its choices.

    python bench/calibrate.py measure grid.json --csv grid.csv       # minutes; --seconds bounds it
    python bench/calibrate.py measure held_out.json --held-out       # other shapes, rows, densities
    python bench/calibrate.py fit grid.json --out costs.json
    python bench/calibrate.py judge held_out.json --costs costs.json

One thread, one instruction set a run (DOUBLESPARSE_ISA caps it). The grid is shuffled, the same
every time, so that a run that is cut short has seen a bit of everything.

A cost is a sum of features with coefficients that are not negative, fitted to the least *relative*
error, for each family (an operator and a kind of pattern, or a dense product) by itself. A layer
runs its sparse kernel where that is predicted to be faster by the margin. `judge` says how much
slower the choice is than the better of the two: at most 1.15 times in 95 % of the cases, or it
exits with 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import doublesparse as ds
import pruned_weights
from doublesparse import _spmm_costs, info
from doublesparse.bench import interleave, milliseconds
from repeats import calls_for, per_call, repeated

Action = Callable[[], object]
Record = dict[str, Any]
Costs = dict[str, dict[str, float]]
MARGIN, ALLOWED, SHARE = 0.10, 1.15, 0.95
PATHS = ("sparse", "dense")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        op: spmm, spmm_t, sddmm or conv.
        n: outputs; k: inputs, of a convolution the channels; m: rows, of a convolution the images.
        block_rows, block_columns: of the pattern; 1 and 1 is unstructured.
        sparsity: share of zeros; skew: see `pruned_weights`.
        kernel, size: of a convolution, extent of kernel and of image; 0 for products.
        channels_last: layout of the images.
    """

    op: str
    n: int
    k: int
    m: int
    sparsity: float
    block_rows: int = 1
    block_columns: int = 1
    skew: float = 0.0
    kernel: int = 0
    size: int = 0
    channels_last: bool = False

    @property
    def pattern(self) -> object:
        if (self.block_rows, self.block_columns) == (1, 1):
            return ds.Unstructured()
        return ds.Block(self.block_rows, self.block_columns)

    @property
    def kind(self) -> str:
        block = f"block{self.block_rows}x{self.block_columns}"
        return "unstructured" if block == "block1x1" else block

    @property
    def volume(self) -> int:
        """Multiply-adds of the dense product."""
        return self.n * self.k * self.m * max(1, self.kernel**2 * self.size**2)


PRODUCTS = ("spmm", "spmm_t", "sddmm")
BLOCKS = ((1, 1), (16, 1), (1, 16), (16, 16))
# A dense product of more multiply-adds takes a tenth of a second and adds nothing but time.
LARGEST = 2**32


def grid(ops: Sequence[str], held_out: bool) -> list[Case]:
    """Every case, shuffled; those held out share no shape and no density with the others."""
    if held_out:
        shapes: Sequence[tuple[int, int]] = ((640, 640), (1536, 384), (320, 1280), (2560, 2560))
        rows: Sequence[int] = (1, 8, 48, 196, 384, 1000)
        sparsities: Sequence[float] = (0.55, 0.65, 0.75, 0.85, 0.93, 0.97)
        images = ((96, 96, 3, 28, 4), (192, 384, 3, 7, 12), (320, 320, 1, 14, 12))
        skew = 0.15
    else:
        shapes = ((256, 256), (512, 512), (1024, 1024), (3072, 768), (768, 3072))
        rows = (1, 4, 16, 32, 64, 128, 256, 512, 2048)
        sparsities = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
        images = (
            *((64, 64, 3, 56, 1), (64, 64, 3, 56, 8), (128, 128, 3, 28, 8), (256, 256, 3, 14, 16)),
            *((512, 512, 3, 7, 16), (256, 1024, 1, 14, 16), (1024, 256, 1, 14, 16)),
        )
        skew = 0.0
    cases = [
        Case(op, n, k, m, sparsity, *block, skew=skew)
        for op in PRODUCTS
        for n, k in shapes
        for m in rows
        for sparsity in sparsities
        for block in BLOCKS
    ]
    cases += [
        Case("conv", n, k, batch, sparsity, *block, skew, kernel, size, last)
        for n, k, kernel, size, batch in images
        for sparsity in sparsities
        for block in BLOCKS
        for last in (False, True)
    ]
    if not held_out:
        # A matrix beyond the caches takes seconds to make: fewer of them.
        cases += [
            Case(op, 4096, 4096, m, sparsity, *block)
            for op in PRODUCTS
            for m in (1, 16, 128, 256)
            for sparsity in (0.5, 0.7, 0.9, 0.98)
            for block in ((1, 1), (16, 16))
        ]
        # Trained weights are uneven: a few of each kind.
        cases += [replace(case, skew=pruned_weights.SKEW) for case in cases[::7]]
    cases = [case for case in cases if case.op in ops and case.volume <= LARGEST]
    random.Random(0).shuffle(cases)
    # By matrix within a hundred: drawing and sorting 4096 x 4096 numbers takes seconds.
    first: dict[tuple[object, ...], int] = {}
    for i, case in enumerate(cases):
        first.setdefault((i // 100, case.n, case.k, case.skew), i)
    order = {
        case: (i // 100, first[i // 100, case.n, case.k, case.skew]) for i, case in enumerate(cases)
    }
    return sorted(cases, key=lambda case: order[case])


def product_actions(case: Case) -> tuple[Action, Action, int]:
    """The sparse and the dense way of one product, and the weights that are kept."""
    pattern = None if case.kind == "unstructured" else case.pattern
    weight, mask = pruned_weights.pruned(case.n, case.k, case.sparsity, pattern, case.skew)
    packed = ds.PackedWeight.pack(weight, mask, case.pattern)
    x = pruned_weights.activations(case.m, case.k)
    dy = pruned_weights.activations(case.m, case.n)
    sparse, dense = {
        "spmm": (lambda: ds.functional.spmm(packed, x), lambda: F.linear(x, weight)),
        "spmm_t": (lambda: ds.functional.spmm_t(packed, dy), lambda: dy @ weight),
        "sddmm": (lambda: ds.functional.sddmm(dy, x, packed), lambda: dy.t() @ x),
    }[case.op]
    return sparse, dense, int(mask.sum())


def conv_actions(case: Case) -> tuple[Action, Action, int]:
    """The same of a convolution, frozen; `measure` keeps it on the sparse kernel."""
    layer = ds.nn.MaskedConv2d(
        *(case.k, case.n, case.kernel), padding=case.kernel // 2, bias=False, pattern=case.pattern
    )
    n_columns = case.kernel**2 * case.k
    flat = pruned_weights.weights(case.n, n_columns, case.skew)
    weight = flat.view(case.n, case.kernel, case.kernel, case.k).movedim(-1, 1).contiguous()
    mask = ds.prune.magnitude_mask(weight, case.pattern, case.sparsity)
    with torch.no_grad():
        layer.weight.copy_(weight)
    layer.set_mask(mask)
    model = nn.Sequential(layer).eval()
    frozen = ds.prune.freeze(model)
    model = frozen if isinstance(frozen, nn.Module) else model
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    x = pruned_weights.activations(case.m, case.k * case.size**2)
    x = x.view(case.m, case.k, case.size, case.size).contiguous(memory_format=layout)
    dense = torch.where(mask, weight, 0).contiguous(memory_format=layout)
    return (
        lambda: model(x),
        lambda: F.conv2d(x, dense, padding=case.kernel // 2),
        int(mask.sum()),
    )


def measure(case: Case, rounds: int = 3) -> Record:
    """Both ways, alternating; no cost model has a say."""
    make = conv_actions if case.op == "conv" else product_actions
    ds.set_crossover(None)
    try:
        with torch.no_grad():
            sparse, dense, kept = make(case)
            calls = {"sparse": calls_for(sparse), "dense": calls_for(dense)}
            actions = {
                "sparse": repeated(sparse, calls["sparse"]),
                "dense": repeated(dense, calls["dense"]),
            }
            times = interleave(actions, rounds, warmup=1)
    finally:
        ds.set_crossover("auto")
    took = {
        f"{name}_ms": milliseconds(per_call(seconds, calls[name]))
        for name, seconds in times.items()
    }
    return asdict(case) | {"kind": case.kind, "kept": kept} | took


def measured(cases: Sequence[Case], seconds: float) -> Iterator[Record]:
    """Measures until the time is over; says where it is."""
    start = time.monotonic()
    for i, case in enumerate(cases):
        if time.monotonic() - start > seconds:
            print(f"stopped after {i} of {len(cases)} cases, {seconds:.0f} s", file=sys.stderr)
            return
        yield measure(case)


def product_of(record: Record) -> _spmm_costs.Product:
    """A measured case in the package's words; a convolution is the product that it stands for."""
    taps = max(1, record["kernel"] ** 2)
    rows = record["m"] * max(1, record["size"] ** 2)
    outputs, columns = record["n"], record["k"] * taps
    unit = record["block_rows"]
    if record["op"] == "spmm_t":
        outputs, columns, unit = columns, outputs, record["block_columns"]
    return _spmm_costs.Product(rows, columns, outputs, record["kept"], unit)


def kind_of(record: Record, path: str) -> str:
    """Which of the package's features and coefficients a case has."""
    if path == "dense":
        return "dense"
    return "sampled" if record["op"] == "sddmm" else _spmm_costs.kind_of(product_of(record))


def features(record: Record, path: str) -> dict[str, float]:
    """What the cost of one way depends on: the package's own counts.

    Args:
        record: a measured case.
        path: "sparse" or "dense".

    Returns:
        Counts by name; the coefficient of each is in nanoseconds.
    """
    return _spmm_costs.features(kind_of(record, path), product_of(record))


def family(record: Record, path: str) -> str:
    """Which coefficients a case uses; convolutions have their own."""
    kind = kind_of(record, path)
    return f"conv-{kind}" if record["op"] == "conv" else kind


def fit(records: Sequence[Record]) -> Costs:
    """Coefficients by family."""
    rows: dict[str, list[tuple[dict[str, float], float]]] = defaultdict(list)
    for record in records:
        for path in PATHS:
            rows[family(record, path)].append((features(record, path), 1e6 * record[f"{path}_ms"]))
    costs: Costs = {}
    for name, pairs in sorted(rows.items()):
        names = list(pairs[0][0])
        took = np.array([ns for _, ns in pairs])
        counts = np.array([[counted[key] for key in names] for counted, _ in pairs])
        solution = nonnegative_least_squares(counts / took[:, None], np.ones(len(took)))
        costs[name] = dict(zip(names, solution.tolist(), strict=True))
    return costs


def nonnegative_least_squares(a: np.ndarray, b: np.ndarray, sweeps: int = 20000) -> np.ndarray:
    """Argmin |a x - b| over x >= 0, by coordinate descent: few columns, so that is enough."""
    scale = np.sqrt((a * a).sum(0))
    scale[scale == 0] = 1.0
    gram, target = (a / scale).T @ (a / scale), (a / scale).T @ b
    x = np.zeros(a.shape[1])
    for _ in range(sweeps):
        before = x.copy()
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j] = max(0.0, x[j] + (target[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max() <= 1e-10 * max(1e-30, np.abs(x).max()):
            break
    return x / scale


def predict(record: Record, path: str, costs: Costs) -> float:
    """Milliseconds, by the model."""
    coefficients = costs[family(record, path)]
    counted = features(record, path)
    return 1e-6 * sum(coefficients[name] * counted[name] for name in coefficients)


def regret(record: Record, costs: Costs, margin: float = MARGIN) -> float:
    """The chosen way's time over the better one's."""
    took = {path: record[f"{path}_ms"] for path in PATHS}
    sparse, dense = (predict(record, path, costs) for path in PATHS)
    chosen = "sparse" if sparse < (1 - margin) * dense else "dense"
    return took[chosen] / min(took.values())


def judge(records: Sequence[Record], costs: Costs) -> tuple[float, str]:
    """How good the choices are.

    Returns:
        The share of cases whose choice costs at most 1.15 of the better one, and a table: that
        share and the model's relative error by family, then the worst cases.
    """
    records = [r for r in records if all(family(r, p) in costs for p in PATHS)]
    if not records:
        raise ValueError("judge: no case belongs to a family that was fitted; measure its operator")
    regrets = [regret(record, costs) for record in records]
    by_family: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for record, cost in zip(records, regrets, strict=True):
        errors = [abs(predict(record, path, costs) / record[f"{path}_ms"] - 1) for path in PATHS]
        by_family[family(record, "sparse")].append((cost, errors))
    lines = [f"{'family':36} cases  <= {ALLOWED}  worst  error sparse, dense (median)"]
    for name, found in sorted(by_family.items()):
        costly = np.array([cost for cost, _ in found])
        sparse, dense = np.median(np.array([errors for _, errors in found]), 0)
        lines.append(
            f"{name:36} {len(found):5d}  {(costly <= ALLOWED).mean():7.1%}  {costly.max():5.2f}"
            f"  {sparse:.0%}, {dense:.0%}"
        )
    worst = sorted(zip(regrets, range(len(records)), strict=True), reverse=True)[:10]
    for cost, i in worst:
        record = records[i]
        facts = ", ".join(f"{key} {record[key]}" for key in ("op", "kind", "n", "k", "m"))
        lines.append(
            f"{cost:.2f}: {facts}, {record['sparsity']:.0%}; sparse {record['sparse_ms']:.3f} ms, "
            f"predicted {predict(record, 'sparse', costs):.3f}; dense {record['dense_ms']:.3f}, "
            f"predicted {predict(record, 'dense', costs):.3f}"
        )
    share = float((np.array(regrets) <= ALLOWED).mean())
    lines.append(f"{share:.1%} of {len(records)} choices cost at most {ALLOWED} of the better one")
    return share, "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="write times of a grid")
    measuring.add_argument("out", type=Path)
    measuring.add_argument("--csv", type=Path, help="the same as a table")
    measuring.add_argument("--ops", default=",".join((*PRODUCTS, "conv")))
    measuring.add_argument("--held-out", action="store_true")
    measuring.add_argument("--seconds", type=float, default=600.0)
    fitting = commands.add_parser("fit", help="coefficients of measured times")
    fitting.add_argument("cases", type=Path)
    fitting.add_argument("--out", type=Path)
    judging = commands.add_parser("judge", help="choices on other measured times")
    judging.add_argument("cases", type=Path)
    judging.add_argument("--costs", type=Path, help="of `fit`; the package's own otherwise")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.command == "measure":
        cases = grid(args.ops.split(","), args.held_out)
        records = list(measured(cases, args.seconds))
        _write(args.out, {"machine": info.collect(), "cases": records})
        if args.csv and records:
            with args.csv.open("w", newline="") as file:
                table = csv.DictWriter(file, list(records[0]))
                table.writeheader()
                table.writerows(records)
        print(f"{len(records)} cases: {args.out}")
        return 0
    content = json.loads(args.cases.read_text())
    if args.command == "fit":
        costs = fit(content["cases"])
        if args.out:
            _write(args.out, {"machine": content["machine"], "costs": costs})
        for name, coefficients in costs.items():
            print(name, ", ".join(f"{key} {ns:.4g} ns" for key, ns in coefficients.items()))
        print(judge(content["cases"], costs)[1])
        return 0
    costs = json.loads(args.costs.read_text())["costs"] if args.costs else _spmm_costs.shipped()
    share, text = judge(content["cases"], costs)
    print(text)
    return 0 if share >= SHARE else 1


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
