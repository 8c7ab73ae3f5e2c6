"""Masked linear layers on the device: the function and the module, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from emulated_device import emulated_cuda
from torch import Tensor

import doublesparse as ds
from doublesparse import _C, _gpu_masked, _structure


@pytest.fixture(autouse=True)
def cuda() -> Iterator[None]:
    """A CUDA device, or the emulated one; every product on our kernels."""
    with contextlib.ExitStack() as stack:
        if not (_C.has_cuda and torch.cuda.is_available()):
            kernels = pytest.importorskip("doublesparse._emulated", reason="no emulated kernels")
            stack.enter_context(emulated_cuda(kernels))
        ds.set_crossover(None)
        stack.callback(ds.set_crossover, "auto")
        yield


def numbers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


@pytest.mark.parametrize("shape", [(37, 130, 21), (2, 20, 9), (0, 20, 9)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_gradients_are_the_dense_ones(shape: tuple[int, int, int], has_bias: bool) -> None:
    torch.manual_seed(3)
    m, c_in, c_out = shape
    mask = torch.rand(c_out, c_in) < 0.3
    operands = [numbers(m, c_in), numbers(c_out, c_in)] + [numbers(c_out)] * has_bias
    dy, results = numbers(m, c_out), []
    for device in ("cpu", "cuda"):
        own = [t.to(device).requires_grad_() for t in operands]
        kept = mask.to(device)
        if device == "cpu":
            y = torch.nn.functional.linear(own[0], torch.where(kept, own[1], 0), *own[2:])
        else:
            y = ds.functional.masked_linear(own[0], own[1], kept, *own[2:])
        grads = torch.autograd.grad(y, own, dy.to(device))
        assert all(t.device.type == device for t in (y, *grads))
        results.append([t.detach().cpu() for t in (y, *grads)])
    for want, got in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_a_layer_trains() -> None:
    torch.manual_seed(4)
    layer = ds.nn.MaskedLinear(40, 24, sparsity=0.75)
    x, dense = torch.randn(3, 11, 40), torch.nn.Linear(40, 24)
    dense.load_state_dict({"weight": layer.weight * layer.mask, "bias": layer.bias})
    mask, want = layer.mask.clone(), dense(x)
    want.square().sum().backward()
    layer = layer.to("cuda")
    got = layer(x.to("cuda"))
    got.square().sum().backward()
    assert torch.allclose(got.cpu(), want, atol=1e-5)
    expected = torch.where(mask, dense.weight.grad, 0)
    assert torch.allclose(layer.weight.grad.cpu(), expected, atol=1e-4)
    assert torch.allclose(layer.bias.grad.cpu(), dense.bias.grad, atol=1e-4)


def test_autocast_rounds_the_operands() -> None:
    torch.manual_seed(5)
    x, weight, mask = torch.randn(9, 30), torch.randn(7, 30), torch.rand(7, 30) < 0.4
    own = [t.to("cuda") for t in (x, weight, mask)]
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses an emulated device
    try:
        y = ds.functional.masked_linear(*own)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
    assert y.dtype == torch.bfloat16
    kept = torch.where(mask, weight, 0).bfloat16().double()
    want = x.bfloat16().double() @ kept.t()
    assert torch.allclose(y.cpu().double(), want, rtol=2**-7, atol=1e-5)


def test_a_written_mask_is_found_anew() -> None:
    x, weight = numbers(5, 12).to("cuda"), numbers(6, 12).to("cuda")
    mask = torch.ones(6, 12, dtype=torch.bool).to("cuda")
    for row in range(3):
        y = ds.functional.masked_linear(x, weight, mask)
        assert torch.equal(y.cpu(), (x @ torch.where(mask, weight, 0).t()).cpu())
        mask[row] = False
    before = _gpu_masked.csr_of(mask)
    mask.copy_(mask.clone())  # as DistributedDataParallel does in every step
    again = _gpu_masked.csr_of(mask)
    assert again.n_kept == before.n_kept == int(mask.sum())


def test_contents_that_differ_look_different() -> None:
    masks = [torch.zeros(40, 40, dtype=torch.bool) for _ in range(200)]
    for i, mask in enumerate(masks[1:]):
        mask.view(-1)[i], mask.view(-1)[-1] = True, i % 2 == 0
    assert len({_structure._mixed(mask) for mask in masks}) == len(masks)


def test_what_runs_where() -> None:
    ds.set_crossover("auto")
    weights, sparse = 4096 * 4096, _gpu_masked.runs_sparse
    assert sparse(512, weights // 10, weights, torch.float32)
    assert not sparse(512, weights // 5, weights, torch.float32)
    assert not sparse(512, weights // 10, weights, torch.bfloat16)
    assert not sparse(4, weights // 10, weights, torch.float32)
    assert not sparse(512, 400, 4096, torch.float32)
