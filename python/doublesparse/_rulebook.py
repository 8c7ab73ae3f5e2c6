"""Rulebooks: which input row meets which output row, for every kernel offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _cache, ops
from ._device import whole
from ._geometry import Steps, per_axis, resolve
from ._gpu_pairs import GpuPairs
from ._torch_compat import untraced
from ._watch import current as watch
from .sites import Sites

_build_pairs = untraced(ops.build_pairs)

KINDS = ("conv", "submanifold", "transposed")


# ------------------------------------------------------------------ pairs, remembered by Sites
class Entry:
    """What Sites remember of one geometry. It never refers to the sites that own it (no cycles).

    Attributes:
        pairs: rows joined, offset by offset.
        out_sites: the output sites, or None where they are the owner itself.
    """

    __slots__ = ("out_sites", "pairs")

    def __init__(self, pairs: ops.Pairs, out_sites: Sites | None) -> None:
        self.pairs, self.out_sites = pairs, out_sites

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        pairs: Any = self.pairs
        if isinstance(pairs, GpuPairs):  # without reading their number back
            return int(pairs.n_bytes)
        return int(8 * pairs.n_pairs + 8 * pairs.n_offsets)


def find(sites: Sites, steps: Steps) -> Entry:
    """The pairs and output sites of a geometry, built where they are not remembered."""
    entry = _cache.get(sites, steps)
    if entry is None:
        entry = _build(sites, steps)
        entry = _cache.put(sites, steps, entry, entry.n_bytes)
    if watch.watcher is not None and (watcher := watch.here()) is not None:
        watcher.pairs(entry.pairs.n_pairs)
    return entry


def output_sites(sites: Sites, steps: Steps) -> Sites:
    """All sites that read an active one: what a pair list leads to; remembered."""
    if steps.is_pointwise or steps.kind == "submanifold":
        return sites
    key = ("out", steps)
    found = _cache.get(sites, key)
    if found is None:
        found = _Out(_output_sites(sites, steps))
        found = _cache.put(sites, key, found, found.n_bytes)
    return sites if found.sites is None else found.sites


class _Out(NamedTuple):
    sites: Sites | None  # None: the owner's, which it must not refer to

    @property
    def n_bytes(self) -> int:
        if self.sites is None or self.sites.is_full:
            return 0
        return 12 * (1 + self.sites.n_axes) * self.sites.n_sites


@untraced
def _output_sites(sites: Sites, steps: Steps) -> Sites | None:
    if sites.is_full and steps.covers():
        same = steps.out_shape == steps.in_shape
        return None if same else Sites.full(sites.batch_size, steps.out_shape, sites.device)
    coords = sites.coords
    geometry = (steps.kernel, steps.stride, steps.left, steps.dilation)
    transposed = steps.kind == "transposed"
    out = ops.output_coords(coords, steps.in_shape, steps.out_shape, *geometry, transposed)
    if len(out) == sites.batch_size * math.prod(steps.out_shape) > 0:
        return Sites.full(sites.batch_size, steps.out_shape, sites.device)
    if steps.out_shape == steps.in_shape and len(out) == len(coords) and torch.equal(out, coords):
        return None
    return Sites(out, steps.out_shape, sites.batch_size, sites.device)


@untraced
def _build(sites: Sites, steps: Steps) -> Entry:
    coords = sites.coords
    geometry = (steps.kernel, steps.stride, steps.left, steps.dilation)
    if steps.is_pointwise:
        rows = torch.arange(sites.n_sites, dtype=torch.int32, device=sites.device)
        return Entry(ops.Pairs(rows, rows, whole(sites.n_sites, sites.device)), None)
    if steps.kind == "submanifold":
        pairs = ops.build_pairs(coords, coords, steps.in_shape, *geometry, symmetric=True)
        return Entry(pairs.reversed(), None)
    out = output_sites(sites, steps)
    if steps.kind == "transposed":
        pairs = ops.build_pairs(coords, out.coords, steps.out_shape, *geometry)
    else:
        pairs = ops.build_pairs(out.coords, coords, steps.in_shape, *geometry).reversed()
    return Entry(pairs, None if out is sites else out)


def find_inverse(sites: Sites, like: Sites, steps: Steps) -> ops.Pairs:
    """Pairs from `sites` back onto `like`; the convolution `steps` leads from `like` to `sites`."""
    forward = _cache.get(like, steps)
    if forward is not None and forward.out_sites is sites:
        return forward.pairs.reversed()
    key = ("inverse", steps, like.uid)
    entry = _cache.get(sites, key)
    if entry is None:
        geometry = (steps.kernel, steps.stride, steps.left, steps.dilation)
        pairs = _build_pairs(sites.coords, like.coords, like.spatial_shape, *geometry)
        entry = Entry(pairs, None)
        entry = _cache.put(sites, key, entry, entry.n_bytes)
    return entry.pairs


# ------------------------------------------------------------------ for those who look inside
@dataclass(frozen=True)
class Geometry:
    """How a layer walks over its input; each value an int or one per axis.

    Attributes:
        kernel_size: extents of the kernel.
        stride: step from one output position to the next.
        padding: positions added at both ends; or "same", "valid".
        dilation: distance of neighbouring taps.
        output_padding: for transposed convolutions: positions added at the right end of the output.

    Raises:
        TypeError: a value that is no integer.
        ValueError: one out of range.
    """

    kernel_size: int | Sequence[int]
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    output_padding: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        """Check each value by itself; whether they fit a grid shows there."""
        least = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
        values = {name: getattr(self, name) for name in least}
        if self.padding in ("same", "valid"):
            del values["padding"]
        lengths = [len(v) for v in values.values() if isinstance(v, (tuple, list))]
        n_axes = max([1, *lengths])
        for name, value in values.items():
            per_axis("Geometry", name, value, n_axes, least[name])

    def steps(self, sites: Sites, kind: str, operation: str = "Geometry") -> Steps:
        """Checked against the grid of some sites; raises as `build_rulebook`."""
        return resolve(
            operation,
            kind,
            sites.batch_size,
            sites.spatial_shape,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
        )


class Rulebook:
    """For each kernel offset, the (input row, output row) pairs that it joins.

    Attributes:
        in_sites: the sites read.
        out_sites: the sites written.
        n_pairs: number of pairs, over all offsets.
        n_offsets: kernel volume.
    """

    __slots__ = ("_entry", "in_sites", "out_sites")

    def __init__(self, in_sites: Sites, entry: Entry) -> None:
        self._entry, self.in_sites = entry, in_sites
        self.out_sites = in_sites if entry.out_sites is None else entry.out_sites

    @property
    def n_pairs(self) -> int:
        """Number of pairs, over all offsets."""
        return self._entry.pairs.n_pairs

    @property
    def n_offsets(self) -> int:
        """Kernel volume."""
        return self._entry.pairs.n_offsets

    def pairs(self) -> Tensor:
        """int32 (n_pairs, 3): kernel offset (row-major), input row, output row.

        Sorted by (offset, output row).
        """
        pairs = self._entry.pairs
        start = pairs.offset_start
        offsets = torch.arange(pairs.n_offsets, dtype=torch.int32, device=start.device)
        offset = torch.repeat_interleave(offsets, start[1:] - start[:-1])
        return torch.stack([offset, pairs.src_rows, pairs.dst_rows], 1)

    def __repr__(self) -> str:
        """Counts."""
        return (
            f"Rulebook(offsets={self.n_offsets}, pairs={self.n_pairs}, "
            f"in={self.in_sites.n_sites}, out={self.out_sites.n_sites})"
        )


def build_rulebook(sites: Sites, geometry: Geometry, kind: str = "conv") -> Rulebook:
    """The rulebook of a layer on some sites; remembered by the sites, so a second call is free.

    Args:
        sites: the input's, `x.sites`.
        geometry: kernel, stride, padding, dilation.
        kind: "conv" (output sites: all that read an active site), "submanifold" (output sites =
            input sites, odd kernel, stride 1, centred) or "transposed".

    Raises:
        TypeError: arguments of another type.
        ValueError: an unknown kind, or a geometry that does not fit the grid.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(2, 1), torch.tensor([[0, 1], [0, 2]]), (5,))
        >>> ds.build_rulebook(x.sites, ds.Geometry(3), kind="submanifold").pairs().tolist()
        [[0, 0, 1], [1, 0, 0], [1, 1, 1], [2, 1, 0]]
    """
    if not isinstance(sites, Sites):
        raise TypeError(
            f"build_rulebook: sites must be Sites, got {type(sites).__name__}; pass x.sites"
        )
    if not isinstance(geometry, Geometry):
        raise TypeError(
            f"build_rulebook: geometry must be a Geometry, got {type(geometry).__name__}; "
            "pass ds.Geometry(kernel_size, ...)"
        )
    if kind not in KINDS:
        raise ValueError(
            f"build_rulebook: kind must be one of {KINDS}, got {kind!r}; pass one of them"
        )
    return Rulebook(sites, find(sites, geometry.steps(sites, kind, "build_rulebook")))
