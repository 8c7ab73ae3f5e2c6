"""freeze_ground, thaw: the same answers, grounds computed once, every change of weights seen."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn as nn

import doublesparse as ds
from checks import densify
from doublesparse import _convolution, _memo
from inputs import make_input
from networks import NETWORKS, UNet
from test_networks import randomized

WIDE = torch.float64


def close(got, want) -> bool:
    """To 1e-10 of the largest: float64's rounding, nothing else."""
    got = densify(got)
    scale = float(want.abs().max())
    assert scale > 0, "this proves nothing"
    return got.shape == want.shape and float((got - want).abs().max()) <= 1e-10 * scale


def image(rng, shape, batch: int = 2, ground="zero", kind: str = "strokes"):
    made = make_input(
        rng, len(shape), {}, channels=3, shape=shape, batch=batch, dtype=WIDE, integers=False,
        ground=ground, kind=kind,
    )  # fmt: skip
    return made.sparse(ds), made.dense()


def small() -> nn.Sequential:
    """Two convolutions whose ground is not zero."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1)
    )
    return net.to(WIDE).eval()


def train_a_step(net: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    densify(net(x)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


class Counter:
    """How often a ground's response was computed: by a convolution's kernel, or elementwise."""

    def __init__(self, monkeypatch) -> None:
        self.n = 0
        rows, sums = _convolution.Layer.rows, _convolution.segment_sum
        monkeypatch.setattr(_convolution.Layer, "rows", self.counted(rows))
        monkeypatch.setattr(_convolution, "segment_sum", self.counted(sums))

    def counted(self, f):
        def call(*args, **kwargs):
            self.n += 1
            return f(*args, **kwargs)

        return call

    def during(self, f, *args):
        before = self.n
        out = f(*args)
        return out, self.n - before


def remembered_by(model: nn.Module) -> tuple[int, int]:
    """Entries and bytes of everything that a frozen model remembers."""
    from doublesparse import _freeze

    entries = n_bytes = 0
    for root in model.__dict__[_freeze._HOLDER].roots:
        for ground in _freeze._descendants(root):
            entries += len(ground.memo)
            tensors = [v for v, _ in ground.memo.values() if isinstance(v, torch.Tensor)]
            n_bytes += sum(t.numel() * t.element_size() for t in tensors)
            if "values" in ground.__dict__:
                n_bytes += ground.values.numel() * ground.values.element_size()
    return entries, n_bytes


# ------------------------------------------------------------------ the answer
@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_networks_give_the_same_answer(name, rng):
    """Frozen, frozen again on the next input, thawed; constant and zero grounds."""
    make, shape, batch = NETWORKS[name]
    net = randomized(make, False)
    colour = torch.tensor([0.7, -0.3, 1.1], dtype=WIDE)
    for ground in (torch.zeros_like(colour), colour):  # a vector tells the number of channels
        assert ds.freeze_ground(net, shape, ground=ground) is net
    with torch.no_grad():
        for kind in ("strokes", "one", "none", "strokes", "all"):
            for ground in (0.0, colour):
                x, _ = image(rng, shape, batch, kind=kind)
                x = ds.SparseTensor(x.features, x.coords, shape, batch, ground=ground)
                frozen = densify(net(x))
                assert close(frozen, net(x.to_dense())), f"{kind} {ground}"
                plain = densify(copy.deepcopy(net)(x))
                assert torch.equal(frozen, plain), "not the bits of the model that is not frozen"


def test_several_grids_and_a_background_image(rng):
    net = small()
    frame = torch.randn(1, 3, 9, 8, dtype=WIDE)
    for shape in ((12, 10), (7, 7)):
        ds.freeze_ground(net, shape, ground=0.5)
    ds.freeze_ground(net, (9, 8), ground=frame)
    with torch.no_grad():
        for shape, ground in (((12, 10), 0.5), ((7, 7), 0.5), ((9, 8), frame), ((5, 6), 0.5)):
            x, _ = image(rng, shape)
            x = ds.SparseTensor(x.features, x.coords, shape, 2, ground=ground)
            for _ in range(2):
                assert close(net(x), net(x.to_dense()))


def test_another_ground_than_the_frozen_one(rng, monkeypatch):
    net, counter = small(), Counter(monkeypatch)
    ds.freeze_ground(net, (9, 8), ground=0.5)
    x, _ = image(rng, (9, 8))
    per_sample = torch.randn(2, 3, 9, 8, dtype=WIDE)
    with torch.no_grad():
        for ground in (0.25, torch.rand(3, dtype=WIDE), per_sample, None):
            other = ds.SparseTensor(x.features, x.coords, (9, 8), 2, ground=ground)
            got, n = counter.during(net, other)
            if ground is not None:
                assert n > 0 and close(got, net(other.to_dense()))


def test_float32_and_other_dtypes_than_the_frozen_one(rng):
    net = small()
    ds.freeze_ground(net, (9, 8), ground=0.5)
    net.float()
    x = ds.SparseTensor(torch.rand(2, 3), torch.tensor([[0, 1, 2], [0, 3, 3]]), (9, 8), ground=0.5)
    with torch.no_grad():
        got, want = densify(net(x)), net(x.to_dense())
    assert got.dtype == torch.float32 and torch.allclose(got, want, rtol=1e-5, atol=1e-6)


class Scaled(nn.Module):
    """More arguments than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x, scale: float = 1.0, *, other=None):
        y = self.net(x) * scale
        return {"y": y, "sum": y if other is None else y + self.net(other)}


def test_keyword_arguments(rng, monkeypatch):
    net, counter = Scaled().eval(), Counter(monkeypatch)
    ds.freeze_ground(net, (9, 8), ground=0.5)
    x, _ = image(rng, (9, 8))
    x = ds.SparseTensor(x.features, x.coords, (9, 8), 2, ground=0.5)
    with torch.no_grad():
        for kwargs in (dict(x=x, scale=2.0), dict(x=x, other=x)):
            got, n = counter.during(lambda k=kwargs: net(**k))
            dense = {k: v if k == "scale" else v.to_dense() for k, v in kwargs.items()}
            want = net(**dense)
            assert n == 0, "the frozen ground was computed again"
            assert all(close(got[name], want[name]) for name in want)


def test_a_function_of_the_answer_is_not_remembered(rng):
    """A head that nobody froze reads the output of a frozen network, and is trained."""
    net, head = small(), nn.Conv2d(2, 3, 3, padding=1).to(WIDE)
    ds.freeze_ground(net, (9, 8), ground=0.5)
    seen = []
    net[1].register_forward_hook(lambda m, args, out: seen.append(out))
    inner = nn.Conv2d(4, 3, 3).to(WIDE)
    x, _ = image(rng, (9, 8))
    x = ds.SparseTensor(x.features, x.coords, (9, 8), 2, ground=0.5)
    for _ in range(3):
        with torch.no_grad():
            assert close(head(net(x)), head(net(x.to_dense())))
            assert close(inner(seen[-2]), inner(seen[-1]))
            for parameter in (*head.parameters(), *inner.parameters()):
                parameter.mul_(1.5)


# ------------------------------------------------------------------ computed once
def test_frozen_grounds_are_not_computed_again(rng, monkeypatch):
    net, counter = randomized(UNet, False), Counter(monkeypatch)
    x, _ = image(rng, (16, 20))
    with torch.no_grad():
        _, unfrozen = counter.during(net, x)
        _, freezing = counter.during(ds.freeze_ground, net, (16, 20))
        counts = [counter.during(net, image(rng, (16, 20))[0])[1] for _ in range(3)]
        _, again = counter.during(ds.freeze_ground, net, (16, 20))
    assert unfrozen > 0 and freezing > 0, "this proves nothing"
    assert counts == [0, 0, 0] and again == 0
    with torch.no_grad():
        assert counter.during(ds.thaw(net), x)[1] == unfrozen


def test_nothing_is_remembered_where_gradients_are_recorded(rng, monkeypatch):
    net, counter = small(), Counter(monkeypatch)
    ds.freeze_ground(net, (9, 8), ground=0.5)
    x, _ = image(rng, (9, 8))
    x = ds.SparseTensor(x.features, x.coords, (9, 8), 2, ground=0.5)
    got, n = counter.during(net, x)
    assert n > 0 and close(got.to_dense().detach(), net(x.to_dense()).detach())
    got.to_dense().sum().backward()
    mine = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x.to_dense()).sum().backward()
    assert all(close(a, p.grad) for a, p in zip(mine, net.parameters()))
    with torch.no_grad():
        assert counter.during(net, x)[1] == 0


def test_inference_mode_and_no_grad_in_turn(rng):
    net = small()
    x, dense = image(rng, (9, 8))
    with torch.inference_mode():
        ds.freeze_ground(net, (9, 8))
        assert close(net(x), net(dense))
    with torch.no_grad():
        assert close(net(x), net(dense))
    net(x).to_dense().sum().backward()
    assert net[0].weight.grad is not None


# ------------------------------------------------------------------ parameters that change
def test_changes_after_thaw_are_seen(rng):
    net = small()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net, (9, 8))
    with torch.no_grad():
        net(x)
        ds.thaw(net)
        net[0].weight.mul_(2.0)
        net[0].bias.add_(1.0)
        assert close(net(x), net(dense))
    assert ds.thaw(net) is net, "a model that is not frozen can be thawed"
    left = (net._forward_pre_hooks, net._forward_hooks, net._load_state_dict_post_hooks)
    assert not any(left), "thaw left hooks"
    assert all("train" not in m.__dict__ for m in net.modules())


@pytest.mark.parametrize("part", ("", "0", "2"))
def test_training_any_part_thaws(part, rng):
    net = small()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net, (9, 8))
    with torch.no_grad():
        net(x)
    module = net.get_submodule(part)
    assert module.train() is module and module.training
    train_a_step(net, dense)
    assert module.eval() is module and not module.training
    with torch.no_grad():
        assert close(net(x), net(dense))


@pytest.mark.parametrize("part", ("", "0"))
def test_loading_weights_into_any_part_thaws(part, rng):
    net = small()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net, (9, 8))
    module = net.get_submodule(part)
    with torch.no_grad():
        net(x)
        module.load_state_dict({name: 0.5 * v + 1 for name, v in module.state_dict().items()})
        assert close(net(x), net(dense))


def test_a_new_parameter_is_another_one(rng):
    net = small()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net, (9, 8))
    with torch.no_grad():
        net[0] = nn.Conv2d(3, 4, 3, padding=1).to(WIDE)
        net[2].bias = nn.Parameter(torch.ones(2, dtype=WIDE))
        for _ in range(2):
            assert close(net(x), net(dense))


def test_a_part_and_the_whole_frozen(rng):
    """Each keeps its own grounds; training thaws both, and thawing one leaves the other."""
    net = nn.Sequential(small(), nn.Conv2d(2, 3, 3, padding=1).to(WIDE)).eval()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net[0], (9, 8))
    ds.freeze_ground(net, (9, 8))
    with torch.no_grad():
        assert close(net(x), net(dense)) and close(net[0](x), net[0](dense))
    net[0][0].train()
    train_a_step(net, dense)
    net.eval()
    with torch.no_grad():
        assert close(net(x), net(dense)) and close(net[0](x), net[0](dense))
    ds.freeze_ground(net[0], (9, 8))
    ds.freeze_ground(net, (9, 8))
    ds.thaw(net[0])
    net[0].train()
    train_a_step(net, dense)
    net.eval()
    with torch.no_grad():
        assert close(net(x), net(dense)) and close(net[0](x), net[0](dense))
    ds.thaw(net)
    assert all("train" not in m.__dict__ for m in net.modules())


def test_a_train_method_of_the_users_own_stays():
    net, calls = small(), []
    own = net[0].__dict__["train"] = lambda mode=True: calls.append(mode) or net[0]
    ds.freeze_ground(net, (9, 8))
    net.train()
    assert calls == [True]
    ds.thaw(net)
    assert net[0].__dict__["train"] is own


def test_an_error_in_forward_leaves_nothing_behind(rng):
    net = small()
    x, dense = image(rng, (9, 8))
    ds.freeze_ground(net, (9, 8))
    handle = net[1].register_forward_hook(lambda *_: 1 / 0)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(ZeroDivisionError):
            net(x)
    assert not _memo.frozen_models.items
    handle.remove()
    with torch.no_grad():
        assert close(net(x), net(dense))
    bad = nn.Sequential(small(), nn.Conv2d(7, 1, 1).to(WIDE)).eval()
    with pytest.raises(ValueError, match="channels"):
        ds.freeze_ground(bad, (9, 8))
    assert "train" not in bad.__dict__ and not bad._forward_pre_hooks


# ------------------------------------------------------------------ copies
def by_pickle(net):
    return pickle.loads(pickle.dumps(net))


def by_torch_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", (copy.deepcopy, by_pickle, by_torch_save))
def test_copies_are_not_frozen(how, rng, monkeypatch):
    net = randomized(UNet, False)
    x, dense = image(rng, (16, 20))
    ds.freeze_ground(net, (16, 20))
    counter = Counter(monkeypatch)
    with torch.no_grad():
        twin = how(net)
        got, n = counter.during(twin, x)
        assert n > 0 and close(got, net(dense))
        for p in twin.parameters():
            p.mul_(1.1)
        assert close(twin(x), twin(dense))
        got, n = counter.during(net, x)
        assert n == 0 and close(got, net(dense))
        ds.freeze_ground(twin, (16, 20))
        assert close(twin(x), twin(dense)) and counter.during(twin, x)[1] == 0
    twin.train()
    assert all(m.training for m in twin.modules()) and not any(m.training for m in net.modules())
    ds.thaw(twin)
    assert set(twin.state_dict()) == set(net.state_dict())


def test_copies_of_a_frozen_tensor(rng):
    """A ground in flight knows parameters by identity: its copies must not."""
    net = small()
    ds.freeze_ground(net, (9, 8), ground=0.5)
    seen = []
    net[1].register_forward_hook(lambda m, args, out: seen.append(out))
    x, _ = image(rng, (9, 8))
    with torch.no_grad():
        net(ds.SparseTensor(x.features, x.coords, (9, 8), 2, ground=0.5))
    assert seen[0].ground.memo is not None
    for twin in (copy.deepcopy(seen[0]), by_pickle(seen[0])):
        assert twin.ground.memo is None and torch.equal(twin.to_dense(), seen[0].to_dense())


# ------------------------------------------------------------------ wrong on purpose
WRONG = {
    "freeze: no module": (lambda: ds.freeze_ground(len, (9, 8)), TypeError, "nn.Module"),
    "freeze: training": (lambda: ds.freeze_ground(small().train(), (9, 8)), RuntimeError, "eval"),
    "freeze: shape": (lambda: ds.freeze_ground(small(), (9, -8)), ValueError, "extents"),
    "freeze: shape type": (lambda: ds.freeze_ground(small(), "ab"), TypeError, "spatial_shape"),
    "freeze: axes": (lambda: ds.freeze_ground(small(), (9, 8, 7)), ValueError, "axes"),
    "freeze: None": (lambda: ds.freeze_ground(small(), (9, 8), None), ValueError, "None"),
    "freeze: NaN": (lambda: ds.freeze_ground(small(), (9, 8), float("nan")), ValueError, "finite"),
    "freeze: channels": (lambda: ds.freeze_ground(nn.ReLU().eval(), (9,)), ValueError, "channels"),
    "freeze: ground": (
        lambda: ds.freeze_ground(small(), (9, 8), torch.zeros(1, 3, 4, 4)),
        ValueError,
        "ground",
    ),
    "thaw: no module": (lambda: ds.thaw(3), TypeError, "nn.Module"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_says_what_is_wrong(what):
    call, kind, words = WRONG[what]
    with pytest.raises(kind, match=words) as error:
        call()
    assert str(error.value).split(":")[0].split()[0] in (
        "freeze_ground", "thaw", "conv2d",
    ), str(error.value)  # fmt: skip
