"""What a `PackedWeight` is of: shape, pattern, dtype; and the units its values are stored in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ._patterns import NM, Block, Pattern, TopKColumns, TopKRows, Unstructured

VERSION = 1
"""Of the stored tensors. A reader refuses what it does not know."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)
PATTERNS: tuple[type[Pattern], ...] = (Unstructured, Block, NM, TopKRows, TopKColumns)
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """Of one packed weight.

    Attributes:
        shape: of the weight, as torch has it: (c_out, c_in/groups, *kernel).
        pattern: of its mask.
        dtype: of the stored values.
        n_kept: weights that the mask keeps.
    """

    shape: tuple[int, ...]
    pattern: Pattern
    dtype: torch.dtype
    n_kept: int

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(c_out, n_offsets * c_in/groups)."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def n_offsets(self) -> int:
        """Kernel volume; 1 for a linear layer."""
        return math.prod(self.shape[2:])

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a unit; no more than there are."""
        if not isinstance(self.pattern, Block):
            return 1, 1
        return min(self.pattern.r, max(self.shape[0], 1)), min(
            self.pattern.c, max(self.shape[1], 1)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units; blocks at the end of the rows or channels may stick out."""
        r, c = self.block
        return -(-self.shape[0] // r), self.n_offsets * -(-self.shape[1] // c)

    @property
    def n_units(self) -> int:
        """Units, kept or not."""
        return math.prod(self.grid)

    def meta(self) -> Tensor:
        """int64: version, n_kept, number of the pattern, its two parameters, shape."""
        parameters = (*vars(self.pattern).values(), 0, 0)[:2]
        number = PATTERNS.index(type(self.pattern))
        return torch.tensor([VERSION, self.n_kept, number, *parameters, *self.shape], device="cpu")

    @classmethod
    def from_meta(cls, meta: Tensor, dtype: torch.dtype) -> Layout:
        """The inverse of `meta`.

        Raises:
            ValueError: it says what cannot be; the text is "meta must be X, got Y".
        """
        if meta.dtype != torch.int64 or meta.dim() != 1 or len(meta) == 0:
            raise ValueError(
                f"meta must be int64 of rank 1, got {meta.dtype} of shape {tuple(meta.shape)}"
            )
        version, *rest = meta.tolist()
        if version != VERSION:
            raise ValueError(
                f"meta must be of version {VERSION}, got {version}; "
                "read it with the doublesparse that wrote it, or a newer one"
            )
        if len(rest) < 6:
            raise ValueError(f"meta must have at least 7 numbers, got {len(meta)}")
        n_kept, number, p, q, *shape = rest
        if not 0 <= number < len(PATTERNS):
            raise ValueError(f"meta must name one of {len(PATTERNS)} patterns, got {number}")
        kind = PATTERNS[number]
        n_parameters = len(fields(kind))
        if any((p, q)[n_parameters:]):
            raise ValueError(f"meta must have {n_parameters} parameters, got {p}, {q}")
        try:
            pattern = kind(*(p, q)[:n_parameters])
        except ValueError as error:
            raise ValueError(f"meta must have parameters of a pattern, got: {error}") from error
        check_extents(shape)
        if not 0 <= n_kept <= math.prod(shape):
            raise ValueError(f"meta must keep 0 to {math.prod(shape)} weights, got {n_kept}")
        return cls(tuple(shape), pattern, dtype, n_kept)

    # ------------------------------------------------------------- matrix <-> units
    def to_units(self, matrix: Tensor) -> Tensor:
        """(grid[0], grid[1], r, c) of a matrix; zeros where a block sticks out."""
        (r, c), (rows, _) = self.block, self.grid
        if (r, c) == (1, 1):
            return matrix[:, :, None, None]
        n_rows, c_in = self.shape[:2]
        n_blocks = -(-c_in // c)
        cells = matrix.reshape(n_rows, self.n_offsets, c_in)
        below, right = rows * r - n_rows, n_blocks * c - c_in
        if below or right:
            cells = torch.nn.functional.pad(cells, (0, right, 0, 0, 0, below))
        cells = cells.reshape(rows, r, self.n_offsets, (c_in + right) // c, c).permute(
            0, 2, 3, 1, 4
        )
        return cells.flatten(1, 2)

    def from_units(self, units: Tensor) -> Tensor:
        """The inverse of `to_units`, from (n_units, r, c)."""
        (r, c), (rows, _) = self.block, self.grid
        if (r, c) == (1, 1):
            return units.reshape(self.matrix_shape)
        n_rows, c_in = self.shape[:2]
        n_blocks = -(-c_in // c)
        cells = units.reshape(rows, self.n_offsets, n_blocks, r, c).permute(0, 3, 1, 2, 4)
        cells = cells.reshape(rows * r, self.n_offsets, n_blocks * c)
        return cells[:n_rows, :, :c_in].reshape(self.matrix_shape)

    def cells(self, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column of every weight in the kept units, and which of them exist.

        Args:
            units: (n,) int64, numbers of kept units.

        Returns:
            rows, columns: int64 of a shape that broadcasts to (n, r, c). inside: bool (n, r, c),
            False where a block sticks out.
        """
        (r, c), (_, n_columns) = self.block, self.grid
        n_rows, c_in = self.shape[:2]
        per_offset = max(-(-c_in // c), 1)
        row_of, column_of = (torch.arange(size, device="cpu") for size in (r, c))
        rows = (units // max(n_columns, 1) * r)[:, None, None] + row_of[:, None]
        unit_column = units % max(n_columns, 1)
        channel = (unit_column % per_offset * c)[:, None, None] + column_of
        columns = (unit_column // per_offset * c_in)[:, None, None] + channel
        return rows, columns, (rows < n_rows) & (channel < c_in)

    def check_blocks(self, keep: Tensor) -> None:
        """Raise ValueError where a mask (matrix) keeps parts of blocks; text as of `from_meta`."""
        units = self.to_units(keep)
        whole = self.to_units(torch.ones_like(keep)) <= units
        if not torch.equal(units.any(-1).any(-1), whole.all(-1).all(-1)):
            raise ValueError(f"mask must keep whole blocks of {self.pattern}, got parts of some")

    def check_counts(self, units: Tensor) -> None:
        """Raise ValueError where more is kept than the pattern allows; text as of `from_meta`.

        Args:
            units: (n,) int64, numbers of kept units.
        """
        pattern, n_columns = self.pattern, max(self.matrix_shape[1], 1)
        if isinstance(pattern, NM):
            c_in = max(self.shape[1], 1)
            per_offset = -(-c_in // pattern.m)  # the last run of an offset may be shorter
            line, most = units // c_in * per_offset + units % c_in // pattern.m, pattern.n
        elif isinstance(pattern, TopKRows):
            line, most = units // n_columns, pattern.s
        elif isinstance(pattern, TopKColumns):
            line, most = units % n_columns, pattern.s
        else:
            return
        counts = torch.unique(line, return_counts=True)[1]
        if len(counts) and int(counts.max()) > most:
            raise ValueError(f"mask must be of {pattern}, got {int(counts.max())} kept in one line")


def check_extents(shape: Sequence[int]) -> None:
    """Raise ValueError where a weight of this shape cannot be packed; text as of `from_meta`."""
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"shape must be (c_out, c_in, *kernel), got {tuple(shape)}")
    if math.prod(shape[1:]) > _INT32_MAX or math.prod(shape) >= 2**63:
        raise ValueError(
            f"shape must have rows of at most 2^31 - 1 weights and below 2^63 weights, "
            f"got {tuple(shape)}"
        )
