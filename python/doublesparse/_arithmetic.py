"""Arithmetic with several operands: common sites, common classes, then the dense function.

Two sparse operands meet on the union of their sites; a tensor's feature at a site that it does not
have is its ground state there. Their grounds meet on the common refinement of the class maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _cache, ops
from ._classes import merge
from ._elementwise import Function, apply, channel_dim, refuse, with_values
from ._ground import GroundState
from .sites import Sites
from .tensor import SparseTensor

Rows = Tensor | None  # int64: where rows go in the union; None: they stay where they are


# ------------------------------------------------------------------ sites
def union(a: Sites, b: Sites) -> tuple[Sites, Rows, Rows]:
    """Sites of either operand, and where the rows of each lie among them; remembered by `a`.

    One merge of two sorted lists of keys. The result is `a` or `b` itself where that holds the
    other, so rulebooks stay in use.
    """
    if a.same_as(b):
        return a, None, None
    if a.is_full or b.is_full:
        return (a, None, b.keys) if a.is_full else (b, a.keys, None)
    key = ("union", b.uid)
    found = _cache.get(a, key)
    if found is None:
        found = _merge_keys(a, b)
        n_bytes = sum(8 * len(rows) for rows in found[1:] if rows is not None)
        n_bytes += 0 if found[0] is a or found[0] is b else 20 * found[0].n_sites
        # no cycle: what `a` remembers must not keep `a` alive
        _cache.put(a, key, (None if found[0] is a else found[0], *found[1:]), n_bytes)
    sites = a if found[0] is None else found[0]
    return sites, found[1], found[2]


def _merge_keys(a: Sites, b: Sites) -> tuple[Sites, Rows, Rows]:
    n_a, n_b = a.n_sites, b.n_sites
    if n_a == 0 or n_b == 0:
        none = torch.empty(0, dtype=torch.int64)
        return (a, None, none) if n_b == 0 else (b, none, None)
    at = torch.searchsorted(a.keys, b.keys)
    new = a.keys[at.clamp(max=n_a - 1)] != b.keys
    before = at[new]
    n = n_a + len(before)
    if n == n_a:
        return a, None, at
    # row i of a moves back by the keys of b alone that lie before it
    rows_a = torch.arange(n_a) + torch.bincount(before, minlength=n_a + 1)[:n_a].cumsum(0)
    if n == n_b:
        return b, rows_a, None
    keys = torch.empty(n, dtype=torch.int64)
    keys[rows_a] = a.keys
    rows_new = before + torch.arange(len(before))
    keys[rows_new] = b.keys[new]
    rows_b = rows_a[at.clamp(max=n_a - 1)]
    rows_b[new] = rows_new
    coords = ops.coords_of_keys(keys, a.spatial_shape)
    sites = Sites(coords, a.spatial_shape, a.batch_size, a.device)
    sites._keys = keys
    return sites, rows_a, rows_b


def _lift(x: SparseTensor, sites: Sites, rows: Rows) -> Tensor:
    """Features of x at more sites: its ground state where it has none."""
    if rows is None:
        return x.features
    if x.ground is None or x.ground.is_zero:
        base = x.features.new_zeros(sites.n_sites, x.features.shape[1])
    else:
        base = x.ground.at(sites)
    return base.index_copy(0, rows, x.features)


# ------------------------------------------------------------------ classes
def _common_grounds(grounds: Sequence[GroundState]) -> tuple[list[Tensor], Any]:
    """Values of all grounds on common class maps: shapes that agree but for the channels."""
    merged = [merge(maps) for maps in zip(*(g.axes for g in grounds), strict=True)]
    axes = tuple(m[0] for m in merged)
    values = []
    for i, ground in enumerate(grounds):
        values.append(ground.index(axes, [reads[i] for _, reads in merged]).values)
    n_samples = max(v.shape[0] for v in values)
    shape = (n_samples, *(a.n_classes for a in axes))
    return [v.expand(*shape, v.shape[-1]) for v in values], axes


def _check_operands(operation: str, tensors: Sequence[SparseTensor]) -> None:
    first = tensors[0]
    for x in tensors[1:]:
        grid = (x.batch_size, x.spatial_shape)
        if grid != (first.batch_size, first.spatial_shape):
            raise ValueError(
                f"{operation}: operands must have the same batch size and grid, got shapes "
                f"{tuple(first.shape)} and {tuple(x.shape)}; crop, pad or resample one of them"
            )
        if x.device != first.device:
            raise RuntimeError(
                f"{operation}: operands must be on one device, got {first.device} and {x.device};"
                " move one with .to(device)"
            )
    kinds = {x.ground is None for x in tensors if not x.sites.is_full}
    if len(kinds) > 1:
        raise ValueError(
            f"{operation}: operands must agree on inactive sites, got one with ground=None (they "
            "do not exist) and one with a ground state; use x.replace(ground=0.0 or None)"
        )


def zip_with(
    f: Callable[..., Tensor],
    tensors: Sequence[SparseTensor],
    operation: str,
    keeps_zero: bool = False,
) -> SparseTensor:
    """Apply f to several sparse tensors: f maps tensors (..., C_i) to one (..., C').

    Args:
        f: elementwise but for the last dimension, channels.
        tensors: with the same batch size and grid.
        operation: for messages.
        keeps_zero: f(0, ..., 0) == 0.

    Raises:
        ValueError: other grids, or a mix of ground=None and ground states.
        RuntimeError: other devices.
    """
    _check_operands(operation, tensors)
    sites = tensors[0].sites
    rows: list[Rows] = [None]
    for x in tensors[1:]:
        sites, moved, more = union(sites, x.sites)
        if moved is not None:
            rows = [moved if r is None else moved[r] for r in rows]
        rows.append(more)
    features = f(*(_lift(x, sites, r) for x, r in zip(tensors, rows, strict=True))).contiguous()
    if any(x.ground is None for x in tensors):
        return SparseTensor._of(features, sites, None)
    grounds = [x.ground for x in tensors if x.ground is not None]
    if sites.is_full or (keeps_zero and all(g.is_zero for g in grounds)):
        return SparseTensor._of(features, sites, SparseTensor._zero(features, sites))
    values, axes = _common_grounds(grounds)
    return SparseTensor._of(features, sites, GroundState._of(f(*values), axes))


# ------------------------------------------------------------------ two operands
class Rule(NamedTuple):
    """When a symbolic zero stays one.

    Attributes:
        pair: f(0, 0) == 0.
        number: (number, number comes first) -> f(0, number) == 0, or f(number, 0) == 0.
        tensor: f(0, t) == f(t, 0) == 0 for all finite t.
    """

    pair: bool
    number: Callable[[Any, bool], bool]
    tensor: bool = False


def _divides(n: Any, first: bool) -> bool:
    return not first and n != 0


BINARY: dict[str, Rule] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub"), Rule(True, lambda n, first: n == 0)),
    **dict.fromkeys(("mul", "multiply"), Rule(True, lambda n, first: math.isfinite(n), True)),
    **dict.fromkeys(
        ("div", "divide", "true_divide", "remainder", "fmod", "floor_divide"), Rule(False, _divides)
    ),
    **dict.fromkeys(("pow", "float_power"), Rule(False, lambda n, first: not first and n > 0)),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), Rule(True, lambda n, first: False)),
    **dict.fromkeys(
        ("hypot", "logaddexp", "atan2", "arctan2"), Rule(False, lambda n, first: False)
    ),
}
"""Binary functions by name."""


def binary(f: Function, name: str, rule: Rule) -> Function:
    """The handler of a binary function: sparse with sparse, with a number, or with (1|B, 1|C, 1..).

    Args:
        f: torch's function, out of place.
        name: for messages.
        rule: when a zero ground stays symbolic.
    """

    def handler(input: Any, other: Any, **kwargs: Any) -> SparseTensor:
        if "out" in kwargs:
            refuse(name, "out= cannot be a SparseTensor, nor take one")
        g = (lambda a, b: f(a, b, **kwargs)) if kwargs else f
        if isinstance(input, SparseTensor) and isinstance(other, SparseTensor):
            return _pair(g, input, other, name, rule)
        first = not isinstance(input, SparseTensor)
        x, other = (other, input) if first else (input, other)
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, Tensor) and other.dim():
            return _with_rows(g, x, other, first, name, rule.tensor)
        if not isinstance(other, (int, float, Tensor)):
            raise TypeError(
                f"{name}: the other operand must be a SparseTensor, a Tensor or a number, got "
                f"{type(other).__name__}; convert it"
            )
        keeps = rule.tensor if isinstance(other, Tensor) else rule.number(other, first)
        return apply(x, (lambda t: g(other, t)) if first else (lambda t: g(t, other)), keeps)

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"torch's `{name}` of a sparse tensor and another operand."
    return handler


def _pair(f: Function, a: SparseTensor, b: SparseTensor, name: str, rule: Rule) -> SparseTensor:
    c_a, c_b = a.features.shape[1], b.features.shape[1]
    if c_a != c_b and 1 not in (c_a, c_b):
        raise ValueError(
            f"{name}: operands must have the same channels (or 1), got {c_a} and {c_b}; "
            "project one of them"
        )
    return zip_with(f, (a, b), name, rule.pair)


def _with_rows(
    f: Function, x: SparseTensor, other: Tensor, first: bool, name: str, keeps_zero: bool
) -> SparseTensor:
    """One value per sample, per channel, or both: (1 or B, 1 or C, 1, ..., 1)."""
    rows = _as_rows(x, other, name)
    spread = spread_rows(rows, x.sites.batch_start, x.sites.n_sites)
    g = (lambda t, o: f(o, t)) if first else f
    features, ground = g(x.features, spread).contiguous(), x.ground
    if ground is None or (ground.is_zero and (keeps_zero or x.sites.is_full)):
        return with_values(x, features, None)
    shape = (rows.shape[0], *[1] * len(ground.axes), rows.shape[1])
    values = g(ground.values, rows.view(shape))
    return SparseTensor._of(features, x.sites, GroundState._of(values, ground.axes))


class _SpreadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, start: Tensor, n: int) -> Tensor:
        ctx.start = start
        return _spread_rows(rows, start, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return ops.segment_sum(dy.contiguous(), None, ctx.start), None, None


def _spread_rows(rows: Tensor, start: Tensor, n: int) -> Tensor:
    if rows.shape[0] == 1:
        return rows.expand(n, -1)
    return torch.repeat_interleave(rows, start[1:] - start[:-1], dim=0, output_size=n)


def spread_rows(rows: Tensor, start: Tensor, n: int) -> Tensor:
    """Row s of `rows` (S, C) at start[s] .. start[s + 1] of the result (n, C); one row goes to all.

    Its gradient is summed in a fixed order.
    """
    if rows.shape[0] == 1:
        start = torch.tensor([0, n])
    wanted = torch.is_grad_enabled() and rows.requires_grad
    if wanted and rows.dtype in (torch.float32, torch.float64):
        return _SpreadRows.apply(rows, start, n)
    return _spread_rows(rows, start, n)


def _as_rows(x: SparseTensor, other: Tensor, name: str) -> Tensor:
    """(1 or B, 1 or C) of a tensor that broadcasts against x without reaching into space."""
    shape = (1,) * (x.ndim - other.dim()) + tuple(other.shape)
    if len(shape) != x.ndim or any(n > 1 for n in shape[2:]):
        refuse(name, f"of a SparseTensor {tuple(x.shape)} and a dense {shape} has a dense result")
    channels = x.features.shape[1]
    fits = shape[1] in (1, channels) or channels == 1
    if shape[0] not in (1, x.batch_size) or not fits:
        raise ValueError(
            f"{name}: a dense operand must have shape (1 or {x.batch_size}, 1 or {channels}, "
            f"1, ...), got {tuple(other.shape)}; reshape it"
        )
    if other.device != x.device:
        raise RuntimeError(
            f"{name}: operands must be on one device, got {x.device} and {other.device}; "
            "move one with .to(device)"
        )
    return other.reshape(shape[:2])


def cat(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None, out: Any = None) -> Any:
    """Channels side by side, on the union of the sites."""
    dim = dim if axis is None else axis
    if out is not None:
        refuse("cat", "out= cannot be a SparseTensor")
    for x in tensors:
        if not isinstance(x, SparseTensor):
            refuse("cat", f"of a SparseTensor and a {type(x).__name__} has a dense result")
    if dim in (0, -tensors[0].ndim):
        refuse("cat", "of SparseTensors joins channels, dim=1", "for samples use ds.collate")
    channel_dim(tensors[0], dim, "cat")
    return zip_with(lambda *t: torch.cat(t, -1), tuple(tensors), "cat", keeps_zero=True)


def hstack(tensors: Sequence[Any], *, out: Any = None) -> Any:
    """`cat` of channels."""
    return cat(tensors, 1, out=out)
