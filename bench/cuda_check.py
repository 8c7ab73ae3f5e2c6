"""Everything that needs a GPU in one command: build, tests, compute-sanitizer, benchmarks.

    python bench/cuda_check.py [--skip PART ...] [--rounds N] [--seconds N]

Offline, with what a CUDA and PyTorch image has: torch, nvcc, scikit-build-core, pybind11, ninja,
pytest, hypothesis. Builds into build/cuda-check and runs what it built. A part that fails or runs
out of time is told, and the others still run; the exit status is 1 then. Ends with a table; a JSON
file under bench/results/ has the results, and which parts ran on which device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "build" / "cuda-check"
PARTS = ("build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "bench")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECONDS = {"build": 300, "tests": 120, "bench": 150} | dict.fromkeys(SANITIZERS, 90)
LEAST_SECONDS = 20.0
"""Left of the whole, for a part to begin."""

_REFUSALS = ("Device not supported", "not supported on this", "Unable to find injection library")


@dataclass
class Part:
    """How one part went: `ok`, `failed`, `timeout`, `skipped`, and in a few words why."""

    name: str
    state: str
    seconds: float = 0.0
    note: str = ""

    @property
    def bad(self) -> bool:
        return self.state in ("failed", "timeout")


class Budget:
    """Seconds that are left of the whole."""

    def __init__(self, seconds: float) -> None:
        """Starts now."""
        self._end = time.monotonic() + seconds

    def left(self, wanted: float) -> float:
        return max(1.0, min(wanted, self._end - time.monotonic()))


def call(command: Sequence[str], seconds: float, env: dict[str, str]) -> tuple[str, str]:
    """Runs a command with its output shown; its state and what it said."""
    print("$", " ".join(command), flush=True)
    lines: list[str] = []
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # and what it started

    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(seconds, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        timer.cancel()
    text = "".join(lines)
    if late.is_set():
        return "timeout", text
    return ("ok" if process.returncode == 0 else "failed"), text


def last_line(text: str) -> str:
    """What a command said last, for the table."""
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    return lines[-1][:100] if lines else ""


def build(budget: Budget, env: dict[str, str]) -> Part:
    """The wheel's contents with CUDA, in a folder of their own."""
    missing = [m for m in ("scikit_build_core", "pybind11") if importlib.util.find_spec(m) is None]
    if missing:
        return Part("build", "failed", note=f"not installed: {', '.join(missing)}")
    shutil.rmtree(TARGET, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--disable-pip-version-check", "--quiet", "--target", str(TARGET)]
    command += ["--config-settings=cmake.define.DOUBLESPARSE_CUDA=ON"]
    command += ["--config-settings=cmake.define.DOUBLESPARSE_EMULATED=OFF"]
    command += [f"--config-settings=build-dir={ROOT / 'build' / 'cuda-check-objects'}", "."]
    parallel = env | {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    state, text = call(command, budget.left(SECONDS["build"]), parallel)
    return Part("build", state, note="" if state == "ok" else last_line(text))


def tests(budget: Budget, env: dict[str, str]) -> Part:
    """tests/cuda on the device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda"]
    state, text = call(command, budget.left(SECONDS["tests"]), env)
    return Part("tests", state, note=last_line(text))


def refusal_in(text: str) -> str | None:
    """Why compute-sanitizer did not begin, by its own lines."""
    own = [line for line in text.splitlines() if line.startswith("=========")]
    return next((r for r in _REFUSALS if any(r in line for line in own)), None)


def sanitize(tool: str, budget: Budget, env: dict[str, str]) -> Part:
    """tests/cuda, one case of each test, under one tool of compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        return Part(tool, "skipped", note="compute-sanitizer is not installed")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86"]
    command += ["--target-processes", "all", "--print-limit", "5"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda"]
    if tool == "initcheck":  # with a wrong structure nobody writes what is read later
        command += ["-k", "not wrong_structures"]
    # No caching of memory, so that the tool sees where each tensor ends; one case of each test.
    alone = env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "DOUBLESPARSE_ONE_OF_EACH": "1"}
    state, text = call(command, budget.left(SECONDS[tool]), alone)
    refusal = refusal_in(text)
    if refusal is not None:
        return Part(tool, "skipped", note=f"compute-sanitizer: {refusal}")
    return Part(tool, state, note=last_line(text))


def bench(rounds: int, budget: Budget, env: dict[str, str]) -> Part:
    """The benchmarks, in a process of their own."""
    results = env["DOUBLESPARSE_CUDA_RESULTS"]
    command = [sys.executable, "bench/cuda_bench.py", "--rounds", str(rounds), "--json", results]
    state, text = call(command, budget.left(SECONDS["bench"]), env)
    return Part("bench", state, note=last_line(text))


def device_facts(env: dict[str, str]) -> dict[str, object]:
    """What the built package says of itself and of the machine."""
    command = [sys.executable, "-m", "doublesparse", "info", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return {"unknown": done.stderr[-500:]}


def environment() -> dict[str, str]:
    """That of every part: what was built comes before anything that is installed."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TARGET), env.get("PYTHONPATH"))))
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["DOUBLESPARSE_CUDA_RESULTS"] = str(ROOT / "build" / "cuda-bench.json")
    return env


def table(parts: list[Part]) -> str:
    """One line a part."""
    return "\n".join(f"{p.name:10} {p.state:8} {p.seconds:6.0f} s  {p.note}" for p in parts)


def write(parts: list[Part], env: dict[str, str]) -> Path:
    """The JSON file: parts, facts, and the benchmarks' rows where there are some."""
    measured = Path(env["DOUBLESPARSE_CUDA_RESULTS"])
    rows = json.loads(measured.read_text()) if measured.is_file() else {}
    content = {"parts": [asdict(p) for p in parts], "info": device_facts(env), **rows}
    path = ROOT / "bench" / "results" / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-gpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return path


def run(
    actions: dict[str, Callable[[], Part]], skip: Sequence[str], has_gpu: bool, budget: Budget
) -> list[Part]:
    """Every part that is wanted; without a build, GPU or time the rest is skipped: it says why."""
    parts: list[Part] = []
    reason = ""
    for name, action in actions.items():
        if name in skip:
            parts.append(Part(name, "skipped", note="asked for"))
            continue
        if reason:
            parts.append(Part(name, "skipped", note=reason))
            continue
        if budget.left(LEAST_SECONDS) < LEAST_SECONDS:
            parts.append(Part(name, "skipped", note="no time left"))
            continue
        started = time.monotonic()
        try:
            part = action()
        except Exception as error:  # one part's trouble is not the others'
            part = Part(name, "failed", note=f"{type(error).__name__}: {error}"[:100])
        part.seconds = time.monotonic() - started
        parts.append(part)
        if name == "build" and part.bad:
            reason = "nothing was built"
        elif name == "build" and not has_gpu:
            reason = "no GPU that torch can use"
    return parts


def gpu_found() -> bool:
    """Whether torch sees a device; a process of its own, so that none holds on to it here."""
    code = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts.

    Returns:
        1 where one failed, or where there is no GPU to check on.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS, help="parts not to run")
    parser.add_argument("--rounds", type=int, default=20, help="of each measurement")
    parser.add_argument("--seconds", type=float, default=520, help="for everything")
    args = parser.parse_args(argv)
    env, budget = environment(), Budget(args.seconds)
    Path(env["DOUBLESPARSE_CUDA_RESULTS"]).unlink(missing_ok=True)
    actions: dict[str, Callable[[], Part]] = {
        "build": partial(build, budget, env),
        "tests": partial(tests, budget, env),
        "bench": partial(bench, args.rounds, budget, env),
        **{tool: partial(sanitize, tool, budget, env) for tool in SANITIZERS},
    }
    has_gpu = gpu_found()
    parts = run(actions, args.skip, has_gpu, budget)
    path = write(parts, env)
    measured = json.loads(path.read_text())
    print("\n" + measured.get("table", "no benchmark ran"))
    print("\n" + table(parts))
    print(f"written: {path.relative_to(ROOT)}")
    return int(not has_gpu or any(part.bad for part in parts))


if __name__ == "__main__":
    sys.exit(main())
