"""Products with half-precision weights that keep whole blocks, on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doublesparse import _gpu_blocks as blocks

HALVES = (torch.bfloat16, torch.float16)


def _integers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randint(-3, 4, shape).to(dtype)


def _pruned(rows: int, columns: int, size: int, density: float, dtype: torch.dtype) -> Tensor:
    """Whole blocks of small integers."""
    grid = torch.rand(-(-rows // size), -(-columns // size)) < density
    mask = grid.repeat_interleave(size, 0).repeat_interleave(size, 1)[:rows, :columns]
    return _integers(rows, columns, dtype=dtype) * mask


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The exact one, rounded once."""
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def _check(device: torch.device, m: int, weight: Tensor, size: int) -> None:
    rows, columns = weight.shape
    packed = blocks.BlockWeight.pack(weight.to(device), size=size)
    assert torch.equal(packed.unpack().cpu(), weight)
    x, bias = _integers(m, columns, dtype=weight.dtype), _integers(rows, dtype=weight.dtype)
    y = blocks.block_spmm(x.to(device), packed, bias.to(device))
    assert torch.equal(y.cpu(), _product(x, weight, bias))
    dy = _integers(m, rows, dtype=weight.dtype)
    dx = blocks.block_spmm_t(dy.to(device), packed)
    assert torch.equal(dx.cpu(), _product(dy, weight.t()))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", blocks.SIZES)
def test_products_are_exact(any_order: torch.device, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    _check(any_order, 130, _pruned(2 * size + 5, 3 * size + 9, size, 0.5, dtype), size)


@pytest.mark.parametrize("size", blocks.SIZES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_products_of_any_density(gpu_device: torch.device, size: int, density: float) -> None:
    torch.manual_seed(size)
    _check(gpu_device, 9, _pruned(2 * size, 4 * size, size, density, torch.bfloat16), size)


@pytest.mark.parametrize(
    "shape", [(0, 64, 64), (1, 1, 1), (3, 0, 64), (3, 64, 0), (127, 31, 33), (129, 65, 200)]
)
def test_products_of_any_shape(gpu_device: torch.device, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    m, rows, columns = shape
    _check(gpu_device, m, _pruned(rows, columns, 32, 0.7, torch.bfloat16), 32)


def test_a_mask_leaves_zeros_in_kept_blocks(gpu_device: torch.device) -> None:
    weight, mask = torch.ones(64, 64).half(), torch.zeros(64, 64, dtype=torch.bool)
    mask[3, 40] = True
    packed = blocks.BlockWeight.pack(weight.to(gpu_device), mask.to(gpu_device), 32)
    assert torch.equal(packed.unpack().cpu(), mask.half())
    assert packed.nbytes == 32 * 32 * 2 + 3 * 4 + 2 * 4


def test_product_of_floats_is_near(gpu_device: torch.device) -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(64, 512).bfloat16(), torch.randn(16, 512).bfloat16()
    packed = blocks.BlockWeight.pack(weight.to(gpu_device))
    y = blocks.block_spmm(x.to(gpu_device), packed).cpu().double()
    size = x.double().abs() @ weight.double().abs().t()
    error = (y - x.double() @ weight.double().t()).abs()
    assert (error <= size * 512 * 2**-24 + y.abs() * 2**-8).all()


def test_infinities_count_where_a_block_is_kept(gpu_device: torch.device) -> None:
    weight = torch.zeros(64, 128, dtype=torch.bfloat16)
    weight[:, 64:] = 1
    packed = blocks.BlockWeight.pack(weight.to(gpu_device))
    x = torch.ones(3, 128, dtype=torch.bfloat16)
    x[0, 3], x[1, 70], x[2, 71] = torch.nan, torch.inf, torch.nan
    y = blocks.block_spmm(x.to(gpu_device), packed).cpu()
    assert (y[0] == 64).all() and (y[1] == torch.inf).all() and y[2].isnan().all()


def test_wrong_numbers_lead_nowhere(gpu_device: torch.device) -> None:
    packed = blocks.BlockWeight.pack(torch.ones(64, 128, dtype=torch.bfloat16, device=gpu_device))
    x = torch.ones(3, 128, dtype=torch.bfloat16, device=gpu_device)
    for wrong in (-1, 2**31 - 1):
        packed.rows.inner.fill_(wrong)
        assert (blocks.block_spmm(x, packed) == 0).all()
        packed.rows.inner.zero_()
        packed.rows.order.fill_(wrong)
        assert (blocks.block_spmm(x, packed) == 0).all()
        packed.rows.order.zero_()
    packed.rows.starts.fill_(5)
    assert (blocks.block_spmm(x, packed) == 0).all()


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16, device=gpu_device)
    packed = blocks.BlockWeight.pack(weight)
    with pytest.raises(TypeError, match="weight must be bfloat16 or float16"):
        blocks.BlockWeight.pack(weight.float())
    with pytest.raises(ValueError, match="size must be one of"):
        blocks.BlockWeight.pack(weight, size=16)
    with pytest.raises(TypeError, match="x must be torch.bfloat16"):
        blocks.block_spmm(weight.half(), packed)
    with pytest.raises(ValueError, match=r"dy must be \(m, 8\)"):
        blocks.block_spmm_t(weight[:, :4], packed)
    with pytest.raises(ValueError, match="bias must"):
        blocks.block_spmm(weight, packed, torch.ones(3, device=gpu_device))
