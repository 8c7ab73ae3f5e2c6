"""Unmodified networks: outputs, parameter gradients, gradients at active sites and of the ground,
buffers, equal to the dense network's (float64).
"""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
import torch.nn as nn

import doublesparse as ds
import oracle
from checks import densify
from inputs import site_set
from networks import NETWORKS

KINDS = ("strokes", "empty sample", "one", "all", "none")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def randomized(make, train: bool) -> nn.Module:
    """A network whose norms are not at their starting values, where a mistake would not show."""
    net = make().to(torch.float64)
    for m in net.modules():
        if isinstance(m, NORMS):
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias, 0, 0.5)
        if isinstance(m, NORMS[0]):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    return net.train(train)


def background(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    if kind == "zero":
        return torch.zeros(3, dtype=torch.float64)
    if kind == "constant":
        return torch.tensor([0.7, -0.3, 1.1], dtype=torch.float64)
    return torch.randn(1, 3, *shape, dtype=torch.float64)


def modules_gradients(net: nn.Module, leaves: dict) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients grouped by layer: each is measured against the layer's largest."""
    groups: dict[str, dict[str, torch.Tensor]] = {"input": {}}
    for name, p in leaves.items():
        groups["input"][name] = torch.zeros_like(p) if p.grad is None else p.grad
    for name, p in net.named_parameters():
        layer, _, leaf = name.rpartition(".")
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        groups.setdefault(layer, {})[leaf] = grad
    return groups


def run(net, make_x, leaves: dict, seed: int = 1):
    torch.manual_seed(seed)
    out = densify(net(make_x(leaves["features"], leaves["ground"])))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (out * weights).sum().backward()
    return out.detach()


def fresh(features, ground) -> dict:
    return {
        "features": features.clone().requires_grad_(),
        "ground": ground.clone().requires_grad_(),
    }


def compare(name: str, kind: str, train: bool, ground_kind: str, rng) -> None:
    make, shape, batch = NETWORKS[name]
    coords = site_set(rng, batch, shape, kind)
    features = torch.randn(len(coords), 3, dtype=torch.float64)
    ground = background(ground_kind, shape)
    net = randomized(make, train)
    reference = copy.deepcopy(net)

    def sparse(f, g):
        return ds.SparseTensor(f, coords, shape, batch, ground=g)

    def dense(f, g):
        return oracle.scatter(f, coords, shape, batch, g)

    mine, theirs = fresh(features, ground), fresh(features, ground)
    got, want = run(net, sparse, mine), run(reference, dense, theirs)
    where = f"{name} {kind} train={train} ground={ground_kind}"
    assert float(want.abs().max()) > 0, f"{where}: this proves nothing"
    assert got.shape == want.shape
    error = float((got - want).abs().max()) / float(want.abs().max())
    assert error <= 1e-10, f"{where}: output off by {error}"
    got, want = modules_gradients(net, mine), modules_gradients(reference, theirs)
    everything = max(float(g.abs().max()) for d in want.values() for g in d.values() if g.numel())
    for layer, grads in want.items():
        largest = max([float(g.abs().max()) for g in grads.values() if g.numel()], default=0.0)
        # a bias in front of a batch norm has no gradient but rounding, and so has its layer where
        # the input is constant: then the network's own largest gradient is the measure
        largest = largest if largest > 1e-9 * everything else everything
        for leaf, truth in grads.items():
            if truth.numel():
                error = float((got[layer][leaf] - truth).abs().max()) / largest
                assert error <= 1e-10, f"{where}: gradient of {layer}.{leaf} off by {error}"
    for (label, a), b in zip(net.named_buffers(), reference.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), f"{where}: buffer {label}"


@pytest.mark.parametrize("train", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("name", NETWORKS)
def test_exact(name, train, rng):
    """Every kind of batch; zero and constant ground."""
    for kind, ground_kind in product(KINDS, ("zero", "constant")):
        compare(name, kind, train, ground_kind, rng)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_with_a_background_frame(name, rng):
    """One class per position: incremental inference, and its gradients."""
    for kind, train in product(("strokes", "empty sample"), (True, False)):
        compare(name, kind, train, "frame", rng)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_where_layers_may_run_dense(name, rng):
    """The shipped crossover decides for itself; the answer stays."""
    for crossover in ("auto", 0.3):
        ds.set_crossover(crossover)
        for kind, ground_kind in (("strokes", "constant"), ("all", "zero"), ("one", "zero")):
            compare(name, kind, True, ground_kind, rng)


def test_from_dense_is_all_a_user_writes(rng):
    """An image in, the dense network's answer out, float32."""
    net = NETWORKS["resnet18"][0]().eval()
    image = torch.zeros(2, 3, 48, 40)
    image[0, :, 10:20, 7:9] = torch.randn(3, 10, 2)
    with torch.no_grad():
        out, want = net(ds.SparseTensor.from_dense(image)), net(image)
    assert type(out) is torch.Tensor
    assert torch.allclose(out, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_images_that_differ_from_a_frame_in_a_few_pixels(rng):
    """from_dense(frame, ground=background): active is what changed, the answer is exact."""
    net = randomized(NETWORKS["vgg_bn"][0], False)
    frame = torch.randn(1, 3, 24, 26, dtype=torch.float64)
    image = frame.expand(2, -1, -1, -1).clone()
    image[0, 1, 3:6, 4] += 1.0
    x = ds.SparseTensor.from_dense(image, ground=frame)
    assert len(x.coords) == 3
    assert torch.allclose(net(x), net(image), rtol=1e-10, atol=1e-12)


def test_training_makes_the_same_steps():
    """Five steps of SGD with momentum: the same weights as the dense twin, to rounding."""
    torch.manual_seed(0)
    net = randomized(NETWORKS["vgg_bn"][0], True)
    twin = copy.deepcopy(net)
    image = torch.zeros(4, 3, 24, 26, dtype=torch.float64)
    image[:, :, 5:15, 8:10] = torch.randn(4, 3, 10, 2, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3])
    for model, x in ((net, ds.SparseTensor.from_dense(image)), (twin, image)):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-7, atol=1e-9)
