"""Convolution modules: torch's own classes, which also take a SparseTensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._patterns import Unstructured
from .._torch_compat import ConvBase
from ..tensor import SparseTensor
from ._masked import MASKED_CLASSES, mask_layer, unmask_layer

Input = SparseTensor | Tensor


class Prunable:
    """What the sparse convolutions share: they take a mask. Mixed into a module."""

    _buffers: dict[str, Tensor | None]

    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Keep the weights where the mask is True; the others are zero from now on.

        The layer becomes the masked form of its class, the same object with the same Parameters: it
        gets the buffer `mask`, which goes into the `state_dict`, and the methods of
        `ds.nn.MaskedConv2d`, whose `set_mask` says what happens to weights and optimizers.

        Args:
            mask: bool, of the weight's shape.
            optimizer: one that updates the weight.

        Raises:
            TypeError: `mask` is no bool tensor, or `optimizer` no `torch.optim.Optimizer`.
            ValueError: it has another shape than the weight.
            NotImplementedError: a subclass, which has no masked form.

        Example:
            >>> import torch, doublesparse as ds
            >>> conv = ds.nn.SubmanifoldConv2d(16, 16, 3)
            >>> mask = torch.zeros(16, 16, 3, 3, dtype=torch.bool)
            >>> mask[:, :, 1, 1] = True
            >>> conv.set_mask(mask)
            >>> int((conv.weight != 0).sum())
            256
        """
        if type(self) not in MASKED_CLASSES:
            raise NotImplementedError(
                f"{type(self).__name__}.set_mask: the layer must be exactly one of this package's, "
                "whose forward is known, got a subclass; pass mask= to ds.functional in its forward"
            )
        layer = mask_layer(cast("nn.Module", self), Unstructured())
        try:
            layer.set_mask(mask, optimizer)
        except BaseException:
            unmask_layer(layer)
            raise


class _Convolve(Prunable):
    """The forward of SparseConv1d .. SparseConv3d."""

    _convolve: Callable[..., Any]

    def forward(self: Any, input: Input) -> Any:
        """Convolve; a dense (B, C, *spatial) input gives a dense output, equal to torch's."""
        mask, padding = self._buffers.get("mask"), self.padding
        if mask is None and (self.padding_mode != "zeros" or not isinstance(input, SparseTensor)):
            return super().forward(input)  # type: ignore[misc]
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)  # type: ignore[arg-type]
            padding = 0
        return self._convolve(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            mask=mask,
        )


class SparseConv1d(_Convolve, nn.Conv1d):
    """`nn.Conv1d` for a SparseTensor (or a dense tensor): see `SparseConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (9,))
        >>> ds.nn.SparseConv1d(2, 4, 3, stride=2)(x).shape
        torch.Size([1, 4, 4])
    """

    _convolve = staticmethod(functional.conv1d)


class SparseConv2d(_Convolve, nn.Conv2d):
    """`nn.Conv2d` for a SparseTensor (or a dense tensor): the dense layer's answer (Graham 2014).

    Output sites are those that read an active site; everywhere else the output holds its ground
    state, the layer's response to the ground. It is a `nn.Conv2d`: the same constructor, `weight`
    (c_out, c_in / groups, kh, kw), `bias` (c_out,), and `state_dict`, both ways.

    Shapes:
        input (B, c_in, *spatial), output (B, c_out, *spatial_out) as for `nn.Conv2d`; float32 or
        float64.

    Raises:
        TypeError: the dtype of input and weight differ, or a wrong type.
        ValueError: channels or rank that do not fit; a kernel larger than the padded grid.
        NotImplementedError: a dtype without kernels.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> image[0, :, 2, 5] = 1.0
        >>> conv = ds.nn.SparseConv2d(3, 4, kernel_size=3, padding=1)
        >>> y = conv(ds.SparseTensor.from_dense(image))
        >>> torch.allclose(y.to_dense(), conv(image), atol=1e-6)
        True
        >>> len(y.coords)
        9
    """

    _convolve = staticmethod(functional.conv2d)


class SparseConv3d(_Convolve, nn.Conv3d):
    """`nn.Conv3d` for a SparseTensor (or a dense tensor): see `SparseConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1, 1]]), (9, 9, 9))
        >>> ds.nn.SparseConv3d(2, 4, 3, stride=2)(x).shape
        torch.Size([1, 4, 4, 4, 4])
    """

    _convolve = staticmethod(functional.conv3d)


def _four(name: str, value: Any) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 4
    if len(values) != 4 or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise ValueError(f"Conv4d: {name} must be an int or four ints, got {value!r}; correct it")
    return values


class SparseConv4d(Prunable, ConvBase):
    """A convolution over four axes, for a SparseTensor only (torch has no such layer).

    Args are those of `nn.Conv3d`; `weight` is (c_out, c_in / groups, k, k, k, k). `padding` is
    numbers, "same" or "valid"; `padding_mode` is "zeros".

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1, 1, 1]]), (3, 3, 3, 3))
        >>> ds.nn.SparseConv4d(2, 4, 3, padding=1)(x).shape
        torch.Size([1, 4, 3, 3, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(
                f"SparseConv4d: padding_mode must be 'zeros', got {padding_mode!r}; call "
                "torch.nn.functional.pad first"
            )
        super().__init__(
            in_channels,
            out_channels,
            _four("kernel_size", kernel_size),
            _four("stride", stride),
            padding if isinstance(padding, str) else _four("padding", padding),
            _four("dilation", dilation),
            False,
            (0,) * 4,
            groups,
            bias,
            "zeros",
            device,
            dtype,
        )

    def forward(self, input: SparseTensor) -> SparseTensor:
        """Convolve."""
        return functional.conv4d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            mask=self._buffers.get("mask"),
        )


# ------------------------------------------------------------------ submanifold
class _Submanifold(Prunable, ConvBase):
    """What SubmanifoldConv1d .. SubmanifoldConv4d share.

    It derives from torch's convolution without a rank, and not from `nn.Conv*d`: it is another
    function than the dense layer.
    """

    _n_axes: int
    _convolve: Callable[..., Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        ground: str = "error",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n, name = self._n_axes, type(self).__name__
        kernel, spread = (
            tuple(v) if isinstance(v, (tuple, list)) else (v,) * n for v in (kernel_size, dilation)
        )
        if len(kernel) != n or len(spread) != n:
            raise ValueError(
                f"{name}: kernel_size and dilation must be an int or {n} ints, got {kernel_size} "
                f"and {dilation}; correct them"
            )
        if any(k < 1 or k % 2 == 0 for k in kernel):
            raise ValueError(
                f"{name}: kernel_size must be odd, got {kernel_size}; an even kernel has no centre"
            )
        if ground not in ("error", "drop"):
            raise ValueError(
                f'{name}: ground must be "error" or "drop", got {ground!r}; pass one of them'
            )
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, spread, strict=True))
        ones, zeros = (1,) * n, (0,) * n
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            ones,
            padding,
            spread,
            False,
            zeros,
            groups,
            bias,
            "zeros",
            device,
            dtype,
        )
        self.ground = ground

    def forward(self, input: Input) -> Any:
        """Convolve at the input's sites; the result has ground=None (a dense input: dense)."""
        options = dict(ground=self.ground, mask=self._buffers.get("mask"))
        return self._convolve(
            input, self.weight, self.bias, self.dilation, self.groups, **options
        )

    def extra_repr(self) -> str:
        """As torch's, without what is fixed here."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        if any(d != 1 for d in self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text if self.ground == "error" else f"{text}, ground={self.ground!r}"


class SubmanifoldConv1d(_Submanifold):
    """The submanifold convolution over one axis: see `SubmanifoldConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (9,))
        >>> ds.nn.SubmanifoldConv1d(2, 4, 3)(x)
        SparseTensor(sites=1, batch=1, spatial=(9,), channels=4, ...ground=None)
    """

    _n_axes = 1
    _convolve = staticmethod(functional.submanifold_conv1d)


class SubmanifoldConv2d(_Submanifold):
    """A convolution whose output sites are its input sites (Graham & van der Maaten 2017).

    Inactive sites count as zero and stay inactive, so depth does not dilate: the result has
    `ground=None`. Stride 1, odd kernels, centred; `weight` (c_out, c_in / groups, kh, kw).

    Args:
        in_channels: c_in.
        out_channels: c_out.
        kernel_size: odd.
        dilation: spacing of the kernel.
        groups: divides both channel counts.
        bias: add one number per channel, at active sites.
        ground: what to do with an input whose ground is not zero: "error" or "drop".
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an even kernel; an input with a ground that is not zero, unless dropped.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(2, 1), torch.tensor([[0, 1, 1], [0, 1, 2]]), (4, 4))
        >>> y = ds.nn.SubmanifoldConv2d(1, 8, 3)(x)
        >>> torch.equal(y.coords, x.coords), y.ground
        (True, None)
    """

    _n_axes = 2
    _convolve = staticmethod(functional.submanifold_conv2d)


class SubmanifoldConv3d(_Submanifold):
    """The submanifold convolution over three axes: see `SubmanifoldConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1, 1]]), (3, 3, 3))
        >>> ds.nn.SubmanifoldConv3d(2, 4, 3)(x).features.shape
        torch.Size([1, 4])
    """

    _n_axes = 3
    _convolve = staticmethod(functional.submanifold_conv3d)


class SubmanifoldConv4d(_Submanifold):
    """The submanifold convolution over four axes: see `SubmanifoldConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1, 1, 1]]), (3, 3, 3, 3))
        >>> ds.nn.SubmanifoldConv4d(2, 4, 3)(x).features.shape
        torch.Size([1, 4])
    """

    _n_axes = 4
    _convolve = staticmethod(functional.submanifold_conv4d)


# ------------------------------------------------------------------ transposed, inverse
class _Transpose(Prunable):
    """The forward of SparseConvTranspose1d .. SparseConvTranspose3d."""

    _convolve: Callable[..., Any]

    def forward(self: Any, input: Input, output_size: list[int] | None = None) -> Any:
        """Convolve; a dense input gives a dense output. `output_size` as in torch."""
        mask, extra = self._buffers.get("mask"), self.output_padding
        if mask is None and (output_size is not None or not isinstance(input, SparseTensor)):
            return super().forward(input, output_size)  # type: ignore[misc]
        if output_size is not None:
            n_axes, geometry = len(self.kernel_size), (self.stride, self.padding, self.kernel_size)
            extra = self._output_padding(input, output_size, *geometry, n_axes, self.dilation)
        return self._convolve(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
            mask=mask,
        )


class SparseConvTranspose1d(_Transpose, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` for a SparseTensor (or a dense one): see `SparseConvTranspose2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (9,))
        >>> ds.nn.SparseConvTranspose1d(2, 4, 2, stride=2)(x).shape
        torch.Size([1, 4, 18])
    """

    _convolve = staticmethod(functional.conv_transpose1d)


class SparseConvTranspose2d(_Transpose, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` for a SparseTensor (or a dense tensor): the dense layer's answer.

    Output sites are those that an active site reaches. It is a `nn.ConvTranspose2d`: the same
    constructor, `weight` (c_in, c_out / groups, kh, kw), `bias`, and `state_dict`, both ways.
    Raises what `SparseConv2d` raises.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 3, 4, 4)
        >>> image[0, :, 2, 1] = 1.0
        >>> up = ds.nn.SparseConvTranspose2d(3, 2, kernel_size=2, stride=2)
        >>> y = up(ds.SparseTensor.from_dense(image))
        >>> torch.allclose(y.to_dense(), up(image), atol=1e-6), y.sites.n_sites
        (True, 4)
    """

    _convolve = staticmethod(functional.conv_transpose2d)


class SparseConvTranspose3d(_Transpose, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` for a SparseTensor (or a dense one): see `SparseConvTranspose2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1, 1]]), (3, 3, 3))
        >>> ds.nn.SparseConvTranspose3d(2, 4, 2, stride=2)(x).shape
        torch.Size([1, 4, 6, 6, 6])
    """

    _convolve = staticmethod(functional.conv_transpose3d)
