"""Differentiable products with pruned matrices.

A mask's structure (`_structure`) is remembered; values are gathered from the dense weight in every
forward pass, as optimizers change them behind its version counter. Gradients are kernels of the
same family: the input's is a product with the transpose, the weight's is sampled at kept entries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import _gpu_masked, _gpu_packed, ops
from ._autograd import Grads, column_sum, once, wanted
from ._packed_forms import forms_of
from ._packed_weight import PackedWeight
from ._spmm_costs import Product, runs_sparse, samples
from ._structure import MatrixStructures, of_matrix
from ._torch_compat import fast_apply


def _values(weight: Tensor, index: Tensor) -> Tensor:
    return weight.reshape(-1).index_select(0, index)


def _dense(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, weight, 0)


def _counts(structures: MatrixStructures, n_rows: int) -> Product:
    outputs, columns = structures.forward.shape
    unit = structures.forward.tiles.unit_rows
    return Product(n_rows, columns, outputs, structures.n_kept, unit)


def runs_dense(n_rows: int, mask: Tensor, dtype: torch.dtype, trained: bool) -> bool:
    """Whether torch's kernels do all of a layer: its product and, if trained, both gradients."""
    if mask.is_cuda:
        return _gpu_masked.runs_dense(n_rows, mask, dtype)
    p = _counts(of_matrix(mask), n_rows)
    if runs_sparse(p, dtype, trained=True):
        return False
    return not trained or not (runs_sparse(_transposed(p), dtype, True) or samples(p, dtype))


def _transposed(p: Product) -> Product:
    return p._replace(columns=p.outputs, outputs=p.columns, unit=1)


def masked_product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ where(mask, weight, 0).T + bias`: (m, c_out); no gradient."""
    if x.is_cuda:
        return _gpu_masked.masked_product(x, weight, mask, bias)
    structures = of_matrix(mask)
    if not runs_sparse(_counts(structures, x.shape[0]), x.dtype, trained=True):
        return F.linear(x, _dense(weight, mask), bias)
    forward = structures.forward
    return ops.spmm(x, forward.tiles, _values(weight, forward.index), bias)


def masked_input_grad(dy: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """`dy @ where(mask, weight, 0)`: (m, c_in)."""
    if dy.is_cuda:
        return _gpu_masked.masked_input_grad(dy, weight, mask)
    structures = of_matrix(mask)
    if not runs_sparse(_transposed(_counts(structures, dy.shape[0])), dy.dtype, trained=True):
        return dy @ _dense(weight, mask)
    backward, order = structures.backward
    values = _values(weight, structures.forward.index)
    return ops.spmm(dy, backward.tiles, values.index_select(0, order))


def masked_weight_grad(dy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """`where(mask, dy.T @ x, 0)`: (c_out, c_in), the dtype of x."""
    if dy.is_cuda:
        return _gpu_masked.masked_weight_grad(dy, x, mask)
    structures = of_matrix(mask)
    if not samples(_counts(structures, x.shape[0]), x.dtype):
        return torch.where(mask, dy.t() @ x, 0)
    sampled = structures.sampled
    dw = x.new_zeros(mask.shape)
    values = ops.sddmm(dy, x, sampled.tiles).to(x.dtype)
    dw.view(-1).index_copy_(0, sampled.index, values)
    return dw


class _MaskedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        return masked_product(x, weight, mask, bias)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Grads:
        x, weight, mask = ctx.saved_tensors
        needs, dy = ctx.needs_input_grad, dy.contiguous()
        dx = masked_input_grad(dy, weight, mask) if needs[0] else None
        dw = masked_weight_grad(dy, x, mask) if needs[1] else None
        return dx, dw, None, column_sum(dy) if needs[3] else None


_apply_masked_linear = fast_apply(_MaskedLinear)


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """The sparse kernels of a masked linear layer: x (m, c_in) -> (m, c_out)."""
    if wanted(x, weight, bias):
        out: Tensor = _apply_masked_linear(x, weight, mask, bias)
        return out
    return masked_product(x, weight, mask, bias)


# ------------------------------------------------------------------ packed weights
def _packed_product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    if x.is_cuda:
        return _gpu_packed.linear(x, packed, bias)
    return forms_of(packed).forward.product(x, bias)


def _packed_product_t(dy: Tensor, packed: PackedWeight) -> Tensor:
    if dy.is_cuda:
        return _gpu_packed.input_grad(dy, packed)
    return forms_of(packed).backward.product(dy, None)


class _PackedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return _packed_product(x, packed, bias)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Grads:
        needs, dy = ctx.needs_input_grad, dy.contiguous()
        dx = packed_input_grad(dy, ctx.packed) if needs[0] else None
        return dx, None, column_sum(dy) if needs[2] else None


_apply_packed_linear = fast_apply(_PackedLinear)


def packed_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ packed.unpack().T + bias`: x (m, c_in) -> (m, c_out); gradients of x and bias."""
    if wanted(x, bias):
        out: Tensor = _apply_packed_linear(x, packed, bias)
        return out
    return _packed_product(x, packed, bias)


class _PackedInputGrad(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, packed: PackedWeight) -> Tensor:
        ctx.packed = packed
        return _packed_product_t(dy, packed)

    @staticmethod
    @once
    def backward(ctx: Any, d: Tensor) -> Grads:
        return _packed_product(d.contiguous(), ctx.packed, None), None


_apply_packed_input_grad = fast_apply(_PackedInputGrad)


def packed_input_grad(dy: Tensor, packed: PackedWeight) -> Tensor:
    """`dy @ packed.unpack()`: dy (m, c_out) -> (m, c_in); a gradient of dy."""
    if wanted(dy):
        out: Tensor = _apply_packed_input_grad(dy, packed)
        return out
    return _packed_product_t(dy, packed)
