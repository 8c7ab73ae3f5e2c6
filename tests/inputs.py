"""Random inputs for the tests: sites, features, ground states, rulebooks; not the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

import oracle

KINDS = ("random", "strokes", "empty sample", "one", "none", "all")


def numbers(rng: np.random.Generator, shape, dtype=torch.float32, integers: bool = True) -> Tensor:
    """Small integers, negative ones too, whose sums every float type holds exactly; or normals."""
    values = rng.integers(-4, 5, shape) if integers else rng.standard_normal(shape)
    return torch.as_tensor(np.asarray(values)).to(dtype)


def site_set(
    rng: np.random.Generator,
    batch: int,
    shape: Sequence[int],
    kind: str = "random",
    density: float = 0.25,
) -> Tensor:
    """int32 (n, 1 + D), unique, in lexicographic order."""
    mask = np.zeros((batch, *shape), bool)
    if kind == "all":
        mask[:] = True
    elif kind == "one" and batch:
        mask[(0, *[n // 2 for n in shape])] = True
    elif kind == "strokes":
        for b in range(batch):
            at = [int(rng.integers(n)) for n in shape]
            for _ in range(3 * max(shape)):
                mask[(b, *at)] = True
                axis = int(rng.integers(len(shape)))
                at[axis] = int(np.clip(at[axis] + rng.choice([-1, 1]), 0, shape[axis] - 1))
    elif kind not in ("none", "one"):
        mask = rng.random((batch, *shape)) < density
        if kind == "empty sample" and batch:
            mask[batch // 2] = False
    return torch.from_numpy(np.ascontiguousarray(np.argwhere(mask).astype(np.int32)))


@dataclass
class Input:
    """What becomes a SparseTensor, and its dense twin."""

    features: Tensor
    coords: Tensor
    shape: tuple[int, ...]
    batch: int
    ground: (
        Tensor | float | None
    )  # a number, (C,), (1 or B, C, *shape); None: inactive sites do not exist
    note: str = ""

    def sparse(self, ds, features: Tensor | None = None, ground: Tensor | None = None):
        """As a SparseTensor of the package `ds`; leaves may be given to differentiate in."""
        f = self.features if features is None else features
        g = self.ground if ground is None else ground
        return ds.SparseTensor(f, self.coords, self.shape, self.batch, ground=g)

    def dense(self, features: Tensor | None = None, ground: Tensor | None = None) -> Tensor:
        f = self.features if features is None else features
        g = (0.0 if self.ground is None else self.ground) if ground is None else ground
        return oracle.scatter(f, self.coords, self.shape, self.batch, g)

    def to(self, dtype: torch.dtype) -> Input:
        g = self.ground.to(dtype) if isinstance(self.ground, Tensor) else self.ground
        return Input(self.features.to(dtype), self.coords, self.shape, self.batch, g, self.note)

    def apply(self, f) -> Input:
        """The same sites with other values: abs and ones make the error bound."""
        g = (
            torch.as_tensor(float(self.ground or 0.0))
            if not isinstance(self.ground, Tensor)
            else self.ground
        )
        g = g.to(self.features.dtype)
        return Input(f(self.features), self.coords, self.shape, self.batch, f(g), self.note)


def fitting_shape(rng: np.random.Generator, n_axes: int, geometry: dict) -> tuple[int, ...]:
    """An extent per axis that the kernel fits, a few positions larger."""
    extents = []
    room = {1: 18, 2: 8, 3: 5, 4: 3}[n_axes]
    kernel = oracle.per_axis(geometry.get("kernel_size", 1), n_axes)
    padding = oracle.per_axis(geometry.get("padding", 0), n_axes)
    dilation = oracle.per_axis(geometry.get("dilation", 1), n_axes)
    for k, p, d in zip(kernel, padding, dilation):
        extents.append(max(2, d * (k - 1) + 1 - 2 * p) + int(rng.integers(1, room)))
    return tuple(extents)


def make_input(
    rng: np.random.Generator,
    n_axes: int,
    geometry: dict,
    *,
    channels: int | None = None,
    ground: str = "zero",
    kind: str = "random",
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    integers: bool = True,
    shape: Sequence[int] | None = None,
) -> Input:
    """Sites, features and a ground state that the operator of this geometry takes."""
    shape = tuple(shape or geometry.get("shape") or fitting_shape(rng, n_axes, geometry))
    channels = channels or geometry.get("c_in", 3)
    coords = site_set(rng, batch, shape, kind)
    features = numbers(rng, (len(coords), channels), dtype, integers)
    if ground == "number":
        g = 2.0
    elif ground == "channels":
        g = numbers(rng, (channels,), dtype, integers) + 0.5 * (not integers)
    elif ground == "image":
        g = numbers(rng, (1, channels, *shape), dtype, integers)
    else:
        g = None if ground == "none" else 0.0
    note = f"shape={shape} {kind} ground={ground} channels={channels} {geometry}"
    return Input(features, coords, shape, batch, g, note)


# ------------------------------------------------------------------ pruned weights
MASKS = ("random", "blocks", "rows", "one offset", "no offset", "none", "all", "dense")


def weight_mask(rng: np.random.Generator, shape: Sequence[int], kind: str) -> Tensor:
    """bool of a weight's shape (d0, d1, *kernel): which are kept."""
    mask = np.zeros((*shape[:2], int(np.prod(shape[2:]))), bool)
    if kind in ("random", "dense"):
        mask = rng.random(mask.shape) < (0.15 if kind == "random" else 0.95)
    elif kind == "blocks":
        for o, c in product(range(0, shape[0], 8), range(0, shape[1], 4)):
            mask[o : o + 8, c : c + 4] = rng.random(mask.shape[2]) < 0.25
    elif kind == "rows":
        mask[::3] = True
    elif kind == "one offset":
        mask[..., int(rng.integers(mask.shape[2]))] = True
    elif kind == "no offset":
        mask = rng.random(mask.shape) < 0.3
        mask[..., :: 2 if mask.shape[2] > 1 else 1] = False
    elif kind == "all":
        mask[:] = True
    return torch.from_numpy(mask.reshape(tuple(shape)))


# ------------------------------------------------------------------ rulebooks for the raw operators
@dataclass
class Plan:
    """Pairs, offset-major: sorted by output row inside an offset, and by input row as well."""

    src_rows: Tensor
    dst_rows: Tensor
    offset_start: Tensor
    n_src: int
    n_dst: int
    n_offsets: int
    kernel: tuple[int, ...] = field(default=())

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.src_rows, self.dst_rows, self.offset_start


def as_plan(found: list[oracle.Pair], n_src: int, n_dst: int, n_offsets: int) -> Plan:
    """From (offset, input row, output row) in order."""
    table = np.array(found, np.int64).reshape(-1, 3)
    start = np.searchsorted(table[:, 0], np.arange(n_offsets + 1))
    rows = [torch.from_numpy(table[:, c].astype(np.int32)) for c in (1, 2)]
    return Plan(*rows, torch.from_numpy(start.astype(np.int64)), n_src, n_dst, n_offsets)


def random_plan(
    rng: np.random.Generator, n_src: int, n_dst: int, n_offsets: int, share: float = 0.6
) -> Plan:
    """Any lists the contract allows: strictly increasing input rows and output rows per offset."""
    found = []
    for k in range(n_offsets):
        most = min(n_src, n_dst)
        n = int(rng.integers(0, int(most * share) + 1)) if rng.random() > 0.1 else 0
        src = np.sort(rng.choice(n_src, n, replace=False)) if n else []
        dst = np.sort(rng.choice(n_dst, n, replace=False)) if n else []
        found += [(k, int(i), int(o)) for i, o in zip(src, dst)]
    return as_plan(found, n_src, n_dst, n_offsets)


def grid_plan(
    rng: np.random.Generator,
    shape: Sequence[int],
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    batch: int = 2,
    density: float = 0.2,
) -> Plan:
    """The rulebook of a convolution on random sites, by the dictionary oracle."""
    n_axes = len(shape)
    coords = [tuple(s) for s in site_set(rng, batch, shape, density=density).tolist()]
    k, s, p, d = ((v,) * n_axes for v in (kernel, stride, padding, 1))
    out_shape = [oracle.out_extent(n, kernel, stride, padding, 1) for n in shape]
    found, sites = oracle.pairs(coords, out_shape, k, s, p, d)
    return as_plan(found, len(coords), len(sites), kernel**n_axes)


def random_table(
    rng: np.random.Generator, n_out: int, n_offsets: int, n_active: int, n_ground: int
) -> Tensor:
    """A window table: feature row, -1 = nothing, <= -2 = ground row; some windows see nothing."""
    kind = rng.random((n_out, n_offsets))
    active = rng.integers(0, max(n_active, 1), (n_out, n_offsets))
    ground = -2 - rng.integers(0, max(n_ground, 1), (n_out, n_offsets))
    table = np.where(kind < 0.45, active if n_active else -1, np.where(kind < 0.75, -1, ground))
    table = np.where((table <= -2) & (n_ground == 0), -1, table)
    table[rng.random(n_out) < 0.1] = -1
    return torch.from_numpy(table.astype(np.int32))


def random_segments(rng: np.random.Generator, n_rows: int, n_segments: int) -> Tensor:
    """int64 (n_segments + 1,), increasing from 0 to n_rows, empty segments among them."""
    inner = np.sort(rng.integers(0, n_rows + 1, max(n_segments - 1, 0)))
    start = np.concatenate([[0], inner, [n_rows]])[: n_segments + 1]
    start[-1] = n_rows if n_segments else 0
    return torch.from_numpy(start.astype(np.int64))


def offsets_of(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Kernel offsets in row-major order."""
    return list(product(*map(range, kernel)))
