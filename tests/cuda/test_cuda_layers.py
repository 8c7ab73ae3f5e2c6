"""Layers and networks on device tensors give what they give on the CPU, gradients included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from emulated_device import Traffic
from torch import Tensor, nn

import doublesparse as ds
from doublesparse import functional as F
from doublesparse._precision import for_torch

pytestmark = pytest.mark.usefixtures("traffic")


@pytest.fixture(autouse=True)
def _sparse_everywhere() -> Iterator[None]:
    """Our own kernels run in all layers."""
    ds.set_crossover(None)
    yield
    ds.set_crossover("auto")


def _integers(*shape: int, seed: int = 0, most: int = 3) -> Tensor:
    """Small whole numbers: sums of products of them are exact in any order."""
    made = torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))
    return made.float()


def _input(spatial: tuple[int, ...], channels: int, ground: Any = 0.0, batch: int = 2) -> Any:
    cells = torch.rand(batch, *spatial, generator=torch.Generator().manual_seed(1)) < 0.2
    coords = cells.nonzero()
    features = _integers(len(coords), channels, seed=2)
    return ds.SparseTensor(features, coords, spatial, batch, ground)


def _whole(module: nn.Module) -> nn.Module:
    """Parameters are small whole numbers."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(_integers(*p.shape, seed=10 + i, most=2))
    return module


def _on_both(
    f: Callable[[Any, nn.Module], Any], x: ds.SparseTensor, module: nn.Module, atol: float = 0.0
) -> None:
    """f(x, module) and its gradients, here and there."""
    results = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(module).to(device)
        there = x.to(device)
        features = there.features.detach().requires_grad_()
        there = there.replace(features)
        out = f(there, own)
        dense = out if isinstance(out, Tensor) else out.to_dense()
        assert dense.device.type == device
        (dense * _weights(dense.shape).to(device)).sum().backward()
        grads = [features.grad, *(p.grad for p in own.parameters())]
        assert all(g is not None and g.device.type == device for g in grads)
        sites = None if isinstance(out, Tensor) else out.sites
        results.append((sites, [t.detach().cpu() for t in (dense, *grads)]))
    (sites, wanted), (got_sites, got) = results
    assert sites is None or torch.equal(sites.coords, got_sites.coords.cpu())
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b, a, rtol=0 if atol == 0 else 1e-5, atol=atol)


def _weights(shape: Any) -> Tensor:
    return _integers(*shape, seed=3, most=2)


GROUNDS = {"zero": 0.0, "none": None, "value": 1.0, "image": "image"}


def _with_ground(kind: str, spatial: tuple[int, ...], channels: int) -> ds.SparseTensor:
    ground = GROUNDS[kind]
    if ground == "image":
        ground = _integers(1, channels, *spatial, seed=4)
    return _input(spatial, channels, ground)


# ------------------------------------------------------------------ tensors
def test_to_and_from() -> None:
    x = _input((5, 6), 3)
    there = x.cuda()
    assert there.device.type == "cuda" and there.coords.is_cuda and there.sites.keys.is_cuda
    assert torch.equal(there.cpu().to_dense(), x.to_dense())
    assert torch.equal(there.to_dense().cpu(), x.to_dense())
    again = ds.SparseTensor.from_dense(x.to_dense().cuda())
    assert torch.equal(again.coords.cpu(), x.coords)
    order = torch.randperm(len(x.coords), generator=torch.Generator().manual_seed(5))
    mixed = ds.SparseTensor(x.features[order].cuda(), x.coords[order].cuda(), (5, 6), 2)
    assert torch.equal(mixed.features.cpu(), x.features)
    twice = torch.cat([x.coords, x.coords]).cuda()
    for how in ("sum", "mean", "max", "first"):
        many = torch.cat([x.features, x.features + 1])
        got = ds.SparseTensor(many.cuda(), twice, (5, 6), 2, duplicates=how)
        wanted = ds.SparseTensor(many, twice.cpu(), (5, 6), 2, duplicates=how)
        assert torch.equal(got.features.cpu(), wanted.features)


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_to_dense(ground: str) -> None:
    x = _with_ground(ground, (4, 5), 2)
    assert torch.equal(x.cuda().to_dense().cpu(), x.to_dense())
    assert torch.equal(x.cuda().cpu().to_dense(), x.to_dense())


# ------------------------------------------------------------------ layers
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d(ground: str, stride: int) -> None:
    layer = _whole(ds.nn.SparseConv2d(3, 4, 3, stride=stride, padding=1))
    _on_both(lambda x, m: m(x), _with_ground(ground, (6, 5), 3), layer)


@pytest.mark.parametrize("ground", GROUNDS)
def test_transposed(ground: str) -> None:
    layer = _whole(ds.nn.SparseConvTranspose2d(3, 2, 3, stride=2, padding=1))
    _on_both(lambda x, m: m(x), _with_ground(ground, (4, 5), 3), layer)


def test_pointwise_and_groups() -> None:
    _on_both(lambda x, m: m(x), _input((4, 5), 4, 1.0), _whole(ds.nn.SparseConv2d(4, 6, 1)))
    grouped = _whole(ds.nn.SparseConv2d(4, 6, 3, padding=1, groups=2))
    _on_both(lambda x, m: m(x), _input((4, 5), 4, 1.0), grouped)


def test_submanifold() -> None:
    layer = _whole(ds.nn.SubmanifoldConv3d(3, 4, 3))
    _on_both(lambda x, m: m(x), _input((4, 3, 5), 3), layer)


def test_inverse() -> None:
    def there_and_back(x: Any, m: nn.Module) -> Any:
        y = m(x.replace(ground=None))
        return F.inverse_conv2d(y, m.weight, like=x, stride=2)

    down = _whole(ds.nn.SparseConv2d(3, 2, 2, stride=2, bias=False))
    _on_both(there_and_back, _input((6, 4), 3), down)


def test_masked() -> None:
    layer = _whole(ds.nn.SparseConv2d(3, 4, 3, padding=1))
    mask = _integers(4, 3, 3, 3, seed=6) > 0

    def run(x: Any, m: nn.Module) -> Any:
        return F.conv2d(x, m.weight, m.bias, padding=1, mask=mask.to(x.device))

    _on_both(run, _input((6, 5), 3, 1.0), layer)


POOLS: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max overlapping": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average padded": lambda x: F.avg_pool2d(x, 4, 2, 1),
    "global average": F.global_avg_pool,
    "global maximum": F.global_max_pool,
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
    "adaptive maximum": lambda x: nn.functional.adaptive_max_pool2d(x, 2),
    "relu": torch.relu,
    "residual": lambda x: x + F.max_pool2d(x, 3, 1, 1),
    "difference": lambda x: x - F.max_pool2d(x, 3, 1, 1),
    "side by side": lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1),
    "nearest": lambda x: nn.functional.interpolate(x, scale_factor=2),
    "padded": lambda x: nn.functional.pad(x, (1, 2, 0, 1)),
    "flipped": lambda x: x.flip(2),
    "cropped": lambda x: x[:, :, 1:4],
    "one sample": lambda x: x[1:],
    "shuffled": lambda x: nn.functional.pixel_shuffle(torch.cat([x, x], 1), 2),
    "unshuffled": lambda x: nn.functional.pixel_unshuffle(x[:, :, :, :4], 2),
    "sum": lambda x: x.sum((2, 3)),
}


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("name", POOLS)
def test_functions(name: str, ground: str) -> None:
    x = _with_ground(ground, (6, 5), 2)
    _on_both(lambda x, _: POOLS[name](x), x, nn.Identity(), atol=1e-6)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(ground: str, training: bool) -> None:
    norm = nn.BatchNorm2d(3).train(training)
    nn.init.constant_(norm.weight, 2.0)
    _on_both(lambda x, m: m(x), _with_ground(ground, (6, 5), 3), norm, atol=1e-5)


@pytest.mark.parametrize("ground", GROUNDS)
def test_other_norms(ground: str) -> None:
    _on_both(lambda x, m: m(x), _with_ground(ground, (6, 5), 4), nn.GroupNorm(2, 4), atol=1e-5)
    instance = nn.InstanceNorm2d(4, affine=True)
    _on_both(lambda x, m: m(x), _with_ground(ground, (6, 5), 4), instance, atol=1e-5)


# ------------------------------------------------------------------ networks
class _Block(nn.Module):
    """A residual block of torch's own layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.b(torch.relu(self.norm(self.a(x)))))


@pytest.mark.parametrize("ground", GROUNDS)
def test_residual_block(ground: str) -> None:
    torch.manual_seed(0)
    _on_both(lambda x, m: m(x), _with_ground(ground, (7, 6), 3), _Block(3), atol=1e-4)


def test_deepcnet() -> None:
    torch.manual_seed(0)
    net = ds.models.DeepCNet(levels=2, width=3, n_classes=4).eval()
    _on_both(lambda x, m: m(x), _input((12, 12), 1), net, atol=1e-4)


def test_deepcnet_in_training() -> None:
    """With its dropout of features, which draws on the host."""

    def seeded(x: Any, m: nn.Module) -> Any:
        torch.manual_seed(5)
        return m.train()(x)

    net = ds.models.DeepCNiN(levels=2, width=4, n_classes=3, dropout=0.5)
    _on_both(seeded, _input((12, 12), 1), net, atol=1e-4)


def test_frozen_grounds_and_incremental() -> None:
    torch.manual_seed(6)
    convs = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
    net = nn.Sequential(convs[0], nn.BatchNorm2d(4), nn.ReLU(), convs[1])
    net.eval()
    frame, background = torch.randn(2, 1, 2, 9, 8)
    frame[..., 2:, :] = background[..., 2:, :]
    x = ds.SparseTensor.from_dense(frame)
    with torch.no_grad():
        want = [net(x).to_dense(), ds.Incremental(net, background)(frame).to_dense()]
        own = copy.deepcopy(net).to("cuda")
        step = ds.Incremental(own, background.to("cuda"))
        got = [step(frame.to("cuda")).to_dense() for _ in range(2)]
        ds.freeze_ground(own, (9, 8))
        got = [own(x.to("cuda")).to_dense(), *got]
    for a, b in zip((want[0], want[1], want[1]), got, strict=True):
        assert b.is_cuda
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-5)


def test_crossover() -> None:
    """Where layers run dense, torch's kernels run on the device."""
    ds.set_crossover("auto")
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        _on_both(lambda x, m: m(x), _with_ground("value", (6, 6), 3), _Block(3), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_torchs_kernels_get_what_the_device_multiplies(dtype: torch.dtype) -> None:
    values = torch.ones(2).to("cuda", dtype)
    assert for_torch(values) is values and for_torch(None) is None
    ds.set_crossover("auto")
    features = _integers(25, 3).to(dtype)
    cells = torch.ones(1, 5, 5).nonzero()
    x = ds.SparseTensor(features, cells, (5, 5), 1).to("cuda")
    layer = _whole(nn.Conv2d(3, 4, 3, padding=1)).to("cuda", dtype)
    operands = (x.to_dense(), layer.weight, layer.bias)
    want = nn.functional.conv2d(*(t.detach().cpu().double() for t in operands), padding=1)
    with torch.no_grad():
        assert torch.equal(layer(x).to_dense().cpu(), want.to(dtype))


def test_training_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2))
    after = []
    for device in ("cpu", "cuda"):
        own = copy.deepcopy(net).to(device)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            loss = F.global_avg_pool(own(_input((8, 8), 2).to(device))).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after.append([p.detach().cpu() for p in own.parameters()])
    for a, b in zip(*after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


LAYERS = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 4, 2, stride=2),
    "submanifold": lambda: ds.nn.SubmanifoldConv2d(3, 4, 3, ground="drop"),
    "normalization": lambda: nn.BatchNorm2d(3),
    "maximum": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
}


@pytest.mark.parametrize("ground", [0.0, None])
@pytest.mark.parametrize("name", LAYERS)
def test_the_host_waits_for_sizes_alone(name: str, ground: Any, traffic: Traffic) -> None:
    """A few numbers where there are new output sites; on known sites nothing at all."""
    layer = LAYERS[name]().to("cuda")
    for _ in range(2):
        x = _input((6, 5), 3, ground).to("cuda")
        before = traffic.reads
        layer(x)
        assert traffic.reads - before <= 3
        before = traffic.reads
        layer(x)
        assert traffic.reads == before
