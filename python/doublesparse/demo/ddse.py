"""The double sparsity encoder on real digits, against dense and pruned encoders."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..models import learn_double_sparsity
from ..models._dictionaries import make_dictionary
from . import _encoders
from ._encoder_report import draw, show
from ._encoders import NEURONS, STARTS, Arm, Choice, Course, Data, Shape
from ._images import Images
from ._options import add_data_options, load
from ._show import positive, say
from ._statistics import deviation


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options; the same for every arm."""

    seeds: int = 5
    labels: tuple[int, ...] = (100, 300, 1000, 0)
    n_codes: int = 128
    nonzeros: int = 20
    iterations: int = 2
    steps: int = 120
    epochs: int = 6
    max_steps: int = 1000
    batch_size: int = 50
    project_every: int = 1
    test_size: int = 500
    n_atoms: tuple[int, int] = (10, 10)
    lr_grid: tuple[float, ...] = (0.01, 0.03, 0.1)
    penalty_grid: tuple[float, ...] = (0.02, 0.1)
    dictionary_samples: int = 400
    dictionary_iterations: int = 4


DIGITS = Settings()
MNIST = replace(
    DIGITS, n_codes=256, steps=150, max_steps=400, n_atoms=(32, 32), dictionary_samples=1000
)
# A smoke test of everything the demo does: its numbers say nothing.
QUICK: dict[str, Any] = {
    "seeds": 1,
    "labels": (100,),
    "n_codes": 32,
    "nonzeros": 4,
    "steps": 3,
    "epochs": 1,
    "max_steps": 3,
    "lr_grid": (0.03,),
    "penalty_grid": (0.1,),
    "dictionary_samples": 60,
    "dictionary_iterations": 1,
}
_HELP = {
    "seeds": "repetitions; each draws labelled images, first weights and order, the same for all",
    "n_codes": "width of the sparse encoder and of the dense one of the same width",
    "nonzeros": "s, weights kept in each row of W1 and W3 and each column of W2",
    "iterations": "unfolded iterations",
    "steps": "of training, at least",
    "epochs": "of training, where that makes more steps",
    "max_steps": "of training, at most",
    "batch_size": "images per step; five times that beyond 5000 labels",
    "project_every": "steps between two projections of the sparse encoder",
}


# ------------------------------------------------------------------ experiments
def learn(data: Data, settings: Settings) -> Shape:
    """Sizes, and the two dictionaries for pretrained starts: of both widths."""
    m = data.pool[0].shape[1]
    shape = Shape(
        m, settings.n_atoms, settings.n_codes, settings.nonzeros, settings.iterations, learnt={}
    )
    base = make_dictionary("dct", m, None, settings.n_atoms, None, torch.float32)
    random = torch.Generator().manual_seed(0)
    some = torch.randperm(len(data.pool[0]), generator=random)[: settings.dictionary_samples]
    for width in (shape.n_codes, shape.small):
        shape.learnt[width] = learn_double_sparsity(
            data.pool[0][some],
            base,
            width,
            min(settings.nonzeros, base.n_atoms),
            max(1, min(10, width // 4)),
            settings.dictionary_iterations,
            random_state=0,
        )
    return shape


@dataclass(frozen=True)
class Experiment:
    """What a worker needs to run any part of it."""

    data: Data
    shape: Shape
    settings: Settings

    def course(self, n: int) -> Course:
        """Steps and batches for n labels."""
        s = self.settings
        batch = s.batch_size * (5 if n > 5000 else 1)
        return Course(min(max(s.steps, s.epochs * n // batch), s.max_steps), batch, s.project_every)

    def tune(self, arm: Arm, labels: int) -> Choice:
        """Learning rate and penalty by a fifth of the labelled images of a draw that is not used.

        The least error decides, then the least cross entropy.
        """
        x, y = self.data.labelled(labels, seed=10_000)
        cut = max(1, len(y) // 5)
        train, held = (x[cut:], y[cut:]), (x[:cut], y[:cut])
        s, found = self.settings, []
        penalties = s.penalty_grid[:1] if arm.neuron == "topm" else s.penalty_grid
        for penalty in penalties:  # the M largest have no threshold, so no penalty
            for lr in s.lr_grid:
                model = _encoders.make(arm, self.shape, self.penalty(penalty), seed=10_000)
                _encoders.train(model, train, self.course(len(train[1])), lr, seed=10_000)
                error, loss, _ = _encoders.evaluate(model, held)
                found.append((error, loss, Choice(lr, penalty)))
        return min(found)[2]

    def penalty(self, share: float) -> float:
        """Of the sparse coding, from its share of the length of a sample."""
        return float(share * self.shape.n_inputs**0.5)

    def run(self, arm: Arm, labels: int, choice: Choice) -> dict[str, list[dict[str, float]]]:
        """What is measured for each seed; of a dense encoder, also once it is pruned."""
        found: dict[str, list[dict[str, float]]] = {str(arm): []}
        for seed in range(self.settings.seeds):
            train = self.data.labelled(labels, seed)
            course = self.course(len(train[1]))
            model = _encoders.make(arm, self.shape, self.penalty(choice.penalty), seed)
            _encoders.train(model, train, course, choice.lr, seed)
            found[str(arm)].append(self.measure(model))
            if arm.family == "LISTA":
                assert isinstance(model, _encoders.LISTA)
                _encoders.prune(model, self.shape)
                _encoders.fine_tune(model, train, course, choice.lr, seed)
                name = str(arm._replace(family="LISTA pruned"))
                found.setdefault(name, []).append(self.measure(model))
        return found

    def measure(self, model: _encoders.Encoder) -> dict[str, float]:
        """Error, active units and sizes of a trained encoder."""
        error, _, active = _encoders.evaluate(model, self.data.test)
        n = _encoders.parameters(model)
        return {
            "error": error,
            "active": active,
            "parameters": n,
            "bytes": _encoders.stored_bytes(_encoders.packed(model)),
        }


_EXPERIMENT: list[Experiment] = []  # of this process; set once, by the one that started it


def _begin(experiment: Experiment) -> None:
    torch.set_num_threads(1)
    _EXPERIMENT[:] = [experiment]


def _tune(arm: Arm, labels: int) -> Choice:
    return _EXPERIMENT[0].tune(arm, labels)


def _run(arm: Arm, labels: int, choice: Choice) -> dict[str, list[dict[str, float]]]:
    return _EXPERIMENT[0].run(arm, labels, choice)


def trained_arms(neurons: Sequence[str] = NEURONS) -> list[Arm]:
    """Those that are trained; pruned ones follow from the dense."""
    families = ("DDSE", "LISTA", "LISTA small")
    return [Arm(f, neuron, start) for f in families for neuron in neurons for start in STARTS]


def run_all(
    images: Images, settings: Settings, jobs: int = 1, neurons: Sequence[str] = NEURONS
) -> dict[str, Any]:
    """Every arm at every number of labels.

    Args:
        images: digits or MNIST.
        settings: sizes, lengths and grids.
        jobs: processes.
        neurons: which nonlinearities.

    Returns:
        `rows`: a dict for each arm and number of labels, with errors per seed, their mean and
        deviation, parameters, bytes, active share of the code, images per second, lr and penalty.
    """
    start = time.perf_counter()
    data = Data.of(images, settings.test_size)
    for labels in settings.labels:
        data.labelled(labels, 0)  # raises where there are not so many
    shape = learn(data, settings)
    experiment = Experiment(data, shape, settings)
    say(f"dictionaries learnt: {time.perf_counter() - start:.0f} s; small width {shape.small}")
    arms = trained_arms(neurons)
    # "All" takes what the largest of the other numbers chose: the grid there would cost the most.
    tuned = [n for n in settings.labels if n] or [min(1000, len(data.pool[1]))]
    with _Workers(experiment, jobs) as workers:
        keys = [(arm, n) for n in sorted(tuned, reverse=True) for arm in arms]
        choices = dict(zip(keys, workers.map(_tune, keys), strict=True))
        say(f"tuned: {time.perf_counter() - start:.0f} s")
        order = sorted(settings.labels, key=lambda n: -(n or len(data.pool[1])))
        todo = [(arm, n, choices[arm, n or max(tuned)]) for n in order for arm in arms]
        rows = []
        for (_, n, choice), found in zip(todo, workers.map(_run, todo), strict=True):
            rows += [_row(name, n, choice, values) for name, values in found.items()]
    speed = {str(arm): images_per_second(arm, experiment) for arm in _with_pruned(arms)}
    for row in rows:
        row["images_per_second"] = speed[row["arm"]]
    rows.sort(key=lambda row: order.index(row["labels"]), reverse=True)
    return {
        "title": data.title,
        "settings": asdict(settings),
        "small_width": shape.small,
        "pool": len(data.pool[1]),
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }


class _Workers:
    """A pool of processes, or this one alone."""

    def __init__(self, experiment: Experiment, jobs: int) -> None:
        self.pool = None
        if jobs > 1:
            context = get_context("spawn")  # torch's threads do not survive a fork
            self.pool = ProcessPoolExecutor(jobs, context, _begin, (experiment,))
        else:
            _EXPERIMENT[:] = [experiment]

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        _EXPERIMENT.clear()
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Any, todo: Sequence[tuple[Any, ...]]) -> Any:
        """Results in the order of the arguments."""
        columns = list(zip(*todo, strict=True))
        return (map if self.pool is None else self.pool.map)(function, *columns)


def _with_pruned(arms: Sequence[Arm]) -> list[Arm]:
    pruned = [arm._replace(family="LISTA pruned") for arm in arms if arm.family == "LISTA"]
    return [*arms, *pruned]


def _row(name: str, labels: int, choice: Choice, values: list[dict[str, float]]) -> dict[str, Any]:
    errors = [value["error"] for value in values]
    means = {k: statistics.fmean(v[k] for v in values) for k in ("parameters", "bytes", "active")}
    return {
        "arm": name,
        "labels": labels,
        "errors": errors,
        "mean": statistics.fmean(errors),
        "sd": deviation(errors),
        "lr": choice.lr,
        "penalty": choice.penalty,
        **means,
    }


@torch.no_grad()
def images_per_second(arm: Arm, experiment: Experiment) -> float:
    """Of inference on 500 images with packed weights, the best of five; torch's threads as set.

    Measured once on untrained weights: the time does not depend on their values.
    """
    dense = arm._replace(family="LISTA") if arm.family == "LISTA pruned" else arm
    model = _encoders.make(dense, experiment.shape, 0.1, seed=0)
    if isinstance(model, _encoders.LISTA) and dense != arm:
        _encoders.prune(model, experiment.shape)
    model = _encoders.packed(model)
    model.set_progress(1.0)
    x = experiment.data.test[0][:500]
    times = []
    for _ in range(6):  # the first is a warm-up
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return len(x) / min(times[1:])


# ------------------------------------------------------------------ the command
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo ddse",
        description="The deep double sparsity encoder (Wang and Huang 2016) against dense, smaller "
        "and pruned LISTA encoders: error, parameters, bytes and speed at few and many labels.",
    )
    add_data_options(parser)
    parser.add_argument("--labels", type=int, nargs="+", help="numbers of labels; 0: all")
    parser.add_argument("--neurons", nargs="+", choices=NEURONS, default=NEURONS)
    parser.add_argument(
        "--jobs", type=positive, help="processes; default: one per core, 1 if quick"
    )
    parser.add_argument(
        "--out",
        default="doublesparse-ddse.png",
        help='where the picture goes; "" for none; default: %(default)s',
    )
    for name, text in _HELP.items():
        digits, mnist = getattr(DIGITS, name), getattr(MNIST, name)
        shown = f"{digits}" if digits == mnist else f"{digits} (digits), {mnist} (MNIST)"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=positive, help=f"{text}; default: {shown}"
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
    images, large = load("ddse", args)
    settings = MNIST if large else DIGITS
    if args.quick:
        settings = replace(settings, **QUICK)
    given = {name: getattr(args, name) for name in _HELP}
    if args.labels is not None:
        if min(args.labels) < 0 or any(0 < n < 10 for n in args.labels):
            raise SystemExit(
                f"doublesparse demo ddse: --labels must be 0 (all) or at least 10, got "
                f"{args.labels}; pass e.g. 100 0"
            )
        given["labels"] = tuple(dict.fromkeys(args.labels))
    settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
    jobs = args.jobs or (1 if args.quick else len(os.sched_getaffinity(0)))
    torch.set_num_threads(1)
    try:
        results = run_all(images, settings, jobs, args.neurons)
    except (ValueError, ImportError) as wrong:
        raise SystemExit(f"doublesparse demo ddse: {wrong}") from wrong
    show(results)
    if args.quick:
        say("a smoke test: too few images, steps and seeds for these numbers to mean anything")
    if args.out:
        draw(results, Path(args.out))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0
