"""Sites: which cells of the grid are active, and in which order."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _cache, ops
from ._checks import as_integers, check_range, check_shape
from ._classes import AxisClasses
from ._device import CPU
from ._torch_compat import untraced

_uids = count()
_equal = untraced(torch.equal)


class Sites:
    """The active sites of a batch of grids: unique, in lexicographic order, immutable.

    A row number is a site's identity.

    Made by `SparseTensor` and by the layers; equal geometry gives equal results, so everything that
    depends on geometry alone (the rulebooks) is remembered here. Pickling leaves that out.

    Attributes:
        spatial_shape: extents of the grid, 1 to 4 of them.
        batch_size: number of grids.
        n_sites: number of active sites.
        n_cells: batch_size times the product of the extents (a Python int below 2^63).
        is_full: whether every cell is active (False where there is none).
        device: where `coords` lives.
        cache: what is remembered, by key.
    """

    __slots__ = (
        "__weakref__",
        "_batch_start",
        "_coords",
        "_keys",
        "batch_size",
        "cache",
        "device",
        "is_full",
        "n_cells",
        "n_sites",
        "spatial_shape",
        "uid",
    )

    spatial_shape: tuple[int, ...]
    cache: dict[Hashable, tuple[int, Any]]

    def __init__(
        self,
        coords: Tensor | None,
        spatial_shape: tuple[int, ...],
        batch_size: int,
        device: torch.device,
    ) -> None:
        """For internal use: coords int32 (n_sites, 1 + D), sorted, unique; None: all cells."""
        self._fill(coords, spatial_shape, batch_size, device)

    def _fill(
        self,
        coords: Tensor | None,
        spatial_shape: tuple[int, ...],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.spatial_shape = spatial_shape
        self.batch_size = batch_size
        self.n_cells = batch_size * math.prod(spatial_shape)
        self.n_sites = self.n_cells if coords is None else coords.shape[0]
        self.is_full = self.n_sites == self.n_cells > 0
        self.device = device
        self._coords = coords
        self._keys: Tensor | None = None
        self._batch_start: Tensor | None = None
        self.cache = {}
        self.uid = next(_uids)

    @staticmethod
    def full(
        batch_size: int, spatial_shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Sites:
        """All cells active; the same object for the same grid, so that its rulebooks are found."""
        return _full_sites(tuple(spatial_shape), batch_size, torch.device(device))

    @staticmethod
    def from_coords(
        coords: Tensor, spatial_shape: Sequence[int], batch_size: int | None = None
    ) -> tuple[Sites, Tensor | None, Tensor | None]:
        """Check, sort and number sites.

        Args:
            coords: (n, 1 + D), columns [batch, spatial...], any order, any integer dtype (floats
                that are integers are taken too).
            spatial_shape: D extents.
            batch_size: number of samples; default: the largest batch index plus one (1 where there
                is no site).

        Returns:
            the sites; `order` int64 (n,): the given row that comes n-th, or None where the rows
            came sorted; `start` int64
            (n_sites + 1,): the range of sorted rows of each site, or None where there are no
            repeats.

        Raises:
            TypeError: coords is no tensor, or of a dtype that holds no numbers of cells.
            ValueError: rank, NaN, fractions, negative, out of range (names the first one), extents.
            NotImplementedError: a meta tensor.
        """
        shape = check_shape(spatial_shape)
        coords = as_integers(coords, len(shape))
        batch_size = check_range(coords, shape, batch_size)
        coords = coords.to(torch.int32).contiguous()
        keys = ops.linear_keys(coords, shape)
        order = None
        if coords.shape[0] > 1 and not bool((keys[1:] > keys[:-1]).all()):
            order = torch.argsort(keys, stable=True)
            keys = keys[order]
            first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
            torch.ne(keys[1:], keys[:-1], out=first[1:])
            if not bool(first.all()):
                start = first.nonzero()[:, 0]
                sites = Sites(coords[order[start]], shape, batch_size, coords.device)
                return sites, order, torch.cat([start, start.new_full((1,), len(keys))])
            coords = coords[order]
        else:
            coords = (
                coords.clone()
            )  # rows are read-only for us: later writes of the caller must not reach them
        sites = Sites(coords, shape, batch_size, coords.device)
        sites._keys = keys
        return sites, order, None

    @property
    def n_axes(self) -> int:
        """Number of spatial axes, D."""
        return len(self.spatial_shape)

    @property
    def coords(self) -> Tensor:
        """int32 (n_sites, 1 + D), columns [batch, spatial...]; read-only."""
        if self._coords is None:
            self._coords = _all_cells((self.batch_size, *self.spatial_shape), self.device)
        return self._coords

    @property
    def keys(self) -> Tensor:
        """int64 (n_sites,), row-major number of each site's cell; strictly increasing."""
        if self._keys is None:
            self._keys = _keys_of(self)
        return self._keys

    @property
    def batch_start(self) -> Tensor:
        """int64 (batch_size + 1,): sample b has the rows batch_start[b] .. batch_start[b + 1]."""
        if self._batch_start is None:
            self._batch_start = _batch_starts(self)
        return self._batch_start

    @property
    def batch(self) -> Tensor:
        """int32 (n_sites,), contiguous: the sample of every site."""
        found = _cache.get(self, "batch")
        if found is None:
            found = _batch_column(self)
            _cache.put(self, "batch", found, 4 * self.n_sites)
        return found

    def class_of(self, axes: tuple[AxisClasses, ...]) -> Tensor:
        """int32 (n_sites,): flat class number of every site, row-major; remembered."""
        key = ("class", axes)
        found = _cache.get(self, key)
        if found is None:
            found = _cache.put(self, key, _class_numbers(self, axes), 4 * self.n_sites)
        return found

    def same_as(self, other: Sites) -> bool:
        """Whether both are the same sites of the same grid."""
        if self is other:
            return True
        if (self.batch_size, self.spatial_shape, self.n_sites) != (
            other.batch_size,
            other.spatial_shape,
            other.n_sites,
        ):
            return False
        return self.is_full or _equal(self.coords, other.coords)

    def to(self, device: torch.device | str) -> Sites:
        """These sites on another device; nothing remembered moves along."""
        device = torch.device(device)
        if device == self.device:
            return self
        if self.is_full:
            return Sites.full(self.batch_size, self.spatial_shape, device)
        return Sites(
            None if self._coords is None else self._coords.to(device),
            self.spatial_shape,
            self.batch_size,
            device,
        )

    def host(self) -> Sites:
        """These sites on the CPU, where plans of rare operations are made."""
        return self.to(CPU)

    def __len__(self) -> int:
        """Number of active sites."""
        return self.n_sites

    def __deepcopy__(self, memo: object) -> Sites:
        """Immutable, so shared."""
        return self

    def __getstate__(self) -> tuple[Any, ...]:
        """Everything but what is remembered; a full grid needs no coordinates."""
        return (
            None if self.is_full else self.coords,
            self.spatial_shape,
            self.batch_size,
            str(self.device),
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The counterpart."""
        coords, shape, batch_size, device = state
        where = torch.device(device) if coords is None else coords.device
        self._fill(coords, tuple(shape), batch_size, where)

    def __repr__(self) -> str:
        """Number of sites and the grid."""
        return f"Sites(sites={self.n_sites}, batch={self.batch_size}, spatial={self.spatial_shape})"


@lru_cache(maxsize=64)
def _full_sites(spatial_shape: tuple[int, ...], batch_size: int, device: torch.device) -> Sites:
    return Sites(None, spatial_shape, batch_size, device)


# ------------------------------------------------------------------ what sites make on first use
@untraced
def _all_cells(shape: tuple[int, ...], device: torch.device) -> Tensor:
    axes = [torch.arange(n, dtype=torch.int32, device=device) for n in shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([g.reshape(-1) for g in grids], 1)


@untraced
def _keys_of(sites: Sites) -> Tensor:
    if sites._coords is None:
        return torch.arange(sites.n_cells, device=sites.device)
    return ops.linear_keys(sites._coords, sites.spatial_shape)


@untraced
def _batch_column(sites: Sites) -> Tensor:
    return sites.coords[:, 0].contiguous()


@untraced
def _batch_starts(sites: Sites) -> Tensor:
    samples = torch.arange(sites.batch_size + 1, device=sites.device)
    if sites.is_full:
        return samples * (sites.n_cells // sites.batch_size)
    return torch.searchsorted(_batch_column(sites), samples.to(torch.int32))


@untraced
def _class_numbers(sites: Sites, axes: tuple[AxisClasses, ...]) -> Tensor:
    if sites.device.type != "cpu":
        return _class_numbers_on(sites, axes)
    flat = np.zeros(sites.n_sites, np.int32)
    if math.prod(a.n_classes for a in axes) > 1:
        coords = sites.coords.numpy()
        for a, axis in enumerate(axes):
            flat *= axis.n_classes
            flat += axis.lookup(coords[:, 1 + a])
    return torch.from_numpy(flat)


def _class_numbers_on(sites: Sites, axes: tuple[AxisClasses, ...]) -> Tensor:
    """`_class_numbers` without reading coordinates back from their device."""
    flat = torch.zeros(sites.n_sites, dtype=torch.int32, device=sites.device)
    for a, axis in enumerate(axes):
        if axis.n_classes > 1:
            starts, classes = _runs_on(axis, sites.device)
            run = torch.searchsorted(starts, sites.coords[:, 1 + a].contiguous(), right=True) - 1
            flat = flat * axis.n_classes + classes[run.clamp_(min=0)]
    return flat


@lru_cache(maxsize=256)
def _runs_on(axis: AxisClasses, device: torch.device) -> tuple[Tensor, Tensor]:
    """First position, int32, and class of every run."""
    starts = torch.from_numpy(axis.starts.astype(np.int32))
    return starts.to(device), torch.from_numpy(axis.classes).to(device)
