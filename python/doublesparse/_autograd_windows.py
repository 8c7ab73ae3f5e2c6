"""Differentiable maxima and sums over windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from . import ops
from ._autograd import once, wanted
from ._torch_compat import fast_apply


class Table:
    """What every tap of every output row reads.

    Attributes:
        rows: int32 (n_out, n_offsets): a feature row; -1 nothing; -2 - g the class row g of the
            ground.
    """

    __slots__ = ("_inverse", "rows")

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._inverse: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}

    def inverse(self, n_rows: int, ground: bool = False) -> tuple[Tensor, Tensor]:
        """Where each feature row (class row) is read; kept.

        Returns:
            start (n_rows + 1,), and positions in the flat table.
        """
        found = self._inverse.get((ground, n_rows))
        if found is None:
            flat = self.rows.reshape(-1)
            found = ops.invert_rows(-2 - flat if ground else flat, n_rows)
            self._inverse[ground, n_rows] = found
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of the table and of the inverse that a backward pass will build."""
        return 12 * self.rows.numel()


class _WindowMax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ground: Tensor | None, table: Table) -> Tensor:
        y, arg = ops.window_max(x, ground, table.rows)
        ctx.save_for_backward(arg)
        ctx.table = table
        ctx.n_rows = x.shape[0], 0 if ground is None else ground.shape[0]
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (arg,) = ctx.saved_tensors
        dy, n_offsets = dy.contiguous(), ctx.table.rows.shape[1]
        grads: list[Tensor | None] = [None, None]
        for i, n_rows in enumerate(ctx.n_rows):
            if ctx.needs_input_grad[i]:
                start, index = ctx.table.inverse(n_rows, ground=i == 1)
                grads[i] = ops.window_max_grad(dy, arg, start, index, n_offsets, n_rows)
        return grads[0], grads[1], None


_apply_window_max = fast_apply(_WindowMax)


def window_max(x: Tensor, ground: Tensor | None, table: Table) -> Tensor:
    """Maximum over the taps of every output row: (n_out, C).

    Ties go to the lowest offset, NaN wins, no tap gives -inf.
    """
    if wanted(x, ground):
        return _apply_window_max(x, ground, table)
    return ops.window_max(x, ground, table.rows)[0]


class _WindowSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ground: Tensor | None, table: Table) -> Tensor:
        ctx.table = table
        ctx.n_rows = x.shape[0], 0 if ground is None else ground.shape[0]
        return ops.window_sum(x, ground, table.rows)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy, n_offsets = dy.contiguous(), ctx.table.rows.shape[1]
        grads: list[Tensor | None] = [None, None]
        for i, n_rows in enumerate(ctx.n_rows):
            if ctx.needs_input_grad[i]:
                start, index = ctx.table.inverse(n_rows, ground=i == 1)
                grads[i] = ops.segment_sum(dy, index // n_offsets, start)
        return grads[0], grads[1], None


_apply_window_sum = fast_apply(_WindowSum)


def window_sum(x: Tensor, ground: Tensor | None, table: Table) -> Tensor:
    """Sum over the taps of every output row: (n_out, C)."""
    if wanted(x, ground):
        return _apply_window_sum(x, ground, table)
    return ops.window_sum(x, ground, table.rows)
