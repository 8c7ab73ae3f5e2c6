"""Force regularization on real images: ranks, accuracy and speed, with and without force."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from . import _low_rank as experiment
from ._colour_images import load_folder
from ._images import Images
from ._low_rank import Settings, arms
from ._low_rank_report import equal_accuracy, picture, show, summaries
from ._options import add_data_options, load
from ._show import positive, say

DIGITS = Settings()
LARGE = replace(
    DIGITS,
    train_size=3000,
    epochs=8,
    force_epochs=4,
    finetune_epochs=2,
    lr=0.01,
    batch_size=64,
    strengths=(0.2, 0.5, 1.0, 2.0),
    energies=(0.95, 0.8),
)
# A smoke test of everything the demo does: its numbers say nothing.
QUICK: dict[str, Any] = {
    "seeds": 2,
    "train_size": 100,
    "epochs": 2,
    "force_epochs": 1,
    "finetune_epochs": 1,
    "strengths": (0.5,),
    "energies": (0.95, 0.8),
    "speed_batch": 20,
}
_ROUNDS, _QUICK_ROUNDS = 5, 2

_HELP = {
    "seeds": "independent repetitions; each draws training images, initial weights and order, the "
    "same for all arms",
    "train_size": "training images",
    "epochs": "of the baseline",
    "force_epochs": "of training on, with force and without",
    "finetune_epochs": "after decomposition",
    "lr": "learning rate of the baseline (SGD with momentum 0.9; a tenth in the last quarter)",
    "lr_scale": "of the learning rate when training goes on, and of fine-tuning",
    "weight_decay": "of SGD",
    "batch_size": "images per step",
    "speed_batch": "images per call where time is measured",
    "norms": "of the force",
    "strengths": "of the force, times the number of filters of the layer",
    "energies": "shares of the sum of squared singular values to keep; the first is that of the "
    "comparison",
}


# ------------------------------------------------------------------ all seeds
_shared: Any = None


def _share(images: Images, settings: Settings) -> None:
    """What every task of a process works with; tasks run side by side, on one thread each."""
    global _shared
    _shared = images, settings
    torch.set_num_threads(1)


def _baseline(seed: int) -> bytes:
    images, settings = _shared
    return experiment.baseline(images, settings, seed)


def _arm(seed: int, arm: experiment.Arm, start: bytes) -> list[dict[str, Any]]:
    images, settings = _shared
    return experiment.run_arm(images, settings, seed, arm, start)


class _Later:
    """A task of this process, which runs when its result is first asked for."""

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        self._run, self._found = (function, args), None

    def result(self) -> Any:
        """What the task returns."""
        if self._found is None:
            function, args = self._run
            self._found = function(*args)
        return self._found


class _Here:
    """An executor without processes."""

    def submit(self, function: Any, *args: Any) -> _Later:
        """The task, for later."""
        return _Later(function, args)


def _train_all(executor: Any, settings: Settings, progress: bool) -> list[dict[str, Any]]:
    """The rows of every arm and seed."""
    seeds = range(settings.seeds)
    starts = [executor.submit(_baseline, seed) for seed in seeds]
    tasks = []
    for arm in arms(settings):
        for seed in seeds:
            tasks.append((arm, seed, executor.submit(_arm, seed, arm, starts[seed].result())))
    rows = []
    for arm, seed, task in tasks:
        found = task.result()
        rows += found
        if progress:
            row = found[0]
            say(
                f"{arm.title}, seed {seed}: ranks {row['ranks']} at energy {row['energy']:g}; "
                f"error {row['before']:.2f} %, decomposed {row['decomposed']:.2f} %, "
                f"fine-tuned {row['finetuned']:.2f} %"
            )
    return rows


def run_all(
    images: Images, settings: Settings, *, jobs: int = 1, rounds: int = _ROUNDS, progress: bool
) -> dict[str, Any]:
    """Every arm and seed; then, with nothing else running, every time.

    Args:
        images: to train on and to test on.
        settings: everything that decides the result.
        jobs: processes that train side by side; the result does not depend on it.
        rounds: of each measurement of time.
        progress: whether to print a line per arm and seed.

    Returns:
        `rows`, one per arm, seed and energy; `summaries` over seeds; `equal`: the comparison at
        equal accuracy at the first energy and at any.
    """
    start = time.perf_counter()
    threads = torch.get_num_threads()
    try:
        if jobs == 1:
            _share(images, settings)
            rows = _train_all(_Here(), settings, progress)
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _share, (images, settings)) as executor:
                rows = _train_all(executor, settings, progress)
    finally:
        torch.set_num_threads(threads)
    source = images.test or images.train
    batch = source[0][: settings.speed_batch]
    for row in rows:
        row |= experiment.measure(row, batch, rounds)
        del row["net"]
    found = summaries(rows)
    return {
        "title": images.title,
        "settings": asdict(settings),
        "rows": rows,
        "summaries": found,
        "equal": [equal_accuracy(found, energy) for energy in (settings.energies[0], None)],
        "seconds": time.perf_counter() - start,
    }


# ------------------------------------------------------------------ the command
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo force",
        description="Train a CNN with force regularization (Wen et al. 2017), replace its layers "
        "by two of low rank, fine-tune: ranks, errors and speed, with and without force.",
    )
    add_data_options(
        parser,
        "folder with MNIST's files, CIFAR-10's batches (binary or Python), or a folder of images "
        "for each class",
    )
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="train with force from the start, rather than from a trained baseline",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        help="processes that train side by side; default: one per processor",
    )
    parser.add_argument(
        "--out",
        metavar="PNG",
        default="doublesparse-force.png",
        help='where the picture goes; "" for none; default: %(default)s',
    )
    for name, text in _HELP.items():
        digits, large = getattr(DIGITS, name), getattr(LARGE, name)
        several = isinstance(digits, tuple)
        shown = [
            " ".join(f"{v}" for v in each) if several else f"{each:g}" for each in (digits, large)
        ]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(digits[0]) if several else positive if type(digits) is int else float,
            nargs="+" if several else None,
            help=f"{text}; default: {shown[0]}"
            + (f" (digits), {shown[1]} (--data)" if digits != large else ""),
        )
    return parser


def _few(images: Images, n: int) -> Images:
    """The first n images of each set."""
    train, test = images.train, images.test
    return Images(
        images.title,
        (train[0][:n], train[1][:n]),
        None if test is None else (test[0][:n], test[1][:n]),
    )


def _settings(args: argparse.Namespace, defaults: Settings) -> Settings:
    """The options given, over those of --quick, over the defaults of the data."""
    settings = replace(defaults, **QUICK) if args.quick else defaults
    given = {name: getattr(args, name) for name in _HELP if getattr(args, name) is not None}
    several: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return replace(settings, **several | {"scratch": args.scratch})


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the demo.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: no data, or an option is out of range; the message says why.
    """
    args = _parser().parse_args(argv)
    images, large = load("force", args, load_folder)
    defaults = LARGE if large else DIGITS
    jobs = args.jobs or (1 if args.quick else len(os.sched_getaffinity(0)))
    rounds = _QUICK_ROUNDS if args.quick else _ROUNDS
    try:
        settings = _settings(args, defaults)
        if args.quick:
            images = _few(images, 3 * settings.train_size)
        results = run_all(images, settings, jobs=jobs, rounds=rounds, progress=True)
    except ValueError as wrong:
        raise SystemExit(f"doublesparse demo force: {wrong}") from wrong
    show(results)
    if args.quick:
        say("a smoke test: too few images, epochs and seeds for these numbers to mean anything")
    if args.out:
        picture(Path(args.out), results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0
