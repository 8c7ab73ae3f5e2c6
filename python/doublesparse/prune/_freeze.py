"""Pruned models for inference: `freeze` and `thaw`."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import nn

from .._freeze import thaw_ground
from .._packed_layout import DTYPES
from .._packed_weight import PackedWeight
from ..nn._masked import Masked
from ..nn._packed import PACKED_CLASSES, Packed, freeze_layer, pack_layer

M = TypeVar("M", bound=nn.Module)


def freeze(model: M, dtype: torch.dtype | None = None) -> M:
    """Drop the dense weights of a model's masked layers and keep `PackedWeight`s: for inference.

    At 90 % sparse, memory and `state_dict` are an eighth of the dense model's weights, less with a
    narrower dtype. The answer is the same up to rounding; gradients still go to inputs and biases.

    Every `MaskedLinear` and `MaskedConv1d..3d` becomes, as the same object, a layer of a class that
    inherits from it, such as `ds.nn.PackedLinear`, with an attribute `packed`. In its `state_dict`,
    `weight` and `mask` give way to plain tensors `weight.meta`, `weight.values`, ... that
    safetensors can store too. It loads

    * into any frozen model of the same layers, whatever its masks were;
    * into a model that is masked and not frozen, as dense weights and masks.

    `ds.thaw(model)`, `model.train()`, loading dense weights, `set_mask` and `reset_parameters`
    thaw. The Parameters are then the same objects, so optimizers go on, with their gradients gone
    and the packed values: those of a narrower dtype are rounded. Meanwhile `model.parameters()`
    lacks them, and reading `layer.weight` or `layer.mask` unpacks: a copy, as writing does not
    reach the layer.

    Skipped are layers of user-defined subclasses of masked layers, and weights that a layer which
    is not masked uses too.

    Args:
        model: any module; call `model.eval()` before, as for all inference.
        dtype: of the packed values: float32, float64, bfloat16, float16, or int8 with a scale per
            row; None: that of each weight. Activations and biases keep their dtype.

    Returns:
        the model. After an error it is what it was.

    Raises:
        TypeError: `model` is no nn.Module, or `dtype` none of these.
        ValueError: weights that the dtype cannot hold (NaN in int8); names the layer.
        NotImplementedError: weights on another device than the CPU; names the layer.

    Example:
        >>> import torch, doublesparse as ds
        >>> model = torch.nn.Sequential(ds.nn.MaskedLinear(256, 64, sparsity=0.9))
        >>> x = torch.randn(3, 256)
        >>> y = model(x)
        >>> model = ds.prune.freeze(model.eval())
        >>> torch.allclose(model(x), y, atol=1e-5)
        True
        >>> model[0].packed.nbytes < 0.2 * 4 * 256 * 64
        True
        >>> list(model.state_dict())
        ['0.bias', '0.weight.meta', '0.weight.values', '0.weight.gaps']
        >>> model = ds.thaw(model)
    """
    _check_module("freeze", model)
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(
            f"freeze: dtype must be one of {DTYPES} or None, got {dtype!r}; pass one of them"
        )
    todo = {layer: _pack(name, layer, dtype) for name, layer in _freezable(model)}
    for layer, packed in todo.items():
        freeze_layer(layer, packed)
    return model


def _pack(name: str, layer: Masked, dtype: torch.dtype | None) -> PackedWeight:
    """Its packed weight; an error names the layer."""
    try:
        return pack_layer(layer, dtype)
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"freeze: layer {name!r} must be packable, got: {error}") from error


def _freezable(model: nn.Module) -> list[tuple[str, Masked]]:
    """The layers that `freeze` packs, with their names."""
    named = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) in PACKED_CLASSES or isinstance(module, Packed)
    ]
    mine = {id(module) for _, module in named}
    others = {
        id(parameter)
        for module in model.modules()
        if id(module) not in mine
        for parameter in module._parameters.values()
        if parameter is not None
    }
    return [
        (name, cast("Masked", module))
        for name, module in named
        if id(module._parameters["weight"]) not in others
    ]


def thaw(model: M) -> M:
    """Undo `ds.prune.freeze` and `ds.freeze_ground`; parameters may change again.

    Args:
        model: frozen or not, in whole or in part.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    _check_module("thaw", model)
    thaw_ground(model)
    for module in model.modules():
        if isinstance(module, Masked):
            module.thaw_()
    return model


def _check_module(operation: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{operation}: model must be an nn.Module, got {type(model).__name__}; pass one"
        )
