"""The part of `_library` about pruned weights of convolutions: schemas, shapes, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd_masked_conv as masked
from ._autograd import Grads, once
from ._masked_conv import Geometry, new_output

_WALK = "SymInt[] stride, SymInt[] before, SymInt[] after, SymInt[] dilation, SymInt groups"

SCHEMAS = {
    "masked_dense_conv": f"(Tensor x, Tensor weight, Tensor mask, Tensor? bias, {_WALK}) -> Tensor",
    "masked_dense_conv_input_grad": "(Tensor dy, Tensor weight, Tensor mask, SymInt[] shape, "
    f"{_WALK}) -> Tensor",
    "masked_dense_conv_weight_grad": "(Tensor x, Tensor dy, Tensor weight, Tensor mask, "
    f"{_WALK}) -> Tensor",
}

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "masked_dense_conv": masked.conv,
    "masked_dense_conv_input_grad": masked.input_grad,
    "masked_dense_conv_weight_grad": masked.weight_grad,
}


def _shape(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any
) -> Tensor:
    out = Geometry(*geometry).out_shape(x.shape[2:], weight.shape[2:])
    return new_output(x, weight.shape[0], out)


def _input_shape(
    dy: Tensor, weight: Tensor, mask: Tensor, shape: Sequence[int], *geometry: Any
) -> Tensor:
    return new_output(dy, weight.shape[1] * geometry[-1], shape)


SHAPES: dict[str, Callable[..., Any]] = {
    "masked_dense_conv": _shape,
    "masked_dense_conv_input_grad": _input_shape,
    "masked_dense_conv_weight_grad": lambda x, dy, weight, mask, *geometry: new_output(
        weight, weight.shape[1], weight.shape[2:]
    ),
}


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, mask, _, *geometry = inputs
    ctx.save_for_backward(x, weight, mask)
    ctx.geometry = geometry


@once
def _backward(ctx: Any, dy: Tensor) -> Grads:
    x, weight, mask = ctx.saved_tensors
    needs, run = ctx.needs_input_grad, torch.ops.doublesparse
    dx = dw = db = None
    if needs[0]:
        dx = run.masked_dense_conv_input_grad(dy, weight, mask, x.shape[2:], *ctx.geometry)
    if needs[1]:
        dw = run.masked_dense_conv_weight_grad(x, dy, weight, mask, *ctx.geometry)
    if needs[3]:
        db = masked.bias_grad(dy)
    return dx, dw, None, db, None, None, None, None, None


GRADIENTS = {"masked_dense_conv": (_backward, _save)}
