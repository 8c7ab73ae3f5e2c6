"""Geometry and rulebooks: which input row meets which output row, for every kernel offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import _cache, _classes, ops
from ._classes import Array, AxisClasses
from .sites import Sites

Ints = tuple[int, ...]
KINDS = ("conv", "submanifold", "transposed")


class Steps:
    """A geometry made definite for one grid: what the kernels need, checked. Hashable, and made once per geometry.

    Attributes:
        kind: "conv" (also pools), "submanifold" or "transposed".
        kernel, stride, dilation, output_padding: one number per axis.
        padding: (left, right) per axis.
        ceil: torch's ceil_mode.
        in_shape, out_shape: extents.
        n_offsets: kernel volume.
    """

    __slots__ = (
        "_hash",
        "ceil",
        "dilation",
        "in_shape",
        "kernel",
        "kind",
        "n_offsets",
        "out_shape",
        "output_padding",
        "padding",
        "stride",
    )

    def __init__(
        self,
        kind: str,
        in_shape: Ints,
        out_shape: Ints,
        kernel: Ints,
        stride: Ints,
        padding: tuple[tuple[int, int], ...],
        dilation: Ints,
        output_padding: Ints,
        ceil: bool,
    ) -> None:
        self.kind, self.in_shape, self.out_shape, self.kernel = kind, in_shape, out_shape, kernel
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.output_padding, self.ceil = output_padding, ceil
        self.n_offsets = math.prod(kernel)
        self._hash = hash(self._fields())

    def _fields(self) -> tuple[Any, ...]:
        return (
            *(self.kind, self.in_shape, self.out_shape, self.kernel, self.stride),
            *(self.padding, self.dilation, self.output_padding, self.ceil),
        )

    def __hash__(self) -> int:
        """Computed once."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """The same geometry on the same grid."""
        return self is other or (isinstance(other, Steps) and self._fields() == other._fields())

    @property
    def left(self) -> Ints:
        """Left padding per axis."""
        return tuple(p[0] for p in self.padding)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads the input at its own position, and nothing else."""
        return (
            self.n_offsets == 1
            and self.in_shape == self.out_shape
            and all(s == 1 for s in self.stride)
            and all(p == (0, 0) for p in self.padding)
        )

    def axis(self, a: int, axis: AxisClasses) -> tuple[AxisClasses, Array]:
        """Class map of output axis `a`, and what each output class reads of `axis`."""
        k, s, p, d = self.kernel[a], self.stride[a], self.padding[a], self.dilation[a]
        if self.kind == "transposed":
            return _classes.transposed(axis, k, s, p[0], d, self.output_padding[a])
        return _classes.window(axis, k, s, p, d, self.ceil)

    def covers(self) -> bool:
        """Whether every output position reads at least one position of the grid."""
        reads = [self.axis(a, AxisClasses.uniform(n))[1] for a, n in enumerate(self.in_shape)]
        return all(bool((r >= 0).any(1).all()) for r in reads)


# ------------------------------------------------------------------ from what the user gives
def per_axis(operation: str, name: str, value: Any, n_axes: int, least: int) -> Ints:
    """One int per axis from an int or a sequence of 1 or `n_axes` of them.

    Raises:
        TypeError: no integers.
        ValueError: another number of them, or one below `least`.
    """
    values = (
        tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,) * n_axes
    )
    if any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        raise TypeError(
            f"{operation}: {name} must be an int or {n_axes} ints, got {value!r}; pass integers"
        )
    values = tuple(v.__index__() for v in values)
    if len(values) == 1:
        values *= n_axes
    if len(values) != n_axes:
        raise ValueError(
            f"{operation}: {name} must be an int or {n_axes} ints, got {value!r}; "
            "give one value per axis"
        )
    if min(values) < least or max(values) > 2**31 - 1:
        raise ValueError(
            f"{operation}: {name} must be at least {least} and below 2^31, got {value!r}; "
            f"use {name}={least} or more"
        )
    return values


def _paddings(
    operation: str, padding: Any, kernel: Ints, stride: Ints, dilation: Ints
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ValueError(
                f'{operation}: padding must be ints, "same" or "valid", got {padding!r}; '
                "pass one of them"
            )
        if any(s != 1 for s in stride):
            raise ValueError(
                f'{operation}: padding="same" needs stride 1, got stride {stride}; '
                "give the padding in numbers"
            )
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((s // 2, s - s // 2) for s in spans)  # torch puts the odd one on the right
    return tuple((p, p) for p in per_axis(operation, "padding", padding, len(kernel), 0))


@lru_cache(maxsize=4096, typed=True)
def _resolve(
    operation: str,
    kind: str,
    in_shape: Ints,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any,
    ceil: bool,
) -> Steps:
    n_axes = len(in_shape)
    k = per_axis(operation, "kernel_size", kernel, n_axes, 1)
    s = per_axis(operation, "stride", stride, n_axes, 1)
    d = per_axis(operation, "dilation", dilation, n_axes, 1)
    o = per_axis(operation, "output_padding", output_padding, n_axes, 0)
    if math.prod(k) > 2**31 - 1:
        raise ValueError(
            f"{operation}: kernel_size must have a volume below 2^31, got {k}; use a smaller kernel"
        )
    if kind == "submanifold":
        if any(n % 2 == 0 for n in k):
            raise ValueError(
                f"{operation}: kernel_size must be odd, so that it has a centre, got {k}; "
                "use an odd kernel or the ordinary convolution"
            )
        s, padding = (1,) * n_axes, "same"
    p = _paddings(operation, padding, k, s, d)
    if kind == "transposed":
        if any(a >= max(b, c) for a, b, c in zip(o, s, d, strict=True)):
            raise ValueError(
                f"{operation}: output_padding must be smaller than stride or dilation, "
                f"got {o} with stride {s} and dilation {d}; lower it"
            )
        low = tuple(q[0] for q in p)
        out = tuple(map(_classes.transposed_extent, in_shape, k, s, low, d, o))
    else:
        out = tuple(
            _classes.window_extent(n, k[a], s[a], p[a], d[a], ceil)
            for a, n in enumerate(in_shape)
        )
    if min(out) < 1:
        raise ValueError(
            f"{operation}: kernel_size must fit the padded grid, got kernel {k} (dilation {d}, "
            f"stride {s}) on {in_shape} with padding {p}; use a smaller kernel or more padding"
        )
    if max(out) > 2**31 - 1 or math.prod(out) >= 2**63:
        raise ValueError(
            f"{operation}: the output grid must have extents below 2^31 and a product below 2^63, "
            f"got {out}; use a smaller grid"
        )
    return Steps(kind, in_shape, out, k, s, p, d, o, ceil)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def resolve(
    operation: str,
    kind: str,
    in_shape: Ints,
    kernel: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = 0,
    ceil: bool = False,
) -> Steps:
    """Check a geometry against a grid; remembered, so that a layer pays for it once.

    Raises:
        TypeError: values that are no integers.
        ValueError: values out of range, or a kernel larger than the padded grid.
    """
    try:
        return _resolve(
            operation, kind, in_shape, kernel, stride, padding, dilation, output_padding, ceil
        )
    except TypeError:  # a list is not hashable; anything else fails again, with its own message
        values = [_hashable(v) for v in (kernel, stride, padding, dilation, output_padding)]
        return _resolve.__wrapped__(operation, kind, in_shape, *values, ceil)


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
        held = 8 * self.pairs.n_pairs + 8 * self.pairs.n_offsets
        if self.out_sites is not None:
            held += 12 * (1 + self.out_sites.n_axes) * self.out_sites.n_sites
        return held


def find(sites: Sites, steps: Steps) -> Entry:
    """The pairs and output sites of a geometry, built where they are not remembered."""
    entry = _cache.get(sites, steps)
    if entry is None:
        entry = _build(sites, steps)
        entry = _cache.put(sites, steps, entry, entry.n_bytes)
    return entry


def _build(sites: Sites, steps: Steps) -> Entry:
    coords = sites.coords
    geometry = (steps.kernel, steps.stride, steps.left, steps.dilation)
    if steps.is_pointwise:
        rows = torch.arange(sites.n_sites, dtype=torch.int32)
        return Entry(ops.Pairs(rows, rows, torch.tensor([0, sites.n_sites])), None)
    if steps.kind == "submanifold":
        dst, src, start = ops.build_pairs(
            coords, coords, steps.in_shape, *geometry, symmetric=True
        )
        return Entry(ops.Pairs(src, dst, start), None)
    transposed = steps.kind == "transposed"
    out = ops.output_coords(coords, steps.in_shape, steps.out_shape, *geometry, transposed)
    if transposed:
        src, dst, start = ops.build_pairs(coords, out, steps.out_shape, *geometry)
    else:
        dst, src, start = ops.build_pairs(out, coords, steps.in_shape, *geometry)
    same = steps.out_shape == steps.in_shape and len(out) == len(coords)
    if same and torch.equal(out, coords):
        return Entry(ops.Pairs(src, dst, start), None)
    out_sites = Sites(out, steps.out_shape, sites.batch_size, sites.device)
    return Entry(ops.Pairs(src, dst, start), out_sites)


def find_inverse(sites: Sites, like: Sites, steps: Steps) -> ops.Pairs:
    """Pairs from `sites` back onto `like`, where the convolution `steps` leads from `like` to `sites`."""
    forward = _cache.get(like, steps)
    if forward is not None and forward.out_sites is sites:
        return forward.pairs.reversed()
    key = ("inverse", steps, like.uid)
    entry = _cache.get(sites, key)
    if entry is None:
        src, dst, start = ops.build_pairs(
            sites.coords, like.coords, like.spatial_shape,
            steps.kernel, steps.stride, steps.left, steps.dilation,
        )
        entry = Entry(ops.Pairs(src, dst, start), None)
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
    """

    kernel_size: int | Sequence[int]
    stride: int | Sequence[int] = 1
    padding: int | str | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    output_padding: int | Sequence[int] = 0

    def steps(self, in_shape: Ints, kind: str, operation: str = "Geometry") -> Steps:
        """Checked against a grid; raises as `build_rulebook`."""
        return resolve(
            operation,
            kind,
            in_shape,
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
        """int32 (n_pairs, 3): kernel offset (row-major), input row, output row; sorted by (offset, output row)."""
        pairs = self._entry.pairs
        start = pairs.offset_start
        offsets = torch.arange(pairs.n_offsets, dtype=torch.int32)
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
    return Rulebook(sites, find(sites, geometry.steps(sites.spatial_shape, kind, "build_rulebook")))
