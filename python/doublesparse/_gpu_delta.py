"""Sparsely kept half-precision weights on a CUDA device: the front of csrc/cuda/spmm's delta_gemv.

Columns are stored as gaps of a byte each. The form is made with torch operators on the device where
the weight is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._device import gpu
from ._gpu_bitmap import check_product, check_weight

_UNIT = 4  # entries that a lane loads together
_FILLER = 255  # a gap that keeps nothing


@dataclass(frozen=True)
class DeltaWeight:
    """A pruned matrix: a gap of one byte and a value per kept weight. For 1 to 4 rows of x.

    Attributes:
        gaps: uint8 (n_units, 4), pruned columns of the row before this one; 255: so many, and
            nothing is kept there.
        values: bfloat16 or float16 (n_units, 4).
        starts: int32 (n_rows + 1,), where a row's entries begin, in units.
        n_rows: of the matrix.
        n_columns: of the matrix.
    """

    gaps: Tensor
    values: Tensor
    starts: Tensor
    n_rows: int
    n_columns: int

    @classmethod
    def pack(cls, weight: Tensor, mask: Tensor | None = None) -> DeltaWeight:
        """Take the kept weights out of a matrix.

        Args:
            weight: (n_rows, n_columns), bfloat16 or float16.
            mask: bool of the same shape, True where a weight is kept; None keeps what is not 0.

        Returns:
            on the device of the weight; no gradient goes through it.

        Raises:
            TypeError: a wrong dtype.
            ValueError: shapes that do not fit, or 2^33 entries and more.
        """
        weight = weight.detach()
        mask = weight != 0 if mask is None else mask
        check_weight("DeltaWeight.pack", weight, mask)
        rows, columns = mask.nonzero(as_tuple=True)
        left_out = _left_out(rows, columns)
        entries = left_out // _FILLER + 1  # fillers, and the kept one itself
        up_to = _sums(entries)
        before = up_to[_sums(mask.sum(1))]  # entries before each row, and all of them
        starts = _sums((before.diff() + _UNIT - 1) // _UNIT)
        n_units = int(starts[-1])
        if n_units >= 2**31:
            raise ValueError(
                f"DeltaWeight.pack: weight must take less than 2^33 entries, got "
                f"{n_units * _UNIT}; split it"
            )
        places = up_to[1:] - 1 + (starts * _UNIT - before)[rows]
        gaps = torch.full((n_units * _UNIT,), _FILLER, dtype=torch.uint8, device=weight.device)
        gaps[places] = (left_out % _FILLER).to(torch.uint8)
        values = weight.new_zeros(n_units * _UNIT)
        values[places] = weight[rows, columns]
        return cls(gaps.view(-1, _UNIT), values.view(-1, _UNIT), starts.int(), *weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in (self.gaps, self.values, self.starts))

    def mask(self) -> Tensor:
        """Bool (n_rows, n_columns): what is kept."""
        keep = torch.zeros(self.n_rows, self.n_columns, dtype=torch.bool, device=self.gaps.device)
        keep.view(-1)[self._kept()[1]] = True
        return keep

    def unpack(self) -> Tensor:
        """The matrix, zeros where nothing is kept."""
        matrix = self.values.new_zeros(self.n_rows, self.n_columns)
        places, kept = self._kept()
        matrix.view(-1)[kept] = self.values.view(-1)[places]
        return matrix

    def _kept(self) -> tuple[Tensor, Tensor]:
        """Entries that keep something, and where in the flat matrix."""
        gaps, starts = self.gaps.view(-1).long(), self.starts.long() * _UNIT
        up_to = _sums((gaps + 1).clamp(max=_FILLER))
        rows = torch.arange(self.n_rows, device=gaps.device)
        rows = torch.repeat_interleave(rows, starts.diff())
        columns = up_to[:-1] + gaps - up_to[starts[rows]]
        places = (gaps != _FILLER).nonzero().view(-1)
        return places, (rows * self.n_columns + columns)[places]


def _sums(counts: Tensor) -> Tensor:
    """Int64 (n + 1,): of what comes before each one, and of all."""
    sums = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    sums[1:] = torch.cumsum(counts, 0)
    return sums


def _left_out(rows: Tensor, columns: Tensor) -> Tensor:
    """Pruned columns between each kept one and that before it in its row, or the row's begin."""
    previous = torch.full_like(columns, -1)
    previous[1:] = torch.where(rows[1:] == rows[:-1], columns[:-1], -1)
    return columns - previous - 1


def delta_gemv(x: Tensor, packed: DeltaWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias`` of the kept weights alone: what x has at a pruned one has no effect.

    Args:
        x: (m, n_columns), the dtype of the values; m is 4 at most.
        packed: W (n_rows, n_columns).
        bias: (n_rows,), or None; added before rounding.

    Returns:
        (m, n_rows), the dtype of x; sums are float32, the same in every run.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    check_product("delta_gemv", "x", x, packed.values.dtype, packed.n_columns)
    y = x.new_empty(len(x), packed.n_rows)
    bias = bias if bias is None else bias.float()
    gpu().delta_gemv(x.contiguous(), packed.gaps, packed.values, packed.starts, bias, y)
    return y
