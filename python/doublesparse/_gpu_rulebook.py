"""Sites and rulebooks on a CUDA device: the front of csrc/cuda/sites and csrc/cuda/rulebook."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import _C
from ._checks import check_keys_fit
from ._device import gpu
from ._gpu_pairs import GpuPairs

Ints = tuple[int, ...]

BITMAP_BYTES = 32 * 2**20
"""Largest bitmap that a neighbour table is looked up in: what stays in the L2 cache."""
_BITMAP_SITE_BYTES = 512  # zeros that a site pays for; beyond, a search is less work
_BITMAP_FREE_BYTES = 2**18  # a bitmap that costs no more than a launch
_FAN_OUT = 9  # keys made of one at a time: 24 bytes of memory each


def linear_keys(coords: Tensor, shape: Ints) -> Tensor:
    """`ops.linear_keys`."""
    keys = torch.empty(len(coords), dtype=torch.int64, device=coords.device)
    gpu().coords_to_keys(coords, shape, keys)
    return keys


def coords_of_keys(keys: Tensor, shape: Ints) -> Tensor:
    """`ops.coords_of_keys`."""
    coords = torch.empty(len(keys), 1 + len(shape), dtype=torch.int32, device=keys.device)
    gpu().keys_to_coords(keys, shape, coords)
    return coords


def _bitmap_entries(shape: Ints, n_target: int) -> int:
    """How long a bitmap may be, in 8-byte entries of 32 cells; 0: not even one sample fits."""
    affordable = max(_BITMAP_FREE_BYTES, _BITMAP_SITE_BYTES * n_target)
    most = min(BITMAP_BYTES, affordable) // 8
    return most if 0 < math.prod(shape) <= 32 * most else 0


def build_pairs(
    query_coords: Tensor,
    target_coords: Tensor,
    target_shape: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    symmetric: bool = False,
) -> GpuPairs:
    """`ops.build_pairs`: a table, so nothing is read back; its lists are made if they are asked."""
    n_query, n_target = len(query_coords), len(target_coords)
    keys = query_coords.new_empty(n_target, dtype=torch.int64)
    bitmap = keys.new_empty(_bitmap_entries(target_shape, n_target))
    table = query_coords.new_empty(math.prod(kernel), n_query, dtype=torch.int32)
    walk = (target_shape, kernel, stride, padding, dilation, symmetric)
    gpu().neighbour_table(query_coords, target_coords, *walk, bitmap, keys, table)
    return GpuPairs.of_table(table, n_target).reversed()


def output_coords(
    coords: Tensor,
    in_shape: Ints,
    out_shape: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
) -> Tensor:
    """`ops.output_coords`; reads back the number of samples, and a length per group of axes.

    Axes are dilated together as long as a key becomes no more than `_FAN_OUT`, so that memory stays
    near what the result takes: a 3 x 3 kernel in one go, 3 x 3 x 3 in two.
    """
    if len(coords) == 0 or 0 in out_shape:
        return coords.new_empty(0, coords.shape[1])
    n_samples = int(coords[-1, 0]) + 1
    check_keys_fit(in_shape, out_shape, n_samples)
    keys, shape = linear_keys(coords, in_shape), in_shape
    walks = zip(kernel, stride, dilation, strict=True)
    n_outputs = [_C.axis_fan_out(*walk, transposed) for walk in walks]
    for first, end in _groups_of_axes(n_outputs):
        grown = (*shape[:first], *out_shape[first:])
        n = len(keys) * math.prod(n_outputs[first:end])
        expanded, ordered, n_out = (keys.new_empty(m) for m in (n, n, 1))
        workspace = keys.new_empty(-(-gpu().algorithm_workspace(keys, n) // 8))
        walk = (kernel, stride, padding, dilation, transposed, first, end)
        gpu().dilate_keys(
            keys, n_samples, shape, grown, *walk, workspace, expanded, ordered, n_out
        )
        keys, shape = expanded[: int(n_out)].clone(), grown
        if len(keys) == 0:
            return coords.new_empty(0, coords.shape[1])
    return coords_of_keys(keys, out_shape)


def _groups_of_axes(n_outputs: list[int]) -> Iterator[tuple[int, int]]:
    """Axes first .. end - 1 that are dilated together, the last ones first."""
    end = len(n_outputs)
    while end > 0:
        first = end - 1
        while first > 0 and math.prod(n_outputs[first - 1 : end]) <= _FAN_OUT:
            first -= 1
        yield first, end
        end = first
