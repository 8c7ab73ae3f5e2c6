"""The table: one row per measurement, next to its bar, printed and written as JSON."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from doublesparse.bench import milliseconds, paired_ratio

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach and aims for; `smaller` where less is better."""

    what: str
    must: float
    aim: float
    unit: str
    smaller: bool = False

    def verdict(self, value: float) -> str:
        """`aim`, `must` or `MISSED`."""
        sign = -1 if self.smaller else 1
        if sign * value >= sign * self.aim:
            return "aim"
        return "must" if sign * value >= sign * self.must else "MISSED"


# Pruned weights: dense torch's time over ours, the fastest of its products. Of an unstructured mask
# first the must and the aim at 60, 80, 90, 95 and 98 % of zeros, M rows of activations.
_UNSTRUCTURED = {
    1024: ((1.0, 1.5), (2.2, 3.3), (4.2, 6.5), (7.5, 11.0), (12.0, 18.0)),
    4096: ((1.0, 1.5), (2.2, 3.3), (4.2, 6.5), (7.5, 11.0), (15.0, 18.0)),
}
_PRUNED: dict[str, Bar] = {
    **{
        f"spmm-{size}-{percent}": Bar(f"{percent} % pruned, {size} x {size}, M = 512", *bar, "x")
        for size, bars in _UNSTRUCTURED.items()
        for percent, bar in zip((60, 80, 90, 95, 98), bars, strict=True)
    },
    "spmm-m16-1024x1024": Bar("90 % pruned, 1024 x 1024, M = 16", 3.5, 5.0, "x"),
    "spmm-m16-768x3072": Bar("90 % pruned, 768 -> 3072, M = 16", 3.5, 5.0, "x"),
    "spmm-m1-1024": Bar("90 % pruned, 1024 x 1024, M = 1, raw operator", 4.0, 6.0, "x"),
    "spmm-m1-4096": Bar("90 % pruned, 4096 x 4096, M = 1, raw operator", 4.0, 6.0, "x"),
    **{
        f"break-even-{size}": Bar(
            f"pruned where it is as fast as dense, {size} x {size}, M = 512",
            *(60.0, 45.0, "%"),
            smaller=True,
        )
        for size in (1024, 4096)
    },
    **{
        f"block-{size}-{percent}": Bar(
            f"{percent} % pruned in the best blocks, {size} x {size}, M = 512", must, aim, "x"
        )
        for size in (1024, 4096)
        for percent, must, aim in ((70, 2.2, 3.0), (90, 6.0, 9.0))
    },
    **{
        f"train-{size}": Bar(f"training step, 90 % pruned, {size} x {size}, M = 512", 2.5, 4.5, "x")
        for size in (1024, 4096)
    },
    "backward-4096": Bar("both gradients alone, 90 % pruned, 4096 x 4096", 1.0, 2.5, "x"),
    "bf16-spmm-m16-70": Bar("bfloat16 AMX, 70 % pruned, 4096 x 4096, M = 16", 1.0, 1.5, "x"),
    "bf16-spmm-m16-90": Bar("bfloat16 AMX, 90 % pruned, 4096 x 4096, M = 16", 1.3, 2.0, "x"),
    **{
        f"bf16-block-{size}-{percent}": Bar(
            f"bfloat16 AMX, {percent} % in blocks, {size} x {size}, M = 512", must, aim, "x"
        )
        for size in (1024, 4096)
        for percent, must, aim in ((70, 2.0, 3.0), (90, 5.0, 8.0))
    },
    "masked-conv": Bar("conv 3x3 256 -> 256, 14 x 14, batch 16, 90 % pruned", 3.5, 6.0, "x"),
    "bf16-masked-conv": Bar("the same, bfloat16 AMX, Block(32, 32)", 2.0, 4.0, "x"),
    "sites-and-weights": Bar(
        "strokes 5 %, 64->64 3x3 subm, 80 % in blocks, against unpruned", 2.5, 4.0, "x"
    ),
    **{
        f"peers-{size}-{rows}": Bar(
            f"90 % pruned, {size} x {size}, M = {rows}, best sparse library", 1.0, 1.5, "x"
        )
        for size in (1024, 4096)
        for rows in (128, 512)
    },
}

# The speed table that the package is held to. "of torch.mm" is the useful rate (2 x pairs
# x c_in x c_out per second) over that of torch.mm 2048^3 in the same rounds; "x" is the peer's time
# over ours.
BARS: dict[str, Bar] = {
    "lidar-forward-32": Bar("subm 3x3x3 lidar, forward, 32 channels", 0.65, 0.80, "of torch.mm"),
    "lidar-forward-64": Bar("subm 3x3x3 lidar, forward, 64 channels", 0.78, 0.90, "of torch.mm"),
    "lidar-forward-128": Bar("subm 3x3x3 lidar, forward, 128 channels", 0.80, 0.93, "of torch.mm"),
    "lidar-input-grad-64": Bar("the same, input gradient, 64 channels", 0.65, 0.85, "of torch.mm"),
    "lidar-weight-grad-64": Bar(
        "the same, weight gradient, 64 channels", 0.65, 0.85, "of torch.mm"
    ),
    "spconv-rulebook": Bar("lidar rulebook, against spconv", 5.0, 10.0, "x"),
    "spconv-forward": Bar("lidar forward, 64 channels, against spconv", 1.9, 2.5, "x"),
    "spconv-train": Bar("lidar forward + backward, 64, against spconv", 1.8, 2.5, "x"),
    "strokes-d05": Bar("strokes 5 %, 64->64 3x3, with rulebook, against F.conv2d", 10.0, 15.0, "x"),
    "strokes-d40": Bar("strokes 40 %, the same", 1.5, 2.2, "x"),
    "deepcnet-step": Bar("DeepCNet(5, 64) training step, batch 100, against dense", 3.0, 6.0, "x"),
    "two-threads": Bar("two threads, 64 channels: our scaling over torch.mm's", 0.95, 1.0, "x"),
    "bf16-lidar-64": Bar("bfloat16 AMX, lidar forward, 64 channels", 0.33, 0.50, "of torch.mm"),
    "bf16-lidar-128": Bar("bfloat16 AMX, lidar forward, 128 channels", 0.48, 0.62, "of torch.mm"),
    "bf16-spconv-64": Bar("the same, 64 channels, against spconv float32", 5.0, 8.0, "x"),
    "bf16-spconv-128": Bar("the same, 128 channels, against spconv float32", 6.0, 9.0, "x"),
    "bf16-strokes-d05": Bar("strokes 5 %, 64->64 3x3, bfloat16 AMX, with rulebook", 3.0, 6.0, "x"),
    "resnet18-strokes": Bar("ResNet-18, a 224 x 224 drawing, against dense", 0.97, 1.25, "x"),
    "resnet18-frozen": Bar("the same with frozen grounds", 0.97, 1.4, "x"),
    "vgg16-strokes": Bar("VGG-16, a 512 x 512 drawing, against dense", 1.5, 2.0, "x"),
    "incremental-resnet18": Bar("incremental ResNet-18, 224 x 224", 1.3, 2.0, "x"),
    "incremental-unet": Bar("incremental U-Net, 224 x 224", 1.3, 2.0, "x"),
    **{
        f"crossover-{layer}": Bar(
            f"{layer}: over the better of sparse and dense", 1.15, 1.05, "x", smaller=True
        )
        for layer in (
            "64 -> 64, 3x3, batch 8 at 96",
            "16 -> 32, 3x3, batch 8 at 96",
            "64 -> 64, 3x3, batch 1 at 56",
            "128 -> 128, 3x3, batch 1 at 28",
            "3 -> 64, 7x7 stride 2, batch 1 at 224",
            "128 -> 256, 1x1, batch 4 at 56",
            "64 -> 128, 3x3 stride 2, batch 4 at 56",
            "64 depthwise, 3x3, batch 8 at 96",
        )
    },
    **_PRUNED,
    "call-no-grad": Bar("SparseConv2d call, 10 sites, no grad", 60.0, 25.0, "us", smaller=True),
    "call-grad": Bar("SparseConv2d call, 10 sites, with grad", 120.0, 60.0, "us", smaller=True),
}


@dataclass
class Row:
    """One measurement: the figure that is compared, and what it was made of."""

    key: str
    what: str
    value: float | None
    unit: str
    ms: float | None = None
    peer: str = ""
    peer_ms: float | None = None
    gflops: float | None = None
    gbs: float | None = None
    note: str = ""
    bar: Bar | None = None

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "skipped"
        return self.bar.verdict(self.value) if self.bar else ""


class Report:
    """Collects rows; `text` is the table, `write` the JSON file."""

    def __init__(
        self,
        bars: dict[str, Bar] = BARS,
        conditions: str = "float32 and one thread unless said",
    ) -> None:
        """Starts empty."""
        self.bars = bars
        self.conditions = conditions
        self.rows: list[Row] = []
        self.machine: dict[str, float] = {}

    def add(self, key: str, value: float | None, **parts: Any) -> None:
        """Appends the row of a bar, or with `what` and `unit` one without a bar."""
        bar = self.bars.get(key)
        named = {"what": bar.what, "unit": bar.unit} if bar else {"what": key, "unit": ""}
        parts = named | {"bar": bar} | parts
        self.rows.append(Row(key=key, value=value, **parts))

    def add_best(self, key: str, times: dict[str, list[float]], **parts: Any) -> None:
        """Adds the time of the fastest of the others over ours, round by round.

        Args:
            key: of the row.
            times: seconds of each round by name, ours under "ours".
            parts: of the row; others' names that start with "ours" are no peers.
        """
        peers = {name: seconds for name, seconds in times.items() if not name.startswith("ours")}
        best = min(peers, key=lambda name: milliseconds(peers[name]))
        self.add(
            key,
            paired_ratio(peers[best], times["ours"]),
            ms=milliseconds(times["ours"]),
            peer=best,
            peer_ms=milliseconds(peers[best]),
            **parts,
        )

    def ordered(self) -> list[Row]:
        """The rows in the order of the bars, those without one last."""
        order = {key: i for i, key in enumerate(self.bars)}
        return sorted(self.rows, key=lambda row: order.get(row.key, len(order)))

    def text(self) -> str:
        """The table as fixed-width text."""
        machine = ", ".join(f"{name} {value:.1f}" for name, value in self.machine.items())
        names = [f"what ({self.conditions})", "must", "aim", "got", "", ""]
        table = [[*names, "ms", "GFLOP/s", "GB/s", "peer and its ms"]]
        for row in self.ordered():
            bars = (f"{row.bar.must:g}", f"{row.bar.aim:g}") if row.bar else ("", "")
            peer = " ".join(filter(None, (row.peer, _number(row.peer_ms, 3))))
            table.append(
                [row.what, *bars, _number(row.value, 2), row.unit, row.verdict]
                + [_number(row.ms, 3), _number(row.gflops, 1), _number(row.gbs, 1)]
                + ["; ".join(filter(None, (peer, row.note)))]
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        # Names and units to the left, numbers to the right.
        sides = "<>>><<>>><"
        lines = [
            "  ".join(
                f"{cell:{side}{width}}"
                for cell, side, width in zip(line, sides, widths, strict=True)
            )
            for line in table
        ]
        missing = [key for key in self.bars if key not in {row.key for row in self.rows}]
        if missing:
            lines.append(f"not run: {', '.join(missing)}")
        return "\n".join([machine, *(line.rstrip() for line in lines)])

    def write(self, info: dict[str, Any], name: str | None = None) -> Path:
        """Writes rows, ceilings and `info` to `results/<time>-<name, or the isa>.json`."""
        now = datetime.datetime.now(datetime.timezone.utc)
        RESULTS.mkdir(exist_ok=True)
        isa = info.get("isa", {}).get("chosen") if isinstance(info.get("isa"), dict) else None
        path = RESULTS / f"{now:%Y%m%dT%H%M%SZ}-{name or isa or 'unknown'}.json"
        rows = [
            asdict(row) | {"verdict": row.verdict} for row in self.ordered()
        ]
        content = {
            "time": now.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": self.machine,
            "info": info,
            "rows": rows,
        }
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")
        return path


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown(path: Path) -> str:
    """The rows with a bar of one JSON file as a table for the README."""
    content = json.loads(path.read_text())
    lines = ["| float32 and one thread unless said | measured | must | aim |", "|---|---|---|---|"]
    for row in content["rows"]:
        if row["bar"] and row["value"] is not None:
            bar = row["bar"]
            measured = f"{row['value']:.2f} {row['unit']}"
            lines.append(f"| {row['what']} | {measured} | {bar['must']:g} | {bar['aim']:g} |")
    info, machine = content["info"], content["machine"]
    lines += [
        "",
        f"{info.get('cpu')}, {info['isa']['chosen']}, torch {content['torch']}; torch.mm "
        f"{machine['mm_gflops']:.0f} GFLOP/s on one thread; {content['time'][:10]}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    newest = max(RESULTS.glob("*.json"), key=lambda p: p.stat().st_mtime, default=None)
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else newest
    if chosen is None:
        sys.exit("no result under bench/results; run `make bench`")
    print(markdown(chosen))
