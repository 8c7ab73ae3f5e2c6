"""`python -m doublesparse demo`: what sparsity gives, on pen strokes and on a static camera."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import incremental, pen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo that the first argument names; the pen-stroke demo, if it names none.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["incremental"]:
        return incremental.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo",
        description="Train DeepCNet on pen strokes; print a table and draw a picture.",
        epilog="Another demo: python -m doublesparse demo incremental --help",
    )
    pen.add_arguments(parser)
    return pen.run(parser.parse_args(arguments))
