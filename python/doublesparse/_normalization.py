"""Batch, group and instance normalization: every inactive site counts, as the value of its class.

Statistics, running buffers and gradients equal the dense layer's. With ground=None inactive sites
do not exist, and statistics are those of the active ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import wanted
from ._elementwise import apply, refuse
from ._statistics import normalize, population
from .tensor import SparseTensor


def _check_channels(operation: str, x: SparseTensor, **vectors: Any) -> None:
    """Each vector is None or has one number per channel."""
    channels, device = x.features.shape[1], x.features.device
    for name, v in vectors.items():
        if v is None:
            continue
        if not isinstance(v, Tensor):
            raise TypeError(
                f"{operation}: {name} must be a Tensor or None, got {type(v).__name__}; "
                f"pass a tensor of shape ({channels},)"
            )
        if tuple(v.shape) != (channels,):
            raise ValueError(
                f"{operation}: {name} must have shape ({channels},), one number per channel, "
                f"got {tuple(v.shape)}; make the layer for {channels} channels"
            )
        if v.device != device:
            raise RuntimeError(
                f"{operation}: {name} must be on {device} like the input, got {v.device}; "
                "move one with .to(device)"
            )


def _track(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.lerp_(
                value if value.dtype == running.dtype else value.to(running.dtype), momentum
            )


def batch_norm(
    x: SparseTensor | Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: Any = None,
) -> SparseTensor | Tensor:
    """Batch normalization (Ioffe & Szegedy 2015), equal to the dense layer's.

    In training every inactive site counts, as the value of its class; with ground=None only active
    sites count. Running buffers are updated in place as torch does.

    Args:
        x: SparseTensor with C channels, or a dense Tensor (then this is torch's function).
        running_mean: (C,) or None.
        running_var: (C,) or None.
        weight: (C,) or None.
        bias: (C,) or None.
        training: take the statistics of the batch.
        momentum: weight of the batch in the running buffers.
        eps: added to the variance.
        process_group: sum the statistics over the processes of this `torch.distributed` group.

    Raises:
        TypeError: a vector is no tensor.
        ValueError: a vector of another length, one value per channel in training, or no running
            statistics in evaluation.

    Example:
        >>> import torch, doublesparse as ds
        >>> x = ds.SparseTensor(torch.ones(1, 2), torch.tensor([[0, 1, 1]]), (4, 4))
        >>> y = ds.functional.batch_norm(x, None, None, training=True)
        >>> dense = torch.nn.functional.batch_norm(x.to_dense(), None, None, training=True)
        >>> torch.allclose(y.to_dense(), dense)
        True
    """
    if not isinstance(x, SparseTensor):
        if process_group is not None:
            raise TypeError(
                "batch_norm: input must be a SparseTensor where process_group is given, got "
                f"{type(x).__name__}; use torch.nn.SyncBatchNorm"
            )
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    vectors = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("batch_norm", x, weight=weight, bias=bias, **vectors)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "batch_norm: running_mean and running_var must be tensors in evaluation, got None;"
                " pass training=True to use the batch's statistics"
            )
        if not wanted(x, weight, bias):
            held = (running_mean, running_var, weight, bias)

            def f(rows: Tensor) -> Tensor:
                return F.batch_norm(rows, *held, False, 0.0, eps)

            return apply(x, f, key=("batch_norm", eps), held=held)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        given = running_mean.to(wide)[None], running_var.to(wide)[None]
        return normalize(x, weight, bias, eps, population(x), given)[0]
    n: float = x.sites.n_sites if x.ground is None else x.sites.n_cells
    if n == 1 and process_group is None:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size "
            f"{tuple(x.shape)} with 1 site that counts; use a larger batch or eval()"
        )
    who = population(x, process_group=process_group)
    y, mean, var = normalize(x, weight, bias, eps, who)
    n = float(who.count) if process_group is not None else n
    if n > 0:
        _track(running_mean, mean[0], momentum)
        _track(running_var, var[0] * (n / max(n - 1, 1)), momentum)
    return y


def group_norm(
    input: SparseTensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> SparseTensor:
    """Group normalization (Wu & He 2018): statistics per sample and group of channels."""
    channels = input.features.shape[1]
    _check_channels("group_norm", input, weight=weight, bias=bias)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm: num_groups must divide {channels} channels, got {num_groups}; "
            "choose a divisor"
        )
    if math.prod(input.shape) == input.shape[0] * num_groups == 1:
        raise ValueError(
            f"group_norm: Expected more than 1 value per channel when training, got input size "
            f"{tuple(input.shape)}; use a larger grid"
        )
    who = population(input, per_sample=True, per_group=channels // num_groups)
    return normalize(input, weight, bias, eps, who)[0]


def instance_norm(
    input: SparseTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseTensor:
    """Instance normalization: statistics per sample and channel, or the running ones."""
    if not use_input_stats:
        args = (running_mean, running_var, weight, bias, False, momentum, eps)
        return batch_norm(input, *args)  # type: ignore[return-value]  # sparse in, sparse out
    vectors = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("instance_norm", input, weight=weight, bias=bias, **vectors)
    if math.prod(input.spatial_shape) == 1:
        raise ValueError(
            "instance_norm: Expected more than 1 spatial element when training, got input size "
            f"{tuple(input.shape)}; use a larger grid"
        )
    who = population(input, per_sample=True)
    y, mean, var = normalize(input, weight, bias, eps, who)
    if len(mean):
        _track(running_mean, mean.mean(0), momentum)
        _track(running_var, (var * who.count / (who.count - 1).clamp(min=1)).mean(0), momentum)
    return y


def layer_norm(
    input: SparseTensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> SparseTensor:
    """Layer normalization over (C, *spatial) without an affine map."""
    if tuple(normalized_shape) != tuple(input.shape[1:]) or weight is not None or bias is not None:
        refuse(
            "layer_norm",
            "of a SparseTensor runs over (C, *spatial) and has no weight per site",
            "for the channels of each site permute them to the end",
        )
    return group_norm(input, 1, None, None, eps)
