"""Slices: channels, samples and stretches of space, with positive steps; every dimension stays.

Channels are columns of the features, samples are runs of rows, and space is moved as padding moves
it: each output position copies one input position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _cache, _elementwise
from ._autograd import gather_rows
from ._classes import Array
from ._elementwise import apply, refuse
from ._ground import GroundState
from ._resample import move, runs_dense
from .sites import Sites
from .tensor import SparseTensor

_KEEP_DIMENSION = "would lose or add a dimension"


# ------------------------------------------------------------------ x[...]
def getitem(input: SparseTensor, index: Any) -> SparseTensor:
    """`x[samples, channels, *space]` with slices of positive step, and `...`.

    Channels also take a list or a one-dimensional tensor of integers, or a mask.

    Raises:
        NotImplementedError: an integer or None, which change the number of dimensions; or a list
            or tensor for samples or space.
        IndexError: more indices than dimensions.
        ValueError: a step below 1, or a slice that leaves no position on a spatial axis.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    missing = input.ndim - sum(1 for i in items if i is not Ellipsis)
    if any(i is Ellipsis for i in items):
        at = next(n for n, i in enumerate(items) if i is Ellipsis)
        items[at : at + 1] = [slice(None)] * missing
    else:
        items += [slice(None)] * missing
    for i in items:
        if isinstance(i, (bool, np.bool_, int, np.integer)) or i is None or i is Ellipsis:
            refuse("__getitem__", f"with {i!r} {_KEEP_DIMENSION}", "take a slice i:i + 1")
    if missing < 0:
        raise IndexError(
            f"__getitem__: a SparseTensor has {input.ndim} dimensions, got {len(items)} indices; "
            "leave some out"
        )
    samples, channels, *space = items
    if not isinstance(samples, slice) or not all(isinstance(i, slice) for i in space):
        refuse("__getitem__", "takes slices of samples and space, and for channels also a list")
    x = _samples(input, _positions(samples, input.batch_size))
    if isinstance(channels, slice):
        x = _channels(x, _positions(channels, x.features.shape[1]))
    else:
        x = _listed(x, channels)
    taps = [_positions(i, n) for i, n in zip(space, x.spatial_shape, strict=True)]
    return _space(x, "__getitem__", taps)


def _positions(part: slice, extent: int) -> range:
    """The positions of a slice of an axis."""
    if part.step is not None and part.step < 1:
        raise ValueError(
            f"__getitem__: slice step must be positive, got {part.step}; use 1 or more"
        )
    return range(*part.indices(extent))


def _channels(x: SparseTensor, wanted: range) -> SparseTensor:
    if wanted == range(x.features.shape[1]):
        return x
    part = slice(wanted.start, wanted.stop, wanted.step)
    return apply(x, lambda rows: rows[:, part], True, ("channels", wanted))


def _listed(x: SparseTensor, index: Any) -> SparseTensor:
    """Channels by a list, a mask or a tensor of numbers."""
    try:
        wanted = torch.as_tensor(index, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        wanted = torch.empty((), dtype=torch.float32, device="cpu")
    if wanted.dim() != 1 or wanted.is_floating_point() or wanted.is_complex():
        refuse("__getitem__", f"takes a slice or a list of channels, got {type(index).__name__}")
    return apply(x, lambda rows: rows[:, wanted], keeps_zero=True)


def _space(x: SparseTensor, operation: str, wanted: list[range]) -> SparseTensor:
    if all(w == range(n) for w, n in zip(wanted, x.spatial_shape, strict=True)):
        return x
    if not all(len(w) for w in wanted):
        raise ValueError(
            f"{operation}: a slice must leave at least one position per axis, got "
            f"{[(w.start, w.stop, w.step) for w in wanted]} of {x.spatial_shape}; take more"
        )
    if runs_dense(x):
        view = x._dense_view()
        for a, w in enumerate(wanted):
            if w.step < 0:
                view = view.flip(2 + a)
            else:
                view = view.movedim(2 + a, 0)[w.start : w.stop : w.step].movedim(0, 2 + a)
        return SparseTensor._from_full(view, keep_none=x.ground is None)

    def make_taps() -> list[Array]:
        return [np.arange(w.start, w.stop, w.step)[:, None] for w in wanted]

    return move(x, (operation, *wanted), make_taps)


def _samples(x: SparseTensor, wanted: range) -> SparseTensor:
    """Some samples of the batch, in order."""
    sites = x.sites
    if wanted == range(sites.batch_size):
        return x
    key = ("samples", wanted)
    found = _cache.get(sites, key)
    if found is None:
        found = _cache.put(sites, key, _chosen(sites, wanted), 24 * sites.n_sites)
    out, rows = found
    ground = x.ground
    if ground is not None and ground.per_sample:
        values = gather_rows(
            ground.values.flatten(1), torch.tensor(list(wanted), dtype=torch.int32, device=x.device)
        )
        shape = (len(wanted), *ground.values.shape[1:])
        ground = GroundState._of(values.view(shape), ground.axes)
    return SparseTensor._of(gather_rows(x.features, rows), out, ground)


def _chosen(sites: Sites, wanted: range) -> tuple[Sites, Tensor]:
    """The sites of some samples, and the rows they were."""
    start = sites.batch_start.tolist()
    device = sites.device
    parts = [torch.arange(start[b], start[b + 1], device=device) for b in wanted]
    rows = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)
    coords = sites.coords[rows]
    counts = torch.tensor([len(p) for p in parts], dtype=torch.int64, device=device)
    coords[:, 0] = torch.repeat_interleave(counts)
    out = Sites(coords, sites.spatial_shape, len(wanted), sites.device)
    return out, rows.to(torch.int32)


# ------------------------------------------------------------------ the functions
def narrow(input: SparseTensor, dim: int, start: Any, length: int) -> SparseTensor:
    """`length` positions of one dimension from `start` on, which may count from the end.

    Raises:
        IndexError: no such dimension.
        ValueError: a stretch that does not lie within it, or an empty one of space.
    """
    dim, start = _dimension(input, dim, "narrow"), int(start)
    extent = input.shape[dim]
    first = start + extent if start < 0 else start
    if not 0 <= first <= extent or not 0 <= length <= extent - first:
        raise ValueError(
            f"narrow: start and length must lie within {extent} positions, got start={start}, "
            f"length={length}; correct them"
        )
    return getitem(input, (*[slice(None)] * dim, slice(first, first + length)))


def _dimension(x: SparseTensor, dim: Any, operation: str) -> int:
    if not isinstance(dim, int) or not -x.ndim <= dim < x.ndim:
        raise IndexError(
            f"{operation}: dim must lie in [{-x.ndim}, {x.ndim - 1}], got {dim}; correct it"
        )
    return dim % x.ndim


def index_select(input: SparseTensor, dim: int, index: Any = None) -> SparseTensor:
    """Channels in any order, also repeated: `torch.index_select(x, 1, index)`."""
    if not isinstance(index, Tensor):
        refuse("index_select", "of a SparseTensor needs a tensor of channels")
    _elementwise.channel_dim(input, dim, "index_select")
    return apply(input, lambda rows: rows.index_select(1, index.reshape(-1)), keeps_zero=True)


def flip(input: SparseTensor, *dims: Any) -> SparseTensor:
    """The reverse of channels or of spatial axes."""
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    turned = {_dimension(input, d, "flip") for d in dims}
    if 0 in turned:
        refuse("flip", "of a SparseTensor runs over channels and space, not over samples")
    if 1 in turned:
        input = apply(input, lambda rows: rows.flip(1), keeps_zero=True)
    wanted = [
        range(n - 1, -1, -1) if 2 + a in turned else range(n)
        for a, n in enumerate(input.spatial_shape)
    ]
    return _space(input, "flip", wanted)


FUNCTIONS: dict[str, Callable[..., SparseTensor]] = {
    "narrow": narrow,
    "index_select": index_select,
    "flip": flip,
}
"""Functions and methods by name; `getitem` is `__getitem__`."""
