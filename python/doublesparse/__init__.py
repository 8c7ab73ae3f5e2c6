"""Spatially sparse and pruned networks for PyTorch: the dense network's answer, faster.

Call any PyTorch network on a `SparseTensor`:

    >>> import torch, doublesparse as ds
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU())
    >>> image = torch.zeros(1, 1, 32, 32)
    >>> image[0, 0, 10, 10:20] = 1.0
    >>> y = net(ds.SparseTensor.from_dense(image))
    >>> torch.allclose(y.to_dense(), net(image), atol=1e-6)
    True
"""

import torch as _torch  # noqa: F401 - first: its OpenMP runtime is the one the kernels share

from . import (  # noqa: F401
    _collate,
    _library,
    bootstrap,
    data,
    dispatch,
    functional,
    lowrank,
    models,
    nn,
    prune,
)
from ._autotune import autotune
from ._cache import set_cache_limit
from ._collate import collate
from ._crossover import set_crossover
from ._explain import explain
from ._freeze import freeze_ground
from ._incremental import Incremental
from ._packed_weight import PackedWeight
from ._patterns import NM, Block, TopKColumns, TopKRows, Unstructured
from ._rulebook import Geometry, Rulebook, build_rulebook
from .prune import thaw
from .sites import Sites
from .tensor import GroundState, SparseTensor

_collate.register()

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Block",
    "Geometry",
    "GroundState",
    "Incremental",
    "PackedWeight",
    "Rulebook",
    "Sites",
    "SparseTensor",
    "TopKColumns",
    "TopKRows",
    "Unstructured",
    "autotune",
    "bootstrap",
    "build_rulebook",
    "collate",
    "data",
    "explain",
    "freeze_ground",
    "functional",
    "lowrank",
    "models",
    "nn",
    "prune",
    "set_cache_limit",
    "set_crossover",
    "thaw",
]
