"""Sites and rulebooks on a CUDA device: the front of csrc/cuda/sites and csrc/cuda/rulebook."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._device import gpu
from ._gpu_pairs import GpuPairs

Ints = tuple[int, ...]

BITMAP_BYTES = 32 * 2**20
"""Largest bitmap that a neighbour table is looked up in: what stays in the L2 cache."""
_BITMAP_SITE_BYTES = 512  # zeros that a site pays for; beyond, a search is less work
_BITMAP_FREE_BYTES = 2**18  # a bitmap that costs no more than a launch


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
