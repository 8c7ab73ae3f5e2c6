"""`x.view(B, g, C // g, H, W)`: channels in groups, as ShuffleNet shuffles them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._elementwise import apply, refuse
from ._torch_compat import function_name
from .tensor import SparseTensor

Function = Callable[..., Any]

GROUPED: dict[Function, Function] = {}
"""The handlers of functions of a `GroupedChannels`."""


class GroupedChannels:
    """A view (B, g, C / g, *spatial) of a SparseTensor (B, C, *spatial).

    ShuffleNet's way to shuffle channels: view, transpose, contiguous, view.

    Attributes:
        base: the SparseTensor whose channels, in order, are those of the view.
        groups: the two extents that channels are split into.
    """

    __slots__ = ("base", "groups")
    __array_ufunc__ = None

    def __init__(self, base: SparseTensor, groups: tuple[int, int]) -> None:
        self.base, self.groups = base, groups

    @property
    def shape(self) -> torch.Size:
        """(B, g, C / g, *spatial)."""
        return torch.Size((self.base.batch_size, *self.groups, *self.base.spatial_shape))

    @property
    def ndim(self) -> int:
        """3 + D."""
        return 1 + self.base.ndim

    def dim(self) -> int:
        """3 + D."""
        return 1 + self.base.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self, memory_format: Any = None) -> GroupedChannels:
        """The view itself."""
        return self

    def transpose(self, dim0: int, dim1: int) -> GroupedChannels:
        """Groups and channels exchanged."""
        return transpose(self, dim0, dim1)

    swapaxes = transpose

    def permute(self, *dims: Any) -> GroupedChannels:
        """Groups and channels exchanged, or nothing."""
        return permute(self, *dims)

    def view(self, *shape: Any) -> Any:
        """Back to (B, C, *spatial), or to other groups."""
        return grouped_view("view", self.base, shape)

    def reshape(self, *shape: Any) -> Any:
        """As `view`."""
        return grouped_view("reshape", self.base, shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> SparseTensor:
        """Groups and channels back in one dimension: `flatten(1, 2)`."""
        return flatten(self, start_dim, end_dim)

    def to_dense(self) -> Tensor:
        """(B, g, C / g, *spatial)."""
        return self.base.to_dense().unflatten(1, self.groups)

    def __repr__(self) -> str:
        """Groups and the base."""
        return f"GroupedChannels({self.groups}, {self.base!r})"

    @classmethod
    def __torch_function__(
        cls,
        func: Function,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Route torch functions to what they mean for groups of channels."""
        handler = GROUPED.get(func)
        if handler is None:
            refuse(function_name(func), WHY, "view it back")
        return handler(*args, **(kwargs or {}))


WHY = "has no sparse meaning for a SparseTensor whose channels are viewed in groups"


def transpose(input: GroupedChannels, dim0: int, dim1: int) -> GroupedChannels:
    """Groups and channels exchanged: dimensions 1 and 2."""
    pair = {d % input.ndim if isinstance(d, int) else d for d in (dim0, dim1)}
    if pair != {1, 2}:
        refuse("transpose", f"of grouped channels exchanges dimensions 1 and 2, got {dim0}, {dim1}")
    groups = input.groups

    def exchange(rows: Tensor) -> Tensor:
        return rows.unflatten(1, groups).transpose(1, 2).flatten(1)

    return GroupedChannels(apply(input.base, exchange, True, ("exchange", groups)), groups[::-1])


def permute(input: GroupedChannels, *dims: Any) -> GroupedChannels:
    """`transpose(1, 2)`, or the identity."""
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    order = tuple(d % input.ndim if isinstance(d, int) else -1 for d in dims)
    if order == tuple(range(input.ndim)):
        return input
    if order != (0, 2, 1, *range(3, input.ndim)):
        refuse("permute", f"of grouped channels exchanges dimensions 1 and 2, got {dims}")
    return transpose(input, 1, 2)


def flatten(input: GroupedChannels, start_dim: int = 0, end_dim: int = -1) -> SparseTensor:
    """`flatten(1, 2)`."""
    if (start_dim % input.ndim, end_dim % input.ndim) != (1, 2):
        refuse("flatten", f"of grouped channels joins dimensions 1 and 2, got {start_dim, end_dim}")
    return input.base


def _of_shape(operation: str) -> Function:
    def handler(input: GroupedChannels, *shape: Any) -> Any:
        return grouped_view(operation, input.base, shape)

    return handler


def grouped_view(operation: str, x: SparseTensor, shape: Sequence[Any]) -> Any:
    """(B, C, *spatial) or (B, g, C / g, *spatial); refused otherwise."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    found = channel_shape(x, shape)
    if found is None:
        refuse(
            operation,
            f"of a SparseTensor {tuple(x.shape)} may split its channels in two dimensions, got "
            f"{tuple(shape)}",
        )
    return x if len(found) == 1 else GroupedChannels(x, (found[0], found[1]))


def channel_shape(x: SparseTensor, shape: Sequence[Any]) -> tuple[int, ...] | None:
    """(C,) or (g, C / g) where a view's shape is that of x but for this split; else None."""
    wanted = [n for n in shape if isinstance(n, int)]
    n_axes = x.sites.n_axes
    if len(wanted) != len(shape) or len(shape) not in (2 + n_axes, 3 + n_axes):
        return None
    if wanted.count(-1) == 1:
        others = -math.prod(wanted)
        total = math.prod(x.shape)
        if others <= 0 or total % others:
            return None
        wanted[wanted.index(-1)] = total // others
    same = wanted[0] == x.batch_size and tuple(wanted[-n_axes:]) == x.spatial_shape
    channels = tuple(wanted[1:-n_axes])
    return channels if same and math.prod(channels) == x.features.shape[1] else None


GROUPED.update(
    {
        torch.transpose: transpose,
        torch.swapaxes: transpose,
        torch.swapdims: transpose,
        torch.permute: permute,
        torch.flatten: flatten,
        torch.reshape: _of_shape("reshape"),
    }
)
