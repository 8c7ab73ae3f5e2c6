"""Pruned linear layers against torch's dense products, raw operators, activations by rows.

Every weight is packed outside the time; what the operator transposes of its activations is inside.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch

import doublesparse as ds
import peers_pruned
import pruned_weights
from doublesparse._packed_forms import forms_of
from doublesparse.bench import interleave, milliseconds, paired_ratio
from repeats import break_even, per_call, repeated
from report import Report
from test_bench_half import AMX

Action = Callable[[], torch.Tensor]
Duel = Callable[..., dict[str, list[float]]]
Times = dict[str, list[float]]
ROWS = 512
HALF = torch.bfloat16
BLOCKS = ((16, 1), (1, 16), (16, 16))


def ours(
    weight: torch.Tensor, mask: torch.Tensor, x: torch.Tensor, pattern: object | None = None
) -> Action:
    """`spmm` on the packed weight, compared once with the dense product."""
    packed = ds.PackedWeight.pack(weight, mask, pattern or ds.Unstructured())
    peers_pruned.check("ours", ds.functional.spmm(packed, x), weight, x)
    return lambda: ds.functional.spmm(packed, x)


def raw_product(weight: torch.Tensor, mask: torch.Tensor, x: torch.Tensor) -> Action:
    """The raw operator on the weight's tiles: no checks of a public call."""
    form = forms_of(ds.PackedWeight.pack(weight, mask)).forward
    peers_pruned.check("ours", ds.ops.spmm(x, form.tiles, form.values), weight, x)
    return lambda: ds.ops.spmm(x, form.tiles, form.values)


def few(weight: torch.Tensor, m: int) -> int | None:
    """At most five rounds where the dense product takes more than a tenth of a second."""
    return 5 if weight.numel() * m > 2**31 else None


def gflops(mask: torch.Tensor, m: int, times: Times) -> float:
    """Useful operations per second."""
    return 2.0 * mask.sum().item() * m / milliseconds(times["ours"]) / 1e6


def duel_often(duel: Duel, actions: dict[str, Action], calls: int) -> Times:
    """A duel of actions that are too short to time singly."""
    many = {name: repeated(action, calls) for name, action in actions.items()}
    times = duel(many.pop("ours"), many)
    return {name: per_call(seconds, calls) for name, seconds in times.items()}


@pytest.mark.parametrize("sparsity", pruned_weights.SPARSITIES)
@pytest.mark.parametrize("size", [1024, 4096])
def test_unstructured(duel: Duel, report: Report, size: int, sparsity: float) -> None:
    """A Gaussian matrix pruned by magnitude."""
    weight, mask = pruned_weights.pruned(size, size, sparsity)
    x = pruned_weights.activations(ROWS, size)
    dense = peers_pruned.dense_actions(weight, x)
    times = duel(ours(weight, mask, x), dense, at_most=few(weight, ROWS))
    key = f"spmm-{size}-{round(100 * sparsity)}"
    report.add_best(key, times, gflops=gflops(mask, ROWS, times))


@pytest.mark.parametrize(
    ("key", "n", "k", "m"),
    [
        ("spmm-m16-1024x1024", 1024, 1024, 16),
        ("spmm-m16-768x3072", 3072, 768, 16),
        ("spmm-m1-1024", 1024, 1024, 1),
        ("spmm-m1-4096", 4096, 4096, 1),
    ],
)
def test_few_rows(duel: Duel, report: Report, key: str, n: int, k: int, m: int) -> None:
    """90 % pruned, few rows: the bytes of the weight count. Caches are warm for all alike."""
    weight, mask = pruned_weights.pruned(n, k, 0.9)
    x = pruned_weights.activations(m, k)
    calls = 3 if n * k > 2**23 else 20
    product = raw_product(weight, mask, x) if m == 1 else ours(weight, mask, x)
    actions = peers_pruned.dense_actions(weight, x) | {"ours": product}
    times = duel_often(duel, actions, calls)
    kept = mask.sum().item()
    gbs = 6.0 * kept / milliseconds(times["ours"]) / 1e6
    note = "GB/s: six bytes a kept weight"
    report.add_best(key, times, gflops=gflops(mask, m, times), gbs=gbs, note=note)


@pytest.mark.parametrize("size", [1024, 4096])
def test_break_even(report: Report, size: int) -> None:
    """Where the ratio to dense passes 1 for good, between the sparsities that are measured."""
    x = pruned_weights.activations(ROWS, size)
    sparsities = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
    actions = {s: ours(*pruned_weights.pruned(size, size, s), x) for s in sparsities}
    dense = peers_pruned.dense_actions(pruned_weights.weights(size, size), x)
    rounds = 9 if size <= 1024 else 3
    named = {f"{s:.0%}": action for s, action in actions.items()}
    times = interleave(dense | named, rounds)
    best = min(dense, key=lambda name: milliseconds(times[name]))
    ratios = {s: paired_ratio(times[best], times[f"{s:.0%}"]) for s in sparsities}
    report.add(
        f"break-even-{size}",
        100 * break_even(ratios),
        peer=best,
        peer_ms=milliseconds(times[best]),
        note="x at " + ", ".join(f"{s:.0%}: {ratio:.2f}" for s, ratio in ratios.items()),
    )


@pytest.mark.parametrize("sparsity", [0.7, 0.9])
@pytest.mark.parametrize("size", [1024, 4096])
def test_blocks(report: Report, size: int, sparsity: float) -> None:
    """Three shapes of block, each printed; the best counts. Torch's block format beside one."""
    x = pruned_weights.activations(ROWS, size)
    actions: dict[str, Action] = {}
    for r, c in BLOCKS:
        pattern = ds.Block(r, c)
        weight, mask = pruned_weights.pruned(size, size, sparsity, pattern)
        actions[f"Block({r}, {c})"] = ours(weight, mask, x, pattern)
    dense = peers_pruned.dense_actions(weight, x)
    bsr = peers_pruned.torch_bsr(16, 16)
    rounds = 9 if size <= 1024 else 3
    times = interleave(dense | actions | {bsr.name: bsr.action(weight, x)}, rounds)
    percent, peers = round(100 * sparsity), {name: times[name] for name in dense}
    best = min(actions, key=lambda name: milliseconds(times[name]))
    report.add_best(f"block-{size}-{percent}", peers | {"ours": times[best]}, note=best)
    for name in actions:
        what = f"{percent} % pruned in {name}, {size} x {size}, M = 512"
        report.add_best(
            f"{name}-{size}-{percent}", peers | {"ours": times[name]}, what=what, unit="x"
        )
    what = f"{percent} % pruned in Block(16, 16), {size} x {size}, against {bsr.name}"
    fight = {bsr.name: times[bsr.name], "ours": times["Block(16, 16)"]}
    report.add_best(f"bsr-{size}-{percent}", fight, what=what, unit="x")


@pytest.mark.parametrize("sparsity", pruned_weights.SPARSITIES)
@pytest.mark.parametrize("network", list(pruned_weights.COLLECTION))
def test_collection(report: Report, network: str, sparsity: float) -> None:
    """The second line: layer shapes of trained networks, with uneven rows and columns."""
    ratios, spread = {}, []
    for n, k in pruned_weights.COLLECTION[network]:
        weight, mask = pruned_weights.pruned(n, k, sparsity, skew=pruned_weights.SKEW)
        x = pruned_weights.activations(ROWS, k)
        dense = peers_pruned.dense_actions(weight, x)
        times = interleave(dense | {"ours": ours(weight, mask, x)}, rounds=5)
        best = min(dense, key=lambda name: milliseconds(times[name]))
        ratios[n, k] = paired_ratio(times[best], times["ours"])
        spread.append(pruned_weights.row_variation(mask))
    (n, k), worst = min(ratios.items(), key=lambda item: item[1])
    percent = round(100 * sparsity)
    report.add(
        f"collection-{network}-{percent}",
        statistics.geometric_mean(ratios.values()),
        what=f"{percent} % pruned, {network} shapes, skewed, M = 512",
        unit="x",
        note=f"mean of {len(ratios)} shapes; least {worst:.2f} at {k} -> {n}; "
        f"rows vary by {statistics.mean(spread):.2f}",
    )


@pytest.mark.parametrize("size", [1024, 4096])
def test_transposition(duel: Duel, report: Report, size: int) -> None:
    """What of the operator's time goes into reordering activations, printed beside it."""
    x = pruned_weights.activations(ROWS, size)
    what, key = f"activations reordered, K = {size}, M = 512, 90 % pruned", f"transposition-{size}"
    nothing = ds.PackedWeight.pack(torch.zeros(size, size))  # in and out again, and no weight
    product = ours(*pruned_weights.pruned(size, size, 0.9), x)
    times = duel(product, {"reordering": lambda: ds.functional.spmm(nothing, x)}, at_most=5)
    gbs = 8.0 * x.numel() / milliseconds(times["reordering"]) / 1e6
    report.add_best(key, times, what=what, unit="of spmm", gbs=gbs)


def half_row(report: Report, key: str) -> None:
    """Without AMX torch multiplies bfloat16 at 1 GFLOP/s: the row says so and is skipped."""
    if not AMX:
        note = "the bars of bfloat16 are for AMX, not found here"
        report.add(key, None, note=note)
        pytest.skip(note)


@pytest.mark.parametrize("percent", [70, 90])
def test_half_few_rows(duel: Duel, report: Report, percent: int) -> None:
    """Unstructured, bfloat16, 16 rows: memory counts, and two bytes less of it."""
    half_row(report, key := f"bf16-spmm-m16-{percent}")
    weight, mask = pruned_weights.pruned(4096, 4096, percent / 100)
    x = pruned_weights.activations(16, 4096).to(HALF)
    weight = weight.to(HALF)
    actions = peers_pruned.dense_actions(weight, x) | {"ours": ours(weight, mask, x)}
    times = duel_often(duel, actions, calls=3)
    report.add_best(key, times, gflops=gflops(mask, 16, times))


@pytest.mark.parametrize("percent", [70, 90])
@pytest.mark.parametrize("size", [1024, 4096])
def test_half_blocks(duel: Duel, report: Report, size: int, percent: int) -> None:
    """Blocks as large as AMX likes them, bfloat16."""
    half_row(report, key := f"bf16-block-{size}-{percent}")
    pattern = ds.Block(32, 32)
    weight, mask = pruned_weights.pruned(size, size, percent / 100, pattern)
    weight, x = weight.to(HALF), pruned_weights.activations(ROWS, size).to(HALF)
    times = duel(ours(weight, mask, x, pattern), peers_pruned.dense_actions(weight, x))
    report.add_best(key, times, gflops=gflops(mask, ROWS, times), note="Block(32, 32)")
