"""`python -m doublesparse demo mbn`: the plain network, tables, picture, models, bad input."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from doublesparse import demo
from doublesparse.demo import _images, _mbn_runs, mbn
from doublesparse.demo._plain_mbn import plain_transform

pytest.importorskip("sklearn", reason="the demo clusters with scikit-learn, extra [demo]")
SMALL = ["--digits", "--quick", "--seeds", "1", "--clusterings", "10", "--train-size", "200"]


def test_quick_demo(tmp_path, capsys):
    picture, results = tmp_path / "deep" / "mbn.png", tmp_path / "mbn.json"
    options = ["--seeds", "2", "--out", str(picture), "--json", str(results)]
    assert demo.main(["mbn", *SMALL, *options]) == 0
    found = json.loads(results.read_text())
    assert len(found["runs"]) == 2 and found["settings"]["clusterings"] == 10
    for run in found["runs"]:
        assert set(run["clusterings"]) == {"raw k-means", "PCA + k-means", "MBN"}
        assert run["networks"]["plain MBN"]["same_code"] > 95
        for row in run["students"].values():
            assert 0 <= row["agreement_test"] <= 100 and row["batch_us"] > 0 and row["bytes"] > 0
            ratio = run["networks"]["plain MBN"]["batch_us"] / row["batch_us"]
            assert row["times_plain MBN"] == pytest.approx(ratio)
            assert row["times_MBN"] > 0 and row["single_us"] > 0
    bars = {row["what"]: row for row in mbn.bars(found)}
    best = np.mean([max(r["times_MBN"] for r in run["students"].values()) for run in found["runs"]])
    assert bars["any student, x MBN"]["bar"] == 50
    assert bars["any student, x MBN"]["measured"] <= best + 1e-9
    out = capsys.readouterr().out
    for words in ("plain MBN", "held out", "packed bfloat16", "agree with MBN", "smoke test"):
        assert words in out
    assert picture.is_file() == ("picture:" in out)


def test_model_is_kept(tmp_path, capsys):
    file = tmp_path / "deep" / "model.pickle"
    options = [*SMALL, "--out", "", "--hidden", "16", "--model", str(file)]
    runs = []
    for _ in range(2):
        assert demo.main(["mbn", *options, "--json", str(tmp_path / "a.json")]) == 0
        runs.append(json.loads((tmp_path / "a.json").read_text())["runs"][0])
    assert runs[0]["clusterings"] == runs[1]["clusterings"]
    assert f"network of {file}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no network of these images"):
        demo.main(["mbn", *options, "--components", "3"])
    with pytest.raises(SystemExit, match="for one seed"):
        demo.main(["mbn", *options, "--seeds", "2"])


def test_plain_network_gives_the_same_code():
    """Two implementations that share no kernel."""
    settings = _mbn_runs.replace(_mbn_runs.DIGITS, **(_mbn_runs.QUICK | {"train_size": 150}))
    train, test = _mbn_runs.split(_images.load_digits(), settings, 3)
    assert train[0].min() == 0 and train[0].max() == 1 and len(test[0]) == 1797 - 150
    net = _mbn_runs.network(train, settings, 3, None)
    plain, ours = plain_transform(net, train[0], test[0]), net.transform(test[0])
    gap = np.abs(plain - ours).max(1)
    # Pixels are sixteenths, so many distances are equal; rounding decides some of those.
    assert np.mean(gap < 1e-3) > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "no train-images-idx3-ubyte"),
        (["--digits", "--train-size", "100000"], "smaller --train-size"),
        (["--digits", "--sparsity", "2", "--seeds", "1", "--out", ""], "sparsity must lie"),
        (["--digits", "--components", "100000"], "n_components must be"),
    ],
)
def test_demo_says_what_is_wrong(options, words):
    quick = ["--quick", "--clusterings", "5"]
    with pytest.raises(SystemExit, match=words):
        demo.main(["mbn", *quick, *options])


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"doublesparse\[demo\]"):
        demo.main(["mbn", "--digits", "--quick"])
