"""Sites and rulebooks on a CUDA device: the front of csrc/cuda/sites and csrc/cuda/rulebook."""

from __future__ import annotations

import torch
from torch import Tensor

from ._device import gpu

Ints = tuple[int, ...]


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
