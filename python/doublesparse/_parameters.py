"""What convolutions and pools accept, and what they say to the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_mask
from .tensor import SparseTensor

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dtype(operation: str, x: SparseTensor) -> None:
    """The sparse kernels exist for float32, float64, bfloat16 and float16.

    Raises:
        NotImplementedError: any other dtype.
        RuntimeError: a device without kernels.
    """
    features = x.features
    if features.dtype not in _DTYPES:
        raise NotImplementedError(
            f"{operation}: features must be float32, float64, bfloat16 or float16, "
            f"got {features.dtype}; use x.float()"
        )
    if not (features.is_cpu or features.is_cuda):
        raise RuntimeError(
            f"{operation}: features must be on cpu or cuda, got {features.device}; use x.cpu()"
        )


def check_axes(operation: str, x: Any, n_axes: int) -> None:
    """`x` must be a SparseTensor with `n_axes` spatial axes.

    Raises:
        TypeError: another type.
        ValueError: another rank.
    """
    if not isinstance(x, SparseTensor):
        raise TypeError(
            f"{operation}: input must be a SparseTensor or a Tensor, got {type(x).__name__}; "
            "make one with ds.SparseTensor.from_dense"
        )
    if len(x.sites.spatial_shape) != n_axes:
        raise ValueError(
            f"{operation}: input must have {n_axes} spatial axes, got {tuple(x.shape)}; "
            "use the function for that rank"
        )


def _check_tensor(operation: str, x: SparseTensor, name: str, tensor: Any) -> None:
    """A parameter must be a tensor with data, of the features' device and dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{operation}: {name} must be a Tensor, got {type(tensor).__name__}; "
            "pass a torch.Tensor"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a strided tensor, got {tensor.layout}; use .to_dense()"
        )
    if tensor.is_meta:
        raise NotImplementedError(
            f"{operation}: {name} must hold data, got a meta tensor; use a CPU tensor"
        )
    if tensor.device != x.features.device:
        raise RuntimeError(
            f"{operation}: {name} must be on {x.features.device} like the features, "
            f"got {tensor.device}; move one of them"
        )
    if tensor.dtype != x.features.dtype:
        raise TypeError(
            f"{operation}: {name} must be {x.features.dtype} like the features, got "
            f"{tensor.dtype}; use x.to({tensor.dtype}) or convert the parameter"
        )


def check_parameters(
    operation: str,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    transposed: bool,
    mask: Tensor | None = None,
) -> None:
    """Say what is wrong with x, weight, bias, groups and mask; called once something is."""
    n_axes, c_in = len(x.sites.spatial_shape), x.features.shape[1]
    _check_tensor(operation, x, "weight", weight)
    if bias is not None:
        _check_tensor(operation, x, "bias", bias)
    if weight.dim() != 2 + n_axes:
        layout = (
            "(c_in, c_out / groups, *kernel)" if transposed else "(c_out, c_in / groups, *kernel)"
        )
        raise ValueError(
            f"{operation}: weight must be {layout} with {2 + n_axes} dimensions, "
            f"got {tuple(weight.shape)}; reshape it"
        )
    if min(weight.shape[2:]) < 1:
        raise ValueError(
            f"{operation}: weight must have a kernel_size of at least 1 per axis, got "
            f"{tuple(weight.shape[2:])}; give one tap or more"
        )
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{operation}: groups must be an int, got {groups!r}; pass an integer")
    first, second = weight.shape[:2]
    wanted = (first, second * groups) if transposed else (second * groups, first)
    if groups < 1 or c_in % groups or first % groups:
        raise ValueError(
            f"{operation}: groups must be positive and divide the channels, got groups={groups} "
            f"for {c_in} input channels and weight {tuple(weight.shape)}; choose a common divisor"
        )
    if min(c_in, first, second) < 1:
        raise ValueError(
            f"{operation}: input and weight must have at least one channel, got {c_in} and weight "
            f"{tuple(weight.shape)}; give both channels"
        )
    if wanted[0] != c_in:
        raise ValueError(
            f"{operation}: input must have {wanted[0]} channels for weight {tuple(weight.shape)} "
            f"and groups={groups}, got {c_in}; the channel counts must match"
        )
    if bias is not None and bias.shape != (wanted[1],):
        raise ValueError(
            f"{operation}: bias must have shape ({wanted[1]},), got {tuple(bias.shape)}; "
            "give one value per output channel"
        )
    if mask is not None:
        check_mask(operation, mask, weight.shape, weight.device)
    check_dtype(operation, x)


def _on_cpu(t: Tensor) -> bool:
    return t.is_cpu


def _on_cuda(t: Tensor) -> bool:
    return t.is_cuda


def fits(
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    transposed: bool,
    mask: Tensor | None = None,
) -> int:
    """The number of output channels, or -1 where something is to be cast or refused.

    This is on every call's path.
    """
    try:
        shape, features = weight.shape, x.features
        dtype = features.dtype
        on = _on_cpu if features.is_cpu else _on_cuda
        first, second = shape[0], shape[1] * groups
        c_in, c_out = (first, second) if transposed else (second, first)
        if (
            c_in != features.shape[1]
            or 0 in shape
            or first % groups
            or groups < 1
            or groups.__class__ is not int
            or weight.dtype is not dtype
            or dtype not in _DTYPES
            or len(shape) != 2 + len(x.sites.spatial_shape)
            or weight.layout is not torch.strided
            or not (on(weight) and on(features))
            or torch.is_autocast_enabled("cpu" if on is _on_cpu else "cuda")
            or (
                bias is not None
                and (bias.shape != (c_out,) or bias.dtype is not dtype or not on(bias))
            )
            or (
                mask is not None
                and (
                    mask.shape != shape
                    or mask.dtype is not torch.bool
                    or mask.layout is not torch.strided
                    or not on(mask)
                )
            )
        ):
            return -1
    except (AttributeError, TypeError, IndexError, ZeroDivisionError):
        return -1
    return c_out


def c_out_of(
    operation: str,
    x: SparseTensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    transposed: bool,
    mask: Tensor | None = None,
) -> int:
    """The number of output channels; raises what is wrong with the arguments."""
    check_parameters(operation, x, weight, bias, groups, transposed, mask)
    return weight.shape[1] * groups if transposed else weight.shape[0]
