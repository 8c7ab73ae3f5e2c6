"""Batch normalization as a module, optionally synchronised over processes."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import functional
from .._torch_compat import BatchNormBase, extend_forward
from ..tensor import SparseTensor

M = TypeVar("M", bound=nn.Module)


class SparseBatchNorm(BatchNormBase):
    """Batch normalization of a SparseTensor with any number of axes, or of a dense tensor.

    It is torch's batch norm (Ioffe & Szegedy 2015): inactive sites count, as the value of their
    class, so outputs, gradients and running buffers equal the dense layer's; with ground=None
    active sites only. `nn.BatchNorm1d..3d` take a SparseTensor too; this one has no rank, and can
    sum its statistics over processes. `state_dict` is theirs.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None: cumulative average.
        affine: have weight and bias.
        track_running_stats: keep running statistics, used in evaluation.
        device: of the parameters.
        dtype: of the parameters.
        process_group: of `torch.distributed`, e.g. `torch.distributed.group.WORLD`: statistics in
            training are those of the batches of all its processes. None: of this process alone.
            The group is left out of a pickle.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 3, 1]]), (4, 4))
        >>> norm = ds.nn.SparseBatchNorm(2)
        >>> torch.allclose(norm(x).to_dense(), torch.nn.BatchNorm2d(2)(x.to_dense()))
        True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Any) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"SparseBatchNorm: input must have at least 2 dimensions, got {input.dim()}; "
                "give (B, C, ...)"
            )

    def forward(self, input: SparseTensor | Tensor) -> Any:
        """Normalize."""
        if self.process_group is None or not self.training:
            return super().forward(input)  # type: ignore[arg-type]  # dispatch takes both
        if isinstance(input, SparseTensor):
            return _synchronized(self, input, self.process_group)
        self._check_input_dim(input)
        # as a tensor whose sites are all active; (B, C) has one site per sample
        image = input[..., None] if input.dim() == 2 else input
        out = _synchronized(self, SparseTensor._from_full(image), self.process_group).to_dense()
        return out[..., 0] if input.dim() == 2 else out

    @classmethod
    def convert_sync_batchnorm(cls, module: M, process_group: Any = None) -> M | SparseBatchNorm:
        """Make the batch norms of a model synchronised, on any device.

        As `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, whose layers take a SparseTensor too:
        but DistributedDataParallel refuses those on a CPU, where they also refuse dense tensors.

        Args:
            module: any model; `nn.BatchNorm1d..3d`, `nn.SyncBatchNorm` and `SparseBatchNorm` in it
                are replaced in place, with the same parameters and buffers.
            process_group: of `torch.distributed`; None: all processes.

        Returns:
            the module, or what replaces it.

        Raises:
            RuntimeError: no process group is given, and torch.distributed is not initialised.
        """
        group = process_group or _world()
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, cls)
        if isinstance(module, kinds):
            norm: Any = module
            options = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            own = cls(norm.num_features, *options, device="meta", process_group=group)
            own._parameters, own._buffers = norm._parameters, norm._buffers
            own.training = norm.training
            return own
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, group))
        return module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseBatchNorm:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        twin.process_group = self.process_group  # a copy in this process stays synchronised
        return twin


def _world() -> Any:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "SparseBatchNorm: process_group must be given where torch.distributed is not "
            "initialised, got None; call torch.distributed.init_process_group first"
        )
    return distributed.group.WORLD


def _synchronized(module: BatchNormBase, input: SparseTensor, group: Any) -> Any:
    """The training forward of a batch norm whose statistics are those of all of `group`."""
    factor = 0.0 if module.momentum is None else module.momentum
    if module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:
            factor = 1.0 / float(module.num_batches_tracked)
    tracked = module.track_running_stats
    return functional.batch_norm(
        input,
        module.running_mean if tracked else None,
        module.running_var if tracked else None,
        module.weight,
        module.bias,
        True,
        factor,
        module.eps,
        process_group=group if torch.distributed.get_world_size(group) > 1 else None,
    )


def _sync_batch_norm(module: nn.SyncBatchNorm, input: SparseTensor) -> Any:
    """`nn.SyncBatchNorm` of a SparseTensor, on any device; torch's forward where nothing syncs."""
    distributed = torch.distributed
    if not (module.training and distributed.is_available() and distributed.is_initialized()):
        return NotImplemented
    return _synchronized(module, input, module.process_group or distributed.group.WORLD)


# Its forward refuses the CPU and then calls an autograd function, which asks no
# __torch_function__: there is nothing else to hook into.
extend_forward(nn.SyncBatchNorm, SparseTensor, _sync_batch_norm)
