"""Pooling modules: torch's classes, which also take a SparseTensor, and pools over all space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .. import functional
from ..tensor import SparseTensor

Input = SparseTensor | Tensor


class _MaxPool:
    _pool: Callable[..., Any]

    def forward(self: Any, input: Input) -> Any:
        """Pool; a dense input gives a dense output."""
        if self.return_indices or not isinstance(input, SparseTensor):
            return super().forward(input)  # type: ignore[misc]
        return self._pool(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class SparseMaxPool1d(_MaxPool, nn.MaxPool1d):
    """`nn.MaxPool1d` for a SparseTensor (or a dense tensor): see `SparseMaxPool2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (8,))
        >>> ds.nn.SparseMaxPool1d(2)(x).shape
        torch.Size([1, 2, 4])
    """

    _pool = staticmethod(functional.max_pool1d)


class SparseMaxPool2d(_MaxPool, nn.MaxPool2d):
    """`nn.MaxPool2d` for a SparseTensor (or a dense tensor): the dense layer's answer.

    A window sees its active values, the ground state of its inactive sites, and nothing in the
    padding; with ground=None active values only. Ties go to the first in row-major order, NaN
    wins. `return_indices=True` is refused for a SparseTensor.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[0, 0, 1, 1] = -1.0
        >>> pool = ds.nn.SparseMaxPool2d(2)
        >>> torch.equal(pool(ds.SparseTensor.from_dense(image)).to_dense(), pool(image))
        True
    """

    _pool = staticmethod(functional.max_pool2d)


class SparseMaxPool3d(_MaxPool, nn.MaxPool3d):
    """`nn.MaxPool3d` for a SparseTensor (or a dense tensor): see `SparseMaxPool2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1, 1]]), (8, 8, 8))
        >>> ds.nn.SparseMaxPool3d(2)(x).shape
        torch.Size([1, 2, 4, 4, 4])
    """

    _pool = staticmethod(functional.max_pool3d)


class SparseAvgPool1d(nn.AvgPool1d):
    """`nn.AvgPool1d` for a SparseTensor (or a dense tensor): see `SparseAvgPool2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (8,))
        >>> ds.nn.SparseAvgPool1d(2)(x).features
        tensor([[0.5000, 0.5000]])
    """

    def forward(self, input: Input) -> Any:
        """Pool; a dense input gives a dense output."""
        if not isinstance(input, SparseTensor):
            return super().forward(input)
        return functional.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )


class _AvgPool:
    _pool: Callable[..., Any]

    def forward(self: Any, input: Input) -> Any:
        """Pool; a dense input gives a dense output."""
        if not isinstance(input, SparseTensor):
            return super().forward(input)  # type: ignore[misc]
        return self._pool(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class SparseAvgPool2d(_AvgPool, nn.AvgPool2d):
    """`nn.AvgPool2d` for a SparseTensor (or a dense tensor): the dense layer's answer.

    The divisor is torch's (`ceil_mode`, `count_include_pad`, `divisor_override`); with ground=None
    it is the number of active sites in the window.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[0, 0, 1, 1] = 1.0
        >>> pool = ds.nn.SparseAvgPool2d(3, padding=1)
        >>> torch.allclose(pool(ds.SparseTensor.from_dense(image)).to_dense(), pool(image))
        True
    """

    _pool = staticmethod(functional.avg_pool2d)


class SparseAvgPool3d(_AvgPool, nn.AvgPool3d):
    """`nn.AvgPool3d` for a SparseTensor (or a dense tensor): see `SparseAvgPool2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1, 1]]), (8, 8, 8))
        >>> ds.nn.SparseAvgPool3d(2)(x).features
        tensor([[0.1250, 0.1250]])
    """

    _pool = staticmethod(functional.avg_pool3d)


class SparseGlobalAvgPool(nn.Module):
    """The mean over all sites, ground included; over active sites where the ground is None.

    Input (B, C, *spatial), a SparseTensor or dense; output a dense Tensor (B, C).

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1]]), (4, 4))
        >>> ds.nn.SparseGlobalAvgPool()(x)
        tensor([[0.0625, 0.0625]])
    """

    def forward(self, input: Input) -> Tensor:
        """Pool."""
        return functional.global_avg_pool(input)


class SparseGlobalMaxPool(nn.Module):
    """The maximum over all sites, ground included; over active sites where the ground is None.

    Input (B, C, *spatial), a SparseTensor or dense; output a dense Tensor (B, C).

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(-torch.ones(1, 2), torch.tensor([[0, 3, 1]]), (4, 4))
        >>> ds.nn.SparseGlobalMaxPool()(x), ds.nn.SparseGlobalMaxPool()(x.replace(ground=None))
        (tensor([[0., 0.]]), tensor([[-1., -1.]]))
    """

    def forward(self, input: Input) -> Tensor:
        """Pool."""
        return functional.global_max_pool(input)
