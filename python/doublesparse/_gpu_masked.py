"""A linear layer's products with a masked weight on a CUDA device, and where torch's are faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._crossover import get_crossover
from ._gpu_spmm import GpuCsr, PackedValues, product, sample
from ._structure import of_mask

MOST_KEPT = 0.12
"""Share of kept weights up to which the sparse kernels run. By counted cycles of an H100 they do 11
useful TFLOP/s in float32, so that they break even with 52 dense ones at 0.21 of the weights; less
what a step gathers and transposes. Not measured."""

_FEW_ROWS, _FEW_WEIGHTS = 32, 1 << 18


def csr_of(mask: Tensor) -> GpuCsr:
    """The structures of a mask, remembered while it lives and is not written to."""
    return of_mask(mask, "gpu_csr", GpuCsr)


def runs_sparse(n_rows: int, n_kept: int, n_weights: int, dtype: torch.dtype) -> bool:
    """Whether a layer runs our kernels: a pure function of counts.

    float32 alone: 16-bit and float64 products run on the tensor cores of torch's kernels. With few
    rows, or a weight that does not fill the device, the cost is reading the dense weight either
    way. `set_crossover(None)` keeps everything on ours.

    Args:
        n_rows: of activations.
        n_kept: kept weights.
        n_weights: all of them.
        dtype: of the activations.
    """
    if get_crossover() is None:
        return True
    is_large = n_rows > _FEW_ROWS and n_weights >= _FEW_WEIGHTS
    return dtype == torch.float32 and is_large and n_kept <= MOST_KEPT * n_weights


def runs_dense(n_rows: int, mask: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's kernels do a layer's product and both gradients."""
    if get_crossover() is None:
        return False
    if not runs_sparse(n_rows, 0, mask.numel(), dtype):
        return True  # whatever is kept: the mask need not be looked at
    return not runs_sparse(n_rows, csr_of(mask).n_kept, mask.numel(), dtype)


def masked_product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ where(mask, weight, 0).T + bias`: (m, c_out); no gradient."""
    if runs_dense(x.shape[0], mask, x.dtype):
        return F.linear(x, torch.where(mask, weight, 0), bias)
    csr = csr_of(mask)
    return product(x, PackedValues(csr.forward, weight.reshape(-1), csr.kept), bias)


def masked_input_grad(dy: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """`dy @ where(mask, weight, 0)`: (m, c_in)."""
    if runs_dense(dy.shape[0], mask, dy.dtype):
        return dy @ torch.where(mask, weight, 0)
    csr = csr_of(mask)
    return product(dy, PackedValues(csr.backward, weight.reshape(-1), csr.kept))


def masked_weight_grad(dy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """`where(mask, dy.T @ x, 0)`: (c_out, c_in), the dtype of x."""
    if runs_dense(x.shape[0], mask, x.dtype):
        return torch.where(mask, dy.t() @ x, 0)
    csr, dw = csr_of(mask), x.new_zeros(mask.shape)
    sample(dy, x, csr, csr.kept, dw.view(-1))
    return dw
