"""Pruned weights: masks by magnitude, models that have them, and training with them."""

from .._patterns import magnitude_mask
from ._sparsify import densify_, from_torch_prune_, masks, skipped, sparsify_

__all__ = [
    "densify_",
    "from_torch_prune_",
    "magnitude_mask",
    "masks",
    "skipped",
    "sparsify_",
]
