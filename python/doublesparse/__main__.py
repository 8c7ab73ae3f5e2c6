"""`python -m doublesparse {demo,info,bench}`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Imported only when asked for: the demo needs its extra, and `info` must work where much is broken.
COMMANDS = {
    "demo": "train DeepCNet on pen strokes, print a table, plot (needs the [demo] extra);\n"
    "         demo incremental: unmodified networks on what changed in front of a static camera;\n"
    "         demo dsd: dense-sparse-dense training of a small CNN on real digits;\n"
    "         demo ddse: an unfolded sparse coder with double sparsity, against dense ones;\n"
    "         demo force: force regularization, then convolutions of low rank;\n"
    "         demo mbn: clustering by a multilayer bootstrap network, and its compression",
    "info": "what this build is and what it runs on; --json",
    "bench": "a minute's measurement of the kernels against torch.mm; --threads N, --json",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command named by the first argument; the rest is the command's own.

    Returns:
        The exit status: 2 where no such command exists.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        lines = [f"  {name:6} {what}" for name, what in COMMANDS.items()]
        print(
            "\n".join(["usage: python -m doublesparse COMMAND [options]", *lines]),
            file=sys.stdout if asked_for_help else sys.stderr,
        )
        return 0 if asked_for_help else 2
    command = importlib.import_module(f"doublesparse.{arguments[0]}")
    return int(command.main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
