"""`python -m doublesparse demo force`: its networks, arms, comparison, table and picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from doublesparse import demo
from doublesparse.demo import _low_rank as experiment
from doublesparse.demo import _low_rank_report as report
from doublesparse.demo import _options, force
from doublesparse.demo._images import Images

SMALL = replace(
    force.DIGITS,
    seeds=2,
    train_size=60,
    epochs=2,
    force_epochs=2,
    finetune_epochs=1,
    batch_size=20,
    speed_batch=4,
    norms=("l2",),
    strengths=(0.5,),
    energies=(0.95, 0.5),
)


@pytest.fixture
def images():
    """Three classes of noise with a bright row."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    pixels = 0.3 * torch.rand(90, 1, 8, 8, generator=random)
    pixels[torch.arange(90), 0, 2 * labels + 1] += 0.6
    return Images("rows", (pixels, labels), None)


# ------------------------------------------------------------------ networks
@pytest.mark.parametrize(
    ("colours", "extent", "widths", "macs"),
    [
        # LeNet: 24^2 * 20 * 25, 8^2 * 50 * 500, 800 * 500, 500 * 10
        (1, 28, [20, 50, 500], 288_000 + 1_600_000 + 400_000 + 5_000),
        # ConvNet: 32^2 * 32 * 75, 16^2 * 32 * 800, 8^2 * 64 * 800, 1024 * 10
        (3, 32, [32, 32, 64], 2_457_600 + 6_553_600 + 3_276_800 + 10_240),
        # digits: 8^2 * 32 * 9, 8^2 * 64 * 288, 4^2 * 64 * 576, 256 * 10
        (1, 8, [32, 64, 64], 18_432 + 1_179_648 + 589_824 + 2_560),
    ],
)
def test_networks(colours, extent, widths, macs):
    net = experiment.make_network(colours, extent, 10)
    image = torch.zeros(1, colours, extent, extent)
    assert net(image).shape == (1, 10)
    layers = experiment.forced_layers(net)
    assert [len(layer.weight) for layer in layers.values()] == widths
    assert experiment.multiply_adds(net, image) == macs


def test_rows(images):
    """Ranks are numpy's; the same seed gives the same rows; force changes the network."""
    start = experiment.baseline(images, SMALL, 1)
    arms = experiment.arms(SMALL)
    assert [arm.title for arm in arms] == ["no force", "l2 0.5"]
    control, forced = (experiment.run_arm(images, SMALL, 1, arm, start) for arm in arms)
    again = experiment.run_arm(images, SMALL, 1, arms[1], start)
    assert [r["finetuned"] for r in again] == [r["finetuned"] for r in forced]
    assert forced[0]["net"] != control[0]["net"]
    for row in (*control, *forced):
        net = experiment.pickle.loads(row["net"])
        weights = [m.weight for m in net if isinstance(m, nn.Conv2d)]
        for found, weight in zip(row["ranks"], weights, strict=True):
            squares = np.linalg.svd(weight.detach().double().flatten(1).numpy())[1] ** 2
            share = np.cumsum(squares) / squares.sum()
            assert found == int((share < row["energy"]).sum()) + 1
        assert row["summed_rank"] == sum(row["ranks"])
        assert all(0 <= row[name] <= 100 for name in ("before", "decomposed", "finetuned"))


def test_without_strength_force_is_the_control(images):
    start = experiment.baseline(images, SMALL, 0)
    control = experiment.run_arm(images, SMALL, 0, experiment.CONTROL, start)
    nothing = experiment.run_arm(images, SMALL, 0, experiment.Arm("l1", 0.0), start)
    states = [experiment.pickle.loads(r[0]["net"]).state_dict() for r in (control, nothing)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ------------------------------------------------------------------ the comparison
def row(arm, seed, energy, rank, finetuned):
    numbers = {"before": 1.0, "decomposed": 2.0, "macs": 4, "low_macs": 2, "speedup": 1.5}
    return {
        "arm": arm,
        "seed": seed,
        "energy": energy,
        "ranks": [rank - 1, 1],
        "summed_rank": rank,
        "finetuned": finetuned,
        **numbers,
    }


@pytest.mark.parametrize(
    ("rank", "worse", "first", "any_energy"),
    [
        (10, 0.4, "force wins: a summed rank smaller by 78%", "force wins"),
        (49, 0.4, "force does not win: the summed rank is smaller by 2.0% only", "force does not"),
        (30, 0.4, "force wins", "force does not win: its"),
        (60, 0.4, "force does not win: its", "force does not win: its"),
        (10, 0.6, "force does not win: no", "force does not win: no"),
    ],
)
def test_comparison(rank, worse, first, any_energy):
    """The control has rank 50 at .95, 20 at .8 (as good) and 5 at .6 (too bad)."""
    arm = experiment.Arm("l2", 0.3)
    rows = []
    for seed, noise in enumerate((-0.1, 0.0, 0.1)):
        for energy, r, e in ((0.95, 50, 3.0), (0.8, 20, 3.4), (0.6, 5, 4.0)):
            rows.append(row(experiment.CONTROL, seed, energy, r + seed, e + noise))
        rows.append(row(arm, seed, 0.95, rank + seed, 3.0 + worse + noise))
    found = report.summaries(rows)
    assert report.equal_accuracy(found, 0.95)["verdict"].startswith(first)
    compared = report.equal_accuracy(found, None)
    assert compared["verdict"].startswith(any_energy)
    assert compared["bound"] == pytest.approx(3.5) and compared["without"]["energy"] == 0.8
    assert report.falls(found, "l2", 0.95) == (rank < 50)


# ------------------------------------------------------------------ the command
@pytest.mark.parametrize("extras", [True, False])
def test_quick_demo(images, tmp_path, capsys, monkeypatch, extras):
    if extras:
        pytest.importorskip("matplotlib", reason="the picture is drawn with matplotlib")
    else:
        for name in ("rich.console", "rich.table", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(_options, "load_digits", lambda: images)
    file, png = tmp_path / "force.json", tmp_path / "force.png"
    options = ["--quick", "--train-size", "60", "--json", str(file), "--out", str(png)]
    assert demo.main(["force", "--digits", *options]) == 0
    results = json.loads(file.read_text())
    # 2 seeds, control and two norms at one strength, 2 energies
    assert len(results["rows"]) == 2 * 3 * 2 and len(results["summaries"]) == 3 * 2
    assert all(r["speedup"] > 0 and r["low_macs"] <= r["macs"] for r in results["rows"])
    assert all("verdict" in compared for compared in results["equal"])
    assert png.is_file() == extras
    out = capsys.readouterr().out
    for words in ("no force", "fine-tuned", "equal accuracy", "smoke test", "monotonically"):
        assert words in out


def test_jobs_and_scratch_do_not_change_what_is_found(images):
    """Two processes find what one does."""
    settings = replace(SMALL, scratch=True, seeds=1, energies=(0.9,))
    one, two = (
        force.run_all(images, settings, jobs=jobs, rounds=1, progress=False) for jobs in (1, 2)
    )
    names = ("ranks", "before", "decomposed", "finetuned", "low_macs")
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "--data: no folder /nowhere"),
        (["--train-size", "100000"], "smaller --train-size"),
        (["--energies", "1.5"], "energies must lie in"),
        (["--norms", "l3"], "norms must be l1 or l2"),
        (["--lr", "-1"], "lr must be positive"),
        (["--strengths", "nan"], "strengths must be finite"),
    ],
)
def test_demo_says_what_is_wrong(images, monkeypatch, options, words):
    monkeypatch.setattr(_options, "load_digits", lambda: images)
    monkeypatch.delenv("DOUBLESPARSE_DATA", raising=False)
    with pytest.raises(SystemExit, match=f"doublesparse demo force: .*{words}"):
        force.main(["--quick", *options])


def test_digits_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn.*is not installed"):
        force.main(["--digits"])
