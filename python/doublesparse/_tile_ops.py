"""Pruned bfloat16 weights on matrix tiles: packing, products with matrices, convolutions.

The front of `ops` for csrc/cpu/spmm/tile_*. Fast where the processor has AMX; right everywhere. A
weight is its matrix view (n_out, n_in), cut into blocks of 32 x 32 of which those that hold a kept
value are stored. Inside a stored block pruned values count as zeros, elsewhere they meet nothing:
an input that is not finite reaches the outputs whose blocks read it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _C
from ._scratch import scratch
from ._torch_compat import traced

TileBlocks = _C.TileBlocks
"""``TileBlocks(start, columns, place, masks, values, n_out, n_in)``, checked once.

What `tile_blocks` makes; its tensors must not be written to afterwards.
"""

Ints = tuple[int, ...]

_BLOCK = 32  # outputs and inputs of a block
_HALF = 16  # rows of a tile
_MOST_ROWS = 2**31 - 1


def whole_blocks(n: int) -> int:
    """`n` rounded up to whole blocks of 32."""
    return -(-n // _BLOCK) * _BLOCK


def tile_blocks(
    row_start: Tensor, columns: Tensor, values: Tensor, n_in: int, channels: int | None = None
) -> _C.TileBlocks:
    """A weight in CSR as the blocks that `tile_spmm` and `tile_conv` read.

    Args:
        row_start: int64 (n_out + 1,), ascending from 0 to n_kept.
        columns: int32 (n_kept,), in [0, n_in), strictly ascending within a row.
        values: bfloat16, or float32 to be rounded: (n_kept,).
        n_in: columns of the matrix.
        channels: of a convolution, whose column is ``offset * channels + channel``: every offset
            then starts a new block, as `tile_conv` needs it (``n_in`` of the result grows where 32
            does not divide them).

    Raises:
        ValueError: columns do not ascend or are out of range, `channels` does not divide `n_in`.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> from doublesparse import ops
        >>> row_start = torch.tensor([0, 1, 3])  # [[0, 2, 0], [1, 0, 4]]
        >>> columns = torch.tensor([1, 0, 2], dtype=torch.int32)
        >>> blocks = ops.tile_blocks(row_start, columns, torch.tensor([2.0, 1.0, 4.0]), 3)
        >>> ops.tile_spmm(torch.ones(2, 3, dtype=torch.bfloat16), blocks).tolist()
        [[2.0, 5.0], [2.0, 5.0]]
    """
    if channels is not None and (channels < 1 or n_in % channels):
        raise ValueError(
            f"tile_blocks: channels must divide n_in = {n_in}, got {channels}; pass the input "
            "channels of one group"
        )
    if channels is not None and channels % _BLOCK:
        padded = whole_blocks(channels)
        n_in = n_in // channels * padded
        columns = columns + (columns // channels) * (padded - channels)
    threads = torch.get_num_threads()
    n_rows = -(-(len(row_start) - 1) // _BLOCK)
    n_columns = -(-n_in // _BLOCK)
    counts = torch.empty(max(n_rows, 0), max(n_columns, 0), dtype=torch.int32, device="cpu")
    start = torch.empty(max(n_rows, 0) + 1, dtype=torch.int64, device="cpu")
    n_blocks, n_values = _C.plan_tile_blocks(row_start, columns, n_in, counts, start, threads)
    into = (
        torch.empty(n_blocks, dtype=torch.int32, device="cpu"),
        torch.empty(n_blocks, dtype=torch.int64, device="cpu"),
        torch.empty(n_blocks, _BLOCK, dtype=torch.int32, device="cpu"),
        torch.empty(n_values, dtype=torch.bfloat16, device="cpu"),
    )
    _C.fill_tile_blocks(row_start, columns, values, n_in, counts, start, *into, threads)
    return TileBlocks(start, *into, len(row_start) - 1, n_in)


def _tensors(blocks: _C.TileBlocks) -> tuple[Tensor, ...]:
    return blocks.start, blocks.columns, blocks.place, blocks.masks, blocks.values


def _float_bias(bias: Tensor | None) -> Tensor | None:
    return bias.float() if bias is not None and bias.dtype == torch.bfloat16 else bias


def tile_spmm(x: Tensor, blocks: _C.TileBlocks, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias``, summed in float32 and rounded once: bfloat16 (n_rows, n_out).

    Args:
        x: bfloat16 (n_rows, n_in), contiguous.
        blocks: `tile_blocks` of W (n_out, n_in); of W^T it is the input gradient.
        bias: (n_out,) float32 or bfloat16, or None.

    Raises:
        TypeError: x is not bfloat16.
        ValueError: a shape does not fit.
    """
    if traced(x):
        return torch.ops.doublesparse.tile_spmm(x, *_tensors(blocks), blocks.n_out, bias)
    if x.dim() != 2:
        raise ValueError(f"tile_spmm: x must be (n_rows, n_in), got {tuple(x.shape)}")
    y = x.new_empty(x.shape[0], blocks.n_out)
    workspace = scratch(_C.tile_spmm_workspace(x.shape[0], blocks.n_in), torch.bfloat16)
    threads = torch.get_num_threads()
    _C.tile_spmm(x, blocks, _float_bias(bias), workspace, y, threads)
    return y


# ------------------------------------------------------------------ convolution
class ConvRows(NamedTuple):
    """Where the tiles of a convolution lie in a padded, channels-last image, flat in memory."""

    half_start: Tensor  # int64 (n_halves,): first value of 16 rows
    block_start: Tensor  # int64 (n_block_columns,): what a column of blocks adds to that
    out_rows: Tensor  # int32 (n_halves, 16): the output of each row, or -1
    row_stride: int  # values from row to row
    size: int  # values of the image and what tiles read past its end


def padded_extents(spatial: Ints, padding: Ints) -> Ints:
    """Extents of the image with `padding` on both sides."""
    return tuple(n + 2 * p for n, p in zip(spatial, padding, strict=True))


def out_extents(
    spatial: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> list[int]:
    """Extents of a convolution's output."""
    return [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(
            padded_extents(spatial, padding), kernel, stride, dilation, strict=True
        )
    ]


def _positions(extents: Ints, steps: Ints, inner: Ints) -> np.ndarray:
    """Flat positions of all tuples of indices, row-major."""
    at = np.zeros(1, np.int64)
    for n, step, size in zip(extents, steps, inner, strict=True):
        at = (at[:, None] + np.arange(n, dtype=np.int64) * (step * size)).reshape(-1)
    return at


@functools.lru_cache(maxsize=64)
def conv_rows(
    batch: int,
    spatial: Ints,
    channels: int,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> ConvRows:
    """Tiles of 16 outputs whose inputs lie at one distance from each other.

    With stride 1 along the last axis a tile runs over the end of an image row into the next one:
    the outputs that do not exist between them are computed and dropped, 2 of 16 for 3 x 3 on 14
    columns.

    Args:
        batch: number of images.
        spatial: extents of an image, without padding.
        channels: of the padded image: a multiple of 32.
        kernel: extents of the kernel, per axis.
        stride: per axis.
        padding: per axis, on both sides.
        dilation: per axis.
    """
    padded = padded_extents(spatial, padding)
    inner = tuple(math.prod(padded[a + 1 :]) for a in range(len(padded)))
    out = out_extents(spatial, kernel, stride, padding, dilation)
    at = _positions((batch, *out), (1, *stride), (math.prod(padded), *inner))
    step, n = stride[-1], len(at)
    # The outputs from i on that one tile holds: up to `after[i]`.
    jumps = np.flatnonzero(np.diff(at) % step) + 1
    ends = np.append(jumps, n)[np.searchsorted(jumps, np.arange(n), side="right")]
    after = np.minimum(np.searchsorted(at, at + _HALF * step), ends).tolist()
    first, i = [], 0
    while i < n:
        first.append(i)
        i = after[i]
    starts = np.array(first, np.int64)
    tile = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n)))
    out_rows = np.full((len(starts), _HALF), -1, np.int32)
    out_rows[tile, (at - at[starts[tile]]) // step] = np.arange(n, dtype=np.int32)
    taps = _positions(kernel, dilation, inner) * channels
    blocks = (taps[:, None] + np.arange(0, channels, _BLOCK)).reshape(-1)
    half_start = at[starts] * channels
    row_stride = step * channels
    reach = (_HALF - 1) * row_stride + int(blocks.max()) + _BLOCK
    size = max(batch * math.prod(padded) * channels, int(half_start.max(initial=0)) + reach)
    return ConvRows(
        torch.from_numpy(half_start),
        torch.from_numpy(blocks),
        torch.from_numpy(out_rows),
        row_stride,
        size,
    )


def _padded_image(x: Tensor, padding: Ints, channels: int, size: int) -> Tensor:
    """`x` with its channels last, zeros around it and behind its channels: flat, `size` values."""
    batch, c_in, *spatial = x.shape
    padded = padded_extents(tuple(spatial), padding)
    flat = scratch(size, torch.bfloat16)
    image = flat[: batch * math.prod(padded) * channels].view(batch, *padded, channels)
    inside = image
    for axis, (n, p) in enumerate(zip(spatial, padding, strict=True), 1):
        inside.narrow(axis, 0, p).zero_()
        inside.narrow(axis, n + p, p).zero_()
        inside = inside.narrow(axis, p, n)
    inside[..., c_in:].zero_()
    inside[..., :c_in].copy_(x.detach().movedim(1, -1))
    return flat


def _check_geometry(x: Tensor, blocks: _C.TileBlocks, walk: dict[str, Ints]) -> list[int]:
    """Extents of the output; raises what is wrong with a convolution's arguments."""
    n_axes = x.dim() - 2
    if x.dtype != torch.bfloat16:
        raise TypeError(f"tile_conv: x must be bfloat16, got {x.dtype}; use x.bfloat16()")
    if n_axes < 1:
        raise ValueError(f"tile_conv: x must be (N, c_in, *spatial), got {tuple(x.shape)}")
    for name, given in walk.items():
        least = 0 if name == "padding" else 1
        if len(given) != n_axes or min(given) < least:
            raise ValueError(
                f"tile_conv: {name} must be {n_axes} numbers from {least} on, got {given}"
            )
    n_in = math.prod(walk["kernel"]) * whole_blocks(x.shape[1])
    if n_in != blocks.n_in:
        raise ValueError(
            f"tile_conv: blocks must have {n_in} columns for x {tuple(x.shape)}, got "
            f"{blocks.n_in}; use tile_blocks(..., channels={x.shape[1]})"
        )
    out = out_extents(tuple(x.shape[2:]), **walk)
    if min(out) < 1:
        raise ValueError(
            f"tile_conv: kernel {walk['kernel']} must fit into x {tuple(x.shape)}, got an output "
            f"of {tuple(out)}; add padding"
        )
    if x.shape[0] * math.prod(out) > _MOST_ROWS:
        raise ValueError(
            f"tile_conv: outputs must be fewer than 2^31 sites, got {x.shape[0]} x {tuple(out)}; "
            "use a smaller batch"
        )
    return out


def tile_conv(
    x: Tensor,
    blocks: _C.TileBlocks,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bias: Tensor | None = None,
) -> Tensor:
    """Convolution with a pruned weight: bfloat16 (N, n_out, *out), channels last in memory.

    No window is unfolded: a padded channels-last copy of x is read in place, offset by offset.

    Args:
        x: bfloat16 (N, c_in, *spatial), 1 to 6 axes; fastest with channels last.
        blocks: ``tile_blocks(..., channels=c_in)`` of the matrix (n_out, offset * c_in + channel).
        kernel: extents of the kernel, per axis.
        stride: per axis.
        padding: per axis, on both sides.
        dilation: per axis.
        bias: (n_out,) float32 or bfloat16, or None.

    Raises:
        TypeError: x is not bfloat16.
        ValueError: a shape does not fit, or an output has no extent.
    """
    if traced(x):
        return torch.ops.doublesparse.tile_conv(
            x, *_tensors(blocks), blocks.n_out, kernel, stride, padding, dilation, bias
        )
    walk = dict(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    walk = {name: tuple(given) for name, given in walk.items()}
    out = _check_geometry(x, blocks, walk)
    channels = whole_blocks(x.shape[1])
    rows = conv_rows(x.shape[0], tuple(x.shape[2:]), channels, **walk)
    image = _padded_image(x, walk["padding"], channels, rows.size)
    n_rows = x.shape[0] * math.prod(out)
    y = x.new_empty(n_rows, blocks.n_out)
    tables = (rows.half_start, rows.block_start, rows.row_stride, rows.out_rows)
    threads = torch.get_num_threads()
    _C.tile_conv(image, blocks, *tables, _float_bias(bias), y, threads)
    return y.view(x.shape[0], *out, blocks.n_out).movedim(-1, 1)
