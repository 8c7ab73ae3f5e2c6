"""Operators whose weight is a `PackedWeight`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _gpu_packed
from . import _packed_forms as _forms
from ._autograd import wanted
from ._autograd_masked_conv import FrozenConv
from ._autograd_spmm import packed_input_grad, packed_linear
from ._functional_conv import conv1d, conv2d, conv3d, conv4d
from ._functional_masked_conv import geometry_of
from ._masked_conv import takes_kernel
from ._packed_weight import PackedWeight
from ._patterns import Pattern, Unstructured
from ._spmm_costs import counts_of, runs_packed
from ._structure import of_matrix
from ._torch_compat import traced
from .tensor import SparseTensor

X = TypeVar("X", SparseTensor, Tensor)
Ints = int | Sequence[int]
_SMALL = 1 << 14  # weights that stay dense once they were: unpacking takes longer than the layer
_CONVOLUTIONS: tuple[Callable[..., Any], ...] = (conv1d, conv2d, conv3d, conv4d)


def spmm(packed: PackedWeight, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, packed.unpack(), bias)`: the kept weights times dense activations.

    Args:
        packed: (c_out, c_in). Its dtype may be narrower than that of x (int8 is narrower than
            all); it is widened, and sums are those of the dtype of x.
        x: (*, c_in); float32, float64, bfloat16 or float16.
        bias: (c_out,), the dtype of x, or None.

    Returns:
        (*, c_out), the dtype of x. Gradients go to x and bias.

    Raises:
        TypeError: arguments of other types, or dtypes that do not go together.
        ValueError: shapes that do not fit.
        RuntimeError: x or bias is not where the packed weight is.

    Example:
        >>> import torch, doublesparse as ds
        >>> packed = ds.PackedWeight.pack(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]))
        >>> ds.functional.spmm(packed, torch.tensor([[10.0, 20.0]]))
        tensor([[40.,  0., 10.]])
    """
    _check_packed("spmm", packed, 2)
    _check_operand("spmm", "x", x, packed)
    _check_last("spmm", "x", x, packed.shape[1])
    _check_bias("spmm", bias, x, packed.shape[0])
    return _product(x, packed, bias)


def spmm_t(packed: PackedWeight, dy: Tensor) -> Tensor:
    """`dy @ packed.unpack()`: what `spmm` does to the gradient of its input.

    Args:
        packed: (c_out, c_in), as of `spmm`.
        dy: (*, c_out).

    Returns:
        (*, c_in), the dtype of dy. Gradients go to dy.

    Raises:
        TypeError: arguments of other types, or dtypes that do not go together.
        ValueError: shapes that do not fit.
        RuntimeError: dy is not where the packed weight is.

    Example:
        >>> import torch, doublesparse as ds
        >>> packed = ds.PackedWeight.pack(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]))
        >>> ds.functional.spmm_t(packed, torch.tensor([[1.0, 5.0, 3.0]]))
        tensor([[3., 2.]])
    """
    _check_packed("spmm_t", packed, 2)
    _check_operand("spmm_t", "dy", dy, packed)
    _check_last("spmm_t", "dy", dy, packed.shape[0])
    c_out, c_in = packed.shape
    n_rows = dy.numel() // max(1, c_out)
    if dy.is_cpu and not runs_packed(counts_of(packed, n_rows, True), dy.dtype):
        return torch.matmul(dy, _weight(packed, dy))
    rows = dy.reshape(-1, c_out).contiguous()
    return packed_input_grad(rows, packed).view(*dy.shape[:-1], c_in)


def sddmm(dy: Tensor, x: Tensor, mask: Tensor | PackedWeight) -> PackedWeight:
    """`dy.T @ x` at kept entries only: what `spmm` does to the gradient of its weight.

    Args:
        dy: (*, c_out).
        x: (*, c_in), the same leading axes and dtype.
        mask: bool (c_out, c_in); or a packed weight, whose values do not matter.

    Returns:
        the mask and pattern of `mask` (`Unstructured` of a bool tensor), the dtype of x.
        No gradient goes through it.

    Raises:
        TypeError: arguments of other types, or of different dtypes.
        ValueError: shapes that do not fit.
        RuntimeError: dy, x and mask are not on one device, or on another than the CPU or CUDA.

    Example:
        >>> import torch, doublesparse as ds
        >>> mask = torch.tensor([[True, False], [False, True]])
        >>> grad = ds.functional.sddmm(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), mask)
        >>> grad.unpack()
        tensor([[3., 0.],
                [0., 8.]])
    """
    _check_operand("sddmm", "dy", dy)
    _check_operand("sddmm", "x", x)
    if dy.dtype != x.dtype:
        raise TypeError(f"sddmm: dy must be {x.dtype} like x, got {dy.dtype}; convert one of them")
    pattern: Pattern = Unstructured()
    if isinstance(mask, PackedWeight):
        _check_packed("sddmm", mask, 2)
        pattern = mask.pattern
    elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"sddmm: mask must be a bool Tensor or a PackedWeight, got {got}; "
            "use weight != 0"
        )
    shape = mask.shape
    if len(shape) != 2:
        raise ValueError(
            f"sddmm: mask must be (c_out, c_in), got {tuple(shape)}; reshape it"
        )
    _check_last("sddmm", "dy", dy, shape[0])
    _check_last("sddmm", "x", x, shape[1])
    if dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"sddmm: dy must have the leading axes of x {tuple(x.shape[:-1])}, got "
            f"{tuple(dy.shape[:-1])}; pass what spmm's output got as a gradient"
        )
    if dy.device != x.device or mask.device != x.device:
        raise RuntimeError(
            f"sddmm: dy and mask must be on {x.device} like x, got {dy.device} and {mask.device}; "
            "move them"
        )
    dy, x = dy.detach().reshape(-1, shape[0]), x.detach().reshape(-1, shape[1])
    if x.is_cuda:
        keep = mask.mask() if isinstance(mask, PackedWeight) else mask
        dw = _gpu_packed.sampled(dy.contiguous(), x.contiguous(), keep)
        return PackedWeight.pack(dw, keep, pattern)
    if isinstance(mask, PackedWeight):
        tiles = _forms.forms_of(mask).sampled
    else:
        tiles = of_matrix(mask).sampled.tiles
    return _forms.sampled(dy.contiguous(), x.contiguous(), tiles, pattern)


def _product(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return _product(x.to(dtype), packed, bias if bias is None else bias.to(dtype))
    if traced(x):
        return _forms.traced_product(x, packed, bias)
    c_out, c_in = packed.shape
    if x.is_cpu and not runs_packed(counts_of(packed, x.numel() // max(1, c_in)), x.dtype):
        return F.linear(x, _weight(packed, x), bias)
    y = packed_linear(x.reshape(-1, c_in).contiguous(), packed, bias)
    return y.view(*x.shape[:-1], c_out)


def packed_conv(
    x: X,
    packed: PackedWeight,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> X:
    """The convolution of as many axes as the packed weight has, with its kept weights.

    Args:
        x: (B, c_in, *spatial) or (c_in, *spatial), or a SparseTensor.
        packed: (c_out, c_in / groups, *kernel), as of `spmm`; four axes for a SparseTensor only.
        bias: (c_out,), the dtype of x, or None.
        stride: step between output positions, per axis.
        padding: zeros at both ends, or "same" (stride 1) or "valid".
        dilation: distance of neighbouring taps.
        groups: divides both channel counts.

    Returns:
        what `conv1d` .. `conv4d` return for `packed.unpack()`. Gradients go to x and bias.

    Raises:
        TypeError: arguments of other types, or dtypes that do not go together.
        ValueError: shapes that do not fit.
        RuntimeError: x or bias is not where the packed weight is.

    Example:
        >>> import torch, doublesparse as ds
        >>> packed = ds.PackedWeight.pack(torch.tensor([[[1.0, 0.0, 2.0]]]))
        >>> ds.functional.packed_conv(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), packed)
        tensor([[[ 7., 10.]]])
    """
    _check_packed("packed_conv", packed, 3, 6)
    n_axes = len(packed.shape) - 2
    if isinstance(x, SparseTensor):
        _check_operand("packed_conv", "x", x.features, packed)
        n_batch, like, channels = 1, x.features, x.shape[1]
    else:
        _check_operand("packed_conv", "x", x, packed)
        if n_axes == 4:
            raise TypeError(
                "packed_conv: x must be a SparseTensor for four spatial axes, got a Tensor; "
                "torch has no such convolution"
            )
        n_batch, like = x.dim() - 1 - n_axes, x
        channels = x.shape[n_batch] if n_batch in (0, 1) else -1
    if n_batch not in (0, 1) or len(x.shape) != n_batch + 1 + n_axes:
        raise ValueError(
            f"packed_conv: x must have {n_axes} spatial axes like the weight "
            f"{tuple(packed.shape)}, got {tuple(x.shape)}; reshape it"
        )
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"packed_conv: groups must be an int, got {groups!r}; pass an integer")
    if groups < 1 or packed.shape[0] % groups or channels != packed.shape[1] * groups:
        raise ValueError(
            f"packed_conv: x must have {packed.shape[1]} * groups channels and groups divide the "
            f"{packed.shape[0]} of the output, got {channels} and groups={groups}; "
            "pass the layer's own"
        )
    _check_bias("packed_conv", bias, like, packed.shape[0])
    if isinstance(x, Tensor):
        operands = (x, bias, stride, padding, dilation, groups)
        if (y := _frozen_conv(packed, n_axes, *operands)) is not None:
            return y
    convolve = _CONVOLUTIONS[n_axes - 1]
    weight = _weight(packed, like) if like is x else living_weight(packed, like.dtype)
    out: X = convolve(x, weight, bias, stride, padding, dilation, groups)
    return out


def _weight(packed: PackedWeight, x: Tensor) -> Tensor:
    key = "small", x.dtype
    weight: Tensor | None = packed._forms.get(key)
    if weight is None:
        weight = _dense(packed, x.dtype)
        if weight.numel() <= _SMALL:
            packed._forms[key] = weight
    return weight


def _frozen_conv(
    packed: PackedWeight, n_axes: int, x: Tensor, bias: Tensor | None, *walk: Any
) -> Tensor | None:
    """On the kernels of pruned weights; None where the dense ones run, or a gradient is wanted."""
    if not x.is_cpu or traced(x) or torch.is_autocast_enabled("cpu") or wanted(x, bias):
        return None
    g = geometry_of(n_axes, x, packed.shape, bias, *walk)
    if g is None:  # torch refuses it
        return None
    groups = g.groups
    if x.dim() == n_axes + 2 and _forms.takes_tile_conv(packed, x, g):
        return _forms.tile_conv(packed, x, g, bias)
    images = x.shape if x.dim() == n_axes + 2 else (1, *x.shape)
    if not takes_kernel(packed.shape, packed.density, g, images, x.dtype):
        return None
    key = "conv", groups, x.dtype
    frozen: FrozenConv | None = packed._forms.get(key)
    if frozen is None:
        weight = packed.unpack()
        frozen = packed._forms[key] = FrozenConv(weight, packed.mask(), groups, x.dtype)
        if frozen.values.dtype == packed.dtype and "only" not in packed._forms:
            packed.keep_form(frozen)
    if x.dim() == n_axes + 1:
        return frozen(x.unsqueeze(0), bias, g).squeeze(0)
    return frozen(x, bias, g)


def living_weight(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The same tensor as the last time if it still lives: frozen grounds know weights by identity.

    They hold on to it; nobody else does.
    """
    key = "dense", dtype
    found = packed._forms.get(key)
    weight: Tensor | None = None if found is None else found()
    if weight is None:
        weight = _dense(packed, dtype)
        packed._forms[key] = weakref.ref(weight)
    return weight


def _dense(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    on_host = packed.device.type == "cpu"
    return packed.unpack().to(dtype) if on_host else _gpu_packed.dense(packed, dtype)


# ------------------------------------------------------------------ checks
def _check_packed(operation: str, packed: Any, least: int, most: int | None = None) -> None:
    if not isinstance(packed, PackedWeight):
        raise TypeError(
            f"{operation}: packed must be a PackedWeight, got {type(packed).__name__}; "
            "use ds.PackedWeight.pack(weight)"
        )
    if not least <= len(packed.shape) <= (most or least):
        wanted = "(c_out, c_in)" if most is None else "(c_out, c_in / groups, *kernel)"
        raise ValueError(
            f"{operation}: packed must be {wanted}, got {tuple(packed.shape)}; "
            f"use {'packed_conv' if most is None else 'spmm'}"
        )


def _check_operand(operation: str, name: str, x: Any, packed: PackedWeight | None = None) -> None:
    """A floating-point tensor where the weight is, at least as wide as what is packed."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{operation}: {name} must be a Tensor, got {type(x).__name__}; pass a torch.Tensor"
        )
    if not x.dtype.is_floating_point or x.layout is not torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a strided floating-point tensor, got {x.dtype}, "
            f"{x.layout}; use x.float() or x.to_dense()"
        )
    if x.is_meta or not (x.is_cpu or x.is_cuda):
        raise RuntimeError(
            f"{operation}: {name} must be on cpu or cuda, got {x.device}; use x.cpu()"
        )
    if packed is None:
        return
    if x.device != packed.device:
        raise RuntimeError(
            f"{operation}: {name} must be on {packed.device} like the packed weight, got "
            f"{x.device}; use packed.to({name}.device)"
        )
    if packed.dtype == torch.int8 or torch.is_autocast_enabled(x.device.type):
        return
    if torch.promote_types(x.dtype, packed.dtype) != x.dtype:
        raise TypeError(
            f"{operation}: {name} must be at least as wide as the packed {packed.dtype}, got "
            f"{x.dtype}; use x.to({packed.dtype}), or pack with dtype={x.dtype}"
        )


def _check_last(operation: str, name: str, x: Tensor, size: int) -> None:
    if x.dim() == 0 or x.shape[-1] != size:
        raise ValueError(
            f"{operation}: {name} must have a last axis of {size}, got {tuple(x.shape)}; "
            "pass the layer's own input or gradient"
        )


def _check_bias(operation: str, bias: Any, x: Tensor, c_out: int) -> None:
    if bias is None:
        return
    _check_operand(operation, "bias", bias)
    if bias.device != x.device:
        raise RuntimeError(
            f"{operation}: bias must be on {x.device} like x, got {bias.device}; move one of them"
        )
    if bias.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{operation}: bias must be {x.dtype} like x, got {bias.dtype}; convert one of them"
        )
    if bias.shape != (c_out,):
        raise ValueError(
            f"{operation}: bias must have shape ({c_out},), got {tuple(bias.shape)}; "
            "one number per output channel"
        )
