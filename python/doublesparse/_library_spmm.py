"""The part of `_library` about products with pruned matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _autograd_spmm as _spmm
from . import ops
from ._autograd import Grads, column_sum, once

_TILES = (
    "Tensor starts, Tensor columns, SymInt n_rows, SymInt n_columns, SymInt block_columns, "
    "SymInt unit_rows"
)

SCHEMAS = {
    "spmm": f"(Tensor x, {_TILES}, Tensor values, Tensor? bias=None, Tensor? scales=None, "
    "Tensor? bits=None) -> Tensor",
    "sddmm": f"(Tensor dy, Tensor x, {_TILES}) -> Tensor",
    "masked_linear": "(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None) -> Tensor",
    "masked_linear_input_grad": "(Tensor dy, Tensor weight, Tensor mask) -> Tensor",
    "masked_linear_weight_grad": "(Tensor dy, Tensor x, Tensor mask) -> Tensor",
}


def _run_spmm(
    x: Tensor,
    starts: Tensor,
    columns: Tensor,
    n_rows: int,
    n_columns: int,
    block_columns: int,
    unit_rows: int,
    values: Tensor,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    bits: Tensor | None = None,
) -> Tensor:
    tiles = ops.Tiles(starts, columns, n_rows, n_columns, block_columns, unit_rows, bits)
    return ops.spmm(x, tiles, values, bias, scales)


def _run_sddmm(dy: Tensor, x: Tensor, *tiles: Any) -> Tensor:
    return ops.sddmm(dy, x, ops.Tiles(*tiles[:6]))


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "spmm": _run_spmm,
    "sddmm": _run_sddmm,
    "masked_linear": _spmm.masked_product,
    "masked_linear_input_grad": _spmm.masked_input_grad,
    "masked_linear_weight_grad": _spmm.masked_weight_grad,
}


def _sampled_shape(dy: Tensor, x: Tensor, starts: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(columns.shape[0], dtype=dtype)


SHAPES: dict[str, Callable[..., Any]] = {
    "spmm": lambda x, starts, columns, n_rows, *rest: x.new_empty(x.shape[0], n_rows),
    "sddmm": _sampled_shape,
    "masked_linear": lambda x, weight, mask, bias=None: x.new_empty(x.shape[0], weight.shape[0]),
    "masked_linear_input_grad": lambda dy, weight, mask: dy.new_empty(
        dy.shape[0], weight.shape[1]
    ),
    "masked_linear_weight_grad": lambda dy, x, mask: x.new_empty(mask.shape),
}


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


@once
def _backward(ctx: Any, dy: Tensor) -> Grads:
    x, weight, mask = ctx.saved_tensors
    needs, run, dy = ctx.needs_input_grad, torch.ops.doublesparse, dy.contiguous()
    dx = run.masked_linear_input_grad(dy, weight, mask) if needs[0] else None
    dw = run.masked_linear_weight_grad(dy, x, mask) if needs[1] else None
    return dx, dw, None, column_sum(dy) if len(needs) > 3 and needs[3] else None


GRADIENTS = {"masked_linear": (_backward, _save)}
