"""Inverse convolutions: back onto the sites that a strided convolution came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import functional
from .._torch_compat import ConvBase
from ..tensor import SparseTensor
from ._conv import Prunable


class _Inverse(Prunable, ConvBase):
    """What SparseInverseConv1d .. SparseInverseConv3d share."""

    _n_axes: int
    _convolve: Callable[..., Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        ground: str = "error",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if ground not in ("error", "drop"):
            raise ValueError(
                f'{type(self).__name__}: ground must be "error" or "drop", got {ground!r}; '
                "pass one of them"
            )
        kernel, steps, pads, spread = (
            self._per_axis(name, value)
            for name, value in (
                ("kernel_size", kernel_size),
                ("stride", stride),
                ("padding", padding),
                ("dilation", dilation),
            )
        )
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            steps,
            pads,
            spread,
            True,
            (0,) * self._n_axes,
            groups,
            bias,
            "zeros",
            device,
            dtype,
        )
        self.ground = ground

    def _per_axis(self, name: str, value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self._n_axes
        if len(values) != self._n_axes or any(
            isinstance(v, bool) or not isinstance(v, int) for v in values
        ):
            raise ValueError(
                f"{type(self).__name__}: {name} must be an int or {self._n_axes} ints, "
                f"got {value!r}; correct it"
            )
        return values

    def forward(self, input: SparseTensor, like: SparseTensor) -> SparseTensor:
        """The transposed convolution of `input` at the sites of `like`, with ground=None."""
        return self._convolve(
            input,
            self.weight,
            self.bias,
            like=like,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            ground=self.ground,
            mask=self._buffers.get("mask"),
        )


class SparseInverseConv1d(_Inverse):
    """The inverse convolution over one axis: see `SparseInverseConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(2, 3), torch.tensor([[0, 1], [0, 6]]), (8,))
        >>> down = ds.nn.SparseConv1d(3, 4, 2, stride=2, bias=False)(x)
        >>> ds.nn.SparseInverseConv1d(4, 3, 2, stride=2)(down, like=x).shape
        torch.Size([1, 3, 8])
    """

    _n_axes = 1
    _convolve = staticmethod(functional.inverse_conv1d)


class SparseInverseConv2d(_Inverse):
    """A transposed convolution whose output sites are those of another tensor.

    Undoes the dilation of a strided convolution or pool in an encoder-decoder (Graham & van der
    Maaten 2017; spconv's inverse convolution): with the geometry of that layer, `like` is its
    input. Inactive sites count as zero and stay inactive: the result has `ground=None`.

    Args:
        in_channels: c_in.
        out_channels: c_out.
        kernel_size: of the layer that is undone, like stride, padding and dilation.
        stride: see there.
        padding: see there.
        dilation: see there.
        groups: divides both channel counts.
        bias: add one number per channel, at the sites.
        ground: what to do with an input whose ground is not zero: "error" or "drop".
        device: of the parameters.
        dtype: of the parameters.

    `weight` is (c_in, c_out / groups, kh, kw), as in `nn.ConvTranspose2d`.

    Raises:
        TypeError: `like` is no SparseTensor.
        ValueError: the geometry does not lead from `like`'s grid to the input's.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(2, 1), torch.tensor([[0, 1, 1], [0, 6, 2]]), (8, 8))
        >>> down = ds.nn.SparseConv2d(1, 4, 2, stride=2, bias=False)(x)
        >>> up = ds.nn.SparseInverseConv2d(4, 1, 2, stride=2)(down, like=x)
        >>> torch.equal(up.coords, x.coords)
        True
    """

    _n_axes = 2
    _convolve = staticmethod(functional.inverse_conv2d)


class SparseInverseConv3d(_Inverse):
    """The inverse convolution over three axes: see `SparseInverseConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 3), torch.tensor([[0, 1, 1, 1]]), (4, 4, 4))
        >>> down = ds.nn.SparseConv3d(3, 4, 2, stride=2, bias=False)(x)
        >>> ds.nn.SparseInverseConv3d(4, 3, 2, stride=2)(down, like=x).shape
        torch.Size([1, 3, 4, 4, 4])
    """

    _n_axes = 3
    _convolve = staticmethod(functional.inverse_conv3d)
