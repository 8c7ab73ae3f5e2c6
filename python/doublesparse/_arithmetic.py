"""Arithmetic with several operands: common sites, common classes, then the dense function.

Two sparse operands meet on the union of their sites; a tensor's feature at a site that it does not
have is its ground state there. Their grounds meet on the common refinement of the class maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._autograd import wanted
from ._elementwise import Function, apply, channel_dim, refuse, with_values
from ._ground import GroundState, refinement
from ._memo import memo_of, remembered
from ._space_constant import as_sparse, constant_rows
from ._torch_compat import traced
from ._union import Rows, add, place, spread_rows, union
from .sites import Sites
from .tensor import SparseTensor


# ------------------------------------------------------------------ classes
def _common_grounds(grounds: Sequence[GroundState]) -> tuple[list[Tensor], Any]:
    """Values of all grounds on common class maps: shapes that agree but for the channels."""
    axes, rows = refinement(tuple(g.axes for g in grounds), grounds[0].values.device)
    values = [ground.index(axes, r).values for ground, r in zip(grounds, rows, strict=True)]
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
    kind: str = "",
) -> SparseTensor:
    """Apply f to several sparse tensors: f maps tensors (..., C_i) to one (..., C').

    Args:
        f: elementwise but for the last dimension, channels.
        tensors: with the same batch size and grid.
        operation: for messages.
        keeps_zero: f(0, ..., 0) == 0.
        kind: "cat", "add" or "sub" where f is that, which then takes one pass.

    Raises:
        ValueError: other grids, or a mix of ground=None and ground states.
        RuntimeError: other devices.
    """
    _check_operands(operation, tensors)
    features, sites = _features(f, tensors, kind)
    if any(x.ground is None for x in tensors):
        return SparseTensor._of(features, sites, None)
    grounds = [x.ground for x in tensors if x.ground is not None]
    if sites.is_full or (keeps_zero and all(g.is_zero for g in grounds)):
        zero = partial(SparseTensor._zero, features, sites)
        key = ("zero", features.shape[1], features.dtype)
        return SparseTensor._of(features, sites, remembered(grounds[0], key, (), zero))

    def respond() -> GroundState:
        values, axes = _common_grounds(grounds)
        return GroundState._of(f(*values), axes)

    frozen = bool(kind) and all(memo_of(g) is not None for g in grounds)
    state = remembered(grounds[0], kind, tuple(grounds[1:]), respond) if frozen else respond()
    return SparseTensor._of(features, sites, state)


_SCALES = {"add": 1.0, "sub": -1.0}


def _features(
    f: Callable[..., Tensor], tensors: Sequence[SparseTensor], kind: str
) -> tuple[Tensor, Sites]:
    """F of the features on the union of the sites, and that union."""
    sites = tensors[0].sites
    if kind in _SCALES and _plain(tensors) and not sites.same_as(tensors[1].sites):
        return add(tensors[0], tensors[1], _SCALES[kind])
    rows: list[Rows] = [None]
    for x in tensors[1:]:
        sites, moved, more = union(sites, x.sites)
        if moved is not None:
            rows = [moved if r is None else moved[r] for r in rows]
        rows.append(more)
    if all(r is None for r in rows):
        return f(*(x.features for x in tensors)).contiguous(), sites
    if kind:
        return place(tensors, rows, sites, kind), sites
    pairs = zip(tensors, rows, strict=True)
    operands = (x.features if r is None else place([x], [r], sites, "cat") for x, r in pairs)
    return f(*operands), sites


def _plain(tensors: Sequence[SparseTensor]) -> bool:
    """Two operands in one dtype of the kernels, no gradient wanted, no graph traced."""
    dtypes = {x.features.dtype for x in tensors}
    fits = len(tensors) == 2 and dtypes in ({torch.float32}, {torch.float64})
    return fits and not wanted(*tensors) and not traced(tensors[0].features)


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
        key = None if kwargs or isinstance(other, Tensor) else (name, other, first)
        return apply(x, (lambda t: g(other, t)) if first else (lambda t: g(t, other)), keeps, key)

    handler.__name__ = handler.__qualname__ = name
    handler.__doc__ = f"torch's `{name}` of a sparse tensor and another operand."
    return handler


_KINDS: dict[Function, str] = {torch.add: "add", torch.sub: "sub", torch.subtract: "sub"}


def _pair(f: Function, a: SparseTensor, b: SparseTensor, name: str, rule: Rule) -> SparseTensor:
    c_a, c_b = a.features.shape[1], b.features.shape[1]
    if c_a != c_b and 1 not in (c_a, c_b):
        raise ValueError(
            f"{name}: operands must have the same channels (or 1), got {c_a} and {c_b}; "
            "project one of them"
        )
    kind = _KINDS.get(f, "") if c_a == c_b else ""
    return zip_with(f, (a, b), name, rule.pair, kind)


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


def _as_rows(x: SparseTensor, other: Tensor, name: str) -> Tensor:
    """(1 or B, 1 or C) of a tensor that broadcasts against x without reaching into space."""
    shape = (1,) * (x.ndim - other.dim()) + tuple(other.shape)
    wide = len(shape) != x.ndim or any(n > 1 for n in shape[2:])
    rows = constant_rows(x, other, by_value=False) if wide else other.reshape(shape[:2])
    if rows is None:
        refuse(
            name,
            f"of a SparseTensor {tuple(x.shape)} and a dense {shape} has a dense result",
            "for a pooled branch use its (B, C, 1, ...), or .expand_as",
        )
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
    return rows


def cat(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None, out: Any = None) -> Any:
    """Channels side by side, on the union of the sites.

    A dense operand must hold one value per sample and channel: a pooled branch at full size.
    """
    dim = dim if axis is None else axis
    if out is not None:
        refuse("cat", "out= cannot be a SparseTensor")
    first = next(x for x in tensors if isinstance(x, SparseTensor))
    if dim in (0, -first.ndim):
        refuse("cat", "of SparseTensors joins channels, dim=1", "for samples use ds.collate")
    channel_dim(first, dim, "cat")
    operands = []
    for x in tensors:
        sparse = as_sparse(first, x) if isinstance(x, Tensor) else x
        if not isinstance(sparse, SparseTensor):
            refuse("cat", f"of a SparseTensor and a {type(x).__name__} has a dense result")
        operands.append(sparse)
    return zip_with(lambda *t: torch.cat(t, -1), operands, "cat", True, "cat")


def hstack(tensors: Sequence[Any], *, out: Any = None) -> Any:
    """`cat` of channels."""
    return cat(tensors, 1, out=out)
