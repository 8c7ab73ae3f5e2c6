"""Reductions over the channels of each site, beyond mean and sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._elementwise import apply, channel_dim, refuse
from ._reduce import amax, amin
from .tensor import HANDLERS, SparseTensor

Function = Callable[..., Any]

_VARIANCE = ("dim", "unbiased", "keepdim")
_NORM = ("dim", "keepdim", "dtype")

# name: (torch's function, whether it is 0 of zeros, names of its arguments after the input)
_REDUCTIONS: dict[str, tuple[Function, bool, tuple[str, ...]]] = {
    "var": (torch.var, True, _VARIANCE),
    "std": (torch.std, True, _VARIANCE),
    "norm": (torch.norm, True, ("p", *_NORM)),
    "vector_norm": (torch.linalg.vector_norm, True, ("ord", *_NORM)),
    "prod": (torch.prod, True, ("dim", "keepdim")),
    "logsumexp": (torch.logsumexp, False, ("dim", "keepdim")),
}


def _only_channels(x: SparseTensor, dim: Any, keepdim: bool, operation: str) -> None:
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if isinstance(dim, bool) or not isinstance(dim, int) or not keepdim:
        refuse(
            operation,
            "of a SparseTensor runs over channels, dim=1, with keepdim=True, got "
            f"dim={dim}, keepdim={keepdim}",
        )
    channel_dim(x, dim, operation)


def _reduction(name: str) -> Function:
    f, keeps_zero, names = _REDUCTIONS[name]

    def handler(input: SparseTensor, *args: Any, **kwargs: Any) -> SparseTensor:
        given = dict(zip(names, args, strict=False)) | kwargs
        _only_channels(input, given.pop("dim", None), given.pop("keepdim", False), name)
        if given.pop("out", None) is not None:
            refuse(name, "out= cannot be a SparseTensor")

        def reduce(rows: Tensor) -> Tensor:
            if not len(rows):  # torch warns that a variance has no degrees of freedom
                return rows[:, :1]
            return f(rows, dim=1, keepdim=True, **given)

        return apply(input, reduce, keeps_zero)

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"torch's `{name}` of the channels of every site: (B, 1, *spatial)."
    return handler


def _with_mean(name: str) -> Function:
    def handler(input: SparseTensor, *args: Any, **kwargs: Any) -> tuple[SparseTensor, ...]:
        spread = FUNCTIONS[name](input, *args, **kwargs)
        return spread, apply(input, lambda rows: rows.mean(1, keepdim=True), keeps_zero=True)

    handler.__name__ = handler.__qualname__ = f"{name}_mean"
    handler.__doc__ = f"`{name}` and mean of the channels of every site."
    return handler


# ------------------------------------------------------------------ which channel
def _image(x: SparseTensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, *spatial) of one number per site, f(rows) (n,), which needs no gradient."""
    sites, own = x.sites, f(x.features)
    if sites.is_full:
        return own.view(sites.batch_size, *sites.spatial_shape)
    if x.ground is None or x.ground.is_zero:
        image = f(x.features.new_zeros(1, x.features.shape[1])).expand(sites.n_cells).clone()
    else:
        ground = x.ground.map(lambda v: f(v.flatten(0, -2)).view(*v.shape[:-1], 1))
        image = ground.cells(sites.batch_size)[:, 0]
    return image.index_copy_(0, sites.keys, own).view(sites.batch_size, *sites.spatial_shape)


def _arg(name: str) -> Function:
    f = getattr(torch, name)

    def handler(input: SparseTensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if isinstance(dim, bool) or not isinstance(dim, int):
            refuse(name, f"of a SparseTensor runs over channels, dim=1, got dim={dim}")
        channel_dim(input, dim, name)
        image = _image(input.detach(), lambda rows: f(rows, dim=1))
        return image[:, None] if keepdim else image

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"torch's `{name}` of the channels, dim=1: a dense tensor of integers."
    return handler


_WHOLE: dict[str, Function] = {"max": amax, "min": amin}


def _extreme(name: str) -> Function:
    f, pair, whole = getattr(torch, name), getattr(torch, f"{name}imum"), _WHOLE[name]
    both: Function = getattr(torch.return_types, name)

    def handler(input: SparseTensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        other = kwargs.pop("other", dim)
        if isinstance(other, (SparseTensor, Tensor)):
            return HANDLERS[pair](input, other)
        if kwargs:
            refuse(name, f"of a SparseTensor has no {', '.join(kwargs)}")
        if dim is None:
            return whole(input)
        indices = FUNCTIONS[f"arg{name}"](input, dim, keepdim)
        values = apply(input, lambda rows: f(rows, dim=1, keepdim=True).values, keeps_zero=True)
        return both((values if keepdim else values.to_dense()[:, 0], indices))

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = (
        f"torch's `{name}`: of everything, of two tensors, or of channels, dim=1, with dense "
        "indices (and dense values where keepdim is False)."
    )
    return handler


FUNCTIONS: dict[str, Function] = {name: _reduction(name) for name in _REDUCTIONS}
"""Functions and methods by name, with torch's arguments."""
FUNCTIONS.update({f"{name}_mean": _with_mean(name) for name in ("var", "std")})
FUNCTIONS.update({name: _arg(name) for name in ("argmax", "argmin")})
FUNCTIONS.update({name: _extreme(name) for name in ("max", "min")})
