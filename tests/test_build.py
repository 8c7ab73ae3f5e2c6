"""What the build promises: no symbol shared between instruction sets, a core without frameworks,
no hash container, a report that never raises.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import doublesparse as ds

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"


def sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in sorted((SOURCES / f).rglob("*")) if p.suffix in SUFFIXES]
    assert found, f"no sources under {folders}"
    return found


SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
needs_sources = pytest.mark.skipif(
    not SOURCES.is_dir(), reason="tests run without the source tree next to them"
)


@needs_sources
def test_the_core_includes_no_framework():
    """Only csrc/bind may know Python, pybind11 or torch."""
    folders = [f for f in ("core", "cpu", "cuda") if (SOURCES / f).is_dir()]
    bad = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/|pybind11/|Python\.h)')
    lines = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in sources(*folders)
        for line in path.read_text().splitlines()
        if bad.search(line)
    ]
    assert not lines, lines


@needs_sources
def test_no_hash_container():
    bad = re.compile(r"unordered_(map|set)|hash_map|robin|std::hash")
    assert not [p for p in sources(".") if bad.search(p.read_text())]


@needs_sources
def test_kernel_bodies_include_no_standard_library():
    """Code compiled once per instruction set would share inline functions through the linker."""
    allowed = {"cstdint", "cstddef", "immintrin.h", "arm_neon.h"}
    bodies = [p for p in sources("cpu") if p.name.endswith("_kernel.h") or p.parent.name == "isa"]
    assert bodies, "this proves nothing: no kernel body found"
    wrong = []
    for path in bodies:
        includes = re.findall(r"#\s*include\s*<([^>]+)>", path.read_text())
        wrong += [f"{path.name}: <{name}>" for name in includes if name not in allowed]
    assert not wrong, wrong


def nm(*args: str) -> list[str]:
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("nm is not installed")
    return subprocess.run(
        [tool, *args], capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()


def test_no_weak_symbol_in_the_objects_of_an_instruction_set():
    """A weak function compiled for AVX-512 may be the one that the linker keeps for everybody."""
    objects = [
        path
        for folder in ROOT.glob("build*")
        for path in folder.rglob("*.o")
        if re.search(r"kernels_\w+\.dir|isa", str(path)) and "bind" not in str(path)
    ]
    if not objects:
        pytest.skip("the object files of the build are not kept next to the tests")
    weak = []
    for path in objects:
        for line in nm("-C", str(path)):
            kind = line[17:18]
            if kind in "WVu" and "DW.ref" not in line:
                weak.append(f"{path.name}: {line.strip()}")
    assert not weak, "\n".join(weak[:20])


def test_the_extension_exports_only_its_entry():
    """Hidden visibility: another extension's symbols must not meet ours."""
    lines = nm("-D", "--defined-only", ds._C.__file__)
    names = [line.split()[-1] for line in lines]
    assert "PyInit__C" in names
    ours = [n for n in names if "doublesparse" in n or re.match(r"_ZN(K)?2ds", n)]
    assert not ours, ours[:10]


def test_one_openmp_runtime():
    """torch's; a second one would double the threads. Alone: scikit-learn's wheel has its own."""
    code = "import json; from doublesparse import info; print(json.dumps(info.collect()['openmp']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) <= 1, done.stdout


def test_info_never_raises():
    for args in ([], ["--json"]):
        command = [sys.executable, "-m", "doublesparse", "info", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for key in ("version", "build", "isa", "amx", "cuda", "openmp", "threads", "operators"):
        assert key in report and not str(report[key]).startswith("unknown"), (key, report.get(key))
    assert report["isa"]["chosen"] in report["isa"]["compiled"]


@pytest.mark.parametrize(
    "sabotage",
    (
        "sys.modules['doublesparse._C'] = None",
        "import torch; torch.get_num_threads = None",
        "import os; os.sched_getaffinity = None",
        "import platform; platform.platform = None",
    ),
)
def test_info_never_raises_where_something_is_broken(sabotage):
    """The report is most wanted where something is broken."""
    code = f"import sys; from doublesparse import info; {sabotage}; info.main(['--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_import_costs_no_optional_dependency():
    """torch and numpy are the only run-time dependencies."""
    code = (
        "import sys, doublesparse; "
        "bad = {'matplotlib', 'rich', 'tqdm', 'scipy', 'sklearn', 'pytest'} & set(sys.modules); "
        "bad -= {'tqdm'} if 'torch' in sys.modules else set(); print(sorted(bad))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_are_documented():
    """Every public function and class of the package carries a docstring."""
    bare = []
    for space in (ds, ds.functional, ds.nn):
        for name in getattr(space, "__all__", [n for n in dir(space) if not n.startswith("_")]):
            thing = getattr(space, name)
            if callable(thing) and not (getattr(thing, "__doc__", None) or "").strip():
                bare.append(f"{space.__name__}.{name}")
    assert not bare, bare


@needs_sources
def test_a_plain_install_has_no_emulated_kernels():
    """They are for tests: the build's defaults, which a folder that is kept must not remember."""
    text = (ROOT / "pyproject.toml").read_text()
    defines = text.partition("[tool.scikit-build.cmake.define]")[2].partition("\n[")[0]
    assert re.search(r'^DOUBLESPARSE_EMULATED = "OFF"$', defines, re.MULTILINE)
    assert re.search(r'^DOUBLESPARSE_CUDA = "AUTO"$', defines, re.MULTILINE)
    listed = (ROOT / "CMakeLists.txt").read_text()
    assert re.search(r"option\(DOUBLESPARSE_EMULATED .* OFF\)", listed)
    assert "if(DOUBLESPARSE_EMULATED)\n  add_subdirectory(csrc/cuda/emulation)" in listed
