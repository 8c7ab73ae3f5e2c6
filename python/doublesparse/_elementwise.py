"""Functions of one site: elementwise, and of the channel vector.

Such a function acts on the feature rows and on the class rows of the ground alike; sites stay what
they are. A zero ground stays symbolic where f(0) == 0, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ground import GroundState
from ._memo import remembered
from .tensor import SparseTensor

Function = Callable[..., Any]


def refuse(
    operation: str, why: str = "has no sparse meaning for a SparseTensor", instead: str = ""
) -> NoReturn:
    """Raise the refusal that every unsupported operation ends in."""
    instead = f"{instead}, or " if instead else ""
    raise NotImplementedError(f"{operation}: {why}; {instead}call .to_dense() first")


def with_values(x: SparseTensor, features: Tensor, rows: Tensor | None) -> SparseTensor:
    """New features at the same sites, and new class rows (None keeps the zero, or the None, of x).

    Args:
        x: gives sites and class maps.
        features: (n_sites, C').
        rows: (n_class_rows, C') in the order of `x.ground.rows`.
    """
    ground = x.ground
    if rows is not None and ground is not None:
        shape = (*ground.values.shape[:-1], rows.shape[-1])
        ground = GroundState._of(rows.reshape(shape), ground.axes)
    elif ground is not None:
        old = x.features
        if features.shape[1] != old.shape[1] or features.dtype != old.dtype:
            ground = x._zero(features, x.sites)
    return SparseTensor._of(features, x.sites, ground)


def apply(
    x: SparseTensor,
    f: Callable[[Tensor], Tensor],
    keeps_zero: bool = False,
    key: Hashable = None,
    held: tuple[Any, ...] = (),
) -> SparseTensor:
    """Apply f to every site; f maps rows (n, C) to rows (n, C').

    Args:
        x: the argument.
        f: acts on each row by itself.
        keeps_zero: f(0) == 0.
        key: what f is, so that a frozen ground can be remembered; None: it cannot.
        held: tensors that f reads.
    """
    features, ground = f(x.features).contiguous(), x.ground
    if ground is None or x.sites.is_full:
        return with_values(x, features, None)
    same = features.shape[1] == x.features.shape[1] and features.dtype == x.features.dtype
    if ground.is_zero and keeps_zero and same:
        return SparseTensor._of(features, x.sites, ground)

    def respond() -> GroundState:
        if ground.is_zero and keeps_zero:
            return x._zero(features, x.sites)
        rows = f(ground.rows)
        return GroundState._of(rows.view(*ground.values.shape[:-1], rows.shape[-1]), ground.axes)

    state = respond() if key is None else remembered(ground, key, held, respond)
    return SparseTensor._of(features, x.sites, state)


# ------------------------------------------------------------------ elementwise
def _clamp_keeps(min: Any = None, max: Any = None, **_: Any) -> bool:  # noqa: A002 (torch's names)
    numbers = all(isinstance(v, (int, float, type(None))) for v in (min, max))
    return numbers and (min is None or min <= 0) and (max is None or max >= 0)


def _hardtanh_keeps(min_val: float = -1.0, max_val: float = 1.0, **_: Any) -> bool:
    return min_val <= 0 <= max_val


def _threshold_keeps(threshold: float, value: float, **_: Any) -> bool:
    return threshold < 0 or value == 0


_ALWAYS = (
    "abs absolute arcsin arcsinh arctan arctanh asin asinh atan atanh ceil celu deg2rad elu entr "
    "erf erfinv expm1 fix floor frac gelu hardshrink hardswish i1 i1e leaky_relu log1p mish "
    "nan_to_num neg negative positive prelu rad2deg relu relu6 round selu sgn sign silu sin sinh "
    "softshrink softsign sqrt square tan tanh tanhshrink trunc zeros_like"
)
_NEVER = (
    "acos acosh arccos arccosh cos cosh digamma erfc exp exp2 expit full_like hardsigmoid i0 "
    "lgamma log log10 log2 logit logsigmoid mvlgamma ones_like reciprocal rsqrt sigmoid sinc "
    "softplus erfcx gammaln i0e log_ndtr ndtr ndtri psi"
)

ELEMENTWISE: dict[str, Callable[..., bool] | bool] = {
    **dict.fromkeys(_ALWAYS.split(), True),
    **dict.fromkeys(_NEVER.split(), False),
    "clamp": _clamp_keeps,
    "clip": _clamp_keeps,
    "clamp_min": lambda min, **_: _clamp_keeps(min=min),
    "clamp_max": lambda max, **_: _clamp_keeps(max=max),
    "hardtanh": _hardtanh_keeps,
    "threshold": _threshold_keeps,
}
"""Elementwise functions by name: whether f(0) == 0, or a function of the arguments that tells."""


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Numbers and 0-dim tensors mean the same for rows and images; prelu's weight does too."""
    if "out" in kwargs:
        refuse(name, "out= cannot be a SparseTensor, nor take one")
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() and not name.startswith("prelu"):
            refuse(name, "takes numbers beside a SparseTensor, got a Tensor argument")


def elementwise(f: Function, name: str, keeps: Callable[..., bool] | bool) -> Function:
    """The handler of an elementwise function: `f` is torch's own, out of place."""
    by_arguments = None if isinstance(keeps, bool) else keeps

    def handler(input: SparseTensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        if not isinstance(input, SparseTensor):
            refuse(name, "takes a SparseTensor as its first argument only")
        if args or kwargs:
            _check_arguments(name, args, kwargs)
            keeps_zero = keeps if by_arguments is None else by_arguments(*args, **kwargs)
            plain = not any(isinstance(v, Tensor) for v in (*args, *kwargs.values()))
            key = (name, args, tuple(kwargs.items())) if plain else None
            out = apply(input, lambda rows: f(rows, *args, **kwargs), bool(keeps_zero), key)
        else:
            out = apply(input, f, by_arguments is None and bool(keeps), name)
        return input._become(out) if inplace else out

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"torch's `{name}` of every site."
    return handler


def in_place(handler: Function, name: str) -> Function:
    """The in-place twin of a handler: the same object gets the new contents, in its own dtype."""

    def handler_(input: Any, *args: Any, **kwargs: Any) -> SparseTensor:
        if not isinstance(input, SparseTensor):
            refuse(name, "a dense tensor cannot take a SparseTensor in place")
        out = handler(input, *args, **kwargs)
        return input._become(out if out.dtype == input.dtype else out.to(input.dtype))

    handler_.__name__ = handler_.__qualname__ = name
    handler_.__doc__ = f"torch's `{name}`: the object gets new contents, and aliases see them."
    return handler_


def rrelu(
    input: SparseTensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> SparseTensor:
    """Randomized leaky ReLU: in training random at active sites, its expectation in the ground."""
    features = F.rrelu(input.features, lower, upper, training)
    rows = None
    if input.ground is not None and not input.ground.is_zero:
        rows = F.rrelu(input.ground.rows, lower, upper, False)
    out = with_values(input, features, rows)
    return input._become(out) if inplace else out


# ------------------------------------------------------------------ of the channel vector
def channel_dim(x: SparseTensor, dim: Any, operation: str) -> None:
    """Refuse any dim but 1."""
    if not isinstance(dim, int) or dim not in (1, 1 - x.ndim):
        refuse(operation, f"of a SparseTensor runs over channels, dim=1, got dim={dim}")


def _softmax(f: Function, name: str) -> Function:
    def handler(
        input: SparseTensor,
        dim: int | None = None,
        _stacklevel: int | torch.dtype | None = 3,
        dtype: torch.dtype | None = None,
    ) -> SparseTensor:
        if isinstance(_stacklevel, torch.dtype):  # torch.softmax has the dtype in its place
            dtype = _stacklevel
        # without a dim torch takes 0 for 3-D tensors, else 1
        channel_dim(input, (0 if input.ndim == 3 else 1) if dim is None else dim, name)
        return apply(input, lambda rows: f(rows, 1, dtype=dtype))

    return handler


def glu(input: SparseTensor, dim: int = -1) -> SparseTensor:
    """Gated linear unit over channels."""
    channel_dim(input, dim, "glu")
    return apply(input, lambda rows: F.glu(rows, 1), keeps_zero=True)


def normalize(
    input: SparseTensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> SparseTensor:
    """Every site's channel vector over its norm."""
    channel_dim(input, dim, "normalize")
    return apply(input, lambda rows: F.normalize(rows, p, 1, eps), keeps_zero=True)


def channel_shuffle(input: SparseTensor, groups: int) -> SparseTensor:
    """Channels of `groups` groups interleaved (ShuffleNet)."""
    if groups < 1 or input.features.shape[1] % groups:
        raise ValueError(
            f"channel_shuffle: groups must divide {input.features.shape[1]} channels, got {groups};"
            " choose a divisor"
        )

    def shuffle(rows: Tensor) -> Tensor:
        return rows.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1)

    return apply(input, shuffle, keeps_zero=True)


def local_response_norm(
    input: SparseTensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> SparseTensor:
    """Local response normalization over neighbouring channels (AlexNet)."""

    def respond(rows: Tensor) -> Tensor:
        return F.local_response_norm(rows[..., None], size, alpha, beta, k)[..., 0]

    return apply(input, respond, keeps_zero=True)


def split(
    tensor: SparseTensor, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> tuple[SparseTensor, ...]:
    """Groups of channels, as `torch.split(x, sizes, dim=1)`."""
    channel_dim(tensor, dim, "split")
    channels = tensor.features.shape[1]
    sizes = split_size_or_sections
    if isinstance(sizes, int):
        if sizes < 1:
            raise ValueError(f"split: split_size must be >= 1, got {sizes}; give channels per part")
        sizes = [min(sizes, channels - at) for at in range(0, channels, sizes)]
    if sum(sizes) != channels or min(sizes, default=0) < 0:
        raise ValueError(
            f"split: sizes must add up to {channels} channels, got {list(sizes)}; correct them"
        )
    parts, at = [], 0
    for size in sizes:
        parts.append(narrow(tensor, 1, at, size))
        at += size
    return tuple(parts)


def chunk(input: SparseTensor, chunks: int, dim: int = 0) -> tuple[SparseTensor, ...]:
    """At most `chunks` groups of channels of one size, as `torch.chunk(x, chunks, dim=1)`."""
    channel_dim(input, dim, "chunk")
    if chunks < 1:
        raise ValueError(f"chunk: chunks must be >= 1, got {chunks}; give the number of parts")
    return split(input, max(1, -(-input.features.shape[1] // chunks)), 1)


def narrow(input: SparseTensor, dim: int, start: int, length: int) -> SparseTensor:
    """Some consecutive channels."""
    channel_dim(input, dim, "narrow")
    key = ("narrow", start, length)
    return apply(input, lambda rows: rows.narrow(1, start, length), True, key)


CHANNELWISE: dict[str, Function] = {
    "softmax": _softmax(F.softmax, "softmax"),
    "log_softmax": _softmax(F.log_softmax, "log_softmax"),
    "softmin": _softmax(F.softmin, "softmin"),
    "glu": glu,
    "normalize": normalize,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "local_response_norm": local_response_norm,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
    "rrelu": rrelu,
}
"""Functions of the channel vector by name, with torch's arguments."""
