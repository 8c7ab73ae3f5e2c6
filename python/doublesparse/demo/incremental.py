"""A static camera: dense networks on whole frames, and on what changed, with the same answer."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._explain import explain
from .._incremental import Incremental
from ..bench import interleave, paired_ratio
from ._networks import ResNet18, UNet
from ._show import BLUE, GREEN, ORANGE, Table, new_figure, positive, save, say, tables

NETWORKS: dict[str, Callable[[int], nn.Module]] = {"resnet18": ResNet18, "unet": UNet}


@dataclass(frozen=True)
class Settings:
    """Size of everything; the defaults are those of the networks' papers, and --quick's."""

    size: int
    frames: int
    rounds: int
    widths: dict[str, int]


FULL = Settings(224, 8, 2, {"resnet18": 64, "unet": 32})
# A smoke test of everything the demo does: its times say nothing.
QUICK = Settings(64, 3, 1, {"resnet18": 8, "unet": 4})


# ------------------------------------------------------------------ the clip
@dataclass(frozen=True)
class Clip:
    """Frames of a camera that does not move, (C, height, width), and what is always there."""

    background: Tensor
    frames: list[Tensor]

    def changed(self, i: int) -> Tensor:
        """Which pixels of a frame differ from the background: bool (height, width)."""
        return (self.frames[i] != self.background).any(0)


def _smooth(rng: np.random.Generator, size: int, cell: int) -> np.ndarray:
    """Random values on a coarse lattice, bilinear between them: (3, size, size)."""
    n = size // cell + 2
    lattice = rng.random((3, n, n))
    at = np.arange(size) / cell
    low, share = at.astype(int), at % 1
    rows = lattice[:, low] * (1 - share)[:, None] + lattice[:, low + 1] * share[:, None]
    return rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share


def make_clip(size: int, n_frames: int, seed: int) -> Clip:
    """Three textured objects that wander over a textured wall, about 2.4 % of the pixels."""
    rng = np.random.default_rng(seed)
    wall = sum(0.5**i * _smooth(rng, size, max(size >> (2 + i), 2)) for i in range(4))
    y, x = np.mgrid[:size, :size]
    brick = size // 14
    joint = (y % brick == 0) | ((x + (y // brick % 2) * brick) % (2 * brick) == 0)
    background = np.where(joint, 0.35 * wall, 0.5 * wall)
    # half axes as shares of the frame: areas of 1.0, 0.8 and 0.6 % of it
    shapes = ((0.056, 0.056, 2), (0.036, 0.071, 2), (0.052, 0.029, 8))
    place = rng.uniform(0.15, 0.85, (3, 2))
    speed = rng.uniform(0.01, 0.03, (3, 2)) * rng.choice([-1, 1], (3, 2))
    texture = [0.5 + 0.5 * _smooth(rng, size, max(size // 40, 2)) for _ in shapes]
    frames = []
    for _ in range(n_frames):
        frame = background.copy()
        for (a, b, power), centre, paint in zip(shapes, place, texture, strict=True):
            v, u = y / size - centre[0], x / size - centre[1]
            inside = np.abs(v / a) ** power + np.abs(u / b) ** power <= 1
            frame[:, inside] = paint[:, inside]
        frames.append(torch.from_numpy(frame).float())
        place = place + speed
        speed = np.where((place < 0.1) | (place > 0.9), -speed, speed)
    return Clip(torch.from_numpy(background).float(), frames)


# ------------------------------------------------------------------ the measurement
def make_network(name: str, width: int, clip: Clip, seed: int) -> nn.Module:
    """Random weights; the batch norms know the clip's statistics, so that no layer is idle."""
    torch.manual_seed(seed)
    net = NETWORKS[name](width)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # the mean of all batches, here of one
    with torch.no_grad():
        net.train()(torch.stack(clip.frames[:2]))
    return net.eval()


def measure(name: str, net: nn.Module, clip: Clip, rounds: int) -> dict[str, Any]:
    """Every frame by the dense network, in both of torch's memory formats, and incrementally.

    The three alternate. An incremental frame starts from the dense image: finding the changed
    pixels and all rulebooks are in its time.

    Returns:
        `frames`: per frame `changed`, `dense_ms`, `incremental_ms`, `ratio`, `difference`;
        `dense_format`; `ratio`, over all frames; `largest_output`, and the dense network's own
        `rounding` against float64; `layers`: active shares of the first frame; `background_ms`.
    """
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = time.perf_counter()
    step = Incremental(net, clip.background[None])
    background_ms = 1e3 * (time.perf_counter() - start)
    formats = ("contiguous", "channels_last")
    times: dict[str, list[float]] = {key: [] for key in ("incremental", *formats)}
    rows: list[dict[str, Any]] = []
    largest = 0.0
    for i, image in enumerate(clip.frames):
        frame = image[None]
        moved = frame.contiguous(memory_format=torch.channels_last)
        actions: dict[str, Callable[[], object]] = {
            "incremental": partial(step, frame),
            "contiguous": partial(net, frame),
            "channels_last": partial(last, moved),
        }
        with torch.no_grad():
            measured = interleave(actions, rounds, warmup=1 if i == 0 else 0)
            want = net(frame)
        for key, seconds in measured.items():
            times[key].append(statistics.median(seconds))
        largest = max(largest, float(want.abs().max()))
        difference = float((step(frame) - want).abs().max())
        changed = float(clip.changed(i).float().mean())
        rows.append({"changed": changed, "difference": difference})
    dense = min(formats, key=lambda key: statistics.median(times[key]))
    for row, a, b in zip(rows, times[dense], times["incremental"], strict=True):
        row |= {"dense_ms": 1e3 * a, "incremental_ms": 1e3 * b, "ratio": a / b}
    return {
        "network": name,
        "frames": rows,
        "dense_format": dense,
        "ratio": paired_ratio(times[dense], times["incremental"]),
        "background_ms": background_ms,
        "largest_output": largest,
        "rounding": _rounding(net, clip.frames[0][None]),
        "layers": _layers(net, step.changes(clip.frames[0][None])),
    }


@torch.no_grad()
def _rounding(net: nn.Module, frame: Tensor) -> float:
    """What float32 itself loses."""
    exact = copy.deepcopy(net).double()(frame.double())
    return float((net(frame) - exact).abs().max())


def _layers(net: nn.Module, x: Any) -> list[dict[str, Any]]:
    """Active share and path of every convolution, in the order they run."""
    return [
        {"layer": row.name, "share": row.active_out, "path": row.path}
        for row in explain(net, x).rows
        if row.type.startswith("Conv")
    ]


# ------------------------------------------------------------------ what is shown
_COLUMNS = ("frame", "changed", "dense ms", "incremental ms", "ratio", "largest difference")
_N_LAYERS = 8


def show(result: dict[str, Any], title: str) -> None:
    """Prints a table of the frames, and one of some layers."""
    frames = result["frames"]
    rows = [_frame_row(str(i), frame) for i, frame in enumerate(frames)]
    mean = {key: statistics.mean(f[key] for f in frames) for key in frames[0]}
    mean |= {"ratio": result["ratio"], "difference": max(f["difference"] for f in frames)}
    rows.append(_frame_row("all", mean))
    layers = result["layers"]
    some = [layers[i * (len(layers) - 1) // (_N_LAYERS - 1)] for i in range(_N_LAYERS)]
    cells: list[tuple[str, ...]] = []
    cells += [(row["layer"], f"{row['share']:.1%}", row["path"]) for row in some]
    tables(Table(title, _COLUMNS, rows), Table("", ("layer", "active", "path"), cells))
    say(
        f"dense: the better of torch's formats, here {result['dense_format']}; "
        f"the background took {result['background_ms']:.0f} ms, once; "
        f"largest output {result['largest_output']:.2f}, "
        f"dense float32 against float64 {result['rounding']:.1e}"
    )


def _frame_row(name: str, frame: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{frame['changed']:.2%}",
        f"{frame['dense_ms']:.1f}",
        f"{frame['incremental_ms']:.1f}",
        f"{frame['ratio']:.2f} x",
        f"{frame['difference']:.1e}",
    )


def picture(path: Path, clip: Clip, results: list[dict[str, Any]]) -> None:
    """Draws frames, changed pixels, active share by layer and times, if matplotlib is there."""
    figure = new_figure(14, 5 + 4 * len(results))
    if figure is None:
        return
    parts: Any = figure.subfigures(1 + len(results), 1, height_ratios=[1.4, *[1] * len(results)])
    top, *below = parts
    _draw_clip(top, clip)
    for part, result in zip(below, results, strict=True):
        _draw_result(part, result)
    save(figure, path)


def _draw_clip(figure: Any, clip: Clip) -> None:
    n = len(clip.frames)
    shown = sorted({0, n // 3, 2 * n // 3, n - 1})
    figure.suptitle("frames of a camera that does not move, and the pixels that changed")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for (upper, lower), i in zip(axes.T, shown, strict=True):
        upper.imshow(clip.frames[i].movedim(0, -1).clamp(0, 1).numpy())
        changed = clip.changed(i)
        lower.imshow(changed.numpy(), cmap="gray_r")
        upper.set_title(f"frame {i}")
        lower.set_xlabel(f"{float(changed.float().mean()):.2%} changed")
        for one in (upper, lower):
            one.set(xticks=[], yticks=[])


def _draw_result(figure: Any, result: dict[str, Any]) -> None:
    figure.suptitle(f"{result['network']}: {result['ratio']:.2f} x")
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    layers, frames = result["layers"], result["frames"]
    at = range(len(layers))
    left.plot(at, [100 * row["share"] for row in layers], color=GREEN, marker="o")
    left.set(ylim=(0, 104), ylabel="active sites (%)", title="active share by layer, first frame")
    left.set_xticks(list(at), [row["layer"] for row in layers], rotation=75, fontsize=7)
    left.grid(alpha=0.3)
    index = np.arange(len(frames))
    for shift, key, colour in ((-0.2, "dense", ORANGE), (0.2, "incremental", BLUE)):
        heights = [frame[f"{key}_ms"] for frame in frames]
        right.bar(index + shift, heights, 0.4, color=colour, label=key)
    right.set(xlabel="frame", ylabel="ms", title="time per frame")
    right.margins(y=0.25)  # room for the legend
    right.legend(ncols=2, loc="upper right")


# ------------------------------------------------------------------ the command
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the static-camera demo.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: an option is out of range; the message says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo incremental",
        description="Unmodified networks on the frames of a static camera: dense, and on what "
        "changed. Weights are random; the answers are compared.",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument(
        "--network", choices=tuple(NETWORKS), help="only this one; default: both, in turn"
    )
    parser.add_argument("--frames", type=positive, help=f"of the clip; default: {FULL.frames}")
    parser.add_argument("--seed", type=int, default=0, help="of clip and weights; default: 0")
    parser.add_argument("--threads", type=positive, help="of torch and of the sparse kernels")
    parser.add_argument(
        "--output",
        "--out",
        metavar="PNG",
        default="doublesparse-incremental.png",
        help='where the picture goes; "" for none; default: %(default)s',
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise SystemExit(
            f"doublesparse demo incremental: seed must be at least 0, got {args.seed}; use --seed 0"
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    settings = QUICK if args.quick else FULL
    clip = make_clip(settings.size, args.frames or settings.frames, args.seed)
    results = []
    for name in (args.network,) if args.network else NETWORKS:
        net = make_network(name, settings.widths[name], clip, args.seed)
        results.append(measure(name, net, clip, settings.rounds))
        title = f"{name}, {settings.size} x {settings.size}, {torch.get_num_threads()} threads"
        show(results[-1], title)
    if args.quick:
        say("a smoke test: networks and frames too small for these times to mean anything")
    if args.output:
        picture(Path(args.output), clip, results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0
