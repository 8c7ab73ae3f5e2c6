"""Products with half-precision pruned weights on the device: bitmaps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doublesparse import _gpu_bitmap as bitmap

HALVES = (torch.bfloat16, torch.float16)


def _mask(rows: int, columns: int, density: float) -> Tensor:
    return torch.rand(rows, columns) < density


def _integers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Whose products' sums are exact in float32."""
    return torch.randint(-3, 4, shape).to(dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The exact one, rounded once."""
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (1, 1), (64, 128), (65, 136), (130, 403)])
def test_bitmaps_unpack_to_what_was_packed(
    any_order: torch.device, density: float, shape: tuple[int, int]
) -> None:
    weight, mask = torch.randn(shape).bfloat16(), _mask(*shape, density)
    packed = bitmap.BitmapWeight.pack(weight.to(any_order), mask.to(any_order))
    assert torch.equal(packed.mask().cpu(), mask)
    assert torch.equal(packed.unpack().cpu(), torch.where(mask, weight, 0))


def test_bitmaps_take_the_bytes_that_they_promise(gpu_device: torch.device) -> None:
    weight = torch.ones(512, 512, dtype=torch.bfloat16)
    for density in (0.1, 0.3, 0.5):
        mask = _mask(512, 512, density).to(gpu_device)
        packed = bitmap.BitmapWeight.pack(weight.to(gpu_device), mask)
        kept = int(packed.mask().sum())
        assert packed.nbytes <= 2 * kept + weight.numel() / 8 + 32 * 18 + 4


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_bitmap_product_is_exact(
    any_order: torch.device, density: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = _integers(70, 600, dtype=dtype) * _mask(70, 600, density)
    x, bias = _integers(5, 600, dtype=dtype), _integers(70, dtype=dtype)
    packed = bitmap.BitmapWeight.pack(weight.to(any_order))
    y = bitmap.bitmap_spmm(x.to(any_order), packed, bias.to(any_order))
    assert torch.equal(y.cpu(), _product(x, weight, bias))


@pytest.mark.parametrize("m", [0, 1, 8, 16, 17, 32, 33, 64, 65, 130])
def test_bitmap_product_of_any_batch(gpu_device: torch.device, m: int) -> None:
    torch.manual_seed(m)
    weight = _integers(66, 131, dtype=torch.bfloat16) * _mask(66, 131, 0.4)
    x = _integers(m, 131, dtype=torch.bfloat16)
    packed = bitmap.BitmapWeight.pack(weight.to(gpu_device))
    y = bitmap.bitmap_spmm(x.to(gpu_device), packed)
    assert torch.equal(y.cpu(), _product(x, weight, None))


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (63, 7), (64, 128), (129, 1000), (5, 0)])
def test_bitmap_product_of_any_shape(gpu_device: torch.device, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    weight = _integers(*shape, dtype=torch.float16) * _mask(*shape, 0.5)
    x, bias = _integers(3, shape[1], dtype=torch.float16), torch.randn(shape[0])
    packed = bitmap.BitmapWeight.pack(weight.to(gpu_device))
    y = bitmap.bitmap_spmm(x.to(gpu_device), packed, bias.to(gpu_device))
    assert torch.equal(y.cpu(), _product(x, weight, bias.float()))


def test_bitmap_product_of_floats_is_near(gpu_device: torch.device) -> None:
    torch.manual_seed(2)
    weight = torch.randn(64, 512).bfloat16() * _mask(64, 512, 0.3)
    x = torch.randn(16, 512).bfloat16()
    packed = bitmap.BitmapWeight.pack(weight.to(gpu_device))
    y = bitmap.bitmap_spmm(x.to(gpu_device), packed).cpu().double()
    size = x.double().abs() @ weight.double().abs().t()
    error = (y - x.double() @ weight.double().t()).abs()
    assert (error <= size * 512 * 2**-24 + y.abs() * 2**-8).all()


def test_bitmap_product_of_infinities_is_the_dense_one(gpu_device: torch.device) -> None:
    weight = _integers(64, 128, dtype=torch.bfloat16) * _mask(64, 128, 0.5)
    weight[3, 5] = torch.inf
    x = torch.ones(4, 128, dtype=torch.bfloat16)
    x[1, 70], x[2, 9] = torch.inf, torch.nan
    packed = bitmap.BitmapWeight.pack(weight.to(gpu_device))
    y = bitmap.bitmap_spmm(x.to(gpu_device), packed).cpu()
    assert torch.equal(y.isnan(), _product(x, weight, None).isnan())
    assert torch.equal(y.nan_to_num(), _product(x, weight, None).nan_to_num())


def test_wrong_words_lead_nowhere(gpu_device: torch.device) -> None:
    weight = _integers(64, 128, dtype=torch.bfloat16) * _mask(64, 128, 0.05)
    packed = bitmap.BitmapWeight.pack(weight.to(gpu_device))
    packed.words.fill_(-1)
    packed.starts.add_(1 << 20)
    y = bitmap.bitmap_spmm(torch.ones(1, 128, dtype=torch.bfloat16, device=gpu_device), packed)
    assert y.shape == (1, 64)
    assert packed.unpack().shape == weight.shape


def test_bitmap_errors_name_the_argument(gpu_device: torch.device) -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16, device=gpu_device)
    packed = bitmap.BitmapWeight.pack(weight)
    with pytest.raises(TypeError, match="weight must be bfloat16 or float16"):
        bitmap.BitmapWeight.pack(weight.float())
    with pytest.raises(ValueError, match="mask must have the shape"):
        bitmap.BitmapWeight.pack(weight, weight[:4] != 0)
    with pytest.raises(TypeError, match="x must be torch.bfloat16"):
        bitmap.bitmap_spmm(weight.half(), packed)
    with pytest.raises(ValueError, match=r"x must be \(m, 8\)"):
        bitmap.bitmap_spmm(weight[:, :4], packed)
    with pytest.raises(ValueError, match="bias must"):
        bitmap.bitmap_spmm(weight, packed, torch.ones(3, device=gpu_device))


def test_semi_structured_where_torch_has_it(gpu_device: torch.device) -> None:
    weight = _integers(64, 128, dtype=torch.float16)
    weight[:, ::2] = 0
    form = bitmap.semi_structured(weight.to(gpu_device))
    assert bitmap.semi_structured(weight.to(gpu_device).float()) is None
    if form is None:
        return
    x = _integers(64, 128, dtype=torch.float16)
    y = torch.nn.functional.linear(x.to(gpu_device), form)
    assert torch.equal(y.cpu(), _product(x, weight, None))
