"""The GPU's benchmarks in miniature: on a GPU, or on emulated kernels, whose times mean nothing."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from doublesparse import _C, _device

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="bench/ is not beside the tests")
OPERATORS = ("build_pairs", "conv", "conv_input_grad", "conv_weight_grad")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.fixture
def bench(load: Callable[[str], Any]) -> Iterator[Any]:
    harness = load("cuda_harness")
    if _C.has_cuda and torch.cuda.is_available():
        yield harness.Bench(torch.device("cuda"), rounds=1)
        return
    emulated = pytest.importorskip("doublesparse._emulated", exc_type=ImportError)
    before = _device.use(emulated)
    yield harness.Bench(torch.device("cpu"), rounds=1)
    _device.use(before)


def needs(module: str, *names: str) -> None:
    found = pytest.importorskip(f"doublesparse.{module}", exc_type=ImportError)
    missing = [name for name in names if not hasattr(found, name)]
    if missing:
        pytest.skip(f"{module} has no {', '.join(missing)}")


def tiny_scene() -> tuple[torch.Tensor, tuple[int, ...]]:
    dense = torch.rand(1, 6, 7, 8, generator=torch.Generator().manual_seed(0)) < 0.2
    return dense.nonzero().int().contiguous(), (6, 7, 8)


@pytest.mark.parametrize(
    "name", ["cuda_harness", "cuda_conv", "cuda_network", "cuda_pruned", "cuda_check"]
)
def test_imports(load: Callable[[str], Any], name: str) -> None:
    load(name)


def test_convolutions(load: Callable[[str], Any], bench: Any) -> None:
    needs("_gpu_ops", *OPERATORS)
    conv = load("cuda_conv")
    conv.submanifold(bench, "lidar", tiny_scene(), widths=(16,))
    conv.gemm_share(bench, tiny_scene(), 16, size=64)
    keys = {row.key for row in bench.report.rows}
    assert {"lidar-rulebook", "lidar-forward-16", "gemm-share-16"} <= keys


def test_strokes(load: Callable[[str], Any], bench: Any) -> None:
    needs("_gpu_ops", "output_coords", *OPERATORS)
    load("cuda_conv").strokes(bench, batch=1, c=8)
    assert {row.key for row in bench.report.rows} == {"strokes", "strokes-with-rulebook"}


def test_network(load: Callable[[str], Any], bench: Any) -> None:
    load("cuda_network").minkunet(bench, tiny_scene(), widths=(4, 6))
    assert bench.report.rows[0].key == "minkunet"


def test_spmm(load: Callable[[str], Any], bench: Any) -> None:
    needs("_gpu_spmm", "GpuCsr", "PackedValues", "product")
    load("cuda_pruned").spmm(bench, 90, size=64, m=8)
    assert bench.report.rows[0].value is not None


def test_bitmap(load: Callable[[str], Any], bench: Any) -> None:
    needs("_gpu_bitmap", "BitmapWeight", "bitmap_spmm")
    load("cuda_pruned").bitmap(bench, 70, shape=(64, 128), rotated=1)
    assert [row.key for row in bench.report.rows] == [f"bitmap-70-128-{m}" for m in (1, 4, 16)]


def test_blocks(load: Callable[[str], Any], bench: Any) -> None:
    needs("_gpu_blocks", "BlockWeight", "block_spmm")
    load("cuda_pruned").blocks(bench, 70, 64, size=128)
    assert bench.report.rows[0].verdict in ("aim", "must", "MISSED")


def test_a_failing_benchmark_is_told_and_the_others_run(bench: Any) -> None:
    def broken() -> None:
        raise RuntimeError("broken on purpose\nsecond line")

    bench.run("first", broken)
    bench.run("second", lambda: bench.report.add("minkunet", 1.0))
    assert bench.failures == ["first: RuntimeError: broken on purpose"]
    assert "MinkUNet" in bench.report.text()


def test_an_error_that_stays_on_the_device_stops_no_benchmark(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    bench = load("cuda_harness").Bench(torch.device("cuda"))
    bench.run("first", broken)
    bench.run("second", broken)
    assert [failure.partition(":")[0] for failure in bench.failures] == ["first", "second"]


def test_what_differs_is_no_peer(load: Callable[[str], Any]) -> None:
    close = load("cuda_harness").rows_close
    close(torch.ones(3), torch.ones(3), 1e-3)
    close(torch.ones(0), torch.ones(0), 1e-3)
    for wrong in (2.0, float("nan")):
        with pytest.raises(ArithmeticError, match="differ"):
            close(torch.full((3,), wrong), torch.ones(3), 1e-3)


# ------------------------------------------------------------------ make cuda-check
def test_a_part_that_fails_does_not_stop_the_others(load: Callable[[str], Any]) -> None:
    check = load("cuda_check")

    def raises() -> Any:
        raise OSError("broken on purpose")

    actions = {
        "build": lambda: check.Part("build", "ok"),
        "tests": raises,
        "memcheck": lambda: check.Part("memcheck", "timeout"),
        "bench": lambda: check.Part("bench", "ok", note="3 rows"),
    }
    budget = check.Budget(100.0)
    parts = check.run(actions, ["racecheck"], True, budget)
    assert [p.state for p in parts] == ["ok", "failed", "timeout", "ok"]
    assert [p.bad for p in parts] == [False, True, True, False]
    text = check.table(parts)
    assert "broken on purpose" in text and "3 rows" in text
    without = check.run(actions, ["bench"], False, budget)
    assert [p.state for p in without] == ["ok", "skipped", "skipped", "skipped"]
    unbuilt = check.run(actions | {"build": raises}, [], True, budget)
    assert [p.state for p in unbuilt] == ["failed", "skipped", "skipped", "skipped"]
    late = check.run(actions, [], True, check.Budget(check.LEAST_SECONDS - 1))
    assert {(p.state, p.note) for p in late} == {("skipped", "no time left")}


@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_sanitizers_that_refuse_are_skipped(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    check, commands = load("cuda_check"), []
    said = "========= Error: Device not supported. Please refer to ...\n" + 100 * "E  line\n"

    def call(command: list[str], seconds: float, env: dict[str, str]) -> tuple[str, str]:
        commands.append(command)
        return "failed", said

    monkeypatch.setattr(check, "call", call)
    monkeypatch.setattr(check.shutil, "which", lambda name: name)
    part = check.sanitize(tool, check.Budget(100.0), {})
    assert (part.state, part.note) == ("skipped", "compute-sanitizer: Device not supported")
    assert ("not wrong_structures" in commands[0]) == (tool == "initcheck")
    assert check.refusal_in("E  RuntimeError: Device not supported\n") is None


def test_commands_are_shown_bounded_and_told_apart(
    load: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    check, env = load("cuda_check"), dict(os.environ)
    python = [sys.executable, "-c"]
    state, text = check.call([*python, "print('one'); print('==== two ====')"], 60, env)
    assert (state, check.last_line(text)) == ("ok", "two")
    assert "one" in capfd.readouterr().out
    assert check.call([*python, "raise SystemExit(3)"], 60, env)[0] == "failed"
    assert check.call([*python, "import time; time.sleep(60)"], 0.2, env)[0] == "timeout"
    assert check.last_line("") == ""


def test_the_whole_has_a_budget(load: Callable[[str], Any]) -> None:
    budget = load("cuda_check").Budget(100.0)
    assert budget.left(10.0) == 10.0
    assert 90 < budget.left(1000.0) <= 100
    assert load("cuda_check").Budget(-5.0).left(10.0) == 1.0
