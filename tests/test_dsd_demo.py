"""`python -m doublesparse demo dsd`: its data, its statistics, its table, and M3 (slow)."""

from __future__ import annotations

import gzip
import json
import math
import os
import statistics
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from doublesparse import demo
from doublesparse.demo import _images, _statistics, dsd


def idx(array: np.ndarray) -> bytes:
    """LeCun's format: two zeros, the type, the number of axes, extents, values."""
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Four small files whose images tell their label by a bright row."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for part, n, suffix in (("train", 260, ".gz"), ("t10k", 60, "")):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.random.default_rng(n).integers(0, 60, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), 2 * labels + 4] = 255
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            raw = gzip.compress(idx(values)) if suffix else idx(values)
            (folder / f"{part}-{kind}-ubyte{suffix}").write_bytes(raw)
    return folder


def test_mnist_files(mnist):
    for folder in (mnist, mnist.parent):
        images = _images.load_mnist(folder)
        assert images.train[0].shape == (260, 1, 28, 28) and images.train[1].dtype == torch.int64
        assert images.test[0].shape == (60, 1, 28, 28)
        assert images.train[1][:12].tolist() == [*range(10), 0, 1]
        assert float(images.train[0].max()) == 0.5 and float(images.train[0].min()) == -0.5
    train, test = images.split(100, seed=3)
    again, _ = images.split(100, seed=3)
    other, _ = images.split(100, seed=4)
    assert torch.equal(train[0], again[0]) and not torch.equal(train[0], other[0])
    assert len(train[1]) == 100 and torch.equal(test[1], images.test[1])
    with pytest.raises(ValueError, match="below the 260 images"):
        images.split(260, seed=0)


def test_split_of_one_set_never_overlaps():
    both = _images.Images("numbers", (torch.arange(20.0), torch.arange(20)), None)
    train, test = both.split(8, seed=1)
    assert sorted(train[1].tolist() + test[1].tolist()) == list(range(20)) and len(test[1]) == 12


@pytest.mark.parametrize("change", ["short", "text", "type", "axes", "empty"])
def test_broken_files(mnist, change, capsys):
    path = mnist / "t10k-labels-idx1-ubyte"
    raw = path.read_bytes()
    broken = {
        "short": raw[:-1],
        "text": b"<html>not found</html>",
        "type": raw[:2] + b"\x0d" + raw[3:],
        "axes": raw[:3] + b"\x03" + raw[4:],
        "empty": b"",
    }
    path.write_bytes(broken[change])
    with pytest.raises(SystemExit, match="no IDX file of bytes"):
        demo.main(["dsd", "--data", str(mnist)])
    path.unlink()
    with pytest.raises(SystemExit, match="--data: no t10k-labels"):
        demo.main(["dsd", "--data", str(mnist)])


# ------------------------------------------------------------------ statistics
def test_t_quantiles():
    stats = pytest.importorskip("scipy.stats", reason="the oracle is scipy")
    for n in (*range(1, 40), 100, 10**6):
        assert abs(_statistics.t_quantile(n) - stats.t.ppf(0.975, n)) < 1e-3, n
    with pytest.raises(ValueError, match="two samples"):
        _statistics.t_quantile(0)


def test_paired_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=10).tolist(), rng.normal(size=10).tolist()
    mean, low, high = _statistics.paired_difference(a, b)
    gaps = [x - y for x, y in zip(a, b)]
    assert mean == statistics.fmean(gaps)
    half = 2.2622 * statistics.stdev(gaps) / math.sqrt(10)
    assert math.isclose(high - mean, half) and math.isclose(mean - low, half)
    assert _statistics.paired_difference([1.0], [3.0]) == (-2.0, -math.inf, math.inf)
    assert _statistics.deviation([1.0]) == 0.0
    assert [dsd.verdict(*bounds)[:2] for bounds in ((-2, -1), (-1, 1), (1, 2))] == [
        "lo",
        "no",
        "hi",
    ]


# ------------------------------------------------------------------ the command
QUICK = ["--quick", "--train-size", "100", "--batch-size", "20"]


@pytest.mark.parametrize("extras", [True, False])
def test_quick_demo(mnist, tmp_path, capsys, monkeypatch, extras):
    if not extras:
        for name in ("rich.console", "rich.table"):
            monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "dsd.json"
    assert demo.main(["dsd", "--data", str(mnist.parent), "--json", str(file), *QUICK]) == 0
    results = json.loads(file.read_text())
    assert set(results["errors"]) == set(dsd.ARMS)
    for arm, errors in results["errors"].items():
        assert len(errors) == 2 and all(0 <= e <= 100 for e in errors), arm
        assert results["mean"][arm] == statistics.fmean(errors)
    for mean, low, high in results["difference"].values():
        assert low <= mean <= high
    out = capsys.readouterr().out
    for words in ("LLR", "95 % interval", "DSD - LLR", "paper's control", "smoke test"):
        assert words in out


def test_arms_share_what_they_should(mnist):
    """Same seeds, same numbers; the arms begin with the same network."""
    images = _images.load_mnist(mnist)
    settings = replace(dsd.DIGITS, train_size=60, epochs=2, sparse_epochs=1, redense_epochs=1)
    assert dsd.run_seed(images, settings, 1) == dsd.run_seed(images, settings, 1)
    still = replace(settings, lr=1e-30)
    assert len(set(dsd.run_seed(images, replace(still, sparsity=0.0), 1).values())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "no train-images-idx3-ubyte"),
        (["--sparsity", "2"], "sparsity must lie"),
        (["--train-size", "100000"], "smaller --train-size"),
        (["--lr-scale", "-1"], "lr_scale must be positive"),
    ],
)
def test_demo_says_what_is_wrong(mnist, options, words):
    quick = ["--seeds", "1", "--epochs", "1", "--train-size", "60"]
    with pytest.raises(SystemExit, match=words):
        demo.main(["dsd", "--data", str(mnist), *quick, *options])


def test_digits(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn.*is not installed"):
        demo.main(["dsd", "--digits"])
    monkeypatch.undo()
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    images = _images.load_digits()
    assert images.train[0].shape == (1797, 1, 8, 8) and images.test is None
    assert images.train[1].unique().tolist() == list(range(10))


# ------------------------------------------------------------------ M3
def not_inferior(images, settings):
    """The upper bound of the error that DSD adds to the control's, in points."""
    results = dsd.run_all(images, settings)
    assert results["mean"]["baseline"] < 10, "the baseline did not learn"
    mean, _, high = results["difference"]["DSD - LLR"]
    assert high < 0.5, (mean, high, results["errors"])


@pytest.mark.slow
def test_dsd_is_not_inferior_on_digits():
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    not_inferior(_images.load_digits(), dsd.DIGITS)


@pytest.mark.slow
def test_dsd_is_not_inferior_on_mnist():
    folder = os.environ.get("DOUBLESPARSE_DATA")
    try:
        images = _images.load_mnist(folder or ".")
    except FileNotFoundError:
        pytest.skip("DOUBLESPARSE_DATA has no MNIST")
    not_inferior(images, dsd.MNIST)
