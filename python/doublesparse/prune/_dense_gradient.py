"""The largest entries of a layer's dense weight gradient, which never exists as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from .._largest import keep_largest
from ..nn._masked import Masked

# Gradient entries in memory at once: 1 MiB of float32, about an L2 cache.
BLOCK = 2**18

_CONV_GRADIENTS = {
    3: conv_grad.conv1d_weight,
    4: conv_grad.conv2d_weight,
    5: conv_grad.conv3d_weight,
}


class Recorder:
    """Keeps what a layer's dense gradient is made of, from one or more passes.

    Nothing is copied: inputs are alive until the backward pass anyway, output gradients stay until
    `remove`.
    """

    def __init__(self, name: str, layer: Masked) -> None:
        self.name, self.layer = name, layer
        self.passes: list[tuple[Tensor, Tensor]] = []
        self.handle = cast("nn.Module", layer).register_forward_hook(_Hook(self))

    def forward(self, x: Any, output: Any) -> None:
        """The layer was called."""
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            raise NotImplementedError(
                f"RigL: layer {self.name!r} must get a dense tensor, got {type(x).__name__}; leave "
                "layers of sparse tensors out by RigL(..., select=...)"
            )
        if output.requires_grad:
            x = x.detach()
            output.register_hook(lambda dy: self.passes.append((x, dy.detach())))

    def remove(self) -> None:
        """Let go of everything."""
        self.handle.remove()
        self.passes = []


class _Hook:
    """A forward hook that copies of the layer have too, but that does nothing there."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.recorder is not None:
            self.recorder.forward(args[0], output)

    def __reduce__(self) -> Any:
        return _Hook, ()


class _Slice(NamedTuple):
    first: int  # row of the weight
    gradient: Tensor  # (rows, *weight.shape[1:])


def _linear_slices(layer: Any, passes: list[tuple[Tensor, Tensor]], rows: int) -> Iterator[_Slice]:
    n_out, n_in = layer.weight.shape
    flat = [(x.reshape(-1, n_in), dy.reshape(-1, n_out)) for x, dy in passes]
    for first in range(0, n_out, rows):
        shape = (min(rows, n_out - first), n_in)
        parts = [_wide(dy[:, first : first + rows]).t() @ _wide(x) for x, dy in flat]
        yield _Slice(first, _total(parts, shape, layer.weight))


def _conv_slices(layer: Any, passes: list[tuple[Tensor, Tensor]], rows: int) -> Iterator[_Slice]:
    """Rows of one group at a time: a convolution of the group's channels alone."""
    weight, groups = layer.weight, layer.groups
    gradient = _CONV_GRADIENTS[weight.dim()]
    per_group, channels = weight.shape[0] // groups, weight.shape[1]
    padded = [_padded(layer, x, dy) for x, dy in passes]
    for group in range(groups):
        inputs = [_wide(x[:, group * channels : (group + 1) * channels]) for x, _ in padded]
        for offset in range(0, per_group, rows):
            n_rows = min(rows, per_group - offset)
            first = group * per_group + offset
            shape = (n_rows, *weight.shape[1:])
            parts = [
                gradient(
                    x,
                    shape,
                    _wide(dy[:, first : first + n_rows]).contiguous(),
                    layer.stride,
                    0,
                    layer.dilation,
                )
                for x, (_, dy) in zip(inputs, padded, strict=True)
            ]
            yield _Slice(first, _total(parts, shape, weight))


def _padded(layer: Any, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """A batch whose border is explicit, whatever the padding was."""
    if x.dim() == layer.weight.dim() - 1:
        x, dy = x[None], dy[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    pads = layer._reversed_padding_repeated_twice
    return (F.pad(x, pads, mode=mode) if any(pads) else x), dy


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _total(parts: list[Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The sum over the passes; zeros where there was none."""
    if not parts:
        return torch.zeros(shape, device=like.device)
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def largest(recorder: Recorder, allowed: Tensor, k: int, process_group: Any = None) -> Tensor:
    """Flat indices, ascending, of the k largest |gradient| where `allowed`.

    The gradient is formed a few output channels at a time, and of each only what can still be among
    the k largest is kept. Of equal entries, those with the lower index. NaN ranks lowest.

    Args:
        recorder: what its layer saw.
        allowed: bool, of the weight's shape.
        k: at most the number of allowed entries.
        process_group: processes whose gradients add up; all of them call this.
    """
    layer = recorder.layer
    row = allowed[0].numel()
    rows = max(1, BLOCK // max(row, 1))
    slices = _linear_slices if allowed.dim() == 2 else _conv_slices
    values = torch.empty(0, device=allowed.device)
    indices = torch.empty(0, dtype=torch.int64, device=allowed.device)
    for first, gradient in slices(layer, recorder.passes, rows):
        if process_group is not None:
            gradient = gradient.contiguous()
            torch.distributed.all_reduce(gradient, group=process_group)
        here = allowed[first : first + len(gradient)].reshape(-1)
        scores = gradient.abs().nan_to_num_(-1.0, float("inf")).reshape(-1)
        at = torch.where(here, scores, -2.0)
        at = (keep_largest(at, min(k, at.numel())) & here).nonzero()[:, 0]
        values = torch.cat([values.to(scores.dtype), scores[at]])
        indices = torch.cat([indices, at + first * row])
        best = keep_largest(values, k)  # earlier rows come first, so ties keep the lower index
        values, indices = values[best], indices[best]
    return indices
