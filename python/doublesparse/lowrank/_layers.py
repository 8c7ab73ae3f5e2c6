"""Layers in two factors: few filters of the layer's own geometry, and a 1x1 layer that mixes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn import _conv as sparse
from ..nn import _inverse as inverse
from ..nn._masked import MASKED_CLASSES
from ..nn._packed import PACKED_CLASSES
from ._factors import Factors
from ._filters import filters_back, grouping

# What the second layer is: {class of the first: class of a 1x1 convolution}. Exact classes only,
# since a subclass may have another forward.
_POINTWISE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.Linear,
    nn.Conv1d: nn.Conv1d,
    nn.Conv2d: nn.Conv2d,
    nn.Conv3d: nn.Conv3d,
    nn.ConvTranspose1d: nn.Conv1d,
    nn.ConvTranspose2d: nn.Conv2d,
    nn.ConvTranspose3d: nn.Conv3d,
    sparse.SparseConv1d: sparse.SparseConv1d,
    sparse.SparseConv2d: sparse.SparseConv2d,
    sparse.SparseConv3d: sparse.SparseConv3d,
    sparse.SparseConv4d: sparse.SparseConv4d,
    sparse.SparseConvTranspose1d: sparse.SparseConv1d,
    sparse.SparseConvTranspose2d: sparse.SparseConv2d,
    sparse.SparseConvTranspose3d: sparse.SparseConv3d,
    # Their result has no ground: it is submanifold to the end.
    sparse.SubmanifoldConv1d: sparse.SubmanifoldConv1d,
    sparse.SubmanifoldConv2d: sparse.SubmanifoldConv2d,
    sparse.SubmanifoldConv3d: sparse.SubmanifoldConv3d,
    sparse.SubmanifoldConv4d: sparse.SubmanifoldConv4d,
    inverse.SparseInverseConv1d: sparse.SubmanifoldConv1d,
    inverse.SparseInverseConv2d: sparse.SubmanifoldConv2d,
    inverse.SparseInverseConv3d: sparse.SubmanifoldConv3d,
}


class LowRank(nn.Sequential):
    """What `decompose` makes of a layer: `basis`, then `combine`.

    Attributes:
        basis: the layer with few filters and without bias: its stride, padding, dilation, groups.
        combine: the linear layer or 1x1 convolution that makes all outputs of them, with its bias.

    Example:
        >>> import torch, doublesparse as ds
        >>> layer = ds.lowrank.decompose(torch.nn.Linear(8, 8), rank=2)
        >>> layer
        LowRank(
          (basis): Linear(in_features=8, out_features=2, bias=False)
          (combine): Linear(in_features=2, out_features=8, bias=True)
        )
    """

    basis: nn.Module
    combine: nn.Module

    def __init__(self, basis: nn.Module, combine: nn.Module) -> None:
        super().__init__(OrderedDict(basis=basis, combine=combine))

    def __getitem__(self, index: Any) -> Any:
        """A factor; of a slice, an `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def forward(self, input: Any, *args: Any, **options: Any) -> Any:
        """As the layer's; what a transposed layer takes beside the input goes to the basis."""
        return self.combine(self.basis(input, *args, **options))


def dense_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer without its mask, frozen or not; a subclass is its own."""
    kind: type[Any] = type(module)
    known = kind in MASKED_CLASSES.values() or kind in PACKED_CLASSES.values()
    return kind.dense_class if known else kind


def unsupported(module: nn.Module) -> str | None:
    """Why a class of layers is not decomposed; None where it can be."""
    if isinstance(module, LowRank):
        return "it is decomposed"
    if dense_class(module) not in _POINTWISE:
        return f"{type(module).__name__} has no form of low rank"
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any((*hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "it has hooks, which would be lost"
    return None


def low_rank_layer(module: nn.Module, factors: Factors) -> LowRank:
    """The layer of these factors: in dtype, device, mode and memory format what the layer is."""
    layer = cast("Any", module)
    kind, rank = dense_class(module), factors.basis.shape[1]
    weight, bias = layer.weight, layer.bias
    options: dict[str, Any] = {"device": "meta", "dtype": weight.dtype}
    groups, transposed = grouping(module)
    basis = _basis(layer, kind, groups * rank, options)
    second = _POINTWISE[kind]
    if kind is nn.Linear:
        combine = second(rank, layer.out_features, bias is not None, **options)
    else:
        options |= {"bias": bias is not None, "groups": groups}
        combine = second(groups * rank, layer.out_channels, 1, **options)
    thin = filters_back(factors.basis, weight, transposed)
    last = weight.dim() == 4 and not weight.is_contiguous() and kind is not nn.Linear
    order = torch.channels_last if last else torch.contiguous_format
    thin = thin.clone(memory_format=order)
    mixing = factors.combine.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    _set(basis, "weight", thin, weight)
    _set(combine, "weight", mixing.reshape(cast("Tensor", combine.weight).shape), weight)
    if bias is not None:
        _set(combine, "bias", bias.detach().clone(), bias)
    return LowRank(basis, combine).train(module.training)


def _set(module: nn.Module, name: str, value: Tensor, like: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.detach(), requires_grad=like.requires_grad))


def _basis(layer: Any, kind: type[Any], n_filters: int, options: dict[str, Any]) -> nn.Module:
    """A layer of the same geometry, with that many filters and no bias."""
    if kind is nn.Linear:
        return kind(layer.in_features, n_filters, False, **options)
    options = options | {"groups": layer.groups, "dilation": layer.dilation, "bias": False}
    if hasattr(layer, "ground"):
        options["ground"] = layer.ground
    if not issubclass(kind, sparse._Submanifold):
        options |= {"stride": layer.stride, "padding": layer.padding}
        if not issubclass(kind, inverse._Inverse):
            options["padding_mode"] = layer.padding_mode
    if layer.transposed and not issubclass(kind, inverse._Inverse):
        options["output_padding"] = layer.output_padding
    return kind(layer.in_channels, n_filters, layer.kernel_size, **options)
