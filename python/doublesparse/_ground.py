"""The ground state: what inactive sites hold, one value per tuple of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import _cache
from ._autograd import gather_rows
from ._classes import AxisClasses, flat_taps, merge, uniform_axes
from ._memo import Memo
from ._torch_compat import from_numpy, traced, untraced
from .sites import Sites

_ONES = [(1,) * (1 + n) + (-1,) for n in range(5)]
MAX_ROWS = 2**31 - 8  # class rows are numbered by int32, and tables code row g as -2 - g


@dataclass(init=False, eq=False, repr=False)
class GroundState:
    """Values of the inactive sites (Graham 2014), separable into classes.

    Attributes:
        values: (1 or batch_size, n_1, ..., n_D, C), one row per tuple of classes. The leading 1
            becomes batch_size at the first layer that treats samples differently.
        axes: one class map per spatial axis.
        is_zero: known to be zero, without a gradient: it costs nothing. `values` is then made on
            first use.
    """

    values: Tensor
    axes: tuple[AxisClasses, ...]
    is_zero: bool = field(init=False)  # dataclasses.replace gives what __init__ takes

    if TYPE_CHECKING:  # what `values` is made of on first use: no fields
        _lazy: tuple[int, torch.dtype, torch.device | str]
        _row: Tensor
        memo: Memo | None
    else:  # what layers made of this ground, where it is frozen (see `remembered`); not pickled
        memo = None

    def __init__(self, values: Tensor, axes: Sequence[AxisClasses]) -> None:
        """Values as rows.

        Raises:
            ValueError: `values` and `axes` do not fit, or the rows are too many for int32.
        """
        axes = tuple(axes)
        wanted = tuple(a.n_classes for a in axes)
        if values.dim() != 2 + len(axes) or tuple(values.shape[1:-1]) != wanted:
            raise ValueError(
                f"GroundState: values must have shape (1 or B, {wanted}, C), "
                f"got {tuple(values.shape)}; give one row per tuple of classes"
            )
        if math.prod(values.shape[:-1]) > MAX_ROWS:
            raise ValueError(
                f"GroundState: the classes must number below 2^31, got {tuple(values.shape[:-1])}; "
                "use a smaller background image"
            )
        self.values, self.axes, self.is_zero = values, axes, False

    @classmethod
    def _of(cls, values: Tensor, axes: tuple[AxisClasses, ...]) -> GroundState:
        """Without checks."""
        self = object.__new__(cls)
        self.values, self.axes, self.is_zero = values, axes, False
        return self

    @classmethod
    def zero(
        cls,
        channels: int,
        spatial_shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> GroundState:
        """The symbolic zero."""
        self = object.__new__(cls)
        self.axes, self.is_zero = uniform_axes(spatial_shape), True
        self._lazy = (channels, dtype, device)
        return self

    @classmethod
    def constant(cls, row: Tensor, spatial_shape: tuple[int, ...]) -> GroundState:
        """One value per channel, `row` (C,), everywhere. Copied: a parameter may change later."""
        self = object.__new__(cls)
        self.axes, self.is_zero = uniform_axes(spatial_shape), False
        self._row = row.clone()
        return self

    def __getattr__(self, name: str) -> Any:
        """Make the values of a symbolic zero, or of a constant, on first use."""
        known = self.__dict__
        if name == "values" and "_row" in known:
            with torch.set_grad_enabled(self._row.requires_grad):  # as when the row was copied
                self.values = self._row.view(_ONES[len(self.axes)])
            return self.values
        if name == "values" and "_lazy" in known:
            channels, dtype, device = self._lazy
            shape = (1,) * (1 + len(self.axes)) + (channels,)
            self.values = torch.zeros(shape, dtype=dtype, device=device)
            return self.values
        raise AttributeError(f"GroundState has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the memo: it knows tensors by their identity, and a copy has others."""
        return {name: value for name, value in self.__dict__.items() if name != "memo"}

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._lazy[0] if self.is_zero else self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the values."""
        return self._lazy[1] if self.is_zero else self.values.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether the values take part in autograd."""
        return not self.is_zero and self.values.requires_grad

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extents of the grid."""
        return tuple(a.extent for a in self.axes)

    @property
    def n_classes(self) -> tuple[int, ...]:
        """Number of classes per axis."""
        return tuple(a.n_classes for a in self.axes)

    @property
    def n_rows(self) -> int:
        """Number of class rows of one sample."""
        return math.prod(a.n_classes for a in self.axes)

    @property
    def per_sample(self) -> bool:
        """Whether samples hold different values."""
        return not self.is_zero and self.values.shape[0] != 1

    @property
    def rows(self) -> Tensor:
        """(1 or B times n_rows, C): the values, one class row after the other."""
        return self.values.reshape(-1, self.channels)

    def map(self, f: Callable[[Tensor], Tensor], keeps_zero: bool = False) -> GroundState:
        """Apply a function of the values that keeps their rows (channels last, dim -1).

        Args:
            f: values -> values; the number of channels may change.
            keeps_zero: f(0) == 0, so that a symbolic zero stays one.
        """
        if keeps_zero and self.is_zero:
            return self
        return GroundState._of(f(self.values), self.axes)

    def rows_of(self, sites: Sites) -> Tensor:
        """Class row of every site, int32 (n_sites,)."""
        rows = sites.class_of(self.axes)
        return rows + sites.batch * self.n_rows if self.per_sample else rows

    def at(self, sites: Sites) -> Tensor:
        """The ground's values at some sites: (n_sites, C)."""
        if self.is_zero:
            return self.values.new_zeros(sites.n_sites, self.channels)
        return gather_rows(self.rows, self.rows_of(sites))

    def n_positions(self) -> np.ndarray:
        """Number of cells of every class, flat: int64 (n_rows,)."""
        total = np.ones(1, np.int64)
        for axis in self.axes:
            total = np.outer(total, axis.counts()).reshape(-1)
        return total

    def n_inactive(self, sites: Sites) -> Tensor:
        """Number of inactive sites of each sample and class, int64 (B, n_rows); remembered."""
        key = ("inactive", self.axes)
        found = _cache.get(sites, key)
        if found is None:
            found = _count_inactive(self, sites)
            _cache.put(sites, key, found, 8 * found.numel())
        return found

    def index(self, axes: tuple[AxisClasses, ...], rows: Tensor) -> GroundState:
        """Other class maps: class row r of them holds what class row rows[r] holds here.

        Args:
            axes: the maps.
            rows: int32, one per class row of one sample; see `refinement`.
        """
        if self.is_zero or axes == self.axes:
            return self
        n_samples = self.values.shape[0]
        if n_samples != 1:
            first = torch.arange(n_samples, dtype=torch.int32, device=rows.device)[:, None]
            rows = (first * self.n_rows + rows).view(-1)
        values = gather_rows(self.rows, rows)
        return GroundState._of(
            values.view(n_samples, *(a.n_classes for a in axes), self.channels), axes
        )

    def cells(self, batch_size: int) -> Tensor:
        """The value of every cell of the grid, in grid order: (batch_size * cells, C), new."""
        if all(axis.is_identity for axis in self.axes) and len(self.values) == batch_size:
            return self.rows.clone()
        small = batch_size * math.prod(self.spatial_shape) <= _SMALL
        cell_rows = (_cell_rows if small else _all_rows)(
            self.axes, batch_size, self.per_sample, self.values.device
        )
        return gather_rows(self.rows, cell_rows)

    def same_as(self, other: GroundState) -> bool:
        """Whether both hold the same values, known without looking at gradients."""
        if self is other or (self.is_zero and other.is_zero):
            return True
        if self.is_zero or other.is_zero or self.requires_grad or other.requires_grad:
            return False
        if traced(self.values):
            return False
        if self.axes != other.axes or self.values.shape != other.values.shape:
            return False
        return self.values is other.values or torch.equal(self.values, other.values)

    def __repr__(self) -> str:
        """Classes, samples and channels."""
        if self.is_zero:
            return f"GroundState(zero, spatial={self.spatial_shape}, channels={self.channels})"
        return (
            f"GroundState(classes={self.n_classes}, samples={self.values.shape[0]}, "
            f"channels={self.channels}, {str(self.dtype).removeprefix('torch.')})"
        )


@untraced
def _count_inactive(ground: GroundState, sites: Sites) -> Tensor:
    n_rows, batch = ground.n_rows, sites.batch_size
    flat = sites.class_of(ground.axes).long() + sites.batch.long() * n_rows
    active = flat.new_zeros(batch * n_rows).scatter_add_(0, flat, torch.ones_like(flat))
    return torch.from_numpy(ground.n_positions()).to(flat.device) - active.view(batch, n_rows)


def _all_rows(
    axes: tuple[AxisClasses, ...], batch_size: int, per_sample: bool, device: torch.device
) -> Tensor:
    """Class row of every cell of the grid, in grid order: int32 (batch_size * cells,)."""
    ids = np.zeros(1, np.int32)
    for axis in axes:
        ids = (ids[:, None] * np.int32(axis.n_classes) + axis.expand()).reshape(-1)
    n_rows = math.prod(axis.n_classes for axis in axes)
    sample = np.arange(batch_size, dtype=np.int32) * np.int32(n_rows * per_sample)
    return from_numpy((sample[:, None] + ids).reshape(-1), device)


def refinement(
    maps: tuple[tuple[AxisClasses, ...], ...], device: torch.device
) -> tuple[Any, tuple[Tensor, ...]]:
    """The common refinement of the class maps of several grounds; small ones are remembered.

    Returns:
        its maps, and for each ground the class row that every class row of them has in it: int32,
        empty where the ground has these very maps.
    """
    short = sum(len(axis.starts) for axes in maps for axis in axes) <= 1024
    return (_known_refinement if short else _refinement)(maps, device)


@untraced
def _refinement(
    maps: tuple[tuple[AxisClasses, ...], ...], device: torch.device
) -> tuple[Any, tuple[Tensor, ...]]:
    merged = [merge(sides) for sides in zip(*maps, strict=True)]
    axes = tuple(m[0] for m in merged)
    ids = np.arange(math.prod(axis.n_classes for axis in axes))
    rows = []
    for i, old in enumerate(maps):
        if axes == old:
            rows.append(torch.empty(0, dtype=torch.int32, device=device))
            continue
        reads = [m[1][i][:, None] for m in merged]
        flat = flat_taps(reads, tuple(axis.n_classes for axis in old), ids)[:, 0]
        own = torch.from_numpy(np.ascontiguousarray(flat.astype(np.int32, copy=False)))
        rows.append(own.to(device))
    return axes, tuple(rows)


_known_refinement = lru_cache(maxsize=256)(_refinement)

_SMALL = 1 << 20  # cells of a grid whose class rows are remembered
_cell_rows = lru_cache(maxsize=32)(_all_rows)


# ------------------------------------------------------------------ from what the user gives
def make_ground(
    ground: Any,
    channels: int,
    batch_size: int,
    spatial_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    operation: str = "SparseTensor",
) -> GroundState | None:
    """A ground state from None, a number, (C,) or an image (1 or B, C, *spatial or 1s).

    Raises:
        TypeError: another type.
        ValueError: another shape, or NaN or infinite values.
    """
    if ground is None:
        return None
    if isinstance(ground, GroundState):
        return _check_state(ground, channels, batch_size, spatial_shape, dtype, operation)
    if isinstance(ground, (int, float)):
        if not math.isfinite(ground):
            raise ValueError(
                f"{operation}: ground must be finite, got {ground}; pass a finite value or None"
            )
        if ground == 0:
            return GroundState.zero(channels, spatial_shape, dtype, device)
    if isinstance(ground, Tensor) and ground.is_meta:
        raise NotImplementedError(
            f"{operation}: ground must hold data, got a meta tensor; use a CPU tensor"
        )
    try:
        image = torch.as_tensor(ground, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{operation}: ground must be a number, a tensor or None, "
            f"got {type(ground).__name__}; pass e.g. 0.0"
        ) from error
    if not bool(torch.isfinite(image.detach()).all()):
        raise ValueError(
            f"{operation}: ground must be finite, got NaN or infinity; use torch.nan_to_num"
        )
    if not image.requires_grad and not bool(image.any()):
        image = image.new_zeros(())
        _check_image(torch.as_tensor(ground), channels, batch_size, spatial_shape, operation)
        return GroundState.zero(channels, spatial_shape, dtype, device)
    return _from_image(image, channels, batch_size, spatial_shape, operation)


def _check_image(
    image: Tensor, channels: int, batch_size: int, spatial_shape: tuple[int, ...], operation: str
) -> None:
    n_axes, shape = len(spatial_shape), tuple(image.shape)
    if image.dim() == 0 or (image.dim() == 1 and shape[0] == channels):
        return
    fits = (
        image.dim() == 2 + n_axes
        and shape[0] in (1, batch_size)
        and shape[1] == channels
        and all(m in (1, n) for m, n in zip(shape[2:], spatial_shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"{operation}: ground must be a number, ({channels},) or "
            f"(1 or {batch_size}, {channels}, *{spatial_shape} or 1s), got {shape}; "
            "give one value per channel or per position"
        )


def _from_image(
    image: Tensor, channels: int, batch_size: int, spatial_shape: tuple[int, ...], operation: str
) -> GroundState:
    _check_image(image, channels, batch_size, spatial_shape, operation)
    if image.dim() < 2:
        return GroundState.constant(image.expand(channels).contiguous(), spatial_shape)
    sides = zip(image.shape[2:], spatial_shape, strict=True)
    axes = [AxisClasses.identity(n) if m > 1 else AxisClasses.uniform(n) for m, n in sides]
    return GroundState(image.movedim(1, -1).contiguous(), axes)


def _check_state(
    ground: GroundState,
    channels: int,
    batch_size: int,
    spatial_shape: tuple[int, ...],
    dtype: torch.dtype,
    operation: str,
) -> GroundState:
    """A GroundState given as such must belong to the same grid and channels."""
    samples = 1 if ground.is_zero else ground.values.shape[0]
    got = (samples, ground.spatial_shape, ground.channels, ground.dtype)
    if got != (samples if samples == batch_size else 1, spatial_shape, channels, dtype):
        raise ValueError(
            f"{operation}: ground must belong to (1 or {batch_size} samples, {spatial_shape}, "
            f"{channels} channels, {dtype}), got {got}; pass the ground of a tensor of this shape"
        )
    return ground


def differs(dense: Tensor, ground: GroundState | None) -> Tensor:
    """Where any channel differs from the ground (from 0, where it is None): bool (B, *spatial)."""
    if ground is None or ground.is_zero:
        return (dense != 0).any(1)
    image = ground.values.detach().movedim(-1, 1)
    for a, axis in enumerate(ground.axes):
        if not axis.is_identity and axis.n_classes > 1:
            image = image.index_select(2 + a, torch.from_numpy(axis.expand()).to(dense.device))
    return (dense != image).any(1)
