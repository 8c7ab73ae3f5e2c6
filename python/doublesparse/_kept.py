"""What a mask keeps, as the kernels of pruned convolutions read it: found once per mask.

A pass over a mask costs more than a small convolution, so the lists are remembered for as long as
the mask lives, and made anew after it was written to: a tensor counts its in-place changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._structure import of_mask

DENSE_SHARE = 0.9
"""Above this share of the unpruned kernel's time lists gain nothing: it runs on masked weights."""

def _make(mask: Tensor, groups: int, transposed: bool, is_double: bool) -> _C.KeptLists:
    flat = mask.detach().flatten(2).to(torch.int32, memory_format=torch.contiguous_format)
    return _C.KeptLists(flat.contiguous(), groups, transposed, is_double)


def kept_lists(mask: Tensor, groups: int, transposed: bool, dtype: torch.dtype) -> _C.KeptLists:
    """The channels that a mask keeps, per kernel offset and panel of output channels.

    Args:
        mask: bool, (c_out, c_in / groups, *kernel); where `transposed` (c_in, c_out / groups,
            *kernel).
        groups: divides both channel counts.
        transposed: see `mask`.
        dtype: of the features; 16-bit ones are computed in float32.
    """
    key = (groups, transposed, dtype == torch.float64)
    return of_mask(mask, ("kept", *key), lambda m: _make(m, *key))


def kept_share(mask: Tensor, groups: int, transposed: bool, dtype: torch.dtype) -> float:
    """The time that a mask leaves of a convolution's multiply-adds: 0 to 1."""
    if mask.is_cuda:  # its convolutions multiply pruned weights as zeros
        return 1.0
    share = kept_lists(mask, groups, transposed, dtype).share
    return share if share <= DENSE_SHARE else 1.0


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight, exactly zero where the mask says so, whatever it holds there."""
    mask = mask if mask.shape == weight.shape else mask.flatten(2)
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
