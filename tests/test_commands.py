"""The commands of the package, and what ships with it beside code."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import doublesparse as ds
from doublesparse import __main__ as entry
from doublesparse import bench, info

PACKAGE = Path(ds.__file__).parent


def test_info_is_complete() -> None:
    """In a process of its own: other tests map scikit-learn's OpenMP beside torch's."""
    command = [sys.executable, "-m", "doublesparse", "info", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert report["warnings"] == []
    assert report["isa"]["chosen"] in report["isa"]["compiled"]
    assert report["cuda"]["built"] is ds._C.has_cuda
    assert (report["cuda"]["nvcc"] is not None) is ds._C.has_cuda
    assert report["threads"]["torch"] >= 1
    assert len(report["openmp"]) == 1
    assert {"conv", "conv_weight_grad", "window_max"} <= set(report["operators"])
    assert report["operators"]["conv"]["cpu"] == ["float32", "float64", "bfloat16", "float16"]
    assert report["amx"]["compiled"] == ("amx" in report["isa"]["compiled"])
    assert report["amx"]["refusal"] or report["isa"]["chosen"] == "amx"


def test_info_of_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    monkeypatch.setattr(ds._C, "has_cuda", False)
    monkeypatch.setattr(info, "_openmp", list)
    report = info.collect()
    assert report["cuda"]["devices"] == ["a GPU"] and report["cuda"]["capabilities"] == ["9.0"]
    assert any("no CUDA kernels" in line for line in report["warnings"])
    monkeypatch.setattr(ds._C, "has_cuda", True)
    monkeypatch.setattr(ds._C, "nvcc", "13.0.88", raising=False)
    monkeypatch.setattr(ds._C, "cuda_architectures", "80-real 90", raising=False)
    report = info.collect()
    assert report["warnings"] == []
    assert report["cuda"]["nvcc"] == "13.0.88" and "80-real 90" in info.text()


def test_info_text_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["info"]) == 0
    text = capsys.readouterr().out
    for name in info.collect():
        assert name in text or name == "warnings"


FINDERS = ("_torch", "_version", "_build", "_isa", "_amx", "_cuda", "_openmp", "_threads")
FINDERS += ("_operators", "_core", "_cpu_lines", "_cpu_flags", "_cpu_name", "_warnings")


@pytest.mark.parametrize("broken", FINDERS)
def test_info_never_raises(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Whatever finds out a field may fail; the report says so and has the others."""

    def fail(*_: object) -> None:
        raise OSError("broken on purpose")

    monkeypatch.setattr(info, broken, fail)
    report = info.collect()
    assert report["python"]
    assert "broken on purpose" in str(report)
    assert "broken on purpose" in info.text()


def test_info_sees_a_second_openmp_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_openmp", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"])
    assert any("OpenMP" in line for line in info.collect()["warnings"])


def test_isa_is_capped_by_the_environment() -> None:
    env = dict(os.environ, DOUBLESPARSE_ISA="baseline")
    command = [sys.executable, "-m", "doublesparse", "info", "--json"]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert json.loads(out)["isa"]["chosen"] == "baseline"


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 2
    assert entry.main(["fly"]) == 2
    assert "usage" in capsys.readouterr().err
    assert entry.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in entry.COMMANDS)


def test_bench_measures_ratios_within_rounds() -> None:
    calls: list[str] = []
    actions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = bench.interleave(actions, rounds=2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert bench.paired_ratio([1.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="rounds"):
        bench.interleave(actions, rounds=0)


def test_bench_sites_are_sites() -> None:
    coords = bench.surface(extent=24, n_rays=2000)
    x = ds.SparseTensor(torch.zeros(len(coords), 1), coords, (24, 24, 24))
    assert torch.equal(x.coords, coords)


def test_stub_names_what_the_module_has() -> None:
    stub = PACKAGE / "_C.pyi"
    named = set()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
    module = {name for name in dir(ds._C) if not name.startswith("__")}
    module -= {"gpu", "nvcc", "cuda_architectures"}  # of a CUDA build only
    assert module == {name for name in named if not name.startswith("__")}
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_same_everywhere() -> None:
    assert info.collect()["version"] == ds.__version__
    project = PACKAGE.parents[1] / "pyproject.toml"
    if project.is_file():  # not beside an installed wheel
        assert f'version = "{ds.__version__}"' in project.read_text()
