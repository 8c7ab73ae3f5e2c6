"""Rows of several tensors on the union of their sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _cache, ops
from ._autograd import gather_rows
from ._device import whole
from ._torch_compat import untraced
from .sites import Sites
from .tensor import SparseTensor

Rows = Tensor | None  # int64: where rows go in the union; None: they stay where they are


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


@untraced
def _merge_keys(a: Sites, b: Sites) -> tuple[Sites, Rows, Rows]:
    n_a, n_b = a.n_sites, b.n_sites
    if n_a == 0 or n_b == 0:
        none = torch.empty(0, dtype=torch.int64, device=a.device)
        return (a, None, none) if n_b == 0 else (b, none, None)
    at = torch.searchsorted(a.keys, b.keys)
    new = a.keys[at.clamp(max=n_a - 1)] != b.keys
    before = at[new]
    n = n_a + len(before)
    if n == n_a:
        return a, None, at
    # row i of a moves back by the keys of b alone that lie before it
    rows_a = torch.arange(n_a, device=a.device)
    rows_a += torch.bincount(before, minlength=n_a + 1)[:n_a].cumsum(0)
    if n == n_b:
        return b, rows_a, None
    keys = torch.empty(n, dtype=torch.int64, device=a.device)
    keys[rows_a] = a.keys
    rows_new = before + torch.arange(len(before), device=a.device)
    keys[rows_new] = b.keys[new]
    rows_b = rows_a[at.clamp(max=n_a - 1)]
    rows_b[new] = rows_new
    coords = ops.coords_of_keys(keys, a.spatial_shape)
    sites = Sites(coords, a.spatial_shape, a.batch_size, a.device)
    sites._keys = keys
    return sites, rows_a, rows_b


class Joined(NamedTuple):
    """The union of two sites, and where its rows come from.

    Attributes:
        sites: the union; None where it is the first operand's.
        from_a: int32 (n,): a row of the first operand, or -1.
        from_b: of the second.
    """

    sites: Sites | None
    from_a: Tensor
    from_b: Tensor


def join(a: Sites, b: Sites) -> Joined:
    """One merge of two sorted lists of keys; remembered by `a`."""
    key = ("join", b.uid)
    found = _cache.get(a, key)
    if found is None:
        keys, from_a, from_b = ops.join_rows(a.keys, b.keys)
        sites = None
        if len(keys) == b.n_sites:
            sites = b
        if len(keys) != a.n_sites and sites is None:
            coords = ops.coords_of_keys(keys, a.spatial_shape)
            sites = Sites(coords, a.spatial_shape, a.batch_size, a.device)
            sites._keys = keys
        found = Joined(None if len(keys) == a.n_sites else sites, from_a, from_b)
        found = _cache.put(a, key, found, 36 * len(keys))
    return found


def add(a: SparseTensor, b: SparseTensor, scale: float) -> tuple[Tensor, Sites]:
    """Features of a + scale * b on the union of their sites, without a gradient."""
    joined = join(a.sites, b.sites)
    sites = a.sites if joined.sites is None else joined.sites
    ground_a, from_a = _inactive(a, joined.from_a, sites)
    ground_b, from_b = _inactive(b, joined.from_b, sites)
    y = ops.add_rows(a.features, ground_a, from_a, b.features, ground_b, from_b, scale)
    return y, sites


def _inactive(x: SparseTensor, rows: Tensor, sites: Sites) -> tuple[Tensor | None, Tensor]:
    """The ground's rows, and `rows` with -2 - g where x holds class row g of it."""
    ground = x.ground
    if ground is None or ground.is_zero or x.sites.n_sites == sites.n_sites:
        return None, rows
    return ground.rows.contiguous(), torch.where(rows < 0, -2 - ground.rows_of(sites), rows)


# ------------------------------------------------------------------ features
class _Part(NamedTuple):
    """Where some rows go: the gradient comes from there."""

    rows: Rows
    first: int  # channel
    width: int
    sign: int  # 0: they are set there; 1, -1: they are added, subtracted
    alone: bool  # the other rows of these channels are zero


class _Place(torch.autograd.Function):
    """One result, written in place: the operands are never copied to the union first."""

    @staticmethod
    def forward(ctx: Any, n: int, channels: int, parts: list[_Part], *features: Tensor) -> Tensor:
        ctx.parts = parts
        out = features[0].new_empty(n, channels)
        for part, rows in zip(parts, features, strict=True):
            view = out.narrow(1, part.first, part.width)
            if part.alone:
                view.zero_()
            if part.rows is None:
                view.copy_(rows) if part.sign == 0 else view.add_(rows, alpha=part.sign)
            elif part.sign == 0:
                view.index_copy_(0, part.rows, rows)
            else:
                view.index_add_(0, part.rows, rows, alpha=part.sign)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = []
        for part, needed in zip(ctx.parts, ctx.needs_input_grad[3:], strict=True):
            if not needed:
                grads.append(None)
                continue
            grad = dy.narrow(1, part.first, part.width)
            grad = grad.contiguous() if part.rows is None else grad.index_select(0, part.rows)
            grads.append(-grad if part.sign < 0 else grad)
        return None, None, None, *grads


@untraced
def _other_rows(rows: Tensor, n: int) -> Tensor:
    """Which of n rows are not among these, ascending: int64."""
    there = torch.ones(n, dtype=torch.bool, device=rows.device)
    there[rows] = False
    return there.nonzero().view(-1)


def place(tensors: Sequence[SparseTensor], rows: Sequence[Rows], sites: Sites, kind: str) -> Tensor:
    """Features on a union of sites: (n_sites, C'). Where a tensor has no site it holds its ground.

    Args:
        tensors: the operands.
        rows: where the rows of each go.
        sites: the union.
        kind: "cat" (channels side by side), "add" or "sub".
    """
    if len(tensors) == 1 and rows[0] is None:
        return tensors[0].features
    dtype = tensors[0].features.dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.features.dtype)
    parts, features, channels = [], [], 0
    for i, (x, own) in enumerate(zip(tensors, rows, strict=True)):
        width = x.features.shape[1]
        first = channels if kind == "cat" else 0
        sign = 0 if kind == "cat" or i == 0 else 1 if kind == "add" else -1
        channels = first + width
        grounded = own is not None and x.ground is not None and not x.ground.is_zero
        alone = own is not None and sign == 0 and not grounded
        parts.append(_Part(own, first, width, sign, alone))
        features.append(x.features)
        if grounded and own is not None and x.ground is not None:
            missing = _other_rows(own, sites.n_sites)
            parts.append(_Part(missing, first, width, sign, False))
            features.append(gather_rows(x.ground.rows, x.ground.rows_of(sites)[missing]))
    features = [f if f.dtype == dtype else f.to(dtype) for f in features]
    return _Place.apply(sites.n_sites, channels, parts, *features)


# ------------------------------------------------------------------ one row for many
class _SpreadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, start: Tensor, n: int) -> Tensor:
        ctx.start = start
        return repeat_rows(rows, start, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return ops.segment_sum(dy.contiguous(), None, ctx.start), None, None


def repeat_rows(rows: Tensor, start: Tensor, n: int) -> Tensor:
    """`spread_rows` without a gradient."""
    if rows.shape[0] == 1:
        return rows.expand(n, -1)
    return torch.repeat_interleave(rows, start[1:] - start[:-1], dim=0, output_size=n)


def spread_rows(rows: Tensor, start: Tensor, n: int) -> Tensor:
    """Row s of `rows` (S, C) at start[s] .. start[s + 1] of the result (n, C); one row goes to all.

    Its gradient is summed in a fixed order.
    """
    if rows.shape[0] == 1:
        start = whole(n, rows.device)
    wanted = torch.is_grad_enabled() and rows.requires_grad
    if wanted and rows.dtype in (torch.float32, torch.float64):
        return _SpreadRows.apply(rows, start, n)
    return repeat_rows(rows, start, n)
