"""Products with unstructured pruned matrices on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doublesparse import _gpu_spmm as spmm

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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
    for dtype in FLOATS[:2] if any_order.type == "cpu" else FLOATS:
        csr = spmm.GpuCsr(mask.to(any_order))
        kept, own = weight[mask].to(any_order, dtype), x.to(any_order, dtype)
        y = spmm.spmm(own, csr, kept, bias.to(any_order, dtype))
        assert y.dtype == dtype and torch.equal(y.cpu().double(), x @ dense.t() + bias)
        dy = (y.cpu().double() % 4).contiguous()
        dx = spmm.spmm_t(dy.to(any_order, dtype), csr, kept)
        assert torch.equal(dx.cpu().double(), dy @ dense)
