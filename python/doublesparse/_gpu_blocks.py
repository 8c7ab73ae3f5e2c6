"""Half-precision weights that keep whole blocks, on a CUDA device: csrc/cuda/spmm/block_spmm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._device import gpu
from ._gpu_bitmap import check_product, check_weight, in_16_bytes, padded

SIZES = (32, 64, 128)
"""Of blocks."""


@dataclass(frozen=True)
class Lines:
    """The blocks along one axis of the matrix, in order.

    Attributes:
        starts: int32 (n_lines + 1,), where a line's blocks begin in the others.
        inner: int32 (n_blocks,), the number of a block along the other axis, ascending.
        order: int32 (n_blocks,), which of the stored blocks it is.
    """

    starts: Tensor
    inner: Tensor
    order: Tensor

    @classmethod
    def of(cls, keep: Tensor, number: Tensor) -> Lines:
        """Of a mask of blocks, and the numbers of those kept; both (n_lines, n_inner)."""
        starts = torch.zeros(len(keep) + 1, dtype=torch.int64, device=keep.device)
        torch.cumsum(keep.sum(1), 0, out=starts[1:])
        return cls(starts.int(), keep.nonzero()[:, 1].int(), number[keep].int())


@dataclass(frozen=True)
class BlockWeight:
    """A pruned matrix that keeps whole blocks.

    Attributes:
        blocks: bfloat16 or float16 (n_blocks, size, size), row by row of blocks; zeros where the
            last ones stick out.
        rows: the blocks of each row of blocks.
        n_rows: of the matrix.
        n_columns: of the matrix.
    """

    blocks: Tensor
    rows: Lines
    n_rows: int
    n_columns: int

    @classmethod
    def pack(cls, weight: Tensor, mask: Tensor | None = None, size: int = 64) -> BlockWeight:
        """Take the blocks out of a matrix of which any weight is kept.

        Args:
            weight: (n_rows, n_columns), bfloat16 or float16.
            mask: bool of the same shape, True where a weight is kept; None keeps what is not 0.
                A kept block has zeros where the mask is False.
            size: 32, 64 or 128.

        Returns:
            on the device of the weight; no gradient goes through it.

        Raises:
            TypeError: a wrong dtype.
            ValueError: shapes that do not fit, or another size.
        """
        if size not in SIZES:
            raise ValueError(
                f"BlockWeight.pack: size must be one of {SIZES}, got {size}; use BitmapWeight"
            )
        weight = weight.detach()
        mask = weight != 0 if mask is None else mask
        check_weight("BlockWeight.pack", weight, mask)
        matrix = padded(torch.where(mask, weight, 0), size, size)
        rows, columns = matrix.shape[0] // size, matrix.shape[1] // size
        keep = padded(mask, size, size).reshape(rows, size, columns, size).any(3).any(1)
        number = (torch.cumsum(keep.flatten(), 0) - 1).view(keep.shape)
        blocks = matrix.reshape(rows, size, columns, size).transpose(1, 2)[keep]
        n_rows, n_columns = weight.shape
        return cls(blocks.contiguous(), Lines.of(keep, number), n_rows, n_columns)

    @property
    def size(self) -> int:
        """Rows and columns of a block."""
        return self.blocks.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of what products read."""
        rows = self.rows
        tensors = (self.blocks, rows.starts, rows.inner, rows.order)
        return sum(t.numel() * t.element_size() for t in tensors)

    @cached_property
    def columns(self) -> Lines:
        """The blocks of each column of blocks, for the product with the transpose."""
        line, inner = self._cells()
        number = torch.zeros(self._grid, dtype=torch.int64, device=line.device)
        number[line, inner] = torch.arange(len(line), device=line.device)
        return Lines.of(self._keep().t().contiguous(), number.t().contiguous())

    def unpack(self) -> Tensor:
        """The matrix, zeros where nothing is kept."""
        (rows, columns), size = self._grid, self.size
        cells = self.blocks.new_zeros(rows, columns, size, size)
        cells[self._cells()] = self.blocks
        matrix = cells.transpose(1, 2).reshape(rows * size, columns * size)
        return matrix[: self.n_rows, : self.n_columns].contiguous()

    @property
    def _grid(self) -> tuple[int, int]:
        return -(-self.n_rows // self.size), -(-self.n_columns // self.size)

    def _cells(self) -> tuple[Tensor, Tensor]:
        """Row and column of each stored block."""
        lines = torch.arange(len(self.rows.starts) - 1, device=self.blocks.device)
        return torch.repeat_interleave(lines, self.rows.starts.diff()), self.rows.inner.long()

    def _keep(self) -> Tensor:
        keep = torch.zeros(self._grid, dtype=torch.bool, device=self.blocks.device)
        keep[self._cells()] = True
        return keep


def block_spmm(x: Tensor, packed: BlockWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias``. Of x, only what meets a kept block is looked at.

    Args:
        x: (m, n_columns), the dtype of the blocks.
        packed: W (n_rows, n_columns).
        bias: (n_rows,), or None; added before rounding.

    Returns:
        (m, n_rows), the dtype of x; sums are float32, the same in every run.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    check_product("block_spmm", "x", x, packed.blocks.dtype, packed.n_columns)
    return _product(x, packed, packed.rows, packed.n_rows, bias)


def block_spmm_t(dy: Tensor, packed: BlockWeight) -> Tensor:
    """``dy @ W``: what `block_spmm` does to the gradient of its input.

    Args:
        dy: (m, n_rows), the dtype of the blocks.
        packed: W (n_rows, n_columns).

    Returns:
        (m, n_columns), as of `block_spmm`.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    check_product("block_spmm_t", "dy", dy, packed.blocks.dtype, packed.n_rows)
    return _product(dy, packed, packed.columns, packed.n_columns, None)


def _product(
    x: Tensor, packed: BlockWeight, lines: Lines, n_outer: int, bias: Tensor | None
) -> Tensor:
    y = x.new_empty(len(x), n_outer)
    bias = bias if bias is None else bias.float()
    x, transposed = in_16_bytes(x), lines is not packed.rows
    gpu().block_spmm(x, packed.blocks, lines.starts, lines.inner, lines.order, bias, transposed, y)
    return y
