"""Two oracles that share nothing with the package: sites in a Python dictionary, and dense torch
on the scattered grid.

The first knows geometry by heart (stride, padding, dilation, groups, transposed, submanifold,
inverse) and counts in whatever numbers it is given, so small integers come out exact and
`longdouble` stands in for the truth of a float64 kernel. The second is torch itself.
`test_oracle.py` holds the two against each other: an oracle that nobody checks proves nothing.

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Site = tuple[int, ...]
Pair = tuple[int, int, int]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def per_axis(value: int | Sequence[int], n_axes: int) -> tuple[int, ...]:
    return (value,) * n_axes if isinstance(value, int) else tuple(value)


def out_extent(
    n: int, k: int, stride: int, pad: int, dilation: int, transposed: bool = False, extra: int = 0
) -> int:
    """Extent of a convolution's output; `extra` is torch's output_padding."""
    if transposed:
        return (n - 1) * stride - 2 * pad + dilation * (k - 1) + 1 + extra
    return (n + 2 * pad - dilation * (k - 1) - 1) // stride + 1


# ------------------------------------------------------------------ a dictionary of sites
def pairs(
    coords: Sequence[Site],
    out_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
    keep: Sequence[Site] | None = None,
) -> tuple[list[Pair], list[Site]]:
    """All (kernel offset, input row, output row), sorted by (offset, output row), and the output
    sites.

    Every input site is sent where it is read. `keep` gives the output sites (submanifold and
    inverse convolution).

    """
    wanted = None if keep is None else set(keep)
    found = []
    for row, (batch, *at) in enumerate(coords):
        for k, tap in enumerate(product(*map(range, kernel))):
            if transposed:
                to = [
                    i * s - p + t * d for i, s, p, t, d in zip(at, stride, padding, tap, dilation)
                ]
            else:
                far = [i + p - t * d for i, p, t, d in zip(at, padding, tap, dilation)]
                if any(f % s for f, s in zip(far, stride)):
                    continue
                to = [f // s for f, s in zip(far, stride)]
            inside = all(0 <= o < n for o, n in zip(to, out_shape))
            if inside and (wanted is None or (batch, *to) in wanted):
                found.append((k, row, (batch, *to)))
    sites = sorted({site for *_, site in found} if keep is None else keep)
    number = {site: row for row, site in enumerate(sites)}
    return sorted(((k, i, number[o]) for k, i, o in found), key=lambda p: (p[0], p[2])), sites


def reads(
    site: Site,
    in_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
) -> Iterator[tuple[int, Site | None]]:
    """(kernel offset, input site that the output `site` reads there, or None outside the grid):
    the same map, walked backwards.
    """
    batch, *at = site
    for k, tap in enumerate(product(*map(range, kernel))):
        if transposed:
            far = [o + p - t * d for o, p, t, d in zip(at, padding, tap, dilation)]
            on_stride = not any(f % s for f, s in zip(far, stride))
            source = [f // s for f, s in zip(far, stride)]
        else:
            on_stride = True
            source = [
                o * s - p + t * d for o, s, p, t, d in zip(at, stride, padding, tap, dilation)
            ]
        inside = on_stride and all(0 <= i < n for i, n in zip(source, in_shape))
        yield k, ((batch, *source) if inside else None)


def site_conv(
    features: np.ndarray,
    coords: Sequence[Site],
    in_shape: Sequence[int],
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_sites: Sequence[Site],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    transposed: bool = False,
    ground: np.ndarray | None = None,
) -> np.ndarray:
    """Values at `out_sites`; weight (c_out, c_in / groups, *kernel) in memory order, also for a
    transposed convolution.

    `ground` (C,): what every inactive site of the grid holds; None: inactive sites add nothing.

    """
    row_of = {tuple(site): row for row, site in enumerate(coords)}
    kernel, w = weight.shape[2:], weight.reshape(*weight.shape[:2], -1)
    per_group = weight.shape[0] // groups
    y = np.zeros((len(out_sites), weight.shape[0]), features.dtype)
    for out, site in enumerate(out_sites):
        for k, source in reads(site, in_shape, kernel, stride, padding, dilation, transposed):
            value = features[row_of[source]] if source in row_of else ground
            if source is None or value is None:
                continue
            for g, part in enumerate(np.split(value, groups)):
                rows = slice(g * per_group, (g + 1) * per_group)
                y[out, rows] += w[rows, :, k] @ part
    return y if bias is None else y + bias


def transposed_weight(weight: np.ndarray, groups: int) -> np.ndarray:
    """torch's (c_in, c_out / groups, *kernel) as (c_out, c_in / groups, *kernel)."""
    parts = np.split(weight, groups)
    return np.concatenate([np.swapaxes(part, 0, 1) for part in parts])


# ------------------------------------------------------------------ dense torch on the scattered
# grid
def scatter(
    features: Tensor,
    coords: Tensor,
    spatial_shape: Sequence[int],
    batch_size: int,
    ground: float | Tensor = 0.0,
) -> Tensor:
    """(B, C, *spatial), differentiable in features and ground: a number, (C,), or an image (1 or
    B, C, *spatial).
    """
    g = torch.as_tensor(ground, dtype=features.dtype)
    g = g.expand(features.shape[1]).reshape(1, -1, *[1] * len(spatial_shape)) if g.dim() < 2 else g
    grid = g.expand(batch_size, features.shape[1], *spatial_shape).movedim(1, -1)
    grid = grid.index_put(tuple(coords.long().unbind(1)), features).movedim(-1, 1)
    # contiguous: torch 2.13's batch norm on the CPU has wrong gradients where an axis of size 1 has
    # a stride of 1, as here for (B, C, 2, 3, 1)
    return grid.contiguous()


def active_mask(coords: Tensor, spatial_shape: Sequence[int], batch_size: int) -> Tensor:
    """(B, 1, *spatial) bool."""
    mask = torch.zeros(batch_size, *spatial_shape, dtype=torch.bool)
    mask[tuple(coords.long().unbind(1))] = True
    return mask[:, None]


def dense_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """torch's convolution in 1 to 4 dimensions; the fourth is a sum of 3-D convolutions over the
    taps of the first axis.
    """
    n_axes = x.dim() - 2
    if n_axes < 4:
        return CONV[n_axes](x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    (s, *stride), (p, *padding), (d, *dilation) = stride, padding, dilation
    x = F.pad(x, (0, 0) * 3 + (p, p))
    n_out = out_extent(x.shape[2], weight.shape[2], s, 0, d)
    total = 0.0
    for t in range(weight.shape[2]):
        lines = x[:, :, t * d : t * d + (n_out - 1) * s + 1 : s]
        folded = lines.movedim(2, 1).flatten(0, 1)
        y = F.conv3d(
            folded, weight[:, :, t], None, tuple(stride), tuple(padding), tuple(dilation), groups
        )
        total = total + y.unflatten(0, (-1, n_out)).movedim(1, 2)
    return total if bias is None else total + bias.reshape(-1, 1, 1, 1, 1)


def at_sites(dense: Tensor, coords: Tensor) -> Tensor:
    """(B, C, *spatial) -> (n, C)."""
    return dense.movedim(1, -1)[tuple(coords.long().unbind(1))]


# ------------------------------------------------------------------ how far a float may be from the
# truth
HALF = (torch.bfloat16, torch.float16)


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def bound(y: Tensor, n_terms: Tensor, magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """|y - y64| <= 2 (n + 2) u_acc sum|a||b| + u_out |y|: n products summed in any fixed order;
    the contract's, not a tuned one.
    """
    u_acc = unit_roundoff(acc_dtype(dtype))
    return 2 * (n_terms + 2) * u_acc * magnitude + unit_roundoff(dtype) * y.abs().to(torch.float64)
