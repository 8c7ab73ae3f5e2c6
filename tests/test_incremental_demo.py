"""`python -m doublesparse demo incremental`: its clip, its answers, tables, picture, bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from doublesparse import demo
from doublesparse.demo import _networks, incremental


def quick(tmp_path, *options):
    """Runs the smallest demo in this process."""
    picture, results = tmp_path / "deep" / "demo.png", tmp_path / "demo.json"
    common = ["incremental", "--quick", "--output", str(picture), "--json", str(results)]
    assert demo.main([*common, *options]) == 0
    return picture, json.loads(results.read_text())


def test_quick_demo(tmp_path, capsys):
    picture, results = quick(tmp_path)
    assert [r["network"] for r in results] == ["resnet18", "unet"]
    for result in results:
        assert len(result["frames"]) == 3
        assert result["dense_format"] in ("contiguous", "channels_last")
        for frame in result["frames"]:
            assert 0.01 < frame["changed"] < 0.04
            assert frame["difference"] <= 1e-4 * result["largest_output"]
            assert min(frame["dense_ms"], frame["incremental_ms"]) > 0
        shares = [layer["share"] for layer in result["layers"]]
        assert len(shares) >= 18 and shares[0] < 0.2 and all(0 < s <= 1 for s in shares)
    out = capsys.readouterr().out
    for words in ("largest difference", "incremental ms", "changed", "layer4.1.conv2", "down1.0"):
        assert words in out
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, extra [demo]")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_demo_without_the_extras(tmp_path, capsys, monkeypatch):
    for name in ("rich.console", "rich.table", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    picture, results = quick(tmp_path, "--network", "unet", "--frames", "1", "--seed", "3")
    assert len(results) == 1 and len(results[0]["frames"]) == 1
    out = capsys.readouterr().out
    assert "largest difference" in out and "no picture" in out and not picture.exists()


def test_the_clip_is_what_it_says():
    """2-3 % of the pixels, objects that move, the rest without noise; the same for a seed."""
    clip = incremental.make_clip(224, 12, seed=0)
    again, other = (incremental.make_clip(224, 12, seed=s) for s in (0, 1))
    assert clip.background.shape == (3, 224, 224) and clip.background.dtype == torch.float32
    assert float(clip.background.min()) >= 0 and clip.background.flatten(1).std(1).min() > 0.05
    for i, frame in enumerate(clip.frames):
        assert torch.equal(frame, again.frames[i]) and not torch.equal(frame, other.frames[i])
        assert 0.02 < float(clip.changed(i).float().mean()) < 0.03
        assert torch.equal(frame[:, ~clip.changed(i)], clip.background[:, ~clip.changed(i)])
        assert i == 0 or not torch.equal(clip.changed(i), clip.changed(i - 1))


def test_the_networks_are_the_published_ones():
    """Parameters of ResNet-18 (He et al. 2016): 11 689 512; and shapes."""
    net, image = _networks.ResNet18(), torch.rand(1, 3, 64, 64)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512
    with torch.no_grad():
        assert net.eval()(image).shape == (1, 1000)
        assert _networks.UNet(4, 5).eval()(image).shape == (1, 5, 64, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", "0"], "positive"),
        (["--network", "vgg"], "unet"),
        (["--threads", "-1"], "positive"),
        (["--seed", "x"], "seed"),
        (["backwards"], "unrecognized"),
    ],
)
def test_demo_refuses_options(options, words, capsys):
    with pytest.raises(SystemExit) as error:
        demo.main(["incremental", *options])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_demo_says_what_is_wrong():
    with pytest.raises(SystemExit) as error:
        demo.main(["incremental", "--quick", "--seed", "-1"])
    assert "seed" in str(error.value)


def test_demo_is_a_command():
    command = [sys.executable, "-m", "doublesparse", "demo", "incremental", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for option in ("--quick", "--network", "--output", "--seed"):
        assert option in out
