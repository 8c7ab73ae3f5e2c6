"""Points to voxels and back: voxelize, devoxelize (nearest, trilinear).

A point p lies in cell floor((p - origin) / voxel_size), computed in float64; a voxel's value stands
at its centre. No hash table: sites are sorted, and a cell is looked up by binary search among their
linear keys. Sums run in the order of the points, so results and gradients have the same bits for
any number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from ._autograd import gather_rows, merge_repeats
from ._checks import check_features, check_shape
from ._ground import make_ground
from ._parameters import check_dtype
from ._precision import widened
from .sites import Sites
from .tensor import SparseTensor

_REDUCTIONS = ("mean", "sum", "max", "first")
_MODES = ("nearest", "trilinear")
_OUTSIDE = ("error", "drop")


# ------------------------------------------------------------------ what the user gives
def _check_choice(operation: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{operation}: {name} must be one of {known}, got {value!r}; pass one of them"
        )


def _vector(operation: str, name: str, value: Any, n_axes: int) -> Tensor:
    """One number, or one per axis, as float64 (n_axes,)."""
    try:
        vector = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{operation}: {name} must be a number or one per axis, got {type(value).__name__}; "
            "pass e.g. 0.1"
        ) from error
    if vector.dim() > 1 or (vector.dim() == 1 and len(vector) != n_axes):
        raise ValueError(
            f"{operation}: {name} must be a number or {n_axes} of them, one per axis, "
            f"got shape {tuple(vector.shape)}; match the columns of points"
        )
    if not bool(vector.isfinite().all()) or (name == "voxel_size" and not bool((vector > 0).all())):
        wanted = "positive and finite" if name == "voxel_size" else "finite"
        raise ValueError(
            f"{operation}: {name} must be {wanted}, got {vector.tolist()}; pass e.g. 0.1"
        )
    return vector.expand(n_axes)


def _check_points(operation: str, points: Any, n_axes: int | None = None) -> None:
    check_features(points, operation, "points")
    fits = 1 <= points.shape[1] <= 4 if n_axes is None else points.shape[1] == n_axes
    if not fits:
        wanted = "1 to 4 columns" if n_axes is None else f"{n_axes} columns, one per spatial axis"
        raise ValueError(
            f"{operation}: points must have {wanted}, got shape {tuple(points.shape)}; "
            "pass the batch index as batch="
        )


def _check_batch(operation: str, batch: Any, n: int, batch_size: int | None) -> tuple[Tensor, int]:
    """The sample of every point, int64 (n,), and the number of samples."""
    if isinstance(batch_size, bool) or not (batch_size is None or hasattr(batch_size, "__index__")):
        raise TypeError(
            f"{operation}: batch_size must be an int or None, got {batch_size!r}; "
            "pass the number of samples"
        )
    if batch is None:
        batch = torch.zeros(n, dtype=torch.int64, device="cpu")
    if not isinstance(batch, Tensor) or batch.dtype.is_floating_point or batch.dtype == torch.bool:
        got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
        raise TypeError(
            f"{operation}: batch must be an integer tensor or None, got {got}; use batch.long()"
        )
    if batch.shape != (n,):
        raise ValueError(
            f"{operation}: batch must have shape ({n},), one index per point, "
            f"got {tuple(batch.shape)}; reshape it"
        )
    batch = batch.to(torch.int64)
    low, high = (int(batch.min()), int(batch.max())) if n else (0, -1)
    size = max(high + 1, 1) if batch_size is None else batch_size.__index__()
    if not 0 <= size < 2**31:
        raise ValueError(
            f"{operation}: batch_size must lie in [0, 2^31), got {size}; pass the number of samples"
        )
    if low < 0 or high >= size:
        raise ValueError(
            f"{operation}: batch must lie in [0, {size}), got {low if low < 0 else high}; "
            "correct it or the batch_size"
        )
    return batch, size


def _in_cells(operation: str, points: Tensor, voxel_size: Any, origin: Any) -> Tensor:
    """Points in units of cells, 0 at the corner of the grid: float64 (n, D)."""
    size = _vector(operation, "voxel_size", voxel_size, points.shape[1])
    corner = _vector(operation, "origin", origin, points.shape[1])
    return (points.detach().to(torch.float64) - corner) / size


def _inside(
    operation: str, points: Tensor, at: Tensor, shape: Sequence[int] | None, outside: str
) -> Tensor:
    """Which points lie in the grid, bool (n,); raises for the first that does not, unless told."""
    inside = at >= 0  # False for NaN
    if shape is None:
        inside &= at.isfinite()
    else:
        inside &= at < torch.tensor(tuple(shape), dtype=torch.float64, device="cpu")
    inside = inside.all(1)
    if outside == "error" and not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        extent = "[0, inf)" if shape is None else f"[0, {tuple(shape)})"
        raise ValueError(
            f"{operation}: points must be finite and in the grid, (point - origin) / voxel_size in "
            f"{extent}, got {points[row].tolist()} in row {row}, which is {at[row].tolist()}; "
            'pass outside="drop", another origin (points.amin(0)) or a larger grid'
        )
    return inside


# ------------------------------------------------------------------ points -> voxels
def voxelize(
    points: Tensor,
    features: Tensor,
    voxel_size: float | Sequence[float] | Tensor,
    spatial_shape: Sequence[int] | None = None,
    *,
    origin: float | Sequence[float] | Tensor = 0.0,
    batch: Tensor | None = None,
    batch_size: int | None = None,
    reduce: str = "mean",
    ground: Any = 0.0,
    outside: str = "error",
) -> tuple[SparseTensor, Tensor]:
    """Active sites are the cells that hold a point; their features reduce those of the points.

    Differentiable in `features` (and `ground`); points have no gradient.

    Args:
        points: (n, D) floating point, 1 <= D <= 4; column a is spatial axis a.
        features: (n, C) floating point.
        voxel_size: edge of a cell, one number or one per axis.
        spatial_shape: D extents of the grid; by default the smallest that holds every point.
        origin: corner of cell 0, one number or one per axis.
        batch: integers (n,), the sample of each point; by default all are in sample 0.
        batch_size: number of samples; by default the largest index plus one.
        reduce: "mean", "sum", "max" (ties share the gradient) or "first" of a cell's points.
        ground: what inactive sites hold, as in `SparseTensor`.
        outside: "error", or "drop" to leave out points that are not finite or not in the grid.

    Returns:
        the tensor, and int64 (n,): the site (row of its features) of each point, -1 where it was
        dropped. `y.features[site]` gives every point what a network says of its voxel.

    Raises:
        TypeError: points, features or batch of another kind, no number as a size.
        ValueError: shapes that do not fit; points outside the grid (names the first one).

    Example:
        >>> import torch, doublesparse as ds
        >>> points = torch.tensor([[0.1, 0.9], [0.3, 0.6], [1.7, 0.2]])
        >>> x, site = ds.functional.voxelize(points, torch.tensor([[1.0], [3.0], [5.0]]), 0.5)
        >>> x.coords.tolist(), x.features.tolist(), site.tolist()
        ([[0, 0, 1], [0, 3, 0]], [[2.0], [5.0]], [0, 0, 1])
    """
    _check_choice("voxelize", "reduce", reduce, _REDUCTIONS)
    _check_choice("voxelize", "outside", outside, _OUTSIDE)
    _check_points("voxelize", points)
    check_features(features, "voxelize")
    n = points.shape[0]
    if features.shape[0] != n:
        raise ValueError(
            f"voxelize: features must have one row per point, {n}, got {features.shape[0]}; "
            "give both the same length"
        )
    shape = None if spatial_shape is None else check_shape(spatial_shape, "voxelize")
    if shape is not None and len(shape) != points.shape[1]:
        raise ValueError(
            f"voxelize: spatial_shape must have {points.shape[1]} extents, one per column of "
            f"points, got {shape}; match them"
        )
    batch, batch_size = _check_batch("voxelize", batch, n, batch_size)
    at = _in_cells("voxelize", points, voxel_size, origin)
    inside = _inside("voxelize", points, at, shape, outside)
    kept = None if bool(inside.all()) else inside.nonzero()[:, 0]
    if kept is not None:
        at, batch, features = at[kept], batch[kept], features[kept]
    if shape is None:
        shape = _smallest_shape(at)
    coords = torch.cat([batch[:, None], at.to(torch.int64)], 1)  # at >= 0: the floor
    sites, order, start = Sites.from_coords(coords, shape, batch_size)
    merged, site = _reduced(features, order, start, reduce)
    if kept is not None:
        site = torch.full((n,), -1, device="cpu").index_copy_(0, kept, site)
    state = make_ground(
        ground, merged.shape[1], batch_size, shape, merged.dtype, merged.device, "voxelize"
    )
    x = SparseTensor._of(merged.contiguous(), sites, state)
    x._drop_ground_if_full()
    return x, site


def _reduced(
    features: Tensor, order: Tensor | None, start: Tensor | None, reduce: str
) -> tuple[Tensor, Tensor]:
    """One row per site, and the site of each point; `order`, `start` as of `Sites.from_coords`."""
    n = features.shape[0]
    if order is None:
        return features, torch.arange(n, device="cpu")
    site = torch.empty_like(order)
    if start is None:
        site[order] = torch.arange(n, device="cpu")
        return features[order], site
    site[order] = torch.repeat_interleave(start[1:] - start[:-1])
    return merge_repeats(features, order, start, reduce), site


def _smallest_shape(at: Tensor) -> tuple[int, ...]:
    """Extents of the smallest grid that holds these points."""
    if not len(at):
        return (1,) * at.shape[1]
    return check_shape([int(n) + 1 for n in at.amax(0).tolist()], "voxelize")


# ------------------------------------------------------------------ voxels -> points
@widened
def devoxelize(
    x: SparseTensor | Tensor,
    points: Tensor,
    voxel_size: float | Sequence[float] | Tensor = 1.0,
    *,
    origin: float | Sequence[float] | Tensor = 0.0,
    batch: Tensor | None = None,
    mode: str = "nearest",
    outside: str = "error",
) -> Tensor:
    """The values of a grid at points: (n, C).

    "nearest" is the value of the cell that a point lies in. "trilinear" interpolates linearly
    along every axis between the centres of the 2^D cells around the point; beyond the outermost
    centres it takes theirs (`F.grid_sample` with align_corners=False, padding_mode="border").

    Inactive cells count with the ground's value, as in the dense network. Where the ground is None
    they do not exist: the weights of the active ones among the 2^D are scaled to the sum 1, and a
    point without any gets 0.

    Differentiable in the features and the ground, in a fixed order of sums; points (and the
    weights, which depend on them alone) have no gradient.

    Args:
        x: a SparseTensor, or a dense tensor (B, C, *spatial).
        points: (n, D) floating point.
        voxel_size: edge of a cell of `x`: that given to `voxelize`, times the strides since.
        origin: corner of cell 0.
        batch: integers (n,), the sample of each point; by default all are in sample 0.
        mode: "nearest" or "trilinear", for any D.
        outside: "error", or "drop": points that are not finite or not in the grid get 0.

    Raises:
        TypeError: points or batch of another kind, no number as a size.
        ValueError: shapes that do not fit; points outside the grid (names the first one).
        NotImplementedError: features that are not float64, float32 or of 16 bits.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.tensor([[4.0], [8.0]]), torch.tensor([[0, 1], [0, 2]]), (4,))
        >>> points = torch.tensor([[1.5], [2.0], [2.25], [3.25]])
        >>> ds.functional.devoxelize(x, points, mode="trilinear").flatten()
        tensor([4., 6., 7., 2.])
    """
    if isinstance(x, Tensor):
        check_features(x, "devoxelize", "x", n_axes=True)
        x = SparseTensor._from_full(x)
        return devoxelize(
            x, points, voxel_size, origin=origin, batch=batch, mode=mode, outside=outside
        )
    if not isinstance(x, SparseTensor):
        raise TypeError(
            f"devoxelize: x must be a SparseTensor or a Tensor, got {type(x).__name__}; "
            "make one with ds.functional.voxelize"
        )
    check_dtype("devoxelize", x)
    _check_choice("devoxelize", "mode", mode, _MODES)
    _check_choice("devoxelize", "outside", outside, _OUTSIDE)
    shape = x.sites.spatial_shape
    _check_points("devoxelize", points, len(shape))
    batch, _ = _check_batch("devoxelize", batch, points.shape[0], x.sites.batch_size)
    at = _in_cells("devoxelize", points, voxel_size, origin)
    inside = _inside("devoxelize", points, at, shape, outside)
    at = torch.where(inside[:, None], at, 0.0)
    values = _values(x)
    if mode == "nearest":
        out = gather_rows(values, _rows(x, at.to(torch.int64), batch))
    else:
        out = _interpolate(x, values, at, batch)
    return out if outside == "error" else torch.where(inside[:, None], out, 0.0)


def _values(x: SparseTensor) -> Tensor:
    """What `_rows` numbers: the rows of the active sites, then those of the ground."""
    features, ground = x.features, x.ground
    if x.sites.is_full:
        return features
    if ground is None or ground.is_zero:
        rest = features.new_zeros(1, features.shape[1])
    else:
        rest = ground.values.flatten(0, -2)  # `rows`, but no channels are allowed too
    if len(features) + len(rest) >= 2**31:
        raise ValueError(
            "devoxelize: sites and ground rows must number below 2^31, got "
            f"{len(features)} and {len(rest)}; use a smaller batch"
        )
    return torch.cat([features, rest])


def _rows(x: SparseTensor, cells: Tensor, batch: Tensor) -> Tensor:
    """The row of `_values` that each cell (n, D) of each sample holds: int32 (n,)."""
    sites, ground = x.sites, x.ground
    coords = torch.cat([batch[:, None], cells], 1).to(torch.int32)
    keys = ops.linear_keys(coords, sites.spatial_shape)
    if sites.is_full:
        return keys.to(torch.int32)
    rest = torch.zeros_like(keys)
    if ground is not None and not ground.is_zero:
        for a, axis in enumerate(ground.axes):
            rest *= axis.n_classes
            rest += torch.from_numpy(axis.lookup(cells[:, a].numpy()))
        if ground.per_sample:
            rest += batch * ground.n_rows
    rest += sites.n_sites
    if sites.n_sites:
        row = torch.searchsorted(sites.keys, keys).clamp_(max=sites.n_sites - 1)
        rest = torch.where(sites.keys[row] == keys, row, rest)
    return rest.to(torch.int32)


def _interpolate(x: SparseTensor, values: Tensor, at: Tensor, batch: Tensor) -> Tensor:
    """Linear along every axis between the centres of the cells around each point."""
    last = torch.tensor(x.sites.spatial_shape, device="cpu") - 1
    centred = torch.minimum((at - 0.5).clamp_(min=0), last.to(at.dtype))
    low = centred.to(torch.int64)
    shares = torch.stack([1 - (centred - low), centred - low])
    cells = torch.stack([low, torch.minimum(low + 1, last)])
    total = values.new_zeros(len(at), values.shape[1])
    weight_sum = values.new_zeros(len(at))
    axes = range(at.shape[1])
    for corner in itertools.product((0, 1), repeat=at.shape[1]):
        weight = torch.stack([shares[side, :, a] for a, side in enumerate(corner)]).prod(0)
        cell = torch.stack([cells[corner[a], :, a] for a in axes], 1)
        row = _rows(x, cell, batch)
        weight = weight.to(values.dtype)
        if x.ground is None and not x.sites.is_full:
            weight = torch.where(row < x.sites.n_sites, weight, 0.0)
            weight_sum += weight
        total = total + weight[:, None] * gather_rows(values, row)
    if x.ground is not None or x.sites.is_full:
        return total
    return total / torch.where(weight_sum > 0, weight_sum, 1.0)[:, None]
