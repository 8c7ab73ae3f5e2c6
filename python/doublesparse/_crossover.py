"""Which layers run dense: a pure function of the geometry, so sites and bits are reproducible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import _costs
from ._geometry import Steps
from ._kept import kept_share
from ._memo import memo_of
from ._rulebook import output_sites
from ._running import Running
from ._torch_compat import traced
from .tensor import SparseTensor

_crossover: str | float | None = "auto"
threshold: float | None = None  # the density from which unsaturated tensors run dense, if any


def set_crossover(crossover: str | float | None) -> None:
    """Say where layers run torch's dense kernels instead of the sparse ones.

    A layer that runs dense returns a saturated tensor: all sites active, dense storage.

    Args:
        crossover: "auto" (default): where a shipped cost model says that it is faster. A number:
            where the share of active sites is at least that. None: nowhere; every layer runs on
            this package's kernels, which give the same bits for any number of threads.

    Raises:
        ValueError: another word, or a number outside [0, 1].
        TypeError: another type.

    Example:
        >>> import doublesparse as ds
        >>> ds.set_crossover(None)
        >>> ds.set_crossover("auto")
    """
    global _crossover, threshold
    if isinstance(crossover, str):
        if crossover != "auto":
            raise ValueError(
                f'set_crossover: crossover must be "auto", a density or None, got {crossover!r}; '
                "pass one of them"
            )
    elif crossover is not None:
        if isinstance(crossover, bool) or not isinstance(crossover, (int, float)):
            raise TypeError(
                f'set_crossover: crossover must be "auto", a density or None, '
                f"got {type(crossover).__name__}; pass one of them"
            )
        if not 0 <= crossover <= 1:
            raise ValueError(
                f"set_crossover: a density must lie in [0, 1], got {crossover}; pass e.g. 0.5"
            )
        crossover = float(crossover)
    _crossover = crossover
    threshold = crossover if isinstance(crossover, float) else None


def get_crossover() -> str | float | None:
    """What `set_crossover` was last given."""
    return _crossover


def runs_dense(
    full: bool, density: float, ground_is_none: bool, steps: Steps | None = None
) -> bool:
    """The decision for layers that cost little: pools, resampling.

    Without a ground (None) inactive sites do not exist, so the dense kernel is the same function
    only on a saturated input whose every output position reads a site.

    Args:
        full: whether the input is saturated.
        density: its share of active sites.
        ground_is_none: whether its ground is None.
        steps: the layer's geometry; None where every output reads the input in any case.
    """
    if _crossover is None:
        return False
    if ground_is_none:
        return full and (steps is None or steps.covers())
    return full or (threshold is not None and density >= threshold)


# A saturated result makes every later layer cost what it costs dense: not for a small gain now, and
# not while half of the sites are inactive.
MARGIN = 1.0
LEAST_DENSITY = 0.5
LIKELY = 0.9  # beyond it the output sites are not even found: there are more than was counted


class Choice(NamedTuple):
    """How a convolution runs.

    Attributes:
        saturate: on all sites.
        torch: by torch's kernel.
    """

    saturate: bool
    torch: bool


SPARSE = Choice(False, False)

Key = tuple[object, ...]
Table = dict[Key, _costs.Factors]
tuned = Running()  # tables of the models whose forward runs (see `autotune`)


def layer_key(steps: Steps, c_in: int, c_out: int, groups: int, dtype: torch.dtype) -> Key:
    """What `autotune` knows a layer by: plain values, so that tables can be printed and pickled."""
    geometry = (steps.kind, steps.kernel, steps.stride, steps.dilation)
    return (*geometry, c_in, c_out, groups, str(dtype).removeprefix("torch."))


def factors_of(key: Callable[[], Key]) -> _costs.Factors:
    """What was measured of a layer; the innermost model that measured it says so."""
    if tuned.items:
        wanted = key()
        for table in reversed(tuned.items):
            if wanted in table:
                return cast("_costs.Factors", table[wanted])
    return _costs.AS_SHIPPED


def work_of(
    x: SparseTensor,
    steps: Steps,
    weight: Tensor,
    c_out: int,
    groups: int,
    transposed: bool,
    mask: Tensor | None = None,
) -> _costs.Work:
    """The counts of a convolution, with the fewest output sites there can be."""
    sites, ground = x.sites, x.ground
    cells_out = sites.batch_size * math.prod(steps.out_shape)
    stride = 1 if transposed else math.prod(steps.stride)
    rows, frozen = 0, memo_of(ground) is not None
    share = 1.0
    if mask is not None and not traced(mask):
        share = kept_share(mask, groups, transposed, x.features.dtype)
    if ground is not None and not ground.is_zero and not frozen:
        rows = ground.n_rows * ground.values.shape[0]
    return _costs.Work(
        n_in=sites.n_sites,
        n_out=min(cells_out, -(-sites.n_sites // stride)),
        cells_in=sites.n_cells,
        cells_out=cells_out,
        n_offsets=steps.n_offsets,
        n_pairs=sites.n_sites * steps.n_offsets // stride,
        c_in=x.features.shape[1],
        c_out=c_out,
        groups=groups,
        class_rows=rows,
        ground=ground is not None and not ground.is_zero,
        reorders=not _channels_last(weight),
        packed=frozen,
        kept=share,
    )


def choose(
    x: SparseTensor,
    steps: Steps,
    weight: Tensor,
    c_out: int,
    groups: int,
    transposed: bool,
    mask: Tensor | None = None,
) -> Choice:
    """The decision for a convolution.

    A pure function of shapes, sites, classes, the weight's layout and mask, dtype and instruction
    set, and of the table of a model that was tuned.
    """
    sites, ground = x.sites, x.ground
    if _crossover is None:
        return SPARSE
    if not sites.is_full and ground is None:
        return SPARSE
    if threshold is not None and not sites.is_full and x.density < threshold:
        return SPARSE
    if threshold is None:
        most = sites.n_sites * steps.n_offsets  # output sites that there can be
        if most < LEAST_DENSITY * sites.batch_size * math.prod(steps.out_shape):
            return SPARSE
    m = _costs.machine(x.features.dtype, x.features.is_cuda)
    work = work_of(x, steps, weight, c_out, groups, transposed, mask)
    f = factors_of(lambda: layer_key(steps, work.c_in, c_out, groups, x.features.dtype))

    def stays_sparse(w: _costs.Work, margin: float) -> bool:
        if w.n_out < LEAST_DENSITY * w.cells_out:
            return True
        return f.sparse * _costs.sparse(m, w) <= margin * dense

    if not sites.is_full and threshold is None:
        dense = _costs.dense(m, work, f)
        # with the fewest output sites that there can be, which of one offset are all
        if stays_sparse(work, LIKELY if steps.n_offsets > 1 else MARGIN):
            work = work._replace(n_out=output_sites(sites, steps).n_sites)
            if stays_sparse(work, MARGIN):
                return SPARSE
    covered = ground is not None or steps.covers()
    faster = f.torch * _costs.torchs(m, work) < f.ours * _costs.ours(m, work)
    return Choice(True, covered and faster)


def _channels_last(weight: Tensor) -> bool:
    """Whether torch's convolution takes a weight as it is."""
    if weight.dim() == 4:
        return weight.is_contiguous(memory_format=torch.channels_last)
    return weight.dim() == 5 and weight.is_contiguous(memory_format=torch.channels_last_3d)
