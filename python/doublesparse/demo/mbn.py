"""Clustering of digits by a multilayer bootstrap network, and a student that predicts it fast."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._mbn_runs import DIGITS, MNIST, QUICK, run_all
from ._options import add_data_options, load
from ._show import Table, new_figure, positive, save, say, tables
from ._statistics import deviation

# What a student must reach, in times the speed of the network: (what, which students, bar, data).
_BARS = (
    ("any student", None, 50, "digits"),
    ("dense float32 student", ("dense float32",), 80, "MNIST"),
    ("best packed or bfloat16 student", ("packed", "dense bfloat16"), 400, "MNIST"),
)
_HELP = {
    "seeds": "independent repetitions of everything",
    "clusterings": "V, of each layer of the network",
    "components": "of the code",
    "train_size": "training images; 0: all of MNIST's",
    "sparsity": "share of each hidden layer that is pruned",
    "epochs": "of the dense student, at most",
    "sparse_epochs": "of the packed student, at most",
    "plain_points": "held-out images that the plain network is timed on",
    "rounds": "of the interleaved timings",
}


# ------------------------------------------------------------------ what is shown
def _over_seeds(runs: list[dict[str, Any]], *keys: str, digits: int = 2) -> str:
    """Mean, and with several seeds the standard deviation."""
    values = []
    for run in runs:
        value: Any = run
        for key in keys:
            value = value[key]
        values.append(value)
    text = f"{statistics.fmean(values):,.{digits}f}"
    return text if len(set(values)) < 2 else f"{text} ± {deviation(values):.{digits}f}"


def show(results: dict[str, Any]) -> None:
    """Prints the tables, and what they say of the bars."""
    runs, settings = results["runs"], results["settings"]
    ways: list[tuple[str, ...]] = [
        (
            name,
            *(
                _over_seeds(runs, "clusterings", name, part, what)
                for part in ("train", "test")
                for what in ("accuracy", "nmi")
            ),
        )
        for name in runs[0]["clusterings"]
    ]
    kinds = ("agreement_train", "agreement_test", "accuracy", "nmi")
    answers: list[tuple[str, ...]] = [
        (name, *(_over_seeds(runs, "students", name, kind) for kind in kinds))
        for name in runs[0]["students"]
    ]
    speeds: list[tuple[str, ...]] = [
        _speed(runs, "networks", name) for name in ("plain MBN", "MBN")
    ]
    speeds += [_speed(runs, "students", name) for name in runs[0]["students"]]
    hidden = "-".join(map(str, settings["hidden"]))
    title = f"{results['title']}, V = {settings['clusterings']}, {settings['seeds']} seeds"
    tables(
        Table(
            f"{title}: clusters against classes",
            ("", "accuracy %, train", "NMI %, train", "accuracy %, held out", "NMI %, held out"),
            ways,
        ),
        Table(
            f"students {hidden}, {settings['sparsity']:.0%} pruned ({settings['prune']})",
            ("", "agree with MBN %, train", "agree %, held out", "accuracy %", "NMI %"),
            answers,
        ),
        Table(
            "prediction of held-out points",
            ("", "bytes", "us a point, batch", "us, one point", "x MBN", "x plain MBN"),
            speeds,
        ),
    )
    _notes(results)


def _speed(runs: list[dict[str, Any]], kind: str, name: str) -> tuple[str, ...]:
    """A row of the table of speeds."""
    row = runs[0][kind][name]
    cells = [_over_seeds(runs, kind, name, "bytes", digits=0)]
    for what in ("batch_us", "single_us", "times_MBN", "times_plain MBN"):
        cells.append(_over_seeds(runs, kind, name, what, digits=1) if what in row else "")
    return (name, *cells)


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What was asked of these data, and what was measured: means over the seeds."""
    data = "MNIST" if results["title"] == "MNIST" else "digits"
    found = []
    for what, prefixes, bar, of in _BARS:
        if of == data:
            best = max(
                statistics.fmean(run["students"][name]["times_MBN"] for run in results["runs"])
                for name in results["runs"][0]["students"]
                if prefixes is None or name.startswith(prefixes)
            )
            found.append({"what": f"{what}, x MBN", "bar": bar, "measured": best})
    runs = results["runs"]
    for form in ("dense float32", "packed float32"):
        agree = statistics.fmean(run["students"][form]["agreement_train"] for run in runs)
        found.append({"what": f"{form}: agreement, train, %", "bar": 97, "measured": agree})
        lost = statistics.fmean(
            run["clusterings"]["MBN"]["test"]["accuracy"] - run["students"][form]["accuracy"]
            for run in runs
        )
        found.append(
            {"what": f"{form}: accuracy lost, points", "bar": -2, "measured": -lost},
        )
    return found


def _notes(results: dict[str, Any]) -> None:
    plain = results["runs"][0]["networks"]["plain MBN"]
    say(
        f"plain MBN: scikit-learn's arg min and scipy's one-hot products, timed on "
        f"{plain['points']} points in one batch; {plain['same_code']:.1f} % of its codes are the "
        "MBN's. Times of `predict`, checks of the input included; the plain one's without k-means. "
        "x MBN: the median of ratios, each within one round of timings."
    )
    say(f"{results['seconds']:.0f} s, {results['threads']} threads")


def picture(shown: tuple[np.ndarray, np.ndarray], title: str, out: str) -> None:
    """The first two components of the code, coloured by class."""
    figure = new_figure(7.0, 6.0)
    if figure is None:
        return
    codes, classes = shown
    axes = figure.subplots()
    for value in np.unique(classes):
        mine = codes[classes == value]
        axes.scatter(*mine.T, s=6, color=f"C{value % 10}", label=str(value), linewidths=0)
    axes.legend(title="class", markerscale=3, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set(xlabel="component 1", ylabel="component 2", title=f"Code of held-out points, {title}")
    save(figure, Path(out))


# ------------------------------------------------------------------ the command
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo mbn",
        description="Unsupervised clustering of digits by a multilayer bootstrap network (Zhang "
        "2014), and its compression into small networks (Zhang 2015): accuracy, bytes and speed.",
    )
    add_data_options(parser)
    parser.add_argument("--threads", type=positive, help="of torch and of the kernels")
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="keep the fitted network there (a pickle: load only your own), or take it from there; "
        "for one seed",
    )
    parser.add_argument(
        "--hidden",
        type=positive,
        nargs="+",
        help="widths of the students; default: 512 512 (digits), 2048 2048 (MNIST)",
    )
    parser.add_argument("--prune", choices=("block", "dsd"), help="default: block")
    for name, text in _HELP.items():
        digits, mnist = getattr(DIGITS, name), getattr(MNIST, name)
        shown = f"{digits}" if digits == mnist else f"{digits} (digits), {mnist} (MNIST)"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if type(digits) is float else int if name == "train_size" else positive,
            help=f"{text}; default: {shown.replace('None', 'as compress chooses')}",
        )
    parser.add_argument(
        "--out", metavar="PNG", default="doublesparse-mbn.png", help="picture; '' for none"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the demo.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: no data, a package is missing, or an option is out of range; the message says
            why.
    """
    args = _parser().parse_args(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        images, large = load("mbn", args)
        settings = MNIST if large else DIGITS
        if args.quick:
            settings = replace(settings, **QUICK)
        given: dict[str, Any] = {name: getattr(args, name) for name in (*_HELP, "hidden", "prune")}
        given["hidden"] = None if args.hidden is None else tuple(args.hidden)
        settings = replace(settings, **{name: v for name, v in given.items() if v is not None})
        if args.model is not None and settings.seeds != 1:
            raise ValueError("--model is for one seed; pass --seeds 1")
        results = run_all(images, settings, args.model)
    except ImportError as wrong:
        raise SystemExit(
            f"doublesparse demo mbn: {wrong}; pip install 'doublesparse[demo]'"
        ) from wrong
    except ValueError as wrong:
        raise SystemExit(f"doublesparse demo mbn: {wrong}") from wrong
    shown = results.pop("map")
    show(results)
    if args.quick:
        say(
            "a smoke test: too few images, clusterings and seeds for these numbers to mean anything"
        )
    else:
        results["bars"] = bars(results)
        for bar in results["bars"]:
            met = "met" if bar["measured"] >= bar["bar"] else "missed"
            say(f"{bar['what']}: {bar['measured']:.2f}, wanted {bar['bar']}: {met}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.out:
        picture(shown, results["title"], args.out)
    return 0
