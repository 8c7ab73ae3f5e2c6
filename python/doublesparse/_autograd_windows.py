"""Differentiable maxima and sums over windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import ops
from ._autograd import Grads, once, wanted
from ._torch_compat import fast_apply, traced


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

    def to(self, device: torch.device) -> Table:
        """This on another device."""
        return Table(self.rows.to(device))

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


def window_max_rows_grad(
    dy: Tensor, arg: Tensor, table: Table, n_rows: int, ground: bool
) -> Tensor:
    """The gradient of `window_max` with respect to the feature rows, or the ground's rows."""
    if traced(dy):
        return torch.ops.doublesparse.window_max_rows_grad(dy, arg, table.rows, n_rows, ground)
    start, index = table.inverse(n_rows, ground)
    n_offsets = table.rows.shape[1]
    return ops.window_max_grad(dy.contiguous(), arg, start, index, n_offsets, n_rows)


def window_sum_rows_grad(dy: Tensor, table: Table, n_rows: int, ground: bool) -> Tensor:
    """The gradient of `window_sum` with respect to the feature rows, or the ground's rows."""
    if traced(dy):
        return torch.ops.doublesparse.window_sum_rows_grad(dy, table.rows, n_rows, ground)
    start, index = table.inverse(n_rows, ground)
    return ops.segment_sum(dy.contiguous(), index // table.rows.shape[1], start)


def each_operand(
    needs: Sequence[bool], n_rows: tuple[int, int], grad: Callable[[int, bool], Tensor]
) -> Grads:
    """`grad(n_rows, ground)` for the features and for the ground's rows, where needed."""
    return tuple(grad(n, i == 1) if needs[i] else None for i, n in enumerate(n_rows))


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
        (arg,), table = ctx.saved_tensors, ctx.table
        grad = partial(window_max_rows_grad, dy, arg, table)
        return (*each_operand(ctx.needs_input_grad, ctx.n_rows, grad), None)


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
        grad = partial(window_sum_rows_grad, dy, ctx.table)
        return (*each_operand(ctx.needs_input_grad, ctx.n_rows, grad), None)


_apply_window_sum = fast_apply(_WindowSum)


def window_sum(x: Tensor, ground: Tensor | None, table: Table) -> Tensor:
    """Sum over the taps of every output row: (n_out, C)."""
    if wanted(x, ground):
        return _apply_window_sum(x, ground, table)
    return ops.window_sum(x, ground, table.rows)
