"""The stand-in for a CUDA device behaves as one where the package could tell the difference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from emulated_device import EmulatedTensor, Traffic, emulated_cuda

import doublesparse as ds
from doublesparse import _C, _gpu_ops, ops


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    kernels = pytest.importorskip("doublesparse._emulated", reason="no emulated kernels")
    with emulated_cuda(kernels) as counted:
        yield counted


def test_says_cuda(traffic: Traffic) -> None:
    x = torch.arange(6.0, device="cuda").view(2, 3)
    made = [x, x + 1, x.new_empty(3), torch.zeros_like(x), torch.ones(2).cuda(), x[0], x.T]
    made += [torch.ones(2).to("cuda"), torch.ones(2).to(x), torch.as_tensor([1.0], device="cuda")]
    made += [x.to(torch.float64), x.new_tensor([1]), torch.cat([x, x]), torch.ones(1).to(x.device)]
    for t in made:
        assert isinstance(t, EmulatedTensor)
        assert t.device == torch.device("cuda:0") and t.is_cuda and not t.is_cpu
    for t in (x.cpu(), x.to("cpu"), torch.zeros(2), x.new_empty(2, device="cpu")):
        assert type(t) is torch.Tensor and t.device.type == "cpu"


def test_numbers(traffic: Traffic) -> None:
    x = torch.arange(6.0).view(2, 3)
    y = x.cuda()
    y[0] = 7
    y.mul_(2)[:, 1].add_(1)
    x[0] = 7
    x.mul_(2)[:, 1].add_(1)
    assert torch.equal(y.cpu(), x)
    assert y.T.contiguous().tolist() == x.T.tolist()
    assert torch.equal(y[y > 6].cpu(), x[x > 6])
    copied = torch.empty(2, 3)
    copied.copy_(y)
    assert torch.equal(copied, x)


def test_mixing_is_refused(traffic: Traffic) -> None:
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3) @ x
    assert (x + torch.tensor(2.0)).sum().item() == 9
    with pytest.raises(TypeError, match="convert cuda"):
        x.numpy()
    with pytest.raises(RuntimeError, match="on the CPU"):
        _C.coords_to_keys(torch.zeros(1, 2, dtype=torch.int32).cuda(), (4,), torch.zeros(1), 1)
    with pytest.raises(RuntimeError, match="got a tensor on the CPU"):
        _gpu_ops.linear_keys(torch.zeros(1, 2, dtype=torch.int32), (4,))


def test_counts(traffic: Traffic) -> None:
    x = torch.arange(4.0, device="cuda")
    assert (traffic.reads, traffic.uploads) == (0, 0)
    total = x.sum() * 2 + x[1]
    assert traffic.reads == 0
    assert total.item() == 13 and bool(x.any()) and x.tolist()[3] == 3
    assert traffic.reads == 3
    x.nonzero(), x[x > 1], x.cpu(), torch.equal(x, x)
    assert traffic.reads == 7
    torch.tensor([1], device="cuda"), torch.zeros(3).cuda()
    assert traffic.uploads == 2


def test_gradients(traffic: Traffic) -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight = weight
    want = layer(x).relu().square().sum()
    want.backward()
    wanted = weight.grad.clone(), x.grad.clone()
    layer = layer.to("cuda")
    assert isinstance(layer.weight, torch.nn.Parameter) and layer.weight.is_cuda
    x.grad = None
    got = layer(x.cuda()).relu().square().sum()
    got.backward()
    assert got.item() == want.item()
    assert layer.weight.grad.is_cuda and not x.grad.is_cuda
    assert torch.equal(layer.weight.grad.cpu(), wanted[0]) and torch.equal(x.grad, wanted[1])
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    assert torch.equal(layer.weight.cpu(), weight - 0.5 * wanted[0])


def test_our_kernels(traffic: Traffic) -> None:
    coords = torch.tensor([[0, 1, 2], [1, 0, 3]], dtype=torch.int32)
    keys = ops.linear_keys(coords.cuda(), (4, 5))
    assert keys.is_cuda and torch.equal(keys.cpu(), ops.linear_keys(coords, (4, 5)))
    assert traffic.reads == 1  # that of this test


def test_outside_nothing_changes() -> None:
    x = ds.SparseTensor(torch.ones(1, 1), torch.tensor([[0, 1]]), (3,))
    assert x.device.type == "cpu" and type(torch.zeros(1)) is torch.Tensor
