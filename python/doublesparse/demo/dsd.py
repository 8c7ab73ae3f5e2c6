"""Dense-sparse-dense training on real digits, against dense training of the same length."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..prune import DSD
from ._classify import error, train
from ._images import Images
from ._options import add_data_options, load
from ._show import Table, positive, say, tables
from ._statistics import deviation, paired_difference


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options.

    The same for every arm. Rates and epochs were chosen for the baseline alone, so that its
    training error is next to nothing when the first phase ends.
    """

    seeds: int = 10
    train_size: int = 500
    epochs: int = 30
    sparse_epochs: int = 15
    redense_epochs: int = 15
    sparsity: float = 0.3
    lr: float = 0.05
    lr_scale: float = 0.1
    weight_decay: float = 5e-4
    batch_size: int = 50


DIGITS = Settings()
MNIST = replace(DIGITS, train_size=1000, epochs=20, sparse_epochs=10, redense_epochs=10)
# A smoke test of everything the demo does: its numbers say nothing.
QUICK = {"seeds": 2, "train_size": 200, "epochs": 2, "sparse_epochs": 1, "redense_epochs": 1}

_HELP = {
    "seeds": "independent repetitions; each draws training images, initial weights and order, the "
    "same for all arms",
    "train_size": "training images",
    "epochs": "of the first, dense phase",
    "sparse_epochs": "of the sparse phase",
    "redense_epochs": "of the last, dense phase",
    "sparsity": "share of the weights of each layer that the sparse phase prunes",
    "lr": "learning rate (SGD with momentum 0.9), until the last phase",
    "lr_scale": "of the learning rate in the last phase, and of the control's after the first",
    "weight_decay": "of SGD",
    "batch_size": "images per step",
}

# Order of the table. What each is: _NOTES.
ARMS = ("baseline", "LLR", "same rates", "sparse", "DSD")
_NOTES = (
    "baseline: dense, first phase only. LLR: dense, trained on at the low rate for as long as DSD "
    "(the paper's control). same rates: dense, at DSD's rates throughout. sparse: DSD before its "
    "last phase."
)


# ------------------------------------------------------------------ training
def make_network(size: int) -> nn.Module:
    """Two convolutions and two linear layers, for images of size x size."""
    kernel = 5 if size >= 16 else 3
    after = ((size - kernel + 1 + 1) // 2 + 1) // 2  # halved twice, rounded up
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(8, 16, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(16 * after**2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class _Run:
    """A network in training with its optimizer, which can go on in several ways."""

    def __init__(self, net: nn.Module, settings: Settings, state: Any = None) -> None:
        self.net, self.settings = net, settings
        self.optimizer = torch.optim.SGD(
            net.parameters(),
            lr=settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
        )
        if state is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state))

    def fork(self) -> _Run:
        """The same network and momenta, once more."""
        return _Run(copy.deepcopy(self.net), self.settings, self.optimizer.state_dict())

    def slow_down(self) -> None:
        """Go on at the low learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] *= self.settings.lr_scale


def run_seed(images: Images, settings: Settings, seed: int) -> dict[str, float]:
    """Test error of every arm, in percent."""
    data, test = images.split(settings.train_size, seed)
    torch.manual_seed(seed)
    run = _Run(make_network(data[0].shape[-1]), settings)
    ends = (
        settings.epochs,
        settings.epochs + settings.sparse_epochs,
        settings.epochs + settings.sparse_epochs + settings.redense_epochs,
    )
    second, third = range(ends[0], ends[1]), range(ends[1], ends[2])
    train(run.net, run.optimizer, data, settings.batch_size, range(ends[0]), seed)
    found = {"baseline": error(run.net, test)}

    control = run.fork()
    control.slow_down()
    train(control.net, control.optimizer, data, settings.batch_size, range(ends[0], ends[2]), seed)
    found["LLR"] = error(control.net, test)

    same = run.fork()
    train(same.net, same.optimizer, data, settings.batch_size, second, seed)
    same.slow_down()
    train(same.net, same.optimizer, data, settings.batch_size, third, seed)
    found["same rates"] = error(same.net, test)

    dsd = DSD(run.net, run.optimizer, settings.sparsity, settings.lr_scale)
    dsd.sparse()
    train(run.net, run.optimizer, data, settings.batch_size, second, seed)
    found["sparse"] = error(run.net, test)
    dsd.redense()
    train(run.net, run.optimizer, data, settings.batch_size, third, seed)
    found["DSD"] = error(run.net, test)
    return found


def run_all(images: Images, settings: Settings, progress: bool = False) -> dict[str, Any]:
    """Every seed, and what they say together.

    Returns:
        `errors`: {arm: test error per seed, in percent}; `mean`, `sd`: {arm: number};
        `difference`: {"a - b": (mean, low, high)}, paired, with 95 % intervals, in points.
    """
    errors: dict[str, list[float]] = {arm: [] for arm in ARMS}
    start = time.perf_counter()
    for seed in range(settings.seeds):
        for arm, value in run_seed(images, settings, seed).items():
            errors[arm].append(value)
        if progress:
            now = "  ".join(f"{arm} {errors[arm][-1]:.2f} %" for arm in ARMS)
            say(f"seed {seed}: {now}  {time.perf_counter() - start:6.1f} s")
    pairs = [("DSD", other) for other in ("baseline", "LLR", "same rates", "sparse")]
    return {
        "title": images.title,
        "settings": asdict(settings),
        "errors": errors,
        "mean": {arm: statistics.fmean(errors[arm]) for arm in ARMS},
        "sd": {arm: deviation(errors[arm]) for arm in ARMS},
        "difference": {f"{a} - {b}": paired_difference(errors[a], errors[b]) for a, b in pairs},
        "seconds": time.perf_counter() - start,
    }


# ------------------------------------------------------------------ what is shown
def verdict(low: float, high: float) -> str:
    """What a 95 % interval of an error difference says."""
    if high < 0:
        return "lower error, beyond the spread of the seeds"
    if low > 0:
        return "higher error, beyond the spread of the seeds"
    return "no difference shown"


def show(results: dict[str, Any]) -> None:
    """Prints the table of the arms, and that of the differences."""
    settings = results["settings"]
    total = settings["epochs"] + settings["sparse_epochs"] + settings["redense_epochs"]
    lengths = dict.fromkeys(ARMS, total) | {
        "baseline": settings["epochs"],
        "sparse": total - settings["redense_epochs"],
    }
    rows: list[tuple[str, ...]] = [
        (arm, str(lengths[arm]), f"{results['mean'][arm]:.2f}", f"{results['sd'][arm]:.2f}")
        for arm in ARMS
    ]
    gaps: list[tuple[str, ...]] = [
        (name, f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}", verdict(low, high))
        for name, (mean, low, high) in results["difference"].items()
    ]
    title = (
        f"{results['title']}: {settings['train_size']} training images, {settings['seeds']} seeds, "
        f"{settings['sparsity']:.0%} pruned in the sparse phase"
    )
    tables(
        Table(title, ("arm", "epochs", "test error %", "sd"), rows),
        Table("", ("paired difference", "points", "95 % interval", "verdict"), gaps),
    )
    say(_NOTES)
    say(
        "Intervals are those of the seeds (training images, initial weights, order): another test "
        f"set may differ by more. {results['seconds']:.0f} s, {torch.get_num_threads()} threads"
    )


# ------------------------------------------------------------------ the command
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo dsd",
        description="Dense-sparse-dense training (Han et al. 2017) of a small CNN on few images, "
        "against dense training: test errors over paired seeds.",
    )
    add_data_options(parser)
    parser.add_argument("--threads", type=positive, help="of torch and of the sparse kernels")
    for name, text in _HELP.items():
        digits, mnist = getattr(DIGITS, name), getattr(MNIST, name)
        shown = f"{digits:g}" if digits == mnist else f"{digits:g} (digits), {mnist:g} (MNIST)"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive if type(digits) is int else float,
            help=f"{text}; default: {shown}",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the demo.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: no data, or an option is out of range; the message says why.
    """
    args = _parser().parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    images, large = load("dsd", args)
    settings = MNIST if large else DIGITS
    if args.quick:
        settings = replace(settings, **QUICK)
    given = {name: getattr(args, name) for name in _HELP}
    settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
    try:
        results = run_all(images, settings, progress=True)
    except ValueError as wrong:
        raise SystemExit(f"doublesparse demo dsd: {wrong}") from wrong
    show(results)
    if args.quick:
        say("a smoke test: too few images, epochs and seeds for these numbers to mean anything")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0
