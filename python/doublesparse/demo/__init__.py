"""`python -m doublesparse demo`: what sparsity gives, in sites and in weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import dsd, incremental, pen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo that the first argument names; the pen-stroke demo, if it names none.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["incremental"]:
        return incremental.main(arguments[1:])
    if arguments[:1] == ["dsd"]:
        return dsd.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo",
        description="Train DeepCNet on pen strokes; print a table and draw a picture.",
        epilog="Other demos: python -m doublesparse demo {incremental,dsd} --help",
    )
    pen.add_arguments(parser)
    return pen.run(parser.parse_args(arguments))
