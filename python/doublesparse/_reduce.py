"""What becomes dense, or loses its channels: reductions, reshapes, and the plain tensor methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._autograd import segment_sum
from ._channel_groups import grouped_view
from ._elementwise import apply, refuse, with_values
from ._global_pool import ground_total, sample_segments
from ._precision import widened
from .tensor import SparseTensor


def _dims(x: SparseTensor, dim: Any, operation: str) -> set[int]:
    """The reduced dimensions as a set of non-negative numbers."""
    if dim is None or (isinstance(dim, (tuple, list)) and len(dim) == 0):
        return set(range(x.ndim))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if any(not isinstance(d, int) or not -x.ndim <= d < x.ndim for d in dims):
        raise IndexError(
            f"{operation}: dim must lie in [{-x.ndim}, {x.ndim - 1}], got {dim}; correct it"
        )
    return {d % x.ndim for d in dims}


def _over_space(
    x: SparseTensor,
    dim: Any,
    keepdim: bool,
    operation: str,
    pool: Callable[[SparseTensor], Tensor],
    rest: Callable[..., Tensor],
) -> Any:
    """Space by `pool` to (B, C), the rest densely; or channels alone, site by site."""
    dims = _dims(x, dim, operation)
    space = set(range(2, x.ndim))
    if dims == {1} and keepdim:
        return apply(x, lambda rows: rest(rows, dim=1, keepdim=True), keeps_zero=True)
    if not space <= dims:
        refuse(
            operation,
            "of a SparseTensor runs over all spatial dimensions (a dense result), or over dim=1 "
            f"with keepdim=True, got dim={dim}, keepdim={keepdim}",
        )
    pooled = pool(x)
    if keepdim:
        pooled = pooled.view(*pooled.shape, *[1] * len(space))
    more = sorted(dims - space)
    return rest(pooled, dim=more, keepdim=keepdim) if more else pooled


def mean(
    input: SparseTensor,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Mean over all sites, ground included, as a dense (B, C); or over channels.

    With ground=None the mean is over active sites, and cannot also run over the batch.
    """
    x = input if dtype is None else input.to(dtype)
    if x.ground is None and _dims(x, dim, "mean") & {0}:
        refuse("mean", "over the batch has no meaning where samples have different sites")
    return _over_space(x, dim, keepdim, "mean", widened(functional.global_avg_pool), torch.mean)


def _total(x: SparseTensor) -> Tensor:
    total = segment_sum(x.features, sample_segments(x.sites))
    if x.ground is not None and not x.ground.is_zero and not x.sites.is_full:
        total = total + ground_total(x.ground, x.sites)
    return total


def sum(  # noqa: A001 (torch's name)
    input: SparseTensor,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Sum over all sites, ground included, as a dense (B, C); or over channels."""
    x = input if dtype is None else input.to(dtype)
    return _over_space(x, dim, keepdim, "sum", widened(_total), torch.sum)


def amax(input: SparseTensor, dim: Any = (), keepdim: bool = False) -> Any:
    """Maximum over all sites, ground included, as a dense (B, C); or over channels."""
    return _over_space(input, dim, keepdim, "amax", widened(functional.global_max_pool), torch.amax)


def amin(input: SparseTensor, dim: Any = (), keepdim: bool = False) -> Any:
    """Minimum over all sites, ground included, as a dense (B, C); or over channels."""
    negated = apply(input, torch.neg, keeps_zero=True)
    out = _over_space(
        negated, dim, keepdim, "amin", widened(functional.global_max_pool), torch.amax
    )
    return apply(out, torch.neg, keeps_zero=True) if isinstance(out, SparseTensor) else -out


# ------------------------------------------------------------------ reshapes
def flatten(input: SparseTensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The dense tensor, flattened: what a linear head takes."""
    return input.to_dense().flatten(start_dim, end_dim)


def _reshape(operation: str) -> Callable[..., Any]:
    def handler(input: SparseTensor, *shape: Any, **kwargs: Any) -> Any:
        if kwargs:
            shape = tuple(kwargs.values())
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        if any(not isinstance(n, int) for n in shape):
            refuse(operation, f"of a SparseTensor has no meaning for {shape}")
        if tuple(shape) == tuple(input.shape):
            return input
        if len(shape) > 2:
            return grouped_view(operation, input, shape)
        if len(shape) != 2 or shape[0] not in (-1, input.batch_size):
            refuse(operation, f"of a SparseTensor gives (B, -1), a dense tensor, got {shape}")
        return input.to_dense().reshape(*shape)

    handler.__name__ = handler.__qualname__ = operation
    handler.__doc__ = (
        "The dense tensor as (B, -1); the tensor itself for its own shape, also with its channels "
        "split in two dimensions."
    )
    return handler


def unflatten(input: SparseTensor, dim: int, sizes: Any) -> Any:
    """Channels split in two dimensions, as `view` does it."""
    if dim not in (1, 1 - input.ndim):
        refuse("unflatten", f"of a SparseTensor splits channels, dim=1, got dim={dim}")
    return grouped_view("unflatten", input, (input.batch_size, *sizes, *input.spatial_shape))


view, reshape = _reshape("view"), _reshape("reshape")


# ------------------------------------------------------------------ the plain methods
def contiguous(input: SparseTensor, memory_format: Any = None) -> SparseTensor:
    """The tensor itself: features are contiguous rows, the layout of channels_last."""
    return input


def is_contiguous(input: SparseTensor, memory_format: Any = None) -> bool:
    """True in every format."""
    return True


def clone(input: SparseTensor, *, memory_format: Any = None) -> SparseTensor:
    """A copy of features and ground; sites are immutable and shared."""
    rows = None
    if input.ground is not None and not input.ground.is_zero:
        rows = input.ground.rows.clone()
    return with_values(input, input.features.clone(), rows)


def detach_(input: SparseTensor) -> SparseTensor:
    """`detach` in place."""
    return input._become(input.detach())


def numel(input: SparseTensor) -> int:
    """Number of values of the dense tensor."""
    return math.prod(input.shape)


def type_as(input: SparseTensor, other: Any) -> SparseTensor:
    """In the dtype of another tensor, and on its device."""
    return input.to(device=other.device, dtype=other.dtype)


def is_floating_point(input: SparseTensor) -> bool:
    """Always."""
    return input.features.is_floating_point()


def _of_features(name: str) -> Callable[..., Any]:
    def handler(input: SparseTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(input.features, name)(*args, **kwargs)

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"`{name}` of the features: a dense tensor, or a property, of their kind."
    return handler


METHODS: dict[str, Callable[..., Any]] = {
    "mean": mean,
    "sum": sum,
    "amax": amax,
    "amin": amin,
    "flatten": flatten,
    "unflatten": unflatten,
    "view": view,
    "reshape": reshape,
    "contiguous": contiguous,
    "is_contiguous": is_contiguous,
    "clone": clone,
    "detach_": detach_,
    "numel": numel,
    "nelement": numel,
    "type_as": type_as,
    "is_floating_point": is_floating_point,
    **{
        name: _of_features(name)
        for name in [
            "new_empty",
            "new_full",
            "new_ones",
            "new_tensor",
            "new_zeros",
            "element_size",
            "get_device",
            "is_complex",
            "is_inference",
            "is_signed",
        ]
    },
}
"""Methods by name; the free functions of the same name do the same."""
