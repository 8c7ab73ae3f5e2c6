"""What this build is and what it runs on: `python -m doublesparse info [--json]`.

Nothing here raises. A field that cannot be found out holds the reason as text, because the report
is most wanted where something is broken.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import platform
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

# Names that OpenMP runtimes are known under in a process's memory map.
_OPENMP = re.compile(r"/(lib(?:gomp|i?omp5?|iomp5md|omp)[-.\w]*\.(?:so|dylib)[.\d]*)$")
# Operators on sites and row numbers; all others take features.
_ON_SITES = {
    "linear_keys",
    "coords_of_keys",
    "build_pairs",
    "output_coords",
    "window_table",
    "ground_taps",
    "invert_rows",
}
_FLOATS = ("float32", "float64", "bfloat16", "float16")
_ARCH_GET_XCOMP_SUPP, _SYS_ARCH_PRCTL, _XTILEDATA = 0x1021, 158, 18


def collect() -> dict[str, Any]:
    """Everything the report shows, as plain lists, dicts, strings, numbers and None.

    Returns:
        Keys `version`, `python`, `platform`, `cpu`, `torch`, `numpy`, `build`, `isa`, `amx`,
        `cuda`, `openmp`, `threads`, `environment`, `operators`, `warnings`. What could not be found
        out is a string that starts with "unknown: ".

    >>> report = collect()
    >>> report["isa"]["chosen"] in report["isa"]["compiled"]
    True
    """
    # torch comes first: it brings the OpenMP runtime that the kernels share.
    torch_facts = _guarded(_torch)
    report = {
        "version": _guarded(_version),
        "python": platform.python_version(),
        "platform": _guarded(platform.platform),
        "cpu": _guarded(_cpu_name),
        "torch": torch_facts,
        "numpy": _guarded(lambda: importlib.import_module("numpy").__version__),
        "build": _guarded(_build),
        "isa": _guarded(_isa),
        "amx": _guarded(_amx),
        "cuda": _guarded(_cuda),
        "openmp": _guarded(_openmp),
        "threads": _guarded(_threads),
        "environment": {k: v for k, v in sorted(os.environ.items()) if _is_ours(k)},
        "operators": _guarded(_operators),
    }
    report["warnings"] = _guarded(lambda: _warnings(report))
    return report


def text() -> str:
    """The report for people."""
    report = collect()
    operators = report.pop("operators")
    lines = [
        f"{name:12} {_one_line(value)}" for name, value in report.items() if name != "warnings"
    ]
    lines.append("operators")
    if isinstance(operators, dict):
        width = max(map(len, operators), default=0)
        for name, devices in operators.items():
            lines.append(f"  {name:{width}}  {_one_line(devices)}")
    else:
        lines.append(f"  {operators}")
    warnings = report["warnings"]
    lines += [
        f"WARNING      {line}" for line in (warnings if isinstance(warnings, list) else [warnings])
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m doublesparse info`."""
    parser = argparse.ArgumentParser(prog="python -m doublesparse info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    print(json.dumps(collect(), indent=2, default=str) if args.json else text())
    return 0


def _guarded(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:  # whatever is broken is what the report is for
        return f"unknown: {type(error).__name__}: {error}"


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_one_line(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _is_ours(name: str) -> bool:
    # MALLOC_: glibc's settings move timings, so a benchmark's record has to show them.
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return name.startswith(("DOUBLESPARSE_", "MALLOC_")) or name in threads


def _core() -> Any:
    return importlib.import_module("doublesparse._C")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("doublesparse")
    except PackageNotFoundError:  # a development build on the path, not installed
        return str(importlib.import_module("doublesparse").__version__)


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda}


def _build() -> dict[str, Any]:
    core = _core()
    return {"compiler": core.compiler, "module": core.__file__}


def _isa() -> dict[str, Any]:
    core = _core()
    return {
        "compiled": list(core.isa_compiled()),
        "found": core.isa_detected(),
        "chosen": core.isa_chosen(),
    }


def _amx() -> dict[str, Any]:
    """Whether matrix tiles can be used: CPU, operating system and build must agree."""
    compiled = "amx" in _core().isa_compiled()
    cpu = "amx_bf16" in _cpu_flags()
    refusal = None
    if not cpu:
        refusal = "this CPU has no amx_bf16"
    elif not compiled:
        refusal = "this build has no AMX kernel"
    elif not _kernel_offers_amx():
        refusal = "the operating system does not offer tile registers to processes"
    elif _core().isa_chosen() == "avx512" and "DOUBLESPARSE_ISA" not in os.environ:
        refusal = "the operating system refused tile registers to this process"
    return {"compiled": compiled, "cpu": cpu, "refusal": refusal}


def _kernel_offers_amx() -> bool:
    """Asks which extended states Linux would grant; asks for none of them."""
    supported = ctypes.c_uint64()
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(_SYS_ARCH_PRCTL, _ARCH_GET_XCOMP_SUPP, ctypes.byref(supported))
    return not failed and bool(supported.value >> _XTILEDATA & 1)


def _cpu_lines(key: str) -> list[str]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return [
            line.partition(":")[2].strip() for line in file if line.partition(":")[0].strip() == key
        ]


def _cpu_name() -> str:
    return next(iter(_cpu_lines("model name")), platform.processor() or platform.machine())


def _cpu_flags() -> set[str]:
    return set(" ".join(_cpu_lines("flags")[:1]).split())


def _cuda() -> dict[str, Any]:
    """What was built (by which nvcc, for what), and what torch finds to run it on."""
    import torch

    core = _core()
    count = torch.cuda.device_count()
    return {
        "built": bool(core.has_cuda),
        "nvcc": getattr(core, "nvcc", None),
        "architectures": getattr(core, "cuda_architectures", None),
        "torch": torch.version.cuda,
        "driver": _driver(),
        "devices": [torch.cuda.get_device_name(i) for i in range(count)],
        "capabilities": [
            ".".join(map(str, torch.cuda.get_device_capability(i))) for i in range(count)
        ],
    }


def _driver() -> str | None:
    """The newest CUDA that the driver runs, or None without one; asks without starting a device."""
    try:
        version = ctypes.c_int()
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _openmp() -> list[str]:
    """Paths of the OpenMP runtimes that are mapped into this process; more than one is a trap."""
    _core()
    with open("/proc/self/maps", encoding="utf-8") as file:
        paths = {line.split(maxsplit=5)[-1].strip() for line in file if "/" in line}
    return sorted({os.path.realpath(path) for path in paths if _OPENMP.search(path)})


def _threads() -> dict[str, Any]:
    import torch

    return {"torch": torch.get_num_threads(), "available": len(os.sched_getaffinity(0))}


def _operators() -> dict[str, dict[str, list[str]]]:
    """Operator -> device -> dtypes that a kernel of ours runs: the public functions of `ops`."""
    ops = importlib.import_module("doublesparse.ops")
    names = [name for name, value in vars(ops).items() if isinstance(value, types.FunctionType)]
    return {
        name: {"cpu": ["int32"] if name in _ON_SITES else list(_FLOATS)}
        for name in names
        if not name.startswith("_")
    }


def _warnings(report: dict[str, Any]) -> list[str]:
    found = []
    runtimes = report["openmp"]
    if isinstance(runtimes, list) and len(runtimes) > 1:
        found.append(
            f"{len(runtimes)} OpenMP runtimes are mapped: their threads compete and may deadlock "
            "after a fork; import torch before packages that bring their own"
        )
    found += [
        f"{name}: {value}" for name, value in report.items() if str(value).startswith("unknown: ")
    ]
    cuda = report["cuda"]
    if isinstance(cuda, dict) and cuda["devices"] and not cuda["built"]:
        found.append("there is a GPU, but this build has no CUDA kernels: install where nvcc works")
    cap = os.environ.get("DOUBLESPARSE_ISA")
    if cap and isinstance(report["isa"], dict) and report["isa"]["chosen"] != cap:
        found.append(f"DOUBLESPARSE_ISA={cap}, but the kernels run {report['isa']['chosen']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
