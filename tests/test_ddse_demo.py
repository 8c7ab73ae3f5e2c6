"""`python -m doublesparse demo ddse`: the dense encoder, equal sizes and rules, its command."""

from __future__ import annotations

import json
import math
import statistics
import sys

import pytest
import torch

from doublesparse import demo
from doublesparse.demo import _encoders, _images, ddse
from doublesparse.demo._encoders import Arm, Course, Data, Shape

pytest.importorskip("sklearn", reason="the digits and the OMP are scikit-learn's")
SHAPE = Shape(16, (5, 5), 12, 3, 3, learnt={})


def arms():
    return [Arm(f, n, "random") for f in _encoders.FAMILIES[:3] for n in _encoders.NEURONS]


def test_lista_is_ista_at_first():
    """K steps of ISTA on D, written out."""
    random = torch.Generator().manual_seed(0)
    D = torch.randn(16, 12, generator=random, dtype=torch.float64)
    x = torch.randn(7, 16, generator=random, dtype=torch.float64)
    model = _encoders.LISTA(D, 10, 3, "soft", 0.5).double()
    with torch.no_grad():  # the constructor rounds to float32
        L = float(torch.linalg.svdvals(D)[0]) ** 2
        model.encoder.weight.copy_(D.t() / L)
        model.lateral.weight.copy_(torch.eye(12) - D.t() @ D / L)
        model.neuron.set_threshold_(0.5 / L)
        z = torch.zeros(7, 12, dtype=torch.float64)
        for _ in range(3):
            u = z + (x - z @ D.t()) @ D / L
            z = u.sign() * (u.abs() - 0.5 / L).clamp_min(0)
        assert (model.encode(x) - z).abs().max() < 1e-13
        rounded = _encoders.LISTA(D.float(), 10, 3, "soft", 0.5)
        assert (rounded.encode(x.float()) - z).abs().max() < 1e-5


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_sizes(iterations):
    """What is called "of as many parameters" is; the pruned encoder keeps as many weights."""
    shape = Shape(16, (5, 5), 12, 3, iterations, learnt={})
    counted = {}
    for arm in arms():
        model = _encoders.make(arm, shape, 0.1, seed=0)
        counted[arm.family, arm.neuron] = _encoders.parameters(model)
    for neuron in ("soft", "helu"):
        sparse, small = counted["DDSE", neuron], counted["LISTA small", neuron]
        n = shape.small
        step = 16 + 11 + (2 * n + 1 if iterations > 1 else 0)
        assert abs(sparse - small) <= step
        assert sparse == shape.kept + 12 + 12 * 10 + 10
    dense = _encoders.make(Arm("LISTA", "soft", "random"), shape, 0.1, seed=0)
    _encoders.prune(dense, shape)
    kept = [w for w in (dense.encoder, dense.lateral) if w is not None]
    total = sum(w.weight.numel() for w in kept)
    assert sum(int((w.weight != 0).sum()) for w in kept) == min(total, shape.kept)
    before = _encoders.stored_bytes(dense)
    assert _encoders.stored_bytes(_encoders.packed(dense)) < before


def test_training_keeps_the_constraints():
    """After training, s weights a row of W1; the mask of the pruned encoder held."""
    x, y = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 10
    model = _encoders.make(Arm("DDSE", "helu", "random"), SHAPE, 0.1, seed=0)
    _encoders.train(model, (x, y), Course(7, 8, project_every=3), 0.1, seed=0)
    assert (model.w1.weight != 0).sum(1).tolist() == [3] * 12
    assert (model.w2.weight != 0).sum(0).tolist() == [3] * 12
    assert float(model.neuron.sigma) == 0.0
    dense = _encoders.make(Arm("LISTA", "soft", "random"), SHAPE, 0.1, seed=0)
    _encoders.prune(dense, SHAPE)
    mask = dense.encoder.mask.clone()
    _encoders.fine_tune(dense, (x, y), Course(8, 8, 1), 0.1, 0)
    assert torch.equal(dense.encoder.weight != 0, mask)
    error, loss, active = _encoders.evaluate(_encoders.packed(dense), (x, y))
    assert 0 <= error <= 100 and math.isfinite(loss) and 0 < active <= 1


def test_arms_share_what_they_should():
    """Same seed, same labelled images and first classifier; another seed, others."""
    data = Data.of(_images.load_digits(), 500)
    assert len(data.test[1]) == 500 and len(data.pool[1]) == 1297
    both = torch.cat([data.pool[0], data.test[0]])
    assert len(both.unique(dim=0)) == len(_images.load_digits().train[0].flatten(1).unique(dim=0))
    one, again, other = (data.labelled(50, seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0]) and not torch.equal(one[0], other[0])
    assert torch.equal(one[1], data.labelled(200, 1)[1][:50])  # more labels: the same and others
    assert len(data.labelled(0, 1)[1]) == 1297
    made = [_encoders.make(arm, SHAPE, 0.1, 3).classifier for arm in arms()]
    assert all(torch.equal(c.weight, made[0].weight) for c in made[:6])
    with pytest.raises(ValueError, match="use 0 for all"):
        data.labelled(1298, 0)


TINY = ["--quick", "--seeds", "2", "--steps", "2"]


@pytest.mark.parametrize("extras", [True, False])
def test_quick_demo(tmp_path, capsys, monkeypatch, extras):
    if not extras:
        for name in ("rich.console", "rich.table", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
    file, picture = tmp_path / "ddse.json", tmp_path / "ddse.png"
    neurons = ["--neurons", "helu"] if extras else ["--neurons", "topm"]
    arguments = ["--digits", "--json", str(file), "--out", str(picture), *TINY, *neurons]
    assert demo.main(["ddse", *arguments]) == 0
    results = json.loads(file.read_text())
    assert len(results["rows"]) == 8
    by = {row["arm"]: row for row in results["rows"]}
    assert {name.split(", ")[0] for name in by} == set(_encoders.FAMILIES)
    for row in results["rows"]:
        assert len(row["errors"]) == 2 and all(0 <= e <= 100 for e in row["errors"])
        assert row["mean"] == statistics.fmean(row["errors"]) and row["images_per_second"] > 0
    neuron = "helu" if extras else "topm"
    sparse, dense, pruned = (
        by[f"{family}, {neuron}, random"] for family in ("DDSE", "LISTA", "LISTA pruned")
    )
    assert sparse["parameters"] == pruned["parameters"] < dense["parameters"]
    assert max(sparse["bytes"], pruned["bytes"]) < dense["bytes"]
    out = capsys.readouterr().out
    for words in ("LISTA small", "without labels", "smoke test", "100 labels"):
        assert words in out
    assert picture.is_file() == extras


@pytest.mark.slow
def test_processes_agree():
    """Two processes find what one finds."""
    settings = ddse.replace(ddse.DIGITS, **ddse.QUICK | {"steps": 2, "seeds": 1})
    images = _images.load_digits()
    one, two = (ddse.run_all(images, settings, jobs, ["soft"]) for jobs in (1, 2))
    assert [r["errors"] for r in one["rows"]] == [r["errors"] for r in two["rows"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "no train-images-idx3-ubyte"),
        (["--digits", "--labels", "5000", "--quick"], "at most 1297"),
        (["--digits", "--labels", "-1"], "0 .all. or at least 10"),
        (["--digits", "--n-codes", "300", "--quick"], "in 1..60"),
    ],
)
def test_demo_says_what_is_wrong(options, words):
    with pytest.raises(SystemExit, match=words):
        demo.main(["ddse", *options])
    with pytest.raises(SystemExit):
        demo.main(["ddse", "--seeds", "0"])


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn.*installed"):
        demo.main(["ddse", "--digits"])
