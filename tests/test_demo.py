"""`python -m doublesparse demo`: the quick form, its table and picture, and its bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from doublesparse import demo


def quick(tmp_path, *options):
    """Runs the smallest demo in this process."""
    picture, results = tmp_path / "deep" / "demo.png", tmp_path / "demo.json"
    common = ["--quick", "--synthetic", "--train-size", "100", "--test-size", "40", "--epochs", "1"]
    status = demo.main([*common, "--out", str(picture), "--json", str(results), *options])
    assert status == 0
    return picture, json.loads(results.read_text())


def check(results, n_test):
    assert results["n_test"] == n_test
    assert 0 <= results["n_wrong"] <= n_test
    assert results["difference"] <= 1e-4 * results["largest_logit"]
    layers = results["layers"]
    assert [row["layer"] for row in layers[:3]] == ["input", "conv0", "pool0"]
    assert layers[0]["share"] < 0.2 and all(0 < row["share"] <= 1 for row in layers)
    for speed in results["speed"].values():
        assert min(speed.values()) > 0


def test_quick_demo(tmp_path, capsys):
    picture, results = quick(tmp_path)
    check(results, 40)
    out = capsys.readouterr().out
    for words in ("test error", "images/s", "largest difference", "sites per image", "conv3"):
        assert words in out
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, extra [demo]")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["deepcnet", "deepcnin"])
def test_demo_without_the_extras(tmp_path, capsys, monkeypatch, network):
    for name in ("rich.console", "rich.table", "tqdm", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    picture, results = quick(
        tmp_path, "--network", network, "--encoding", "pen", "--dropout", "0.3"
    )
    check(results, 40)
    out = capsys.readouterr().out
    assert "test error" in out and "sites per image" in out
    assert "no picture" in out and not picture.exists()


def test_demo_is_reproducible(tmp_path):
    results = [quick(tmp_path, "--out", "", "--seed", str(seed))[1] for seed in (3, 3, 4)]
    curves = [[point["loss"] for point in r["curve"]] for r in results]
    assert curves[0] == curves[1] != curves[2]
    assert results[0]["predicted"] == results[1]["predicted"]


@pytest.mark.slow
def test_demo_learns(tmp_path):
    results = tmp_path / "demo.json"
    demo.main(["--quick", "--synthetic", "--epochs", "6", "--out", "", "--json", str(results)])
    results = json.loads(results.read_text())
    assert results["n_wrong"] / results["n_test"] < 0.3  # 95 % is chance


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "pendigits-orig.tra"),
        (["--synthetic", "--dropout", "2"], "dropout"),
        (["--synthetic", "--stretch", "-1"], "stretch"),
        (["--synthetic", "--seed", "-1"], "seed"),
    ],
)
def test_demo_says_what_is_wrong(options, words):
    with pytest.raises(SystemExit) as error:
        demo.main(["--quick", *options])
    assert words in str(error.value)


@pytest.mark.parametrize("option", ["--levels", "--epochs", "--threads", "--batch-size"])
def test_demo_refuses_options(option, capsys):
    with pytest.raises(SystemExit) as error:
        demo.main([option, "0"])
    assert error.value.code == 2
    assert "positive" in capsys.readouterr().err


def test_demo_is_a_command():
    command = [sys.executable, "-m", "doublesparse", "demo", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for option in ("--data", "--levels", "--quick", "--out"):
        assert option in out
