"""`python -m doublesparse demo`: what sparsity gives, in sites and in weights."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# The modules of this package that are demos of their own, by the word that asks for them; each is
# imported only then.
DEMOS = ("incremental", "dsd", "ddse", "force", "mbn")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo that the first argument names; the pen-stroke demo, if it names none.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in DEMOS:
        demo = importlib.import_module(f"{__name__}.{arguments[0]}")
        return int(demo.main(arguments[1:]))
    pen = importlib.import_module(f"{__name__}.pen")
    parser = argparse.ArgumentParser(
        prog="python -m doublesparse demo",
        description="Train DeepCNet on pen strokes; print a table and draw a picture.",
        epilog=f"Other demos: python -m doublesparse demo {{{','.join(DEMOS)}}} --help",
    )
    pen.add_arguments(parser)
    return int(pen.run(parser.parse_args(arguments)))
