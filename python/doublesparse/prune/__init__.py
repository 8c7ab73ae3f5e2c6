"""Pruned weights: masks by magnitude, schedules, and training that uses them."""

from .._patterns import magnitude_mask
from ._freeze import freeze, thaw

__all__ = ["freeze", "magnitude_mask", "thaw"]
