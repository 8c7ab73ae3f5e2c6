"""Packed weights on the device: every form, product and gradient, and frozen models that move."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from emulated_device import Traffic
from torch import Tensor

import doublesparse as ds
from doublesparse import _gpu_packed

pytestmark = pytest.mark.usefixtures("traffic")


@pytest.fixture(params=[None, "auto"], ids=["ours", "auto"])
def crossover(request: pytest.FixtureRequest) -> Iterator[None]:
    """All products on our kernels, or by the shipped rule."""
    ds.set_crossover(request.param)
    yield
    ds.set_crossover("auto")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-3, 4, shape).to(dtype)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STORED = (*FLOATS, torch.int8)
PATTERNS = {
    "unstructured": (ds.Unstructured(), _gpu_packed.BitmapWeight),
    "2:4": (ds.NM(2, 4), _gpu_packed.BitmapWeight),
    "block 32": (ds.Block(32, 32), _gpu_packed.BlockWeight),
    "block 64": (ds.Block(64, 128), _gpu_packed.BlockWeight),
    "block 4": (ds.Block(4, 4), _gpu_packed.BitmapWeight),
}


def integer_weight(shape: tuple[int, int], pattern: ds.prune.Pattern) -> tuple[Tensor, Tensor]:
    """Whose int8 form is exact: each row's largest is 127, at a kept place."""
    weight = numbers(*shape)
    sparsity = None if isinstance(pattern, ds.NM) else 0.7
    mask = ds.prune.magnitude_mask(torch.rand(shape), pattern, sparsity)
    first = mask.int().argmax(1, keepdim=True)
    return weight.scatter(1, first, torch.where(mask.any(1, keepdim=True), 127.0, 0.0)), mask


@pytest.mark.usefixtures("crossover")
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_products_and_gradients(name: str, stored: torch.dtype) -> None:
    torch.manual_seed(1)
    pattern, half_form = PATTERNS[name]
    weight, mask = integer_weight((128, 160), pattern)
    packed = ds.PackedWeight.pack(weight, mask, pattern, stored).to("cuda")
    assert packed.device == torch.device("cuda:0")
    halves = (torch.bfloat16, torch.float16)
    kind = half_form if stored in halves else _gpu_packed.KeptWeight
    assert isinstance(_gpu_packed.stored(packed), kind)
    dense = torch.where(mask, weight, 0).double()
    for dtype in FLOATS:
        if stored != torch.int8 and torch.promote_types(dtype, stored) != dtype:
            continue
        for m in (1, 5, 130):
            x, bias, dy = numbers(m, 160), numbers(128), torch.randint(-1, 2, (m, 128)).float()
            exact = F.linear(x.double(), dense, bias.double()), dy.double() @ dense
            own = x.to("cuda", dtype).requires_grad_()
            y = ds.functional.spmm(packed, own, bias.to("cuda", dtype))
            (dx,) = torch.autograd.grad(y, own, dy.to("cuda", dtype))
            again = ds.functional.spmm_t(packed, dy.to("cuda", dtype))
            for got, want in zip((y, dx, again), (*exact, exact[1]), strict=True):
                assert got.is_cuda and got.dtype == dtype
                assert torch.equal(got.detach().cpu(), want.to(dtype)), (dtype, m)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_host_does_not_wait(stored: torch.dtype, traffic: Traffic) -> None:
    """But for the weight's form, once: whether products decode it, or it is made dense."""
    weight, mask = integer_weight((64, 160), ds.Unstructured())
    packed = ds.PackedWeight.pack(weight, mask, dtype=stored).to("cuda")
    x, dy = numbers(200, 160).to("cuda", stored), numbers(200, 64).to("cuda", stored)
    reads = []
    for _ in range(2):
        for m in (1, 40, 200):
            ds.functional.spmm(packed, x[:m])
        ds.functional.spmm_t(packed, dy)
        reads.append(traffic.reads)
    assert reads[0] == reads[1]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_few_rows_make_no_weight_dense(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, mask = integer_weight((64, 160), ds.Unstructured())
    packed = ds.PackedWeight.pack(weight, mask, dtype=dtype).to("cuda")
    monkeypatch.setattr(_gpu_packed, "dense", None)
    for m in (1, 4):
        x = numbers(m, 160)
        y = ds.functional.spmm(packed, x.to("cuda", dtype))
        assert torch.equal(y.cpu(), (x @ torch.where(mask, weight, 0).t()).to(dtype))


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_it_unpacks_where_it_is(stored: torch.dtype) -> None:
    weight, mask = integer_weight((40, 52), ds.Unstructured())
    packed = ds.PackedWeight.pack(weight, mask, dtype=stored)
    there = ds.PackedWeight.pack(weight.to("cuda"), mask.to("cuda"), dtype=stored)
    assert there.device.type == "cuda" and packed.to("cuda") == there == packed
    assert there.to("cuda") is there and there.to("cpu").device.type == "cpu"
    assert there.unpack().is_cuda and there.mask().is_cuda
    assert torch.equal(there.unpack().cpu(), packed.unpack())
    assert torch.equal(there.mask().cpu(), mask)
    assert all(t.is_cpu for t in there.tensors().values())


def test_sddmm() -> None:
    dy, x = numbers(9, 12), numbers(9, 20)
    mask = torch.rand(12, 20) < 0.3
    for where in (mask.to("cuda"), ds.PackedWeight.pack(torch.ones(12, 20), mask).to("cuda")):
        got = ds.functional.sddmm(dy.to("cuda"), x.to("cuda"), where)
        assert got.device.type == "cuda"
        assert torch.equal(got.unpack().cpu(), torch.where(mask, dy.t() @ x, 0))
        assert torch.equal(got.mask().cpu(), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_frozen_model_moves(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 10),
    )  # fmt: skip
    ds.prune.sparsify_(model, sparsity=0.8)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-2, 3, p.shape))
    model.to(dtype)
    x = numbers(2, 3, 6, 6, dtype=dtype)
    want = model(x).float()
    ds.prune.freeze(model.to("cuda"))
    assert model[3].packed.device.type == "cuda"
    assert torch.equal(model(x.to("cuda")).detach().float().cpu(), want)
    file = io.BytesIO()
    state = {name: t.cpu() for name, t in model.state_dict().items()}
    torch.save(state, file)
    file.seek(0)
    model.load_state_dict(torch.load(file))
    assert model[3].packed.device.type == "cuda"
    assert torch.equal(model(x.to("cuda")).detach().float().cpu(), want)
    model.cpu()
    assert torch.equal(model(x).detach().float(), want)
    model.to("cuda")
    ds.thaw(model)
    assert model[3].weight.is_cuda and model[3].mask.is_cuda
    assert torch.equal(model(x.to("cuda")).detach().float().cpu(), want)


def test_a_frozen_layer_takes_sparse_tensors() -> None:
    torch.manual_seed(3)
    layer = ds.prune.sparsify_(
        torch.nn.Sequential(ds.nn.SparseConv2d(4, 6, 3, padding=1)), sparsity=0.5
    )
    coords = torch.tensor([[0, 1, 1], [0, 1, 2], [0, 4, 8], [0, 8, 0], [0, 8, 8]])
    x = ds.SparseTensor(numbers(5, 4), coords, (9, 9), 1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(numbers(*p.shape))
        want = layer(x).to_dense()
        ds.prune.freeze(layer.to("cuda"))
        assert torch.equal(layer(x.to("cuda")).to_dense().cpu(), want)


def test_operands_elsewhere_are_refused() -> None:
    packed = ds.PackedWeight.pack(torch.eye(4))
    with pytest.raises(RuntimeError, match="x must be on cpu like the packed weight, got cuda:0"):
        ds.functional.spmm(packed, torch.ones(2, 4).to("cuda"))
    with pytest.raises(RuntimeError, match="x must be on cuda:0 like the packed weight, got cpu"):
        ds.functional.spmm(packed.to("cuda"), torch.ones(2, 4))
    there = packed.to("cuda")
    with pytest.raises(RuntimeError, match="bias must be on cuda:0 like x, got cpu"):
        ds.functional.spmm(there, torch.ones(2, 4).to("cuda"), torch.ones(4))
    with pytest.raises(RuntimeError, match="dy and mask must be on cpu like x, got cuda:0"):
        ds.functional.sddmm(torch.ones(2, 4).to("cuda"), torch.ones(2, 4), torch.eye(4) != 0)
