"""What the GPU benchmarks share: CUDA events, cache states, graphs, the table and its bars.

A benchmark is a function of a `Bench`. It also runs on the CPU, where the kernels are emulated and
times are the host's: only to see that it works.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from doublesparse.bench import Action, milliseconds, paired_ratio
from report import Bar, Report

_AHEAD_CYCLES = 2_000_000  # about a millisecond, in which the host queues the action
_FLUSH_BYTES = 256 << 20  # several times any L2


def _bars() -> dict[str, Bar]:
    bars: dict[str, Bar] = {}
    for scene in ("lidar", "cloud"):
        for c in (64, 128):
            for way in ("forward", "backward"):
                bars[f"{scene}-{way}-{c}"] = Bar(
                    f"subm 3x3x3 {scene}, {way}, {c}, bf16, against spconv fp16", 1.0, 1.5, "x"
                )
        bars[f"{scene}-rulebook"] = Bar(f"{scene} rulebook, count read, against spconv", 2, 10, "x")
    for c, must, aim in ((128, 0.25, 0.5), (256, 0.4, 0.7)):
        bars[f"gemm-share-{c}"] = Bar(f"subm lidar, {c}, bf16, rate", must, aim, "of torch.mm")
    bars["minkunet"] = Bar("MinkUNet-like forward, batch 1, eager, against spconv", 1.2, 2.0, "x")
    bars["minkunet-graph"] = Bar("the same, our rulebooks kept, CUDA graph", 1.2, 2.0, "x")
    bars["strokes"] = Bar("strokes 5 %, 64->64 3x3, batch 256, bf16, against cuDNN", 1.5, 4.0, "x")
    for percent, aim in ((90, 2.5), (95, 4.0)):
        what = f"{percent} % pruned, fp32, 4096^2, M = 512, against the better of torch's"
        bars[f"spmm-{percent}"] = Bar(what, 1.0, aim, "x")
    for shape, all_bars in (
        ((4096, 4096), ((1.1, 1.4), (1.3, 1.9), (1.8, 2.5))),
        ((4096, 14336), ((1.2, 1.6), (1.6, 2.3), (2.8, 4.5))),
    ):
        for percent, bar in zip((50, 70, 90), all_bars, strict=True):
            for m in (1, 4, 16):
                what = f"bitmap bf16, {percent} %, {shape[0]} x {shape[1]}, M = {m}, L2 cold, graph"
                bars[f"bitmap-{percent}-{shape[1]}-{m}"] = Bar(what, *bar, "x")
    for size, all_bars in ((64, ((1.4, 2.0), (3.2, 4.5))), (128, ((1.8, 2.6), (4.0, 6.0)))):
        for percent, bar in zip((70, 90), all_bars, strict=True):
            what = f"block-sparse bf16, {percent} % in {size} x {size}, 4096^3"
            bars[f"block-{size}-{percent}"] = Bar(what, *bar, "x")
    return bars


BARS = _bars()


@dataclass
class Bench:
    """Where to measure, how often, and where results go."""

    device: torch.device
    rounds: int = 20
    report: Report = field(default_factory=lambda: Report(BARS, "bf16, warm caches unless said"))
    failures: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def device_times(
        self, actions: dict[str, Action], cold: bool = False
    ) -> dict[str, list[float]]:
        """Seconds that each action takes on the device, alternating, after three of each.

        The host is put ahead first, so that its own time does not count: actions must not wait.

        Args:
            actions: by name.
            cold: whether L2 is filled with other data before each.
        """
        other = torch.empty(_FLUSH_BYTES if cold and self.on_gpu else 0, dtype=torch.int8)
        other = other.to(self.device)
        times: dict[str, list[float]] = {name: [] for name in actions}
        for i in range(3 + self.rounds):
            for name, action in actions.items():
                if not self.on_gpu:
                    elapsed = self._host_seconds(action)
                else:
                    start = torch.cuda.Event(enable_timing=True)
                    end = torch.cuda.Event(enable_timing=True)
                    other.zero_()
                    torch.cuda._sleep(_AHEAD_CYCLES)
                    start.record()
                    action()
                    end.record()
                    end.synchronize()
                    elapsed = start.elapsed_time(end) / 1e3
                if i >= 3:
                    times[name].append(elapsed)
        return times

    def wall_times(self, actions: dict[str, Action]) -> dict[str, list[float]]:
        """Seconds of the host from an idle device to an idle device: what waits for a count."""
        times: dict[str, list[float]] = {name: [] for name in actions}
        for i in range(3 + self.rounds):
            for name, action in actions.items():
                elapsed = self._host_seconds(action)
                if i >= 3:
                    times[name].append(elapsed)
        return times

    def _host_seconds(self, action: Action) -> float:
        self.wait()
        start = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - start

    def graphed(self, action: Action) -> Action:
        """The action as the replay of a CUDA graph; itself on the CPU."""
        if not self.on_gpu:
            return action
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                action()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            action()
        return graph.replay

    def add(self, key: str, times: dict[str, list[float]], flops: float = 0, **parts: Any) -> None:
        """One row: the fastest of the others over ours; a row without a figure where none ran."""
        ours = milliseconds(times["ours"])
        if flops:
            parts["gflops"] = flops / ours / 1e6
        if len(times) > 1:
            self.report.add_best(key, times, **parts)
        else:
            self.report.add(key, None, ms=ours, **parts)

    def run(self, name: str, benchmark: Callable[[], None]) -> None:
        """Runs one benchmark; what it raises is remembered, and the others still run."""
        try:
            benchmark()
        except Exception as error:  # the table is wanted most where something fails
            reason = str(error).splitlines()[0] if str(error) else ""
            self.failures.append(f"{name}: {type(error).__name__}: {reason}"[:300])
        if self.on_gpu:
            with contextlib.suppress(RuntimeError):  # after an error that stays: told above
                torch.cuda.empty_cache()


def rate_share(times: dict[str, list[float]], flops: float, mm_flops: float) -> float:
    """Our rate over that of the "mm" of the same rounds."""
    return paired_ratio(times["mm"], times["ours"]) * flops / mm_flops


def rows_close(got: Tensor, want: Tensor, bound: float) -> None:
    """Compares with a peer before either is timed: something else is no peer.

    Raises:
        ArithmeticError: they differ by more than `bound` of the largest number.
    """
    if got.shape != want.shape:
        raise ArithmeticError(f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}")
    if not want.numel():
        return
    worst = (got.float() - want.float()).abs().max()
    if not worst <= bound * want.float().abs().max().clamp(min=1e-6):
        raise ArithmeticError(f"results differ by {float(worst):.3g}")
