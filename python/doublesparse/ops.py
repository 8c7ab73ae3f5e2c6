"""Raw operators on plain tensors: allocate results with torch, call the checked kernels.

Shape names: ``n_sites``, ``c_in``, ``c_out``, ``n_offsets`` (kernel volume, row-major), ``n_src``
and ``n_dst`` rows. Features are float32, float64, bfloat16 or float16; 16-bit values are summed in
float32 and the sum is rounded once. Every result has the same bits for any number of threads
(``torch.set_num_threads``). Nothing here knows autograd: see ``_autograd.py``. Where a graph is
traced (``torch.compile``, ``torch.export``), the calls become the operators
``torch.ops.doublesparse.*`` of ``_library.py``, which do; otherwise they go straight to the
kernels: those of the CPU here, for CUDA tensors by way of ``_gpu_ops.py``.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from . import _C, _gpu_ops
from ._checks import check_keys_fit, check_mask
from ._kept import DENSE_SHARE, kept_lists, masked
from ._pairs import Lists as Lists
from ._pairs import Pairs as Pairs
from ._scratch import scratch
from ._spmm_ops import Tiles as Tiles
from ._spmm_ops import sddmm as sddmm
from ._spmm_ops import spmm as spmm
from ._tile_ops import TileBlocks as TileBlocks
from ._tile_ops import tile_blocks as tile_blocks
from ._tile_ops import tile_conv as tile_conv
from ._tile_ops import tile_spmm as tile_spmm
from ._torch_compat import traced
from ._window_ops import add_rows as add_rows
from ._window_ops import every_tap as every_tap
from ._window_ops import ground_taps as ground_taps
from ._window_ops import invert_rows as invert_rows
from ._window_ops import join_rows as join_rows
from ._window_ops import scatter_rows as scatter_rows
from ._window_ops import segment_sum as segment_sum
from ._window_ops import segment_sum_sq as segment_sum_sq
from ._window_ops import window_max as window_max
from ._window_ops import window_max_grad as window_max_grad
from ._window_ops import window_sum as window_sum
from ._window_ops import window_table as window_table

Ints = tuple[int, ...]

_HALF = (torch.bfloat16, torch.float16)
_GROUP_ROWS = 32  # output rows that share their matrix tiles


def linear_keys(coords: Tensor, shape: Ints) -> Tensor:
    """Row-major linear key of every site: int64 (n_sites,) of int32 coords (n_sites, 1 + D)."""
    if traced(coords):
        return torch.ops.doublesparse.linear_keys(coords, shape)
    if coords.is_cuda:
        return _gpu_ops.linear_keys(coords, shape)
    keys = torch.empty(len(coords), dtype=torch.int64, device="cpu")
    _C.coords_to_keys(coords, shape, keys, torch.get_num_threads())
    return keys


def coords_of_keys(keys: Tensor, shape: Ints) -> Tensor:
    """The inverse of ``linear_keys``: int32 (n_sites, 1 + D)."""
    if traced(keys):
        return torch.ops.doublesparse.coords_of_keys(keys, shape)
    if keys.is_cuda:
        return _gpu_ops.coords_of_keys(keys, shape)
    coords = torch.empty(len(keys), 1 + len(shape), dtype=torch.int32, device="cpu")
    _C.keys_to_coords(keys, shape, coords, torch.get_num_threads())
    return coords


def build_pairs(
    query_coords: Tensor,
    target_coords: Tensor,
    target_shape: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    symmetric: bool = False,
) -> Pairs:
    """All (query row, target row) with target position = query * stride - padding + tap * dilation.

    Args:
        query_coords: int32 (n_query, 1 + D), sorted: the output sites of a convolution, the input
            sites of a transposed one.
        target_coords: int32 (n_target, 1 + D), sorted.
        target_shape: extents of the target's grid.
        kernel: extents of the kernel, per axis.
        stride: per axis.
        padding: on the left, per axis.
        dilation: per axis.
        symmetric: submanifold: one site list, odd kernel, centred, stride 1.

    Returns:
        Pairs with the query as source and the target as destination.
    """
    walk = (target_shape, kernel, stride, padding, dilation, symmetric)
    if query_coords.is_cuda:
        return cast("Pairs", _gpu_ops.build_pairs(query_coords, target_coords, *walk))
    plan = _C.PairPlan(query_coords, target_coords, *walk)
    threads = torch.get_num_threads()
    workspace = scratch(plan.workspace(), torch.int64)
    offset_start = torch.empty(math.prod(kernel) + 1, dtype=torch.int64, device="cpu")
    n_pairs = plan.count(workspace, offset_start, threads)
    query_rows = torch.empty(n_pairs, dtype=torch.int32, device="cpu")
    target_rows = torch.empty(n_pairs, dtype=torch.int32, device="cpu")
    return plan.fill(query_rows, target_rows, threads)


def output_coords(
    coords: Tensor,
    in_shape: Ints,
    out_shape: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
) -> Tensor:
    """All output sites that read an active site: int32 (n_out, 1 + D), sorted, unique.

    ``o * stride - padding + t * dilation == i``; where ``transposed``,
    ``o == i * stride - padding + t * dilation``. The union separates over the axes: one merge of
    ``kernel[a]`` sorted lists per axis, on a grid that is the output's from that axis on.

    Raises:
        ValueError: the linear keys of such a grid do not fit int64.
    """
    if traced(coords):
        return torch.ops.doublesparse.output_coords(
            coords, in_shape, out_shape, kernel, stride, padding, dilation, transposed
        )
    if coords.is_cuda:
        return _gpu_ops.output_coords(
            coords, in_shape, out_shape, kernel, stride, padding, dilation, transposed
        )
    if len(coords) == 0 or 0 in out_shape:
        return coords.new_empty(0, coords.shape[1])
    check_keys_fit(in_shape, out_shape, int(coords[-1, 0]) + 1)
    keys = linear_keys(coords, in_shape)
    shape = list(in_shape)
    for a in reversed(range(len(shape))):
        walk = (kernel[a], stride[a], padding[a], dilation[a], transposed)
        axis = (shape[a], out_shape[a], math.prod(shape[a + 1 :]), *walk)
        fan_out = _C.axis_fan_out(kernel[a], stride[a], dilation[a], transposed)
        workspace = scratch(_C.axis_workspace(len(keys), kernel[a]), torch.int64)
        out = torch.empty(len(keys) * fan_out, dtype=torch.int64, device="cpu")
        keys = out[: _C.dilate_axis(keys, *axis, workspace, out)]
        shape[a] = out_shape[a]
    return coords_of_keys(keys, tuple(shape))


def pack_weight(weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """A weight in the order that ``conv`` reads it, to be kept where it does not change: 1-D.

    Args:
        weight: as of ``conv``.
        groups: as of ``conv``.
        transposed: as of ``conv``.
    """
    if weight.is_cuda:
        return _gpu_ops.pack_weight(weight, groups, transposed)
    c_in, c_out = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        c_in, c_out = c_out, c_in
    size = _C.packed_size(weight.dtype == torch.float64, c_in, c_out, weight.shape[2], groups)
    packed = weight.new_empty(size)
    _C.conv_pack(weight, c_in, c_out, groups, transposed, packed, torch.get_num_threads())
    return packed


def conv(
    x: Tensor,
    weight: Tensor,
    pairs: Pairs,
    n_dst: int,
    bias: Tensor | None = None,
    groups: int = 1,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
    transposed: bool = False,
    packed: Tensor | None = None,
) -> Tensor:
    """``y[dst] = bias + sum of the row's u + sum over pairs of x[src] . W_k``: (n_dst, c_out).

    Args:
        x: (n_src, c_in).
        weight: (c_out, c_in / groups, n_offsets); where ``transposed`` (c_in, c_out / groups,
            n_offsets), which makes the same call an input gradient (with ``pairs.reversed()``) or a
            transposed convolution in torch's layout. Its last two dimensions may be swapped in
            memory (channels-last).
        pairs: joins rows of x to rows of y.
        n_dst: rows of the result.
        bias: (c_out,) or None; of 16-bit features float32 or their dtype, and so u.
        groups: divides both channel counts.
        u: (n_u, c_out) or None: rows ``u_rows[u_start[i] : u_start[i + 1]]`` are added to row i.
        u_start: int64 (n_dst + 1,).
        u_rows: int32.
        transposed: see ``weight``.
        packed: ``pack_weight`` of the weight, of which then only the shape is read; a traced
            graph reads the weight.
    """
    if traced(x):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        sums = (n_dst, bias, groups, u, u_start, u_rows, transposed)
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return torch.ops.doublesparse.conv(x, weight, *lists, *sums)
        with torch.autocast(device, enabled=False):  # raw operators take operands as they are
            return torch.ops.doublesparse.conv(x, weight, *lists, *sums)
    if x.is_cuda:
        given = (bias, groups, u, u_start, u_rows, transposed, packed)
        return _gpu_ops.conv(x, weight, pairs, n_dst, *given)
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    y = x.new_empty(n_dst, c_out)
    threads = torch.get_num_threads()
    if packed is not None:
        _C.conv(x, None, bias, u, u_start, u_rows, pairs, groups, transposed, packed, y, threads)
        return y
    wide = x.dtype
    if wide in _HALF:
        wide = torch.float32
        bias = bias.float() if bias is not None and bias.dtype == x.dtype else bias
        u = u.float() if u is not None and u.dtype == x.dtype else u
        if _C.takes_row_groups(x, c_out, groups) and not _C.has_row_groups(pairs, n_dst):
            _group_rows(pairs, n_dst, threads)
    workspace = scratch(_C.conv_workspace(x, c_out, pairs.n_offsets, groups, n_dst), wide)
    _C.conv(x, weight, bias, u, u_start, u_rows, pairs, groups, transposed, workspace, y, threads)
    return y


def _group_rows(pairs: Pairs, n_dst: int, threads: int) -> None:
    """Puts rows that read the same offsets together, for matrix tiles; kept with the pairs."""
    table = window_table(pairs, n_dst)
    n_groups = -(-n_dst // _GROUP_ROWS)
    order = torch.empty(n_groups * _GROUP_ROWS, dtype=torch.int32, device="cpu")
    start = torch.empty(n_groups + 1, dtype=torch.int64, device="cpu")
    keys = torch.empty(n_dst, dtype=torch.int64, device="cpu")
    n_entries = _C.plan_row_groups(pairs, table, keys, order, start, threads)
    taps = torch.empty(n_entries, dtype=torch.int32, device="cpu")
    rows = torch.empty(n_entries, _GROUP_ROWS, dtype=torch.int32, device="cpu")
    _C.fill_row_groups(pairs, table, order, start, taps, rows, threads)


def conv_input_grad(
    dy: Tensor, weight: Tensor, pairs: Pairs, n_src: int, groups: int = 1
) -> Tensor:
    """``dx[src] = sum over pairs of dy[dst] . W_k^T``: (n_src, c_in), the forward's arguments."""
    if traced(dy):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        return torch.ops.doublesparse.conv_input_grad(dy, weight, *lists, n_src, groups)
    if dy.is_cuda:
        return _gpu_ops.conv_input_grad(dy, weight, pairs, n_src, groups)
    return conv(dy, weight, pairs.reversed(), n_src, groups=groups, transposed=True)


def conv_weight_grad(x: Tensor, dy: Tensor, pairs: Pairs, groups: int = 1) -> Tensor:
    """``dw[:, :, k] = sum of dy[dst]^T x[src] over pairs``: (c_out, c_in / groups, n_offsets)."""
    if traced(x):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        return torch.ops.doublesparse.conv_weight_grad(x, dy, *lists, groups)
    if x.is_cuda:
        return _gpu_ops.conv_weight_grad(x, dy, pairs, groups)
    c_in, c_out = x.shape[1], dy.shape[1]
    dw = x.new_empty(c_out, c_in // groups, pairs.n_offsets)
    size = _C.conv_weight_grad_workspace(x, dy, pairs, groups)
    workspace = scratch(size, torch.float32 if x.dtype in _HALF else x.dtype)
    _C.conv_weight_grad(x, dy, pairs, groups, workspace, dw, torch.get_num_threads())
    return dw


# ------------------------------------------------------------------ pruned weights
def pack_masked_weight(
    weight: Tensor, mask: Tensor, groups: int = 1, transposed: bool = False
) -> Tensor:
    """`pack_weight` for `masked_conv`: the kept weights alone, where lists of them are used."""
    if weight.is_cuda:
        return _gpu_ops.pack_masked_weight(weight, mask, groups, transposed)
    lists = kept_lists(mask, groups, transposed, weight.dtype)
    if lists.share > DENSE_SHARE:
        return pack_weight(masked(weight, mask).contiguous(), groups, transposed)
    values = weight.new_empty(lists.n_values)
    _C.kept_pack(lists, weight, values, torch.get_num_threads())
    return values


def masked_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    pairs: Pairs,
    n_dst: int,
    bias: Tensor | None = None,
    groups: int = 1,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
    transposed: bool = False,
    packed: Tensor | None = None,
) -> Tensor:
    """`conv` of a pruned weight: the work is that of what the mask keeps.

    Kernel offsets, and (channel, panel of output channels) pieces that keep nothing, are skipped. A
    panel is one or two vectors of output channels, whichever leaves less work. The result has the
    bits of `conv` with `torch.where(mask, weight, 0)`, except the sign of a zero, and that a
    feature which is not finite is not multiplied by all pruned weights.

    Args:
        x: (n_src, c_in).
        weight: as of `conv`; what it holds where the mask is False is never used.
        mask: bool, of the weight's shape, or with its kernel's own axes.
        pairs: as of `conv`, and so what follows.
        n_dst: rows of the result.
        bias: (c_out,) or None.
        groups: divides both channel counts.
        u: (n_u, c_out) or None.
        u_start: int64 (n_dst + 1,).
        u_rows: int32.
        transposed: the layout of the weight.
        packed: `pack_masked_weight` of the weight.
    """
    if traced(x):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        sums = (n_dst, bias, groups, u, u_start, u_rows, transposed)
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return torch.ops.doublesparse.masked_conv(x, weight, mask, *lists, *sums)
        with torch.autocast(device, enabled=False):  # raw operators take operands as they are
            return torch.ops.doublesparse.masked_conv(x, weight, mask, *lists, *sums)
    if x.is_cuda:
        sums = (n_dst, bias, groups, u, u_start, u_rows, transposed)
        return _gpu_ops.masked_conv(x, weight, mask, pairs, *sums, packed)
    check_mask("masked_conv", mask, weight.shape, weight.device)
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    on_tiles = x.dtype in _HALF and _C.takes_row_groups(x, c_out, groups)
    kept = kept_lists(mask, groups, transposed, x.dtype)
    if on_tiles or kept.share > DENSE_SHARE:
        weight = masked(weight, mask).contiguous() if packed is None else weight
        return conv(
            x, weight, pairs, n_dst, bias, groups, u, u_start, u_rows, transposed, packed
        )
    if x.dtype in _HALF:
        bias, u = (t if t is None else t.float() for t in (bias, u))
        rest = (bias, groups, u, u_start, u_rows, transposed)
        return masked_conv(x.float(), weight.float(), mask, pairs, n_dst, *rest).to(x.dtype)
    threads = torch.get_num_threads()
    if packed is None:
        packed = scratch(kept.n_values, x.dtype)
        _C.kept_pack(kept, weight, packed, threads)
    y = x.new_empty(n_dst, c_out)
    _C.kept_conv(x, kept, packed, bias, u, u_start, u_rows, pairs, y, threads)
    return y


def masked_conv_input_grad(
    dy: Tensor, weight: Tensor, mask: Tensor, pairs: Pairs, n_src: int, groups: int = 1
) -> Tensor:
    """`conv_input_grad` of a pruned weight, with the forward's arguments."""
    if traced(dy):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        return torch.ops.doublesparse.masked_conv_input_grad(
            dy, weight, mask, *lists, n_src, groups
        )
    if dy.is_cuda:
        return _gpu_ops.masked_conv_input_grad(dy, weight, mask, pairs, n_src, groups)
    return masked_conv(
        dy, weight, mask, pairs.reversed(), n_src, groups=groups, transposed=True
    )


def masked_conv_weight_grad(
    x: Tensor, dy: Tensor, mask: Tensor, pairs: Pairs, groups: int = 1
) -> Tensor:
    """`conv_weight_grad` where the mask keeps the weight, exactly zero elsewhere.

    Args:
        x: (n_src, c_in).
        dy: (n_dst, c_out).
        mask: bool, (c_out, c_in / groups, n_offsets), or with the kernel's own axes.
        pairs: as of the forward.
        groups: divides both channel counts.
    """
    if traced(x):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        return torch.ops.doublesparse.masked_conv_weight_grad(x, dy, mask, *lists, groups)
    if x.is_cuda:
        return _gpu_ops.masked_conv_weight_grad(x, dy, mask, pairs, groups)
    shape = (dy.shape[1], x.shape[1] // groups, pairs.n_offsets)
    check_mask("masked_conv_weight_grad", mask, shape, x.device)
    kept = kept_lists(mask, groups, False, x.dtype)
    on_tiles = x.dtype in _HALF and _C.takes_row_groups(x, dy.shape[1], groups)
    if on_tiles or kept.share > DENSE_SHARE:
        return masked(conv_weight_grad(x, dy, pairs, groups), mask)
    if x.dtype in _HALF:
        return masked_conv_weight_grad(x.float(), dy.float(), mask, pairs, groups).to(x.dtype)
    dw = x.new_empty(shape)
    workspace = scratch(_C.kept_weight_grad_workspace(kept, pairs, dy.shape[0]), x.dtype)
    threads = torch.get_num_threads()
    _C.kept_weight_grad(x, dy, pairs, kept, workspace, dw, threads)
    return dw
