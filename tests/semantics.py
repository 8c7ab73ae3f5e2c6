"""What every operation returns, executable: plain torch, slow, exact, differentiable.

The third check, for sites, ground states and classes (the two oracles of `oracle.py` see only
values). It says WHAT, not how to compute it fast: neighbours are looked up on a dense index grid,
convolutions gather all their windows. Ground values are channels-first here, rows in the package;
there is no ground=None convention and no saturation here.

Three ideas carry everything:
  1. TAPS. Along each axis an operation is a table `taps (n_out, k)`: which input position output
     `o` reads through tap `t`. PAD = a position of the padding; ABSENT = no such tap (off-stride
     tap of a transposed convolution, ceil_mode overhang, short window of an adaptive pool). The
     same table drives the sites (rulebook) and the ground state (class maps): one rule, no cases.
  2. GROUND. What inactive sites hold is an image that is separable into classes: `values (1 or B,
     C, n_1..n_D)` with one class map per axis. The leading 1 becomes B as soon as a layer treats
     samples differently.
  3. WINDOW. Every layer sees, at an output site, the window of active values with the ground state
     filled in where an in-bounds site is inactive; a site that reads no active site needs no
     feature: its value is the new ground state. Hence, by autograd, d loss / d ground value = the
     sum of the dense input gradient over the INACTIVE sites of that class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD, ABSENT = -1, -2
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# ------------------------------------------------------------------ taps: one table per axis
def taps_window(
    n: int, k: int, stride: int, pad: tuple[int, int], dilation: int, ceil: bool = False
) -> Tensor:
    """Convolution and pooling. Padding may differ on the two sides (`padding="same"`)."""
    free = n + sum(pad) - dilation * (k - 1) - 1
    n_out = (-(-free // stride) if ceil else free // stride) + 1
    if n_out < 1 or stride < 1 or dilation < 1:
        raise ValueError(f"kernel {k} does not fit extent {n} with padding {pad}")
    if ceil and (n_out - 1) * stride >= n + pad[0]:
        n_out -= 1  # torch: the last window must start inside the input or the left padding
    read = torch.arange(n_out)[:, None] * stride - pad[0] + torch.arange(k) * dilation
    taps = torch.where((read >= 0) & (read < n), read, PAD)
    # beyond the padding: avg_pool does not count it, max_pool does not see it
    return torch.where(read >= n + pad[1], ABSENT, taps)


def taps_transposed(
    n: int, k: int, stride: int, pad: int, dilation: int, output_padding: int
) -> Tensor:
    """Output o reads input i through tap t iff i * stride - pad + t * dilation == o."""
    n_out = (n - 1) * stride - 2 * pad + dilation * (k - 1) + 1 + output_padding
    if n_out < 1 or output_padding >= max(stride, dilation):
        raise ValueError(f"transposed convolution of extent {n}: output extent {n_out}")
    at = torch.arange(n_out)[:, None] + pad - torch.arange(k) * dilation
    i = torch.div(at, stride, rounding_mode="floor")
    return torch.where((at % stride == 0) & (i >= 0) & (i < n), i, ABSENT)


def taps_adaptive(n: int, n_out: int) -> Tensor:
    """Windows [floor(i n / m), ceil((i + 1) n / m)), short ones filled up with ABSENT."""
    o = torch.arange(n_out)
    lo, hi = o * n // n_out, -((-(o + 1) * n) // n_out)
    read = lo[:, None] + torch.arange(int((hi - lo).max()))
    return torch.where(read < hi[:, None], read, ABSENT)


# ------------------------------------------------------------------ ground state
def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k) -> class of each row, and one representative row number per class."""
    _, cls = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(cls.max()) + 1,), len(rows))
    return cls, first.scatter_reduce(0, cls, torch.arange(len(rows)), "amin")


def along(axis: int, vector: Tensor, image: Tensor) -> Tensor:
    """A vector as a broadcast along one spatial axis of (B, C, *spatial)."""
    return vector.reshape([-1] + [1] * (image.dim() - 3 - axis))


@dataclass
class GroundState:
    """values (1 or B, C, n_1..n_D); axes[a][position] = class of that position along axis a."""

    values: Tensor
    axes: list[Tensor]

    def map(self, f: Callable[[Tensor], Tensor]) -> GroundState:
        return GroundState(f(self.values), self.axes)

    def class_of(self, coords: Tensor) -> Tensor:
        """Flat class number of sites (n, 1 + D)."""
        flat = torch.zeros(len(coords), dtype=torch.long)
        for a, cls in enumerate(self.axes):
            flat = flat * self.values.shape[2 + a] + cls[coords[:, 1 + a]]
        return flat

    def at(self, coords: Tensor) -> Tensor:
        """Ground state at sites: (n, C)."""
        sample = coords[:, 0] * (self.values.shape[0] > 1)
        return self.values.flatten(2)[sample, :, self.class_of(coords)]

    def expand(self) -> Tensor:
        g = self.values
        for a, cls in enumerate(self.axes):
            g = g.index_select(2 + a, cls)
        return g

    def windows(self, taps: Sequence[Tensor], fill: float) -> GroundState:
        """Per output class the values its taps read: values (.., m_1 * k_1, .., m_D * k_D).

        Two output positions share a class iff their taps read the same input classes, PAD and
        ABSENT told apart.
        """
        g, axes = self.values, []
        for a, (cls, t) in enumerate(zip(self.axes, taps)):
            read = torch.where(t >= 0, cls[t.clamp(min=0)], t)
            out, first = unique_rows(read)
            read = read[first].flatten()
            g = g.index_select(2 + a, read.clamp(min=0))
            if (read < 0).any():
                g = g.masked_fill(along(a, read < 0, g), fill)
            axes.append(out)
        return GroundState(g, axes)


# ------------------------------------------------------------------ the tensor
def as_ground(ground: float | Tensor, dtype: torch.dtype, channels: int, n_axes: int) -> Tensor:
    g = torch.as_tensor(ground, dtype=dtype)
    return g.expand(channels).reshape(1, -1, *[1] * n_axes) if g.dim() < 2 else g


@dataclass(eq=False, repr=False)
class SparseTensor:
    """features (n, C) at `coords` (n, 1 + D), unique, lexicographic; `ground` everywhere else."""

    features: Tensor
    coords: Tensor
    spatial_shape: tuple[int, ...]
    batch_size: int
    ground: GroundState

    @classmethod
    def build(
        cls, features, coords, spatial_shape, batch_size, ground: float | Tensor = 0.0
    ) -> SparseTensor:
        """The ground is a number, (C,), or an image (1 or B, C, *spatial): a background frame."""
        order = torch.argsort(linear_key(coords, (batch_size, *spatial_shape)))
        g = as_ground(ground, features.dtype, features.shape[1], len(spatial_shape))
        axes = [torch.arange(n) * (g.shape[2 + a] > 1) for a, n in enumerate(spatial_shape)]
        ground = GroundState(g, axes)
        return cls(features[order], coords[order], tuple(spatial_shape), batch_size, ground)

    @classmethod
    def from_dense(cls, dense: Tensor, ground: float | Tensor = 0.0) -> SparseTensor:
        """Active = any channel differs from the ground (so a NaN is active, -0.0 over 0.0 not)."""
        g = as_ground(ground, dense.dtype, dense.shape[1], dense.dim() - 2)
        coords = (dense.detach() != g).any(1).nonzero()
        features = dense.movedim(1, -1)[coords.unbind(1)]
        return cls.build(features, coords, dense.shape[2:], dense.shape[0], g)

    def to_dense(self) -> Tensor:
        image = self.ground.expand().expand(self.shape).movedim(1, -1)
        return image.index_put(tuple(self.coords.unbind(1)), self.features).movedim(-1, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch_size, self.features.shape[1], *self.spatial_shape)

    def map(self, f: Callable[[Tensor], Tensor]) -> SparseTensor:
        """An elementwise layer acts on features and ground alike; channels are dim 1 of both."""
        return self.moved(f(self.features), self.ground.map(f))

    def moved(self, features: Tensor, ground: GroundState) -> SparseTensor:
        return SparseTensor(features, self.coords, self.spatial_shape, self.batch_size, ground)


def linear_key(coords: Tensor, shape: Sequence[int]) -> Tensor:
    key = torch.zeros(len(coords), dtype=torch.long)
    for a, n in enumerate(shape):
        key = key * n + coords[:, a]
    return key


# ------------------------------------------------------------------ the rulebook, as a look-up
def neighbours(x: SparseTensor, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Output sites (those that read at least one active site) and rows (n_out, K): the feature row
    each tap reads, -1 = inactive. K runs over the kernel in row-major order, like
    `weight.flatten(2)`.
    """
    n_axes = len(taps)
    grid = torch.full((x.batch_size, *x.spatial_shape), -1)
    grid[tuple(x.coords.unbind(1))] = torch.arange(len(x.coords))
    for a, t in enumerate(taps):
        grid = grid.index_select(1 + a, t.clamp(min=0).flatten())
        absent = (t < 0).flatten().reshape([-1] + [1] * (grid.dim() - 2 - a))
        grid = grid.masked_fill(absent, -1)
    dims = [d for t in taps for d in t.shape]
    order = [0] + [1 + 2 * a for a in range(n_axes)] + [2 + 2 * a for a in range(n_axes)]
    grid = grid.reshape(-1, *dims).permute(order).flatten(1 + n_axes)
    coords = (grid >= 0).any(-1).nonzero()
    return coords, grid[tuple(coords.unbind(1))], tuple(len(t) for t in taps)


def split_taps(values: Tensor, k: Sequence[int]) -> Tensor:
    """(.., m_1 * k_1, .., m_D * k_D) -> (.., m_1..m_D, K)."""
    n = len(k)
    sides = [f for a in range(n) for f in (values.shape[2 + a] // k[a], k[a])]
    order = [0, 1] + [2 + 2 * a for a in range(n)] + [3 + 2 * a for a in range(n)]
    return values.reshape(*values.shape[:2], *sides).permute(order).flatten(2 + n)


def gather(x: SparseTensor, taps: Sequence[Tensor], fill: float):
    """What a layer sees: at every output site the window (n_out, K, C) with active values, the
    ground state where an in-bounds site is inactive, and `fill` in the padding; and the same for
    the ground state, tap-expanded (GroundState.windows).
    """
    coords, rows, shape = neighbours(x, taps)
    window = x.ground.windows(taps, fill)
    side = split_taps(window.values, [t.shape[1] for t in taps]).movedim(-1, 1)
    inactive = GroundState(side.flatten(1, 2), window.axes).at(coords)
    inactive = inactive.unflatten(1, (rows.shape[1], x.shape[1]))
    active = torch.cat([x.features, x.features.new_zeros(1, x.shape[1])])[rows]
    return coords, shape, torch.where((rows >= 0)[..., None], active, inactive), window


# ------------------------------------------------------------------ linear layers
def linear(
    x: SparseTensor, taps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, groups: int
) -> SparseTensor:
    """weight (c_out, c_in / groups, *k), tap order = memory order (no flip)."""
    coords, shape, window, ground = gather(x, taps, 0.0)
    side_by_side = dict(stride=weight.shape[2:], groups=groups)
    ground = ground.map(lambda g: CONV[len(taps)](g, weight, bias, **side_by_side))
    by_group = window.unflatten(2, (groups, -1))
    w = weight.flatten(2).unflatten(0, (groups, -1))
    out = torch.einsum("nkgi,goik->ngo", by_group, w).flatten(1)
    return SparseTensor(out if bias is None else out + bias, coords, shape, x.batch_size, ground)


def per_axis(value, n: int) -> list[int]:
    if isinstance(value, int):
        return [value] * n
    return [int(value[i if len(value) > 1 else 0]) for i in range(n)]


def same_or_int(padding, k: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(k)
    if padding == "same":  # torch puts the odd one on the right
        span = [d * (n - 1) for n, d in zip(k, dilation)]
        return [(s // 2, s - s // 2) for s in span]
    return [(p, p) for p in per_axis(padding, len(k))]


def conv(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    n = len(x.spatial_shape)
    k, s, d = weight.shape[2:], per_axis(stride, n), per_axis(dilation, n)
    taps = [taps_window(*a) for a in zip(x.spatial_shape, k, s, same_or_int(padding, k, d), d)]
    return linear(x, taps, weight, bias, groups)


def conv_transpose(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    n = len(x.spatial_shape)
    s, p, d, o = (per_axis(v, n) for v in (stride, padding, dilation, output_padding))
    taps = [taps_transposed(*a) for a in zip(x.spatial_shape, weight.shape[2:], s, p, d, o)]
    # (c_in, c_out/g, ..) -> (c_out, c_in/g, ..)
    weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return linear(x, taps, weight, bias, groups)


# ------------------------------------------------------------------ pooling
def average(
    x: SparseTensor, taps: Sequence[Tensor], count_pad: bool, divisor: int | None = None
) -> SparseTensor:
    """The divisor factors over axes: PAD counts if asked, ABSENT never; one count per class."""
    ones = x.features.new_ones(x.shape[1], 1, *[t.shape[1] for t in taps])
    total = linear(x, taps, ones, None, groups=x.shape[1])
    if divisor is not None:
        return total.map(lambda f: f / divisor)
    features, values = total.features, total.ground.values
    for a, t in enumerate(taps):
        count = ((t >= 0) | ((t == PAD) & count_pad)).sum(1).to(features.dtype)
        by_class = count.new_zeros(values.shape[2 + a]).scatter(0, total.ground.axes[a], count)
        features = features / count[total.coords[:, 1 + a]][:, None]
        values = values / along(a, by_class, values)
    return total.moved(features, GroundState(values, total.ground.axes))


def avg_pool(
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    n = len(x.spatial_shape)
    k, p = per_axis(kernel_size, n), per_axis(padding, n)
    s = per_axis(kernel_size if stride is None else stride, n)
    taps = [taps_window(*a, (q, q), 1, ceil_mode) for *a, q in zip(x.spatial_shape, k, s, p)]
    return average(x, taps, count_include_pad, divisor_override)


def adaptive_avg_pool(x, output_size):
    taps = [taps_adaptive(n, o) for n, o in zip(x.spatial_shape, output_size)]
    return average(x, taps, count_pad=False)


def max_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Maximum over the window's active values and the ground state of its inactive in-bounds
    sites; padding is never seen. The first in row-major order wins, as in torch.
    """
    n = len(x.spatial_shape)
    k, p, d = per_axis(kernel_size, n), per_axis(padding, n), per_axis(dilation, n)
    s = per_axis(kernel_size if stride is None else stride, n)
    taps = [
        taps_window(m, w, t, (q, q), e, ceil_mode)
        for m, w, t, q, e in zip(x.spatial_shape, k, s, p, d)
    ]
    coords, shape, window, ground = gather(x, taps, -math.inf)
    ground = ground.map(lambda g: split_taps(g, k).max(-1).values)
    return SparseTensor(window.max(1).values, coords, shape, x.batch_size, ground)


# ------------------------------------------------------------------ moving sites
def regather(x: SparseTensor, taps: Sequence[Tensor], fill: float = 0.0) -> SparseTensor:
    """Every output position copies one input position (taps (n_out, 1)) or is `fill`."""
    coords, rows, shape = neighbours(x, taps)
    ground = x.ground.windows(taps, fill)
    return SparseTensor(x.features[rows[:, 0]], coords, shape, x.batch_size, ground)


def interpolate(x, size: Sequence[int], mode: str = "nearest") -> SparseTensor:
    at = [torch.arange(m, dtype=torch.float64)[None, None] for m in x.spatial_shape]
    moved = [F.interpolate(a, n, mode=mode).long()[0, 0, :, None] for a, n in zip(at, size)]
    return regather(x, moved)


def interpolate_linear(x, size: Sequence[int], corners: bool) -> SparseTensor:
    """linear, bilinear, trilinear to a size: output o reads floor(r) and floor(r) + 1 with weights
    1 - t and t, where r is the real coordinate of o and t its fraction. Two positions share a class
    iff they read the same input classes with the same total weights (to 1e-9).
    """
    taps, weights = [], []
    for m, n in zip(x.spatial_shape, size):
        o = torch.arange(n, dtype=torch.float64)
        if corners:
            r = o * ((m - 1) / (n - 1) if n > 1 else 0.0)
        else:
            r = ((o + 0.5) * (m / n) - 0.5).clamp(min=0)
        low = r.floor().clamp(max=m - 1)
        t = torch.where(low < m - 1, r - low, 0)
        taps.append(torch.stack([low, (low + 1).clamp(max=m - 1)], 1).long())
        weights.append(torch.stack([1 - t, t], 1))
    used = [torch.where(w > 0, t, ABSENT) for t, w in zip(taps, weights)]
    coords, rows, shape = neighbours(x, used)
    values, axes = x.ground.values, []
    for a, (cls, t, w) in enumerate(zip(x.ground.axes, taps, weights)):
        share = torch.zeros(len(t), values.shape[2 + a], dtype=torch.float64)
        share.scatter_add_(1, cls[t], w)
        out, first = unique_rows((share * 1e9).round())
        values = torch.movedim(torch.tensordot(share[first], values, ([1], [2 + a])), 0, 2 + a)
        axes.append(out)
    ground = GroundState(values, axes)
    weight = torch.ones(len(coords), 1, dtype=torch.float64)
    inside = torch.ones(len(coords), 1, dtype=torch.long) * coords[:, :1]
    for a, (t, w) in enumerate(zip(taps, weights)):
        weight = (weight[:, :, None] * w[coords[:, 1 + a]][:, None, :]).flatten(1)
        at = t[coords[:, 1 + a]][:, None, :]
        inside = (inside[:, :, None] * x.spatial_shape[a] + at).flatten(1)
    image = x.to_dense().movedim(1, -1).flatten(0, -2)
    features = (image[inside] * weight[:, :, None]).sum(1)
    return SparseTensor(features, coords, shape, x.batch_size, ground)


def pad(x, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> SparseTensor:
    """constant, reflect, replicate, circular; negative padding crops; pad as in F.pad."""
    taps = []
    for a, m in enumerate(x.spatial_shape):
        i = 2 * (len(x.spatial_shape) - 1 - a)
        lo_hi = tuple(pad[i : i + 2]) if i < len(pad) else (0, 0)
        at = torch.arange(m, dtype=torch.float64)[None, None]
        moved = F.pad(at, lo_hi, mode, PAD) if mode == "constant" else F.pad(at, lo_hi, mode)
        taps.append(moved.long()[0, 0, :, None])
    return regather(x, taps, value)
