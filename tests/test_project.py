"""Projected training: exactly s kept after each step, and what was dropped may come back."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import doublesparse as ds

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.05),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.05, fused=True),
}
DATA = torch.Generator().manual_seed(3)
X, Y = torch.randn(30, 12, generator=DATA), torch.randint(4, (30,), generator=DATA)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        ds.nn.ProjectedLinear(12, 10, pattern=ds.TopKRows(3)),
        nn.Tanh(),
        ds.nn.ProjectedLinear(10, 4, pattern=ds.TopKColumns(2)),
    )


def top(weight: np.ndarray, s: int) -> np.ndarray:
    """The s largest |w| of each row, lower index on ties: a stable sort, in numpy."""
    order = np.argsort(-np.abs(weight), axis=1, kind="stable")[:, :s]
    kept = np.zeros(weight.shape, bool)
    np.put_along_axis(kept, order, True, axis=1)
    return np.where(kept, weight, 0)


def loss(net: nn.Module) -> torch.Tensor:
    return F.cross_entropy(net(X), Y)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_the_same_optimizer_and_numpy(name):
    """A step is the plain optimizer's step, then a sort: values, momenta and all."""
    net, plain = network(), network()
    optimizer, twin = OPTIMIZERS[name](net.parameters()), OPTIMIZERS[name](plain.parameters())
    handle = ds.prune.Project(net).attach(optimizer)
    for _ in range(6):
        for model, opt in ((net, optimizer), (plain, twin)):
            opt.zero_grad()
            loss(model).backward()
            opt.step()
        with torch.no_grad():
            for index, rows in ((0, True), (2, False)):
                w = plain[index].weight.numpy()
                w[:] = top(w, 3) if rows else top(w.T, 2).T
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert (net[0].weight != 0).sum(1).tolist() == [3] * 10
    assert (net[2].weight != 0).sum(0).tolist() == [2] * 10
    handle.remove()
    loss(net).backward()
    optimizer.step()
    assert int((net[0].weight != 0).sum()) > 30


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_entries_re_enter(name):
    net = network()
    before = net[0].weight.detach() != 0
    optimizer = OPTIMIZERS[name](net.parameters())
    project = ds.prune.Project(net)
    for _ in range(40):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        project.step()
    after = net[0].weight.detach() != 0
    assert bool((after & ~before).any()) and int(after.sum()) == int(before.sum())
    state = optimizer.state[net[0].weight]
    momentum = state.get("momentum_buffer", state.get("exp_avg"))
    assert bool((momentum[~after] != 0).any())  # dense


def test_ties_keep_the_lower_index():
    weight = torch.ones(3, 4)
    net = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(weight)
    ds.prune.Project(net, patterns={"weight": ds.TopKRows(2)})
    assert net.weight.tolist() == [[1.0, 1.0, 0.0, 0.0]] * 3
    with torch.no_grad():
        net.weight.copy_(weight)
    ds.prune.Project(net, patterns={"": ds.TopKColumns(1)})
    assert net.weight.tolist() == [[1.0] * 4, [0.0] * 4, [0.0] * 4]


def test_every_and_resuming():
    net = network()
    project = ds.prune.Project(net, every=3)

    def densify():
        with torch.no_grad():
            net[0].weight.add_(1.0)

    for step in range(1, 8):
        densify()
        project.step()
        assert (int((net[0].weight != 0).sum()) == 30) == (step % 3 == 0)
    resumed = ds.prune.Project(net, every=3)
    resumed.load_state_dict(project.state_dict())
    for dense in (True, False):
        densify()
        resumed.step()
        assert (int((net[0].weight != 0).sum()) > 30) == dense


def test_any_module_may_declare():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 4))
            self.constraints = {"left": ds.TopKRows(2), "right": ds.NM(1, 2)}

    net = nn.Sequential(Bilinear(), nn.Conv2d(3, 5, 3))
    conv = net[1].weight.detach().clone()
    ds.prune.Project(net, patterns={"1": ds.TopKRows(7), "0.left": ds.TopKRows(1)})
    assert (net[0].left != 0).sum(1).tolist() == [1] * 4  # the caller goes first
    assert (net[0].right != 0).sum(1).tolist() == [2] * 6
    want = top(conv.permute(0, 2, 3, 1).reshape(5, -1).numpy(), 7)  # no ties in random numbers
    np.testing.assert_array_equal(net[1].weight.detach().permute(0, 2, 3, 1).reshape(5, -1), want)


def test_freeze_thaw_and_copies():
    net = network().eval()
    before, parameters = loss(net).item(), list(net.parameters())
    patterns = [net[0].pattern, net[2].pattern]
    dense_state = copy.deepcopy(net.state_dict())
    project = ds.prune.Project(net)
    ds.prune.freeze(net)
    assert repr(net).count("PackedProjectedLinear") == 2
    assert [net[0].packed.n_kept, net[2].packed.n_kept] == [30, 20]
    assert net[0].packed.pattern == patterns[0]
    assert loss(net).item() == pytest.approx(before, rel=1e-6)
    project.step()  # nothing to do
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(X), net(X))
    other = network().eval()
    with torch.no_grad():
        other[0].weight.normal_()
    other.load_state_dict(net.state_dict())  # packed into dense
    assert torch.equal(other[0].weight, dense_state["0.weight"])
    ds.prune.freeze(other)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))  # packed into packed
    assert torch.equal(other(X), net(X))
    other.load_state_dict(dense_state)  # dense into packed: thaws
    assert type(other[0]) is ds.nn.ProjectedLinear
    net.train()  # thaws
    assert [type(net[0]), net[0].pattern, net[2].pattern] == [ds.nn.ProjectedLinear, *patterns]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for name, value in net.state_dict().items():
        assert torch.equal(value, dense_state[name])
    optimizer = OPTIMIZERS["sgd"](net.parameters())  # and no mask stays behind
    loss(net).backward()
    optimizer.step()
    assert int((net[0].weight != 0).sum()) > 30


def test_freeze_keeps_the_pattern_of_a_weight_that_moved():
    net = ds.nn.ProjectedLinear(6, 4, pattern=ds.TopKRows(2))
    with torch.no_grad():
        net.weight.normal_()
    want = top(net.weight.detach().numpy(), 2)
    np.testing.assert_array_equal(ds.prune.freeze(net.eval()).packed.unpack(), want)
    np.testing.assert_array_equal(ds.thaw(net).weight.detach(), want)


def test_other_tools_leave_it_alone():
    net = network().eval()
    assert set(ds.prune.skipped(net)) == {"0", "2"}
    frozen = ds.prune.freeze(net)
    assert type(ds.prune.sparsify_(frozen, 0.5)[0]) is ds.nn.PackedProjectedLinear
    with pytest.raises(RuntimeError, match="set_mask: mask must come from"):
        frozen[0].set_mask(torch.ones(10, 12, dtype=torch.bool))
    assert type(ds.prune.densify_(frozen)[0]) is ds.nn.ProjectedLinear


def test_wrong_arguments():
    net = network()
    with pytest.raises(TypeError, match="Project: model must be an nn.Module"):
        ds.prune.Project([net])
    for every in (0, -1):
        with pytest.raises(ValueError, match="Project: every must be at least 1"):
            ds.prune.Project(net, every)
    with pytest.raises(TypeError, match="Project: every must be an int"):
        ds.prune.Project(net, 1.0)
    with pytest.raises(TypeError, match="Project: patterns must be a mapping"):
        ds.prune.Project(net, patterns=ds.TopKRows(2))
    with pytest.raises(TypeError, match="Project: pattern must be a pattern object"):
        ds.prune.Project(net, patterns={"0": 2})
    with pytest.raises(ValueError, match="pattern must say how many"):
        ds.prune.Project(net, patterns={"0": ds.Unstructured()})
    with pytest.raises(ValueError, match="must name parameters or layers"):
        ds.prune.Project(net, patterns={"7": ds.TopKRows(2)})
    with pytest.raises(ValueError, match="two axes or more"):
        ds.prune.Project(net, patterns={"0.bias": ds.TopKRows(2)})
    with pytest.raises(ValueError, match="without a mask"):
        ds.prune.Project(ds.nn.MaskedLinear(4, 4), patterns={"": ds.TopKRows(2)})
    with pytest.raises(ValueError, match="must have a parameter to project"):
        ds.prune.Project(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="attach: optimizer must be"):
        ds.prune.Project(net).attach(net)
    with pytest.raises(ValueError, match="ProjectedLinear: pattern must say how many"):
        ds.nn.ProjectedLinear(4, 4, pattern=ds.Block(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [ds.TopKRows(3), ds.TopKColumns(2), ds.NM(1, 2)], ids=str)
def test_what_is_projected_is_what_the_mask_keeps(pattern, dtype):
    """Ties, zeros, NaN, the least of numbers and strides, by the mask that sorting confirms."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    values = torch.randint(-2, 3, (8, 12)).to(dtype)
    values[0], values[1], values[:, 1] = 0, torch.nan, torch.nan
    values[2], values[:, 5] = least, least
    for weight in (values, values.t().contiguous().t(), torch.randn(8, 12).to(dtype)):
        layer = ds.nn.ProjectedLinear(12, 8, dtype=dtype, pattern=pattern)
        layer.weight = torch.nn.Parameter(weight.clone())
        for _ in range(2):  # the second time, most are zeros
            mask = ds.prune.magnitude_mask(layer.weight, pattern)
            want = torch.where(mask, layer.weight, 0.0)
            layer.project_()
            torch.testing.assert_close(layer.weight, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("state", [{}, None, {"n_steps": "3"}])
def test_wrong_state(state):
    with pytest.raises(ValueError, match="n_steps|NoneType"):
        ds.prune.Project(network()).load_state_dict(state)
