"""Checks of what users give: features, coordinates, extents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_INT32_MAX = 2**31 - 1
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, *_UNSIGNED)


def check_features(
    features: Any,
    operation: str = "SparseTensor",
    name: str = "features",
    n_axes: bool = False,
) -> None:
    """A floating-point tensor with data; (n, C), or an image (B, C, *spatial) where `n_axes`."""
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{operation}: {name} must be a Tensor, got {type(features).__name__}; "
            "pass a floating-point torch.Tensor"
        )
    if features.is_meta:
        raise NotImplementedError(
            f"{operation}: {name} must hold data, got a meta tensor; use a CPU tensor"
        )
    if not features.dtype.is_floating_point:
        raise TypeError(
            f"{operation}: {name} must be floating point, got {features.dtype}; use x.float()"
        )
    if features.layout is not torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a strided tensor, got {features.layout}; use x.to_dense()"
        )
    wanted = "(B, C, *spatial) with 1 to 4 spatial axes" if n_axes else "(n_sites, C)"
    if not (3 <= features.dim() <= 6 if n_axes else features.dim() == 2):
        raise ValueError(
            f"{operation}: {name} must have shape {wanted}, got {tuple(features.shape)}; reshape it"
        )


def check_duplicates(duplicates: str) -> None:
    """What to do with repeated sites must be known."""
    known = ("error", "sum", "mean", "max", "first")
    if duplicates not in known:
        raise ValueError(
            f"SparseTensor: duplicates must be one of {known}, got {duplicates!r}; pass one of them"
        )


def check_shape(spatial_shape: Sequence[int], where: str = "SparseTensor") -> tuple[int, ...]:
    """The extents as a tuple of ints.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: not 1 to 4 of them, one below 1 or above int32, or a product that int64 cannot
            hold.
    """
    if spatial_shape is None or isinstance(spatial_shape, (int, float, str)):
        raise TypeError(
            f"{where}: spatial_shape must be a sequence of ints, got {spatial_shape!r}; "
            "pass e.g. (64, 64)"
        )
    try:
        shape = tuple(n.__index__() for n in spatial_shape)
    except (TypeError, AttributeError):
        raise TypeError(
            f"{where}: spatial_shape must be a sequence of ints, got {spatial_shape!r}; "
            "pass e.g. (64, 64)"
        ) from None
    if not 1 <= len(shape) <= 4:
        raise ValueError(
            f"{where}: spatial_shape must have 1 to 4 extents, got {len(shape)}; drop or merge axes"
        )
    if min(shape) < 1 or max(shape) > _INT32_MAX:
        raise ValueError(
            f"{where}: extents must lie in [1, 2^31 - 1], got {shape}; use a positive, smaller grid"
        )
    if math.prod(shape) >= 2**63:
        raise ValueError(
            f"{where}: the product of the extents must be below 2^63, got {shape}; "
            "use a smaller grid"
        )
    return shape


def as_integers(coords: Tensor, n_axes: int) -> Tensor:
    """Coordinates of an integer dtype, of the right rank, with integral values."""
    if not isinstance(coords, Tensor):
        raise TypeError(
            f"SparseTensor: coords must be a Tensor, got {type(coords).__name__}; "
            f"pass torch.tensor of shape (n_sites, {1 + n_axes})"
        )
    if coords.is_meta:
        raise NotImplementedError(
            "SparseTensor: coords must hold data, got a meta tensor; use a CPU tensor"
        )
    if coords.dim() != 2 or coords.shape[1] != 1 + n_axes:
        raise ValueError(
            f"SparseTensor: coords must have shape (n_sites, {1 + n_axes}), "
            f"columns [batch, spatial...], got {tuple(coords.shape)}; "
            f"spatial_shape has {n_axes} extents and the first column is the batch index"
        )
    if coords.dtype.is_floating_point:
        if bool((coords != coords.floor()).any()) or bool(
            coords.isinf().any()
        ):  # NaN != NaN, so a NaN is caught too
            raise ValueError(
                "SparseTensor: coords must be integers, got NaN, infinite or fractional values; "
                "use coords.floor().long()"
            )
        return coords.detach().to(torch.int64)
    if coords.dtype not in _INTEGERS:
        raise TypeError(
            f"SparseTensor: coords must be of an integer dtype, got {coords.dtype}; "
            "use coords.to(torch.int32)"
        )
    return coords.to(torch.int64) if coords.dtype in _UNSIGNED else coords


def check_range(coords: Tensor, shape: tuple[int, ...], batch_size: int | None) -> int:
    """The batch size, after checking that every site lies in the grid.

    Raises:
        TypeError: batch_size is no int.
        ValueError: a site outside the grid (names the first one), or a grid that is too large.
    """
    if batch_size is not None:
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__"):
            raise TypeError(
                f"SparseTensor: batch_size must be an int or None, got {batch_size!r}; "
                "pass the number of samples"
            )
        batch_size = batch_size.__index__()
        if not 0 <= batch_size <= _INT32_MAX:
            raise ValueError(
                f"SparseTensor: batch_size must lie in [0, 2^31 - 1], got {batch_size}; "
                "pass the number of samples"
            )
    if coords.shape[0] == 0:
        batch_size = 1 if batch_size is None else batch_size
    else:
        low, high = coords.amin(0).tolist(), coords.amax(0).tolist()
        known = batch_size
        batch_size = high[0] + 1 if known is None else known
        extents = (batch_size, *shape)
        if min(low) < 0 or any(h >= n for h, n in zip(high, extents, strict=True)):
            limit = torch.tensor(extents, device=coords.device)
            row = int(((coords < 0) | (coords >= limit)).any(1).nonzero()[0])
            fix = (
                "raise batch_size or spatial_shape, or drop the site"
                if min(low) >= 0
                else "drop the site or shift the grid"
            )
            raise ValueError(
                f"SparseTensor: coords must lie in [0, {extents}), "
                f"got {coords[row].tolist()} in row {row}; {fix}"
            )
    if batch_size * math.prod(shape) >= 2**63 or batch_size > _INT32_MAX:
        raise ValueError(
            "SparseTensor: batch_size times the extents must be below 2^63, "
            f"got {(batch_size, *shape)}; use a smaller grid"
        )
    return batch_size


def repeated(coords: Tensor, order: Tensor, start: Tensor) -> str:
    """What to say of the first repeated site; `order` and `start` as of `Sites.from_coords`."""
    again = int((start[1:] - start[:-1] > 1).nonzero()[0])
    row = order[start[again] + 1]
    return (
        f"SparseTensor: coords must be unique, got {coords[row].tolist()} twice "
        f"(rows {int(order[start[again]])} and {int(row)}); "
        'pass duplicates="sum", "mean", "max" or "first"'
    )


def check_mask(operation: str, mask: Any, shape: Sequence[int], device: torch.device) -> None:
    """A mask must be a bool tensor of the weight's shape, in its place.

    Raises:
        TypeError: no tensor, another dtype or layout.
        ValueError: another shape.
        RuntimeError: another device, or no data.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{operation}: mask must be a Tensor, got {type(mask).__name__}; pass a bool tensor"
        )
    if mask.dtype != torch.bool or mask.layout is not torch.strided:
        raise TypeError(
            f"{operation}: mask must be a strided tensor of torch.bool, got {mask.dtype} "
            f"({mask.layout}); use mask != 0"
        )
    # raw operators' weights have one axis of taps
    flat = mask.flatten(2) if mask.dim() > 2 else mask
    if tuple(shape) not in (tuple(mask.shape), tuple(flat.shape)):
        raise ValueError(
            f"{operation}: mask must have the shape of the weight, {tuple(shape)}, got "
            f"{tuple(mask.shape)}; give one entry per weight"
        )
    if mask.device != device:
        raise RuntimeError(
            f"{operation}: mask must be on {device} like the weight, got {mask.device}; "
            "move one of them"
        )


def check_keys_fit(in_shape: tuple[int, ...], out_shape: tuple[int, ...], n_samples: int) -> None:
    """Linear keys of grids with any of these extents per axis must fit int64."""
    widest = n_samples * math.prod(map(max, in_shape, out_shape))
    if widest >= 2**63:
        raise ValueError(
            f"output_coords: extents {tuple(in_shape)} and {tuple(out_shape)} must multiply, with "
            f"the batch, to less than 2^63, got {widest}; use a smaller grid"
        )
