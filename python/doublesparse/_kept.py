"""What a mask keeps, as the kernels of pruned convolutions read it: found once per mask.

A pass over a mask costs more than a small convolution, so the lists are remembered for as long as
the mask lives, and made anew after it was written to: a tensor counts its in-place changes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import _C

DENSE_SHARE = 0.9
"""Above this share of the unpruned kernel's time lists gain nothing: it runs on masked weights."""

_lock = threading.Lock()
_known = WeakTensorKeyDictionary()


class _Lists:
    """Of one mask, as it was at one time."""

    __slots__ = ("found", "state")

    def __init__(self, state: tuple[int, int]) -> None:
        self.state = state
        self.found: dict[tuple[int, bool, bool], _C.KeptLists] = {}


def check_mask(
    operation: str, mask: Tensor, shape: Sequence[int], device: torch.device
) -> None:
    """A mask must be a bool tensor of the weight's shape, in its place.

    Raises:
        TypeError: no tensor, another dtype or layout.
        ValueError: another shape.
        RuntimeError: another device, or no data.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{operation}: mask must be a Tensor, got {type(mask).__name__}; pass a bool tensor"
        )
    if mask.dtype != torch.bool or mask.layout is not torch.strided:
        raise TypeError(
            f"{operation}: mask must be a strided tensor of torch.bool, got {mask.dtype} "
            f"({mask.layout}); use mask != 0"
        )
    if mask.dim() < 3 or tuple(shape) not in (mask.shape, mask.flatten(2).shape):
        raise ValueError(
            f"{operation}: mask must have the shape of the weight, {tuple(shape)}, got "
            f"{tuple(mask.shape)}; give one entry per weight"
        )
    if mask.device != device:
        raise RuntimeError(
            f"{operation}: mask must be on {device} like the weight, got {mask.device}; "
            "move one of them"
        )


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
    if mask.is_inference():  # such tensors do not count their changes
        return _make(mask, *key)
    state = (mask._version, mask.data_ptr())
    with _lock:
        known = _known.get(mask)
        if known is None or known.state != state:
            _known[mask] = known = _Lists(state)
        lists: _C.KeptLists | None = known.found.get(key)
    if lists is None:
        lists = known.found.setdefault(key, _make(mask, *key))
    return lists


def kept_share(mask: Tensor, groups: int, transposed: bool, dtype: torch.dtype) -> float:
    """The time that a mask leaves of a convolution's multiply-adds: 0 to 1."""
    share = kept_lists(mask, groups, transposed, dtype).share
    return share if share <= DENSE_SHARE else 1.0


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight, exactly zero where the mask says so, whatever it holds there."""
    mask = mask if mask.shape == weight.shape else mask.flatten(2)
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
