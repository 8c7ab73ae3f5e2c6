"""Products with unstructured pruned matrices on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doublesparse import _gpu_spmm as spmm

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Around a panel of 112 columns, a slab of 8 rows, a block of 128, and 32 or 128 rows of x.
SHAPES = [
    (0, 20, 12, 0.5),
    (5, 7, 1, 0.5),
    (6, 112, 8, 0.2),
    (33, 113, 9, 0.3),
    (32, 224, 40, 0.0),
    (128, 250, 129, 0.1),
    (130, 60, 137, 0.05),
    (37, 230, 16, 1.0),
]


def sample(
    m: int, columns: int, rows: int, density: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x (m, columns) and weight (rows, columns) of small integers, a mask with an empty row."""
    torch.manual_seed(seed)
    mask = torch.rand(rows, columns) < density
    mask[rows // 2] = density == 1.0
    x = torch.randint(-3, 4, (m, columns)).double()
    return x, torch.randint(-3, 4, (rows, columns)).double(), mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_exact_on_small_integers(
    any_order: torch.device, shape: tuple[int, int, int, float]
) -> None:
    x, weight, mask = sample(*shape)
    bias, dense = torch.arange(len(weight)).double() % 5, torch.where(mask, weight, 0)
    for dtype in FLOATS:
        csr = spmm.GpuCsr(mask.to(any_order))
        kept, own = weight[mask].to(any_order, dtype), x.to(any_order, dtype)
        y = spmm.spmm(own, csr, kept, bias.to(any_order, dtype))
        assert y.dtype == dtype and torch.equal(y.cpu(), (x @ dense.t() + bias).to(dtype))
        dy = (y.cpu().double() % 4).contiguous()
        dx = spmm.spmm_t(dy.to(any_order, dtype), csr, kept)
        assert torch.equal(dx.cpu(), (dy @ dense).to(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampled_products_are_exact_on_small_integers(
    any_order: torch.device, shape: tuple[int, int, int, float]
) -> None:
    x, weight, mask = sample(*shape)
    dy = torch.randint(-3, 4, (len(x), len(weight))).double()
    for dtype in FLOATS:
        csr = spmm.GpuCsr(mask.to(any_order))
        values = spmm.sddmm(dy.to(any_order, dtype), x.to(any_order, dtype), csr)
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(values.cpu().double(), (dy.t() @ x)[mask])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 40])
def test_values_of_every_kind(any_order: torch.device, m: int, kind: torch.dtype) -> None:
    x, weight, mask = sample(m, 270, 21, 0.4)
    bias = torch.arange(21.0)
    values = weight[mask].to(kind)
    scales = None if kind != torch.int8 else torch.arange(1.0, 22.0)
    dense = torch.where(mask, weight, 0) * (1 if scales is None else scales[:, None])
    csr = spmm.GpuCsr(mask.to(any_order))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        own = None if scales is None else scales.to(any_order)
        y = spmm.spmm(x.to(any_order, dtype), csr, values.to(any_order), bias.to(any_order), own)
        assert torch.equal(y.cpu(), (x @ dense.t() + bias).to(dtype))


@pytest.mark.parametrize("m", [1, 40, 300])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_are_near_the_dense_ones(
    gpu_device: torch.device, m: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    mask = torch.rand(65, 400) < 0.1
    x, weight = torch.randn(m, 400, dtype=dtype), torch.randn(65, 400, dtype=dtype)
    dy, dense = torch.randn(m, 65, dtype=dtype), torch.where(mask, weight, 0).double()
    csr, values = spmm.GpuCsr(mask.to(gpu_device)), weight[mask].to(gpu_device)
    x64, dy64, eps = x.double(), dy.double(), 2.0**-53 if dtype == torch.float64 else 2.0**-24
    out = torch.finfo(dtype).eps
    results = [
        (spmm.spmm(x.to(gpu_device), csr, values), x64 @ dense.t(), x64.abs() @ dense.t().abs()),
        (spmm.spmm_t(dy.to(gpu_device), csr, values), dy64 @ dense, dy64.abs() @ dense.abs()),
        (
            spmm.sddmm(dy.to(gpu_device), x.to(gpu_device), csr),
            (dy64.t() @ x64)[mask],
            (dy64.abs().t() @ x64.abs())[mask],
        ),
    ]
    for got, expected, size in results:
        bound = 400 * eps * size + out * expected.abs()
        assert bool(((got.cpu().double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("m", [2, 40])
def test_nothing_spreads_that_is_not_kept(gpu_device: torch.device, m: int) -> None:
    x, weight, mask = (t.to(gpu_device) for t in sample(m, 120, 9, 0.3))
    x, weight = x.float(), weight.float()
    mask[:, 7], mask[5, 7] = False, True
    weight[5, 7] = float("inf")
    x[0, 7], x[1, 7] = float("nan"), 1.0
    y = spmm.spmm(x, spmm.GpuCsr(mask), weight[mask])
    assert bool(y[0, 5].isnan()) and float(y[1, 5]) == float("inf")
    y[:, 5] = 0
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("kind", [*KINDS, torch.float64], ids=str)
def test_blocks_with_less_shared_memory_give_the_same_bits(
    any_order: torch.device, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    if any_order.type == "cuda":
        pytest.skip("a GPU has what it has")
    _, weight, mask = sample(0, 270, 140, 0.6)
    dtype = kind if kind == torch.float64 else torch.float32
    x, dy = torch.randn(140, 270, dtype=dtype), torch.randn(140, 140, dtype=dtype)
    csr, values = spmm.GpuCsr(mask), weight[mask].to(kind)
    scales = torch.rand(140) if kind == torch.int8 else None
    results = []
    for n_bytes in (227 << 10, 99 << 10):
        monkeypatch.setenv("DOUBLESPARSE_EMULATION_SHARED", str(n_bytes))
        results.append((spmm.spmm(x, csr, values, None, scales), spmm.sddmm(dy, x, csr)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setenv("DOUBLESPARSE_EMULATION_SHARED", str(40 << 10))
    with pytest.raises(RuntimeError, match="shared bytes"):
        spmm.spmm(x, csr, values, None, scales)


def test_wrong_input_is_refused(gpu_device: torch.device) -> None:
    x, weight, mask = (t.to(gpu_device) for t in sample(6, 20, 9, 0.3))
    csr = spmm.GpuCsr(mask)
    with pytest.raises(TypeError, match="values must be float32"):
        spmm.spmm(x.float(), csr, weight[mask])
    with pytest.raises(ValueError, match="lanes"):
        spmm.spmm(x[:, :19].float().contiguous(), csr, weight[mask].float())
    with pytest.raises(ValueError, match="need scales"):
        spmm.spmm(x.float(), csr, weight[mask].to(torch.int8))


def test_wrong_structures_give_wrong_sums_only(any_order: torch.device) -> None:
    x, weight, mask = sample(130, 250, 30, 0.5)
    csr, generator = spmm.GpuCsr(mask.to(any_order)), torch.Generator().manual_seed(5)
    for name in ("slabs", "starts", "columns", "source"):
        numbers = torch.arange(csr.n_kept, dtype=torch.int32, device=any_order)
        plan = spmm.Plan(csr.rows, csr.columns, csr.shape, numbers)
        old = getattr(plan, name)
        info = torch.iinfo(old.dtype)
        wrong = torch.randint(info.min, info.max, old.shape, generator=generator)
        setattr(plan, name, wrong.to(old.dtype).to(any_order))
        csr.__dict__["forward"] = plan
        values = weight[mask].float().to(any_order)
        own = x.float().to(any_order)
        assert spmm.spmm(own, csr, values).shape == (130, 30)
        assert spmm.sddmm(own[:, :30].contiguous(), own, csr).shape == (csr.n_kept,)
