"""Filters of low rank: training that correlates them, and layers in two thin factors."""

from ._decompose import decompose
from ._finetune import finetune
from ._force import Force, force
from ._layers import LowRank
from ._rank import rank
from ._report import DecomposeReport

__all__ = ["DecomposeReport", "Force", "LowRank", "decompose", "finetune", "force", "rank"]
