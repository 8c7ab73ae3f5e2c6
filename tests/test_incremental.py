"""Incremental: exact answers on frames that differ from a background, which is computed once."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
from networks import NETWORKS, UNet, vgg
from test_freeze import WIDE, Counter, by_pickle, close, remembered_by, small, train_a_step
from test_networks import randomized


def transposed_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ELU(),
        nn.ConvTranspose2d(6, 4, 4, 2, 1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 3, 1, 1),
    )


MODELS = dict(NETWORKS, transposed=(transposed_net, (12, 14), 2))


def frames(background: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some frames that differ from the background here and there, nowhere, or everywhere."""
    few = background.repeat(3, *[1] * (background.dim() - 1))
    few[0].flatten(1)[:, 3:5] += 1
    few[2].flatten(1)[1, -1] = 0.25
    return {
        "few": few,
        "one frame": few[:1].clone(),
        "unchanged": background.clone(),
        "all": background + torch.rand_like(background) + 0.5,
        "two": torch.cat([background, background - 1]),
    }


@pytest.mark.parametrize("crossover", (None, "auto"))
@pytest.mark.parametrize("name", MODELS)
def test_incremental(name, crossover):
    """Every network; U-Net with group norms, residual blocks and transposed ones among them."""
    ds.set_crossover(crossover)
    make, shape, _ = MODELS[name]
    net = randomized(make, False)
    step = ds.Incremental(net, torch.randn(1, 3, *shape, dtype=WIDE))
    for kind, frame in frames(step.background).items():
        with torch.no_grad():
            want = net(frame)
        got = step(frame)
        assert type(got) is torch.Tensor and not got.requires_grad
        assert close(got, want), kind
    assert step.changes(frames(step.background)["unchanged"]).features.shape[0] == 0


def test_incremental_computes_the_background_once(monkeypatch):
    net, counter = small(), Counter(monkeypatch)
    step = ds.Incremental(net, torch.randn(1, 3, 9, 8, dtype=WIDE))
    assert counter.n > 0
    for frame in frames(step.background).values():
        assert counter.during(step, frame)[1] == 0
    step.release()
    assert counter.during(step, step.background)[1] > 0


def test_incremental_follows_its_model(monkeypatch):
    """Trained, loaded, thawed in between; another background."""
    net, counter = small(), Counter(monkeypatch)
    step = ds.Incremental(net, torch.randn(1, 3, 9, 8, dtype=WIDE))

    def right() -> bool:
        frame = frames(step.background)["few"]
        with torch.no_grad():
            return close(step(frame), net(frame))

    assert right()
    net.train()
    train_a_step(net, step.background)
    net.eval()
    assert right() and counter.during(right)[1] == 0
    net.load_state_dict({name: 0.5 * v for name, v in net.state_dict().items()})
    assert right()
    ds.thaw(net)
    with torch.no_grad():
        net[0].bias.add_(1)
    assert right() and counter.during(right)[1] == 0
    step.set_background(torch.randn(1, 3, 7, 5, dtype=WIDE))
    assert right() and counter.during(right)[1] == 0
    step.set_background(torch.zeros(1, 3, 7, 5, dtype=WIDE))
    assert right()


def test_two_backgrounds_of_one_model(monkeypatch):
    net, counter = small(), Counter(monkeypatch)
    steps = [ds.Incremental(net, torch.randn(1, 3, 9, 8, dtype=WIDE)) for _ in range(2)]
    for step in (*steps, *steps):
        frame = frames(step.background)["few"]
        got, n = counter.during(step, frame)
        with torch.no_grad():
            assert n == 0 and close(got, net(frame))
    steps.pop(0).release()
    frame = frames(steps[0].background)["few"]
    assert counter.during(steps[0], frame)[1] == 0


def test_the_background_is_the_models_own_copy():
    """Writing to the tensor that was given changes nothing."""
    net, background = small(), torch.randn(1, 3, 9, 8, dtype=WIDE)
    step, frame = ds.Incremental(net, background), background.clone()
    background.zero_()
    assert step.changes(frame).features.shape[0] == 0
    with torch.no_grad():
        assert close(step(frame), net(frame))


def test_threads_share_a_frozen_model(rng):
    """Frames on several threads while grounds are thawed again and again."""
    net = randomized(vgg, False)
    step = ds.Incremental(net, torch.randn(1, 3, 24, 26, dtype=WIDE))
    some = frames(step.background)["few"]
    with torch.no_grad():
        want, errors = net(some), []

    def work() -> None:
        try:
            for _ in range(6):
                assert close(step(some), want)
        except BaseException as error:
            errors.append(error)

    def thaw() -> None:
        for _ in range(6):
            step.release()

    threads = [threading.Thread(target=f) for f in (work, work, thaw, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(remembered_by(net)) == 2


def test_incremental_is_copied_with_its_model(rng):
    step = ds.Incremental(small(), torch.randn(1, 3, 9, 8, dtype=WIDE))
    frame = step.background.clone()
    frame[0, :, 2, 3] += 1
    for twin in (copy.deepcopy(step), by_pickle(step)):
        with torch.no_grad():
            twin.model[0].weight.mul_(2)
            assert close(twin(frame), twin.model(frame))
            assert close(step(frame), step.model(frame))


def test_an_incremental_that_goes_takes_its_responses_with_it():
    net = small()
    background = torch.randn(1, 3, 9, 8, dtype=WIDE)
    step = ds.Incremental(net, background)
    root = weakref.ref(step._root)
    del step
    gc.collect()
    assert root() is None
    assert not any("doublesparse" in key for key in net.__dict__) and "train" not in net.__dict__


def test_what_is_remembered_is_bounded(rng):
    """200 frames, their active sites all different: nothing is added."""
    net = randomized(UNet, False)
    ds.freeze_ground(net, (16, 20), ground=0.3)
    step = ds.Incremental(net, torch.randn(1, 3, 16, 20, dtype=WIDE))
    sizes = []
    for _ in range(200):
        frame = step.background.clone()
        frame[:, :, torch.randint(16, ()), torch.randint(20, ())] += 1
        step(frame)
        sizes.append(remembered_by(net))
    # a layer that fills up for the first time adds its zero ground, and that is all
    assert 0 < sizes[-1][0] < 1.5 * sizes[0][0] and sizes[-1][1] < 1.1 * sizes[0][1], sizes
    assert len(set(sizes)) < 6 and len(set(sizes[-50:])) == 1, "it grows with the frames"
    step.set_background(step.background + 1)
    assert remembered_by(net) <= sizes[-1]
    released = remembered_by(net)[0]
    step.release()
    assert 0 < remembered_by(net)[0] < released


# ------------------------------------------------------------------ wrong on purpose
BACKGROUND = torch.zeros(1, 3, 9, 8, dtype=WIDE)


def partly_training() -> nn.Module:
    net = small()
    net[1].training = True
    return net


def ready() -> ds.Incremental:
    return ds.Incremental(small(), BACKGROUND)


WRONG = {
    "no module": (lambda: ds.Incremental(F.relu, BACKGROUND), TypeError, "nn.Module"),
    "training": (lambda: ds.Incremental(small().train(), BACKGROUND), RuntimeError, "eval"),
    "part training": (lambda: ds.Incremental(partly_training(), BACKGROUND), RuntimeError, "eval"),
    "background type": (lambda: ds.Incremental(small(), [0.0]), TypeError, "background"),
    "background ints": (lambda: ds.Incremental(small(), BACKGROUND.long()), TypeError, "float"),
    "background shape": (lambda: ds.Incremental(small(), BACKGROUND[0]), ValueError, "background"),
    "two": (lambda: ds.Incremental(small(), BACKGROUND.repeat(2, 1, 1, 1)), ValueError, "shape"),
    "NaN": (lambda: ds.Incremental(small(), BACKGROUND / 0), ValueError, "finite"),
    "infinite": (lambda: ds.Incremental(small(), (BACKGROUND + 1) / 0), ValueError, "finite"),
    "frame type": (lambda: ready()("frame"), TypeError, "frame"),
    "frame dtype": (lambda: ready()(BACKGROUND.float()), TypeError, "float64"),
    "frame shape": (lambda: ready()(BACKGROUND[:, :, :8]), ValueError, "frame"),
    "frame axes": (lambda: ready()(BACKGROUND[0]), ValueError, "frame"),
    "frame sparse": (lambda: ready()(ds.SparseTensor.from_dense(BACKGROUND)), TypeError, "frame"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_says_what_is_wrong(what):
    call, kind, words = WRONG[what]
    with pytest.raises(kind, match=words) as error:
        call()
    assert str(error.value).startswith("Incremental: ")


def test_incremental_refuses_a_model_in_training():
    step = ready()
    step.model.train()
    for call in (step, step.changes, step.set_background):
        with pytest.raises(RuntimeError, match="eval"):
            call(BACKGROUND)
    step.model.eval()
    assert step(BACKGROUND).shape == (1, 2, 9, 8)


def test_a_background_that_is_refused_leaves_the_old_one():
    step = ds.Incremental(small(), torch.randn(1, 3, 9, 8, dtype=WIDE))
    for bad in (BACKGROUND / 0, BACKGROUND[:, :2], BACKGROUND.float(), BACKGROUND[..., None]):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            step.set_background(bad)
        frame = frames(step.background)["few"]
        with torch.no_grad():
            assert close(step(frame), step.model(frame))
