"""Pruned half-precision weights on a CUDA device: the front of csrc/cuda/spmm's bitmaps.

The form is made with torch operators on the device where the weight is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ._device import gpu

ROWS, COLUMNS = 64, 128
"""Of a tile."""

_UNIT = 8  # values in 16 bytes
_SUBTILES = 32  # of a strip, 8 x 8 each
_HALVES = (torch.bfloat16, torch.float16)


def padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Filled up to multiples of rows and columns."""
    n_rows, n_columns = matrix.shape
    padding = (0, -n_columns % columns, 0, -n_rows % rows)
    return torch.nn.functional.pad(matrix, padding) if any(padding) else matrix


def check_weight(operation: str, weight: Tensor, mask: Tensor) -> None:
    """Raise where these cannot be packed."""
    if weight.dtype not in _HALVES:
        raise TypeError(
            f"{operation}: weight must be bfloat16 or float16, got {weight.dtype}; convert it"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"{operation}: mask must be bool, got {mask.dtype}; use weight != 0")
    if weight.dim() != 2 or mask.shape != weight.shape:
        raise ValueError(
            f"{operation}: mask must have the shape of a matrix, {tuple(weight.shape)}, got "
            f"{tuple(mask.shape)}; pass the weight's own"
        )


def check_product(operation: str, name: str, x: Tensor, dtype: torch.dtype, size: int) -> None:
    """Raise where a left operand does not go with a matrix of this dtype and inner size."""
    if x.dtype != dtype:
        raise TypeError(
            f"{operation}: {name} must be {dtype} like the weight, got {x.dtype}; convert it"
        )
    if x.dim() != 2 or x.shape[1] != size:
        raise ValueError(
            f"{operation}: {name} must be (m, {size}), got {tuple(x.shape)}; reshape it"
        )


def in_16_bytes(x: Tensor) -> Tensor:
    """Contiguous, with rows of whole 16 bytes that begin at such."""
    if x.shape[1] % _UNIT:
        return padded(x, 1, _UNIT)
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _in_lanes_order(matrix: Tensor) -> Tensor:
    """Tile by tile, in the order in which lanes hold it (csrc/cuda/spmm/bitmap_spmm.h).

    Args:
        matrix: (n_rows, n_columns).

    Returns:
        (n_tiles, 4 strips, 32 sub-tiles, 64); zeros where a tile sticks out.
    """
    matrix = padded(matrix, ROWS, COLUMNS)
    rows, columns = matrix.shape[0] // ROWS, matrix.shape[1] // COLUMNS
    # row tile, strip, row half, row, column tile, step, column half, column
    cells = matrix.reshape(rows, 4, 2, 8, columns, 8, 2, 8).permute(0, 4, 1, 5, 6, 2, 3, 7)
    return cells.reshape(rows * columns, 4, _SUBTILES, 64)


def _from_lanes_order(cells: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """The inverse of `_in_lanes_order`."""
    rows, columns = -(-n_rows // ROWS), -(-n_columns // COLUMNS)
    matrix = cells.reshape(rows, columns, 4, 8, 2, 2, 8, 8).permute(0, 2, 5, 6, 1, 3, 4, 7)
    return matrix.reshape(rows * ROWS, columns * COLUMNS)[:n_rows, :n_columns].contiguous()


@dataclass(frozen=True)
class BitmapWeight:
    """A pruned matrix: a bit per weight, and the kept values. For batches of up to about 64.

    Attributes:
        words: int32 (n_tiles, 256), the bits.
        values: bfloat16 or float16 (n_units, 8).
        starts: int32 (n_tiles + 1,), where a tile's values begin, in units.
        n_rows: of the matrix.
        n_columns: of the matrix.
        most_values: in one tile.
    """

    words: Tensor
    values: Tensor
    starts: Tensor
    n_rows: int
    n_columns: int
    most_values: int

    @classmethod
    def pack(cls, weight: Tensor, mask: Tensor | None = None) -> BitmapWeight:
        """Take the kept weights out of a matrix.

        Args:
            weight: (n_rows, n_columns), bfloat16 or float16.
            mask: bool of the same shape, True where a weight is kept; None keeps what is not 0.

        Returns:
            on the device of the weight; no gradient goes through it.

        Raises:
            TypeError: a wrong dtype.
            ValueError: shapes that do not fit, or 2^34 values and more.
        """
        weight = weight.detach()
        mask = weight != 0 if mask is None else mask
        check_weight("BitmapWeight.pack", weight, mask)
        bits = _in_lanes_order(mask)
        counts = bits.flatten(1).sum(1)
        starts = torch.zeros(len(counts) + 1, dtype=torch.int64, device=weight.device)
        torch.cumsum((counts + _UNIT - 1) // _UNIT, 0, out=starts[1:])
        most = counts.max() if len(counts) else starts[0]
        n_units, most_values = torch.stack((starts[-1], most)).tolist()
        if n_units >= 2**31:
            raise ValueError(
                f"BitmapWeight.pack: weight must keep less than 2^34 values, got {n_units * _UNIT};"
                " split it"
            )
        values = weight.new_zeros(n_units * _UNIT)
        values[_places(bits, counts, starts)] = _in_lanes_order(weight)[bits]
        (n_rows, n_columns), values = weight.shape, values.view(-1, _UNIT)
        return cls(_words(bits), values, starts.int(), n_rows, n_columns, most_values)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in (self.words, self.values, self.starts))

    def mask(self) -> Tensor:
        """Bool (n_rows, n_columns): what is kept."""
        return _from_lanes_order(self._bits(), self.n_rows, self.n_columns)

    def unpack(self) -> Tensor:
        """The matrix, zeros where nothing is kept; the host does not wait."""
        matrix = self.values.new_empty(self.n_rows, self.n_columns)
        gpu().bitmap_unpack(self.words, self.values, self.starts, matrix)
        return matrix

    def _bits(self) -> Tensor:
        shift = torch.arange(32, device=self.words.device, dtype=torch.int32)
        bits = (self.words.view(-1, 4, 2, _SUBTILES, 1) >> shift & 1).bool()
        return bits.transpose(2, 3).reshape(-1, 4, _SUBTILES, 64)


def _words(bits: Tensor) -> Tensor:
    """32 bits of a half sub-tile as an int32, halves of a strip apart."""
    weight = 1 << torch.arange(32, device=bits.device, dtype=torch.int64)
    words = (bits.view(-1, 4, _SUBTILES, 2, 32) * weight).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    return words.transpose(2, 3).reshape(-1, 8 * _SUBTILES)


def _places(bits: Tensor, counts: Tensor, starts: Tensor) -> Tensor:
    """Where among the values each kept one is, in lanes' order: tiles begin at whole units."""
    before = torch.cumsum(counts, 0) - counts
    tiles = torch.repeat_interleave(starts[:-1] * _UNIT - before, counts)
    return tiles + torch.arange(len(tiles), device=bits.device)


def bitmap_spmm(x: Tensor, packed: BitmapWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias``, as the dense product: what is pruned is a zero, and 0 * inf is NaN.

    Args:
        x: (m, n_columns), the dtype of the values. Any m; the weight is read once per 64 rows.
        packed: W (n_rows, n_columns).
        bias: (n_rows,), or None; added before rounding.

    Returns:
        (m, n_rows), the dtype of x; sums are float32, the same in every run.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    check_product("bitmap_spmm", "x", x, packed.values.dtype, packed.n_columns)
    y = x.new_empty(len(x), packed.n_rows)
    x = in_16_bytes(x)
    bias = bias if bias is None else bias.float()
    kernels = gpu()
    partial = torch.empty(
        kernels.bitmap_parts(x, packed.n_rows), *y.shape, dtype=torch.float32, device=x.device
    )
    kernels.bitmap_spmm(
        x, packed.words, packed.values, packed.starts, bias, packed.most_values, partial, y
    )
    return y


def semi_structured(weight: Tensor) -> Tensor | None:
    """A 2:4 pruned matrix in torch's form for sparse matrix units, or None where there is none.

    Args:
        weight: (n_rows, n_columns), at most two of every four columns not 0.

    Returns:
        what `torch.nn.functional.linear` takes as a weight. None for another device than CUDA of
        compute capability 8.0 and more, a dtype or shape that the form does not have, or a torch
        without it. Its product skips zeros: inf in x at a pruned weight has no effect.
    """
    convert = getattr(torch.sparse, "to_sparse_semi_structured", None)
    if convert is None or not weight.is_cuda or weight.dtype not in _HALVES:
        return None
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls it a prototype
            form: Tensor = convert(weight.contiguous())
    except (RuntimeError, NotImplementedError):  # as torch refuses sizes
        return None
    return form
