"""Pruned weights: masks by magnitude, models that have them, and training with them."""

from .._magnitude import magnitude_mask
from ._dsd import DSD
from ._freeze import freeze, thaw
from ._gradual import GradualSchedule
from ._project import Project
from ._report import report
from ._rigl import RigL
from ._sparsify import densify_, from_torch_prune_, masks, skipped, sparsify_

__all__ = [
    "DSD",
    "GradualSchedule",
    "Project",
    "RigL",
    "densify_",
    "freeze",
    "from_torch_prune_",
    "magnitude_mask",
    "masks",
    "report",
    "skipped",
    "sparsify_",
    "thaw",
]
