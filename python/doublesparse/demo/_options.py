"""Options that demos on images of digits share, and the images that they name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from ._images import Images, load_digits, load_mnist

_MNIST = "folder with the four files of MNIST, itself or in mnist/"


def add_data_options(parser: argparse.ArgumentParser, folder: str = _MNIST) -> None:
    """--data, --digits, --quick and --json; `folder` says what --data may be."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        default=os.environ.get("DOUBLESPARSE_DATA") or None,
        help=f"{folder}; default: $DOUBLESPARSE_DATA, else the digits of scikit-learn",
    )
    parser.add_argument("--digits", action="store_true", help="ignore --data")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")


def load(
    demo: str, args: argparse.Namespace, read: Callable[[str], Images] = load_mnist
) -> tuple[Images, bool]:
    """The images that the options name, and whether they are those of --data.

    Args:
        demo: its name, for messages.
        args: with the options of `add_data_options`.
        read: reads the folder.

    Raises:
        SystemExit: there are none; the message says why.
    """
    where = f"doublesparse demo {demo}"
    if args.data is not None and not args.digits:
        try:
            return read(args.data), True
        except ImportError as wrong:
            raise SystemExit(
                f"{where}: {wrong.name} is not installed; pip install {wrong.name}"
            ) from wrong
        except (OSError, ValueError) as wrong:
            given = "--data" if args.data != os.environ.get("DOUBLESPARSE_DATA") else "environment"
            raise SystemExit(
                f"{where}: {given}: {wrong}; pass --digits for those of scikit-learn"
            ) from wrong
    try:
        return load_digits(), False
    except ImportError as wrong:
        raise SystemExit(
            f"{where}: scikit-learn, which has the digits inside, is not installed; "
            "pip install 'doublesparse[demo]', or pass --data DIR"
        ) from wrong
