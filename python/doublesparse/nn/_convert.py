"""Between dense and sparse: tensors, and models."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from ..tensor import SparseTensor
from ._conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SubmanifoldConv1d,
    SubmanifoldConv2d,
    SubmanifoldConv3d,
)
from ._pool import (
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
)

M = TypeVar("M", bound=nn.Module)


class ToDense(nn.Module):
    """SparseTensor to dense (B, C, *spatial), inactive sites filled with the ground.

    A dense tensor passes.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1]]), (4, 4))
        >>> ds.nn.ToDense()(x).shape
        torch.Size([1, 2, 4, 4])
    """

    def forward(self, input: SparseTensor | Tensor) -> Tensor:
        """Convert."""
        if not isinstance(input, (SparseTensor, Tensor)):
            raise TypeError(
                "ToDense: input must be a SparseTensor or a Tensor, got "
                f"{type(input).__name__}; pass one of them"
            )
        return input.to_dense() if isinstance(input, SparseTensor) else input


class ToSparse(nn.Module):
    """Dense (B, C, *spatial) to SparseTensor: active is what differs from the ground.

    A SparseTensor passes.

    Args:
        ground: a number, a tensor (C,) or an image (1, C, *spatial), or None; a tensor becomes a
            buffer and moves with the module.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[0, 0, 1, 1] = 1.0
        >>> ds.nn.ToSparse()(image).sites.n_sites
        1
    """

    ground: Any

    def __init__(self, ground: float | Tensor | None = 0.0) -> None:
        super().__init__()
        if isinstance(ground, Tensor):
            self.register_buffer("ground", ground)
        else:
            self.ground = ground

    def forward(self, input: Tensor | SparseTensor) -> SparseTensor:
        """Convert."""
        if isinstance(input, SparseTensor):
            return input
        return SparseTensor.from_dense(input, ground=self.ground)

    def extra_repr(self) -> str:
        """The ground."""
        ground = self.ground
        return f"ground={tuple(ground.shape) if isinstance(ground, Tensor) else ground}"


_TWINS: dict[type, type] = {
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
    nn.ConvTranspose1d: SparseConvTranspose1d,
    nn.ConvTranspose2d: SparseConvTranspose2d,
    nn.ConvTranspose3d: SparseConvTranspose3d,
    nn.MaxPool1d: SparseMaxPool1d,
    nn.MaxPool2d: SparseMaxPool2d,
    nn.MaxPool3d: SparseMaxPool3d,
    nn.AvgPool1d: SparseAvgPool1d,
    nn.AvgPool2d: SparseAvgPool2d,
    nn.AvgPool3d: SparseAvgPool3d,
}
_SUBMANIFOLD: dict[type, type] = {
    nn.Conv1d: SubmanifoldConv1d,
    nn.Conv2d: SubmanifoldConv2d,
    nn.Conv3d: SubmanifoldConv3d,
    SparseConv1d: SubmanifoldConv1d,
    SparseConv2d: SubmanifoldConv2d,
    SparseConv3d: SubmanifoldConv3d,
}


def _keeps_sites(conv: Any) -> bool:
    """Whether a convolution has stride 1, an odd kernel and centred zero padding."""
    centred = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return (
        all(s == 1 for s in conv.stride)
        and all(k % 2 == 1 for k in conv.kernel_size)
        and conv.padding in ("same", centred)
        and conv.padding_mode == "zeros"
    )


def _twin(module: nn.Module, submanifold: bool) -> type | None:
    kind = type(module)  # exactly: a subclass may have another forward
    if submanifold and kind in _SUBMANIFOLD and _keeps_sites(module):
        return _SUBMANIFOLD[kind]
    return _TWINS.get(kind)


def convert(model: M, submanifold: bool = False) -> M:
    """Swap the dense convolutions and pools of a model for their sparse twins, in place.

    Each module changes its class and nothing else: the same Parameter objects, hooks, names and
    `state_dict`, so an optimizer made before goes on. A dense model takes a SparseTensor without
    this as well; the twins spare the dispatch and are what to look for. Only exact `nn.Conv*d`,
    `nn.ConvTranspose*d`, `nn.MaxPool*d` and `nn.AvgPool*d` are swapped; everything else (norms,
    activations, subclasses) stays.

    Args:
        model: any module.
        submanifold: make convolutions of stride 1 with an odd kernel and centred zero padding
            submanifold ones (Graham & van der Maaten 2017), which are other functions: they drop
            the ground (`ground="drop"`), and what follows sees active sites only.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> type(ds.nn.convert(net)[0]).__name__
        'SparseConv2d'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"convert: model must be a torch.nn.Module, got {type(model).__name__}; pass a model"
        )
    for module in model.modules():
        twin = _twin(module, submanifold)
        if twin is None:
            continue
        if twin in _SUBMANIFOLD.values():
            module.padding = tuple(  # type: ignore[assignment]  # "same" becomes numbers
                d * (k - 1) // 2
                for k, d in zip(module.kernel_size, module.dilation, strict=True)  # type: ignore[arg-type]
            )
            module.ground = "drop"  # type: ignore[assignment]
        module.__class__ = twin
    return model
