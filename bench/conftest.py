"""One thread, one report, and the machine's ceilings taken in the same run.

`make bench`, or `python -m pytest bench`. Options go through BENCH_ARGS: `-k lidar`, `--rounds 15`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from doublesparse import bench, info
from report import Report

_REPORT = pytest.StashKey[Report]()
Action = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --rounds."""
    parser.addoption("--rounds", type=int, default=9, help="rounds of each interleaved measurement")


def pytest_configure(config: pytest.Config) -> None:
    """One thread for everything that does not ask for more; the report of the session."""
    torch.set_num_threads(1)
    config.addinivalue_line("markers", "row(key): the row of the table that this test fills")
    # A warning of a peer is no error here.
    config.addinivalue_line("filterwarnings", "default")
    config.stash[_REPORT] = Report()
    # Ours, and its JSON, replace the plugin's table: it cannot show a ratio.
    config.option.benchmark_quiet = True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the table and writes the JSON file."""
    report = config.stash[_REPORT]
    if not report.rows:
        return
    facts = info.collect()
    facts["workloads"] = "file" if os.environ.get("DOUBLESPARSE_WORKLOADS") else "generated"
    terminalreporter.write_line("")
    terminalreporter.write_line(report.text())
    terminalreporter.write_line(f"written: {os.path.relpath(report.write(facts))}")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """The session's report; the ceilings are measured when it is first asked for."""
    report = request.config.stash[_REPORT]
    if not report.machine:
        report.machine.update(bench.ceilings())
    return report


@pytest.fixture
def duel(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., dict[str, list[float]]]:
    """Times ours under pytest-benchmark, each round after one call of every other action.

    `duel(ours, {"peer": action}, fresh=make_argument)` returns the seconds of each round, by name,
    ours under "ours". `fresh` runs outside the timing and gives ours its argument, where a
    measurement needs an empty cache. `at_most` bounds the rounds where one takes long.
    """
    wanted = request.config.getoption("--rounds")

    def run(
        ours: Callable[..., object],
        others: dict[str, Action],
        fresh: Callable[[], object] | None = None,
        at_most: int | None = None,
    ) -> dict[str, list[float]]:
        rounds = min(wanted, at_most or wanted)
        times: dict[str, list[float]] = {name: [] for name in others}

        def before() -> tuple[tuple[object, ...], dict[str, object]]:
            for name, seconds in bench.interleave(others, rounds=1, warmup=0).items():
                times[name] += seconds
            return (() if fresh is None else (fresh(),)), {}

        benchmark.pedantic(ours, setup=before, rounds=rounds, warmup_rounds=1)
        times = {name: seconds[-rounds:] for name, seconds in times.items()}
        return times | {"ours": list(benchmark.stats.stats.data)}

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)
