"""Whether two thin layers are faster than one: multiply-adds and bytes moved, by the cost model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from .. import _costs
from .._torch_compat import ConvBase
from ..tensor import SparseTensor

# Outputs of a layer whose input nobody showed: so many that what a call costs does not count.
_MANY = 1 << 20
# Torch's convolutions compute output channels of a group in vectors of this many.
_VECTOR = 16
# A prediction below this is not acted on: 3x3 layers of 16 and 32 channels predicted at 1.3 to
# 1.4 were measured at 0.9 to 1.0, those of 64 and more with 1.7 at 1.1 to 1.6 (one core).
MARGIN = 1.4


class Positions(NamedTuple):
    """Places that a layer computes at, of a whole batch.

    Attributes:
        n_in, n_out: rows of a linear layer, or sites of a convolution's input and output.
        known: whether an example was run; otherwise the layer is taken to be large.
    """

    n_in: int
    n_out: int
    known: bool


def unknown_positions(module: nn.Module) -> Positions:
    """Many outputs; a transposed convolution has a stride-th of inputs."""
    if isinstance(module, ConvBase) and module.transposed:
        return Positions(max(1, _MANY // math.prod(module.stride)), _MANY, False)
    return Positions(_MANY, _MANY, False)


class Counts(NamedTuple):
    """Of a layer, or of two in a row.

    Attributes:
        macs: multiply-adds.
        ns: predicted time.
    """

    macs: int
    ns: float


def counts(
    module: nn.Module, positions: Positions, rank: int | None = None, device: str = "cpu"
) -> Counts:
    """Of a layer, or, with a rank (filters of a group), of its two factors."""
    layer: Any = module
    if isinstance(module, nn.Linear):
        c_in, c_out, groups, n_offsets = module.in_features, module.out_features, 1, 1
    else:
        c_in, c_out, groups = layer.in_channels, layer.out_channels, layer.groups
        n_offsets = math.prod(layer.kernel_size)
    transposed = isinstance(module, ConvBase) and module.transposed
    taps_at = positions.n_in if transposed else positions.n_out
    dtype = layer.weight.dtype
    m = _costs.machine(dtype, device == "cuda")
    if rank is None:
        return _one(m, taps_at, n_offsets, c_in, c_out, groups)
    first = _one(m, taps_at, n_offsets, c_in, groups * rank, groups)
    second = _one(m, positions.n_out, 1, groups * rank, c_out, groups)
    return Counts(first.macs + second.macs, first.ns + second.ns)


def _one(m: _costs.Machine, n: int, n_offsets: int, c_in: int, c_out: int, groups: int) -> Counts:
    work = _costs.Work(
        n_in=n,
        n_out=n,
        cells_in=n,
        cells_out=n,
        n_offsets=n_offsets,
        n_pairs=n * n_offsets,
        c_in=c_in,
        c_out=c_out,
        groups=groups,
        class_rows=0,
        ground=False,
        reorders=False,
        packed=True,
    )
    whole = -(-c_out // groups // _VECTOR) * _VECTOR * groups
    computed = work._replace(c_out=whole if n_offsets > 1 else c_out)
    return Counts(n * n_offsets * work.macs, _costs.torchs(m, computed))


@torch.no_grad()
def observed_positions(
    model: nn.Module, layers: dict[str, nn.Module], example: Any
) -> dict[str, Positions]:
    """Run a model in evaluation mode, and count where its layers compute, in their last call."""
    found: dict[str, Positions] = {}

    def hook(name: str) -> Any:
        def after(module: nn.Module, args: Any, out: Any) -> None:
            found[name] = Positions(_rows(args[0], module), _rows(out, module), True)

        return after

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        evaluate(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _rows(x: Any, module: nn.Module) -> int:
    """Rows of a linear layer's tensor, sites of a convolution's."""
    if isinstance(x, SparseTensor):
        return len(x.features)
    channels = x.shape[-1] if isinstance(module, nn.Linear) else x.shape[-len(_kernel(module)) - 1]
    return x.numel() // max(channels, 1)


def _kernel(module: nn.Module) -> tuple[int, ...]:
    return cast("Any", module).kernel_size


@torch.no_grad()
def evaluate(model: nn.Module, example: Any) -> Any:
    """The model's answer in evaluation mode; it is left in the mode it was in.

    Args:
        model: any module.
        example: what it takes, or a tuple of its arguments.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        return model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module in training:
            module.training = True
