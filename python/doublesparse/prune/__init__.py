"""Pruned weights: masks by magnitude, schedules, and training that uses them."""

from .._patterns import magnitude_mask

__all__ = ["magnitude_mask"]
