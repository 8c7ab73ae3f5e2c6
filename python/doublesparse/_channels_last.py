"""`x.permute(0, 2, 3, 1)`: channels last, as norms and linear layers over channels want them.

Transformer-like networks (ConvNeXt) norm and mix the channels of each site between two permutes.
Features and class rows have their channels last anyway, so such a function acts on them as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arithmetic import cat as _join
from ._elementwise import apply, refuse
from ._torch_compat import function_name
from .tensor import SparseTensor

Function = Callable[..., Any]

CHANNELS_LAST: dict[Function, Function] = {}
"""The handlers of functions of a `ChannelsLast`."""

ALONG: dict[str, tuple[int, Any]] = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp"), (0, None)),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), (0, None)),
    **dict.fromkeys(("norm", "vector_norm"), (1, None)),
    "normalize": (1, 1),
    "glu": (0, -1),
    "chunk": (1, 0),
    "split": (1, 0),
}
"""Functions along a dimension: which argument after the input that is, and its default."""


class ChannelsLast:
    """A view (B, *spatial, C) of a SparseTensor (B, C, *spatial); `permute` leads back.

    Attributes:
        base: the SparseTensor.
    """

    __slots__ = ("base",)
    __array_ufunc__ = None

    def __init__(self, base: SparseTensor) -> None:
        self.base = base

    @property
    def shape(self) -> torch.Size:
        """(B, *spatial, C)."""
        batch, channels, *spatial = self.base.shape
        return torch.Size((batch, *spatial, channels))

    @property
    def ndim(self) -> int:
        """2 + D."""
        return self.base.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the features."""
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.base.device

    def dim(self) -> int:
        """2 + D."""
        return self.base.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self, memory_format: Any = None) -> ChannelsLast:
        """The view itself."""
        return self

    def to_dense(self) -> Tensor:
        """(B, *spatial, C)."""
        return self.base.to_dense().movedim(1, -1)

    def __repr__(self) -> str:
        """The view of its base."""
        return f"ChannelsLast({self.base!r})"

    @classmethod
    def __torch_function__(
        cls,
        func: Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Route torch functions to what they mean for the channels of each site."""
        handler = CHANNELS_LAST.get(func)
        if handler is None:
            refuse(
                function_name(func),
                "has no sparse meaning for a SparseTensor with permuted dimensions",
                "permute back",
            )
        return handler(*args, **(kwargs or {}))


# ------------------------------------------------------------------ there and back
def _order(dims: tuple[Any, ...], ndim: int, operation: str) -> tuple[int, ...]:
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    order = tuple(d % ndim if isinstance(d, int) else -1 for d in dims)
    if sorted(order) != list(range(ndim)):
        raise ValueError(
            f"{operation}: dims must be a permutation of {ndim} dimensions, got {dims}; correct it"
        )
    return order


def permute(input: Any, *dims: Any, **kwargs: Any) -> Any:
    """(B, C, *spatial) to (B, *spatial, C), or back; no other order has a sparse meaning."""
    ndim = input.ndim
    order = _order(dims or tuple(kwargs.values()), ndim, "permute")
    to_last = (0, *range(2, ndim), 1)
    back = (0, ndim - 1, *range(1, ndim - 1))
    if order == tuple(range(ndim)):
        return input
    if isinstance(input, SparseTensor) and order == to_last:
        return ChannelsLast(input)
    if isinstance(input, ChannelsLast) and order == back:
        return input.base
    return refuse("permute", f"of a SparseTensor moves channels to the end, or back, got {order}")


def movedim(input: Any, source: Any, destination: Any) -> Any:
    """`permute` by one dimension: channels to the end, or back."""
    ndim = input.ndim
    if isinstance(source, int) and isinstance(destination, int):
        rest = [d for d in range(ndim) if d != source % ndim]
        rest.insert(destination % ndim, source % ndim)
        return permute(input, *rest)
    return refuse("movedim", f"of a SparseTensor moves one dimension, got {source}")


# ------------------------------------------------------------------ functions of the channels
def _check_channels(operation: str, x: ChannelsLast, normalized_shape: Any) -> None:
    shape = normalized_shape if isinstance(normalized_shape, (tuple, list)) else [normalized_shape]
    if tuple(shape) != (x.base.features.shape[1],):
        refuse(
            operation,
            f"of a permuted SparseTensor runs over its {x.base.features.shape[1]} channels, got "
            f"{tuple(shape)}",
        )


def layer_norm(
    input: ChannelsLast,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> ChannelsLast:
    """Layer normalization of the channels of each site (Ba et al. 2016); 16 bit in float32."""
    _check_channels("layer_norm", input, normalized_shape)

    def norm(rows: Tensor) -> Tensor:
        return F.layer_norm(rows, normalized_shape, weight, bias, eps)

    return ChannelsLast(apply(input.base, norm, keeps_zero=bias is None))


def rms_norm(
    input: ChannelsLast,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> ChannelsLast:
    """Root mean square normalization of the channels of each site."""
    _check_channels("rms_norm", input, normalized_shape)
    norm = lambda rows: F.rms_norm(rows, normalized_shape, weight, eps)  # noqa: E731
    return ChannelsLast(apply(input.base, norm, keeps_zero=True))


def linear(input: ChannelsLast, weight: Tensor, bias: Tensor | None = None) -> ChannelsLast:
    """A linear layer over the channels of each site: a 1x1 convolution."""
    return ChannelsLast(apply(input.base, lambda r: F.linear(r, weight, bias), bias is None))


def through(handler: Function) -> Function:
    """The handler of an elementwise function, for permuted operands."""

    def call(*args: Any, **kwargs: Any) -> Any:
        operands = [_channels_first(a, args) for a in args]
        out = handler(*operands, **kwargs)
        if out is NotImplemented:
            return out
        same = args[0] if isinstance(args[0], ChannelsLast) else None
        return same if same is not None and out is same.base else ChannelsLast(out)

    call.__name__ = call.__qualname__ = getattr(handler, "__name__", "through")
    call.__doc__ = handler.__doc__
    return call


def _channels_first(operand: Any, args: tuple[Any, ...]) -> Any:
    if isinstance(operand, ChannelsLast):
        return operand.base
    if isinstance(operand, SparseTensor):
        refuse("arithmetic", "of a permuted SparseTensor and another that is not", "permute both")
    if isinstance(operand, Tensor) and operand.dim():
        ndim = next(a.ndim for a in args if isinstance(a, ChannelsLast))
        if operand.dim() > ndim:
            refuse("arithmetic", f"of a SparseTensor and a dense {tuple(operand.shape)}")
        shape = (*[1] * (ndim - operand.dim()), *operand.shape)
        return operand.reshape(shape).movedim(-1, 1)
    return operand


def with_dims(handler: Function, name: str, position: int, default: Any = None) -> Function:
    """The handler of a function that takes a dimension, for permuted operands.

    Args:
        handler: of a SparseTensor.
        name: for messages.
        position: of the dimension, or dimensions, among the arguments after the input.
        default: torch's own, where it has one.
    """

    def call(input: ChannelsLast, *args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > position:
            given[position] = _first_dims(given[position], input.ndim, name)
        else:
            kwargs["dim"] = _first_dims(kwargs.get("dim", default), input.ndim, name)
        return _last_again(handler(input.base, *given, **kwargs), input.ndim)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = handler.__doc__
    return call


def _first_dims(dim: Any, ndim: int, name: str) -> Any:
    """Dimensions of (B, *spatial, C) as those of (B, C, *spatial)."""
    if isinstance(dim, (tuple, list)):
        return tuple(_first_dims(d, ndim, name) for d in dim)
    if dim is None:
        return None
    if not isinstance(dim, int) or not -ndim <= dim < ndim:
        raise IndexError(f"{name}: dim must lie in [{-ndim}, {ndim - 1}], got {dim}; correct it")
    return (0, *range(2, ndim), 1)[dim]


def _last_again(out: Any, ndim: int) -> Any:
    if isinstance(out, SparseTensor):
        return ChannelsLast(out)
    if isinstance(out, tuple):
        return tuple(_last_again(o, ndim) for o in out)
    return out.movedim(1, -1) if isinstance(out, Tensor) and out.dim() == ndim else out


def cat(tensors: Sequence[Any], dim: int = 0) -> ChannelsLast:
    """Channels side by side."""
    views = [t for t in tensors if isinstance(t, ChannelsLast)]
    if len(views) != len(tensors):
        refuse("cat", "of a permuted SparseTensor and another that is not", "permute both")
    dim = _first_dims(dim, views[0].ndim, "cat")
    return ChannelsLast(_join([v.base for v in views], dim))


CHANNELS_LAST.update(
    {
        torch.cat: cat,
        torch.concat: cat,
        torch.permute: permute,
        torch.movedim: movedim,
        torch.moveaxis: movedim,
        F.layer_norm: layer_norm,
        torch.layer_norm: layer_norm,
        F.linear: linear,
    }
)
if hasattr(F, "rms_norm"):
    CHANNELS_LAST.update({F.rms_norm: rms_norm, torch.rms_norm: rms_norm})
