"""`python -m doublesparse demo`: train a spatially sparse network, then show what sparsity gave."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import pen


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the pen-stroke demo.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo",
        description="Train DeepCNet on pen strokes; print a table and draw a picture.",
    )
    pen.add_arguments(parser)
    return pen.run(parser.parse_args(argv))
