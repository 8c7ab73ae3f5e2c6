"""The pen-stroke demo: options, and the order of events."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import glyphs
from ..data.pen import ENCODINGS, Augment, Character, PenDataset, load_pendigits
from ..models import DeepCNet, DeepCNiN
from . import _measure, _report, _train
from ._show import positive, say

NETWORKS = {"deepcnet": DeepCNet, "deepcnin": DeepCNiN}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options.

    The defaults are those of the synthetic characters, chosen to finish well within two minutes
    on two cores; `PENDIGITS` was chosen for test error within five. Both were tuned on training
    data only.
    """

    network: str = "deepcnet"
    levels: int = 5
    width: int = 16
    dropout: float = 0.0
    encoding: str = "octogram"
    epochs: int = 8
    batch_size: int = 100
    lr: float = 3e-3
    weight_decay: float = 0.01
    average: float = 0.99
    jiggle: float = 1 / 64
    stretch: float = 0.2
    turn: float = 0.2
    translate: float = 12 / 64
    elastic: float = 0.02
    views: int = 1
    train_size: int = 6000
    test_size: int = 2000
    seed: int = 0


SYNTHETIC = Settings()
PENDIGITS = replace(SYNTHETIC, levels=4, width=32, epochs=20, views=8)
# A smoke test of everything the demo does, for the impatient and for test suites.
QUICK: dict[str, Any] = {
    "levels": 3,
    "width": 8,
    "epochs": 2,
    "batch_size": 20,
    "lr": 1e-2,
    "train_size": 800,
    "test_size": 200,
    "views": 2,
}

_HELP = {
    "network": "architecture: deepcnet (ReLU) or deepcnin (1x1 layers, leaky ReLU)",
    "levels": "number of pools l; the input is 3 * 2^l cells square",
    "width": "filters k of the first level; level i has (i + 1) k",
    "dropout": "rate of the last level's feature dropout",
    "encoding": "pen (1 feature), octogram (9: pen and directions) or signature (7: integrals)",
    "epochs": "passes over the training characters",
    "batch_size": "characters per step",
    "lr": "peak learning rate (AdamW, one cycle)",
    "weight_decay": "of AdamW",
    "average": "decay of the running mean of the weights that is tested; 0 tests the last weights",
    "jiggle": "augmentation: strokes move by this share of the character scale",
    "stretch": "augmentation: axes stretch by up to this share",
    "turn": "augmentation: rotation (radians) or slant by up to this much",
    "translate": "augmentation: characters move by up to this share of the scale",
    "elastic": "augmentation: strength of the smooth random field",
    "views": "test on this many distorted copies of each character as well, probabilities averaged",
    "train_size": "number of synthetic training characters",
    "test_size": "number of synthetic test characters",
    "seed": "of weights, order and distortions, and of the synthetic characters",
}
_CHOICES = {"network": tuple(NETWORKS), "encoding": tuple(ENCODINGS)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the demo on a parser."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="DIR",
        default=os.environ.get("DOUBLESPARSE_DATA") or None,
        help="folder with pendigits-orig.tra and .tes (UCI), itself or in pendigits-orig/; "
        "default: $DOUBLESPARSE_DATA, else characters made here",
    )
    data.add_argument("--synthetic", action="store_true", help="ignore --data")
    run = parser.add_argument_group("running")
    run.add_argument("--threads", type=positive, help="threads of torch and of the sparse kernels")
    run.add_argument(
        "--workers", type=int, default=0, help="processes that rasterise ahead; default: 0"
    )
    run.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    run.add_argument(
        "--out",
        metavar="PNG",
        default="doublesparse-demo.png",
        help='where the picture goes; "" for none; default: %(default)s',
    )
    run.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    network = parser.add_argument_group(
        "network and training", "defaults: synthetic characters / Pendigits"
    )
    for name, text in _HELP.items():
        default, digits = getattr(SYNTHETIC, name), getattr(PENDIGITS, name)
        shown = f"{default:g}" if isinstance(default, float) else f"{default}"
        if digits != default:
            shown += f" / {digits:g}"
        network.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive if type(default) is int and name != "seed" else type(default),
            choices=_CHOICES.get(name),
            help=f"{text}; default: {shown}",
        )


def settings_of(args: argparse.Namespace, pendigits: bool) -> Settings:
    """The options given, over those of --quick, over the defaults of the data."""
    settings = PENDIGITS if pendigits else SYNTHETIC
    if args.quick:
        settings = replace(settings, **QUICK)
    given = {name: getattr(args, name) for name in _HELP}
    return replace(settings, **{name: v for name, v in given.items() if v is not None})


def _load(args: argparse.Namespace) -> tuple[list[Character], list[Character], str] | None:
    """Pendigits, if the folder given has it; None if no folder is given."""
    if args.synthetic or args.data is None:
        return None
    given = "--data" if args.data != os.environ.get("DOUBLESPARSE_DATA") else "DOUBLESPARSE_DATA"
    try:
        train, test = load_pendigits(args.data)
    except (OSError, ValueError) as error:
        raise SystemExit(f"doublesparse demo: {given}: {error}, or pass --synthetic") from error
    if args.quick:
        train, test = train[::10], test[::10]
    return train, test, "Pendigits, test digits by other writers"


def _datasets(
    settings: Settings, train: list[Character], test: list[Character], size: int
) -> _train.Data:
    """Training, test and distorted test set, their features scaled alike."""
    augment = Augment(
        settings.jiggle, settings.stretch, settings.turn, settings.translate, settings.elastic
    )
    plain = PenDataset(train, size, settings.encoding)
    common: dict[str, Any] = {
        "size": size,
        "encoding": settings.encoding,
        "classes": plain.classes,
        "feature_scale": plain.feature_maximum(),
    }
    return _train.Data(
        PenDataset(train, augment=augment, **common),
        PenDataset(test, **common),
        PenDataset(test, augment=augment, **common),
    )


def run(args: argparse.Namespace) -> int:
    """Trains, tests, measures, prints and draws.

    Returns:
        The exit status, 0.

    Raises:
        SystemExit: the data cannot be read, or an option is out of range; the message says why.
    """
    start = time.perf_counter()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    loaded = _load(args)
    settings = settings_of(args, pendigits=loaded is not None)
    torch.manual_seed(settings.seed)
    try:
        train, test, title = loaded or _synthesize(settings)
        net = _network(settings, len({character.label for character in train}))
        data = _datasets(settings, train, test, net.input_size)
    except ValueError as error:
        raise SystemExit(f"doublesparse demo: {error}") from error
    say(
        f"{type(net).__name__}({settings.levels}, {settings.width}) on {title}: "
        f"{len(train)} to train on, {len(test)} to test, "
        f"{net.input_size} x {net.input_size} cells, {torch.get_num_threads()} threads"
    )
    history = _train.train(net, data, settings, args.workers)
    results = _train.test(history.net, data, settings)
    results |= _measure.compare(history.net, data)
    results |= {
        "title": title,
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "train_s": history.seconds,
        "curve": history.curve,
        "total_s": time.perf_counter() - start,
    }
    _report.table(results)
    if args.out:
        _report.picture(Path(args.out), history.net, data, results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _synthesize(settings: Settings) -> tuple[list[Character], list[Character], str]:
    """Characters made here; training and test characters never share a seed."""
    return (
        glyphs.make_characters(settings.train_size, seed=2 * settings.seed),
        glyphs.make_characters(settings.test_size, seed=2 * settings.seed + 1),
        f"synthetic characters, {len(glyphs.CLASSES)} classes",
    )


def _network(settings: Settings, n_classes: int) -> DeepCNet:
    return NETWORKS[settings.network](
        settings.levels,
        settings.width,
        n_classes,
        in_channels=ENCODINGS[settings.encoding],
        dropout=settings.dropout,
    )
