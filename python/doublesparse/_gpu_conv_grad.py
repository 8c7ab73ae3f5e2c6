"""Weight gradients and depthwise convolutions on a CUDA device: csrc/cuda/conv's front."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._device import gpu
from ._torch_compat import tf32_allowed

_HALF = (torch.bfloat16, torch.float16)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


def conv_weight_grad(x: Tensor, dy: Tensor, pairs: Any, groups: int = 1) -> Tensor:
    """`ops.conv_weight_grad`; float32 on the matrix units where torch's products may be (tf32)."""
    c_in, c_out, n_offsets = x.shape[1], dy.shape[1], pairs.n_offsets
    kernels = gpu()
    size = kernels.conv_weight_grad_workspace(len(dy), c_in, c_out, n_offsets, groups)
    workspace = torch.empty(size, dtype=_sum_type(x.dtype), device=x.device)
    dw = x.new_empty(c_out, c_in // groups, n_offsets)
    table = pairs.table(len(x), len(dy))
    tf32 = tf32_allowed()
    kernels.conv_weight_grad(x, dy, table, groups, tf32, workspace, dw)
    return dw


def depthwise(
    x: Tensor,
    weight: Tensor,
    pairs: Any,
    n_dst: int,
    bias: Tensor | None = None,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
) -> Tensor:
    """`ops.conv` where groups = c_in = c_out: the weight is (channels, 1, n_offsets).

    It has this shape in both layouts of `conv`, so an input gradient is the same call, with
    ``pairs.reversed()``.
    """
    wide = _sum_type(x.dtype)
    bias, u = (t.to(wide) if t is not None and t.dtype == x.dtype else t for t in (bias, u))
    y = x.new_empty(n_dst, x.shape[1])
    by_offset = weight[:, 0].t().contiguous()
    gpu().depthwise(x, by_offset, pairs.table(len(x), n_dst), bias, u, u_start, u_rows, y)
    return y
