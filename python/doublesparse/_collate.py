"""Batches of SparseTensors, and what else the PyTorch ecosystem asks of a tensor type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from . import _classes, _packed_weight, _torch_compat
from ._classes import AxisClasses
from ._ground import GroundState, refinement
from .sites import Sites
from .tensor import SparseTensor


def collate(batch: Sequence[Any]) -> Any:
    """Make one batch of samples; pass it to a `DataLoader` as `collate_fn`.

    Args:
        batch: SparseTensors of one shape, which are joined along the batch; or any nesting of
            tuples, lists and dicts of them with tensors, numbers and strings, as `default_collate`
            takes.

    Returns:
        the same nesting, batched. Samples whose grounds differ give a ground per sample.

    Raises:
        TypeError: no sequence, or samples of different types.
        ValueError: no samples, or SparseTensors that do not fit together.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3]]), (8,))
        >>> both, labels = ds.collate([(x, 0), (x, 1)])
        >>> both.shape, labels
        (torch.Size([2, 2, 8]), tensor([0, 1]))
    """
    if not isinstance(batch, Sequence):
        raise TypeError(
            f"collate: batch must be a sequence of samples, got {type(batch).__name__}; pass a list"
        )
    if len(batch) == 0:
        raise ValueError("collate: batch must hold at least one sample, got 0; drop it")
    return default_collate(list(batch))


def collate_tensors(batch: Sequence[SparseTensor]) -> SparseTensor:
    """SparseTensors joined along the batch."""
    for x in batch:
        if not isinstance(x, SparseTensor):
            raise TypeError(
                f"collate: samples must be SparseTensors like the first, got {type(x).__name__}; "
                "make one with ds.SparseTensor.from_dense"
            )
    first = batch[0]
    shape, channels, dtype = first.spatial_shape, first.features.shape[1], first.dtype
    for x in batch:
        if (x.spatial_shape, x.features.shape[1], x.dtype) != (shape, channels, dtype):
            raise ValueError(
                f"collate: all samples must have {channels} channels on {shape} as {dtype}, "
                f"got {x!r}; crop, pad or convert them"
            )
        if (x.ground is None) != (first.ground is None):
            raise ValueError(
                "collate: either all samples or none must have ground=None, got both; "
                "use x.replace(ground=None)"
            )
    n_samples = sum(x.batch_size for x in batch)
    features = torch.cat([x.features for x in batch])
    if all(x.sites.is_full for x in batch):
        sites = Sites.full(n_samples, shape, first.device)
    else:
        shifted, before = [], 0
        for x in batch:
            coords = x.coords.clone()
            coords[:, 0] += before
            before += x.batch_size
            shifted.append(coords)
        sites = Sites(torch.cat(shifted), shape, n_samples, first.device)
    return SparseTensor._of(features, sites, _collate_grounds(batch))


def _collate_grounds(batch: Sequence[SparseTensor]) -> GroundState | None:
    """One ground for all samples where it is the same, else one per sample."""
    if batch[0].ground is None:
        return None
    open_grounds = [x.ground for x in batch if not x.sites.is_full and x.ground is not None]
    if not open_grounds:
        return batch[0].ground
    common = open_grounds[0]
    shared = all(not g.per_sample and g.same_as(common) for g in open_grounds)
    if shared:
        return common
    # a saturated sample's ground is arbitrary; it has rows only to keep the numbering
    states = [(common if x.sites.is_full else x.ground, x.batch_size) for x in batch]
    axes, refined = refinement(tuple(s.axes for s, _ in states if s), common.values.device)
    values = []
    for (state, size), classes in zip(states, refined, strict=True):
        assert state is not None
        rows = state.index(axes, classes).values
        if state.is_zero:
            rows = rows.expand(-1, *(a.n_classes for a in axes), -1)
        values.append(rows[:1].expand(size, *rows.shape[1:]) if len(rows) != size else rows)
    return GroundState._of(torch.cat(values), axes)


def _collate_fn(batch: Sequence[SparseTensor], *, collate_fn_map: Any = None) -> SparseTensor:
    return collate_tensors(batch)


# ------------------------------------------------------------------ pytrees, torch.load
def _flatten(x: SparseTensor) -> tuple[list[Any], Any]:
    ground = x.ground
    if ground is None or ground.is_zero:
        return [x.features], (x.sites, ground)
    return [x.features, ground.values], (x.sites, ground.axes)


def _unflatten(leaves: Sequence[Any], context: Any) -> SparseTensor:
    sites, ground = context
    leaves = list(leaves)
    if len(leaves) == 2:
        return SparseTensor._of(leaves[0], sites, GroundState._of(leaves[1], ground))
    if isinstance(ground, GroundState) and isinstance(leaves[0], Tensor):
        ground = SparseTensor._zero(leaves[0], sites)
    return SparseTensor._of(leaves[0], sites, ground)


def register() -> None:
    """Tell torch's pytrees, DataLoader and torch.load about the tensor types."""
    _torch_compat.register_pytree_node(SparseTensor, _flatten, _unflatten)
    _torch_compat.register_collate(SparseTensor, _collate_fn)
    _torch_compat.add_safe_globals(
        [SparseTensor, GroundState, Sites, AxisClasses, _classes._restore, _packed_weight._restore]
    )
