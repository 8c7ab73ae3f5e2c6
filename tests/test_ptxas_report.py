"""bench/ptxas_report.py on what nvcc 12 and 13 print."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="bench/ is not beside the tests")

SAID = """\
ptxas info    : 29 bytes gmem, 232 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN2ds3gpu11conv_kernelILi4EEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN2ds3gpu11conv_kernelILi4EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 15360 bytes smem, 456 bytes cmem[0]
ptxas info    : Compile time = 140.988 ms
ptxas info    : Compiling entry function '_ZN3cub6detail4scan10ScanKernelEv' for 'sm_90'
ptxas info    : Function properties for _ZN3cub6detail4scan10ScanKernelEv
    64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, 408 bytes cmem[0]
"""
SPILLS = SAID.replace(
    "0 bytes stack frame, 0 bytes spill stores, 0", "16 bytes stack frame, 4 bytes spill stores, 12"
)
STACK = SAID.replace("    0 bytes stack", "    40 bytes stack")
LOCAL = SAID.replace("15360 bytes smem", "8 bytes lmem")


@pytest.fixture
def ptxas(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("ptxas_report")


def test_parse(ptxas: Any) -> None:
    conv, scan = ptxas.parse(SAID)
    assert (conv.architecture, conv.registers, conv.shared) == ("sm_80", 128, 15360)
    assert not conv.local
    assert (scan.stack, scan.spills, scan.local) == (64, 16, True)
    assert ptxas.parse("") == []


@pytest.mark.parametrize(
    ("said", "status"), [(SAID, 0), (SPILLS, 1), (STACK, 1), (LOCAL, 1), ("nothing", 1)]
)
def test_local_memory_of_ours_fails_and_that_of_cub_does_not(
    ptxas: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, status: int
) -> None:
    (tmp_path / "a.cu.o").touch()
    (tmp_path / "a.cu.o.ptxas").write_text(said)
    (tmp_path / "removed.cu.o.ptxas").write_text(SPILLS)  # its source is gone
    assert ptxas.main([str(tmp_path)]) == status
    table = capsys.readouterr().out
    assert ("conv_kernel" in table) == (said != "nothing")
    assert "ScanKernel" not in table


def test_the_launcher_keeps_what_ptxas_said_and_passes_the_rest_on(
    ptxas: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.o"
    script = f"import sys; print({SAID!r}); print('warning: shadows', file=sys.stderr)"
    command = [sys.executable, "-c", script, "-o", str(target)]
    assert ptxas.main(["--run", *command]) == 0
    target.touch()
    assert capsys.readouterr().err.strip() == "warning: shadows"
    assert len(ptxas.parse(Path(f"{target}.ptxas").read_text())) == 2
    assert ptxas.main(["--run", sys.executable, "-c", "raise SystemExit(3)"]) == 3
