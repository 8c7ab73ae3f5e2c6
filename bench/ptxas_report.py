"""What ptxas says of every kernel: registers, shared memory, and local memory, which must be none.

    python ptxas_report.py --run nvcc ... -o FILE.o    CMAKE_CUDA_COMPILER_LAUNCHER: compiles, keeps
                                                       what `-Xptxas -v` said in FILE.o.ptxas
    python ptxas_report.py FOLDER                      the table of all of them; fails where a
                                                       kernel of ours spills or has a stack

A launcher, so that the report of an incremental build has the kernels that were not compiled again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OURS = re.compile(r"^_ZN2ds3gpu")
_ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '([^']+)' for '([^']+)'")
_PROPERTIES = re.compile(r"ptxas info\s*: Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_LOCAL = re.compile(r"(\d+) bytes lmem")
_NOISE = re.compile(r"ptxas info\s*:|^\s*\d+ bytes stack frame")


@dataclass
class Kernel:
    """One kernel for one architecture; bytes; `shared` without what is asked for at launch."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0

    @property
    def local(self) -> bool:
        """Whether it touches local memory: spilled registers, or an array that is indexed."""
        return self.stack > 0 or self.spills > 0


def parse(text: str) -> list[Kernel]:
    """The kernels of `ptxas -v`'s output. What is said of device functions adds to their kernel."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            kernels.append(Kernel(*entry.groups()))
        elif not kernels or _PROPERTIES.search(line):
            continue
        elif stack := _STACK.search(line):
            frame, stores, loads = map(int, stack.groups())
            kernels[-1].stack = max(kernels[-1].stack, frame)
            kernels[-1].spills += stores + loads
        elif used := _USED.search(line):
            kernels[-1].registers = int(used[1])
            if shared := _SHARED.search(line):
                kernels[-1].shared = int(shared[1])
            if local := _LOCAL.search(line):
                kernels[-1].stack = max(kernels[-1].stack, int(local[1]))
    return kernels


def table(kernels: list[Kernel]) -> str:
    """One line a kernel, those with local memory marked."""
    names = demangled([kernel.name for kernel in kernels])
    lines = ["  arch  registers  shared  stack  spills  kernel"]
    for kernel, name in sorted(zip(kernels, names, strict=True), key=lambda pair: pair[1]):
        mark = "!!" if kernel.local else "  "
        lines.append(
            f"{mark}{kernel.architecture:5} {kernel.registers:9}  {kernel.shared:6}  "
            f"{kernel.stack:5}  {kernel.spills:6}  {name}"
        )
    return "\n".join(lines)


def demangled(names: list[str]) -> list[str]:
    """Names as people write them, without arguments, where c++filt is installed."""
    if not names or shutil.which("c++filt") is None:
        return names
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = [
        re.sub(r"\(anonymous namespace\)::|ds::gpu::|^void ", "", n)
        for n in done.stdout.splitlines()
    ]
    return short if len(short) == len(names) else names


def launch(command: list[str]) -> int:
    """Runs the compiler, keeps ptxas's lines beside the object, passes the others on."""
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    said = [line for line in lines if not _NOISE.search(line)]
    if said:
        print("\n".join(said), file=sys.stderr)
    if done.returncode == 0 and "-o" in command and "-c" in command:
        kept = [line for line in lines if _NOISE.search(line)]
        Path(command[command.index("-o") + 1] + ".ptxas").write_text("\n".join(kept) + "\n")
    return done.returncode


def report(folder: Path) -> int:
    """Prints the table of the folder's objects.

    Returns:
        1 where a kernel of ours uses local memory, or none was found.
    """
    logs = [log for log in folder.rglob("*.ptxas") if log.with_suffix("").exists()]
    kernels = [kernel for log in sorted(logs) for kernel in parse(log.read_text())]
    ours = [kernel for kernel in kernels if OURS.search(kernel.name)]
    print(table(ours))
    bad = [kernel for kernel in ours if kernel.local]
    others = len(kernels) - len(ours)
    print(f"{len(ours)} kernels of ours, {len(bad)} with local memory; {others} of CUB")
    if not ours:
        print(f"no kernel of ours was found under {folder}", file=sys.stderr)
    return int(bool(bad) or not ours)


def main(argv: list[str]) -> int:
    """Compiles under `--run`, else reports."""
    if argv[:1] == ["--run"]:
        return launch(argv[1:])
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    return report(Path(argv[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
