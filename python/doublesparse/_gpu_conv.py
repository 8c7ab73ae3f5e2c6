"""Sparse convolutions on a CUDA device: the front of csrc/cuda/conv."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._device import gpu
from ._gpu_conv_grad import depthwise
from ._torch_compat import tf32_allowed

_HALF = (torch.bfloat16, torch.float16)
_PLAN_ROWS = 32  # sorted rows that share a mask


class _RowPlan(NamedTuple):
    order: Tensor
    masks: Tensor


def pack_weight(weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """`ops.pack_weight`."""
    if _is_depthwise(weight, groups):
        return weight.reshape(-1).clone()
    packed = weight.new_empty(gpu().conv_packed_size(weight, groups, transposed))
    gpu().conv_pack(weight, groups, transposed, packed)
    return packed


def conv(
    x: Tensor,
    weight: Tensor,
    pairs: Any,
    n_dst: int,
    bias: Tensor | None = None,
    groups: int = 1,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
    transposed: bool = False,
    packed: Tensor | None = None,
) -> Tensor:
    """`ops.conv`; float32 on the matrix units where torch's products may be (tf32)."""
    _check_weight(x, weight, pairs.n_offsets, groups, transposed)
    if _is_depthwise(weight, groups):
        kept = weight if packed is None else packed.view(weight.shape)
        return depthwise(x, kept, pairs, n_dst, bias, u, u_start, u_rows)
    if packed is None:
        packed = pack_weight(weight, groups, transposed)
    if x.dtype in _HALF:
        bias = bias.float() if bias is not None and bias.dtype == x.dtype else bias
        u = u.float() if u is not None and u.dtype == x.dtype else u
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    table = pairs.table(len(x), n_dst)
    order, masks = _row_plan(pairs, table, len(x))
    y = x.new_empty(n_dst, c_out)
    tf32 = tf32_allowed()
    gpu().conv(x, packed, bias, u, u_start, u_rows, table, order, masks, groups, tf32, y)
    return y


def conv_input_grad(dy: Tensor, weight: Tensor, pairs: Any, n_src: int, groups: int = 1) -> Tensor:
    """`ops.conv_input_grad`."""
    return conv(dy, weight, pairs.reversed(), n_src, groups=groups, transposed=True)


def _check_weight(x: Tensor, weight: Tensor, n_offsets: int, groups: int, transposed: bool) -> None:
    """What the size of a packed weight does not tell, as it is padded."""
    if groups < 1 or x.shape[-1] % groups:
        return  # which the kernel says
    c_in, axis = (x.shape[-1], 0) if transposed else (x.shape[-1] // groups, 1)
    if weight.ndim != 3 or weight.shape[axis] != c_in or weight.shape[2] != n_offsets:
        shape = ["any", "any", str(n_offsets)]
        shape[axis] = str(c_in)
        raise ValueError(
            f"conv: weight must be ({', '.join(shape)}), got {tuple(weight.shape)}; pass the "
            "weight of this kernel"
        )


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    """One channel in and out of each group: no matrix product, and the same in both layouts."""
    return groups > 1 and weight.shape[0] == groups and weight.shape[1] == 1


def _row_plan(pairs: Any, table: Tensor, n_src: int) -> _RowPlan:
    """Rows with the same neighbours together, for tiles; kept with the pairs."""
    n_offsets, n_dst = table.shape
    key = ("row plan", n_src, n_dst)
    plan = pairs.memo.get(key)
    if plan is None:
        order = table.new_empty(n_dst)
        masks = table.new_empty(-(-n_dst // _PLAN_ROWS), -(-n_offsets // 32))
        keys = table.new_empty(2, n_dst, dtype=torch.int64)
        workspace = keys.new_empty(-(-gpu().algorithm_workspace(table, n_dst) // 8))
        gpu().conv_plan(table, keys, table.new_empty(n_dst), workspace, order, masks)
        plan = _RowPlan(order, masks)
        pairs.remember(key, plan, table.device)
    return plan
