"""Products with unstructured pruned matrices on a CUDA device: the front of csrc/cuda/spmm."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ._device import gpu


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _starts(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Exclusive sums and, last, the total."""
    starts = counts.new_zeros(counts.numel() + 1, dtype=dtype)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts


def _counting(like: Tensor) -> Tensor:
    """0, 1, 2, ... int64, as long as a list."""
    return torch.ones_like(like, dtype=torch.int64).cumsum(0) - 1


class Plan:
    """A matrix as csrc/cuda/spmm/plan.h describes it; pure torch, on the device of its lists.

    Attributes:
        shape: of the matrix.
        slabs: int32: slabs of rows, those with most chunks first.
        starts: int32: first chunk of every segment.
        columns: int16 (n_chunks, chunk).
        source: int32 (n_chunks * chunk,): which kept weight an entry is, -1 for none.
    """

    __slots__ = ("columns", "shape", "slabs", "source", "starts")

    def __init__(
        self, rows: Tensor, columns: Tensor, shape: tuple[int, int], source: Tensor
    ) -> None:
        """Plan products with a matrix; reads one number back.

        Args:
            rows: int64 (n_kept,), ascending.
            columns: int64 (n_kept,), ascending within a row.
            shape: (n_rows, n_columns).
            source: int32 (n_kept,): where the weights are among the values.
        """
        kernels = gpu()
        panel, slab, chunk = (
            getattr(kernels, f"SPMM_{name}") for name in ("PANEL_COLUMNS", "SLAB_ROWS", "CHUNK")
        )
        self.shape = shape
        n_slabs, n_panels = -(-shape[0] // slab), -(-shape[1] // panel)
        in_row = rows * n_panels + columns.div(panel, rounding_mode="floor")
        counts = torch.bincount(in_row, minlength=n_slabs * slab * n_panels)
        first = _starts(counts, torch.int64)  # of (row, panel), as the lists are sorted
        by_slab = counts.view(n_slabs, slab, n_panels).transpose(1, 2)
        n_chunks = (by_slab + (chunk - 1)).div(chunk, rounding_mode="floor")
        starts = _starts(n_chunks.flatten(), torch.int64)
        self.slabs = n_chunks.sum((1, 2)).argsort(descending=True, stable=True).to(torch.int32)
        start_of = starts[:-1].view(n_slabs, n_panels, slab).transpose(1, 2).flatten()
        place = start_of[in_row] * chunk - first[in_row] + _counting(rows)
        n_entries = int(starts[-1]) * chunk
        self.starts = starts.to(torch.int32)
        own = rows.new_full((n_entries,), panel, dtype=torch.int16)
        own[place] = (columns % panel).to(torch.int16)
        self.columns = own.view(-1, chunk)
        self.source = rows.new_full((n_entries,), -1, dtype=torch.int32)
        self.source[place] = source


class GpuCsr:
    """What products with a pruned matrix, its transpose and at its kept entries need.

    Attributes:
        shape: (n_rows, n_columns).
        kept: int64 (n_kept,): row * n_columns + column of the kept weights, ascending; the order
            of values.
        n_kept: their number.
    """

    def __init__(self, mask: Tensor) -> None:
        """Find what a bool mask (n_rows, n_columns) keeps, on its device."""
        self.shape: tuple[int, int] = (mask.shape[0], mask.shape[1])
        self.kept = mask.flatten().nonzero().view(-1)
        self.n_kept = self.kept.numel()

    @property
    def rows(self) -> Tensor:
        """int64 (n_kept,)."""
        return self.kept.div(self.shape[1], rounding_mode="floor")

    @property
    def columns(self) -> Tensor:
        """int64 (n_kept,)."""
        return self.kept % self.shape[1]

    @cached_property
    def row_start(self) -> Tensor:
        """int64 (n_rows + 1,)."""
        return _starts(torch.bincount(self.rows, minlength=self.shape[0]), torch.int64)

    @cached_property
    def narrow_columns(self) -> Tensor:
        """int16 (n_kept,): the columns' low 16 bits."""
        return self.columns.to(torch.int16)

    @cached_property
    def forward(self) -> Plan:
        """Of the matrix."""
        order = _counting(self.kept).to(torch.int32)
        return Plan(self.rows, self.columns, self.shape, order)

    @cached_property
    def backward(self) -> Plan:
        """Of its transpose."""
        columns, order = self.columns.sort(stable=True)
        shape = self.shape[1], self.shape[0]
        return Plan(columns, self.rows[order], shape, order.to(torch.int32))


class PackedValues:
    """Values in the order of a plan's entries: what a frozen weight is packed into once."""

    __slots__ = ("plan", "values")

    def __init__(self, plan: Plan, values: Tensor, kept: Tensor | None = None) -> None:
        """Gather values (n_kept,), or those at `kept` of a flat dense weight."""
        self.plan = plan
        self.values = values.new_empty(plan.source.shape)
        gpu().spmm_pack(values, kept, plan.source, self.values)


def _lanes(x: Tensor) -> Tensor:
    """Transposed and padded: (n_columns, padded rows), the dtype of the sums."""
    lanes = x.new_empty(x.shape[1], gpu().spmm_padded_rows(x.shape[0]), dtype=_acc(x.dtype))
    gpu().spmm_lanes(x, lanes)
    return lanes


def product(
    x: Tensor, packed: PackedValues, bias: Tensor | None = None, scales: Tensor | None = None
) -> Tensor:
    """`x @ W.T + bias` with packed values: (m, n_rows), the dtype of x; see `spmm`."""
    plan = packed.plan
    y = x.new_empty(x.shape[0], plan.shape[0])
    bias = bias if bias is None else bias.to(_acc(x.dtype))
    lists = plan.slabs, plan.starts, plan.columns, plan.shape[1]
    gpu().spmm(*lists, packed.values, scales, _lanes(x), bias, y)
    return y


def spmm(
    x: Tensor,
    csr: GpuCsr,
    values: Tensor,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """``x @ W.T + bias``: (m, n_rows), the dtype of x.

    Args:
        x: (m, n_columns), contiguous; float32, float64, bfloat16 or float16.
        csr: of W (n_rows, n_columns).
        values: (n_kept,), row by row. The dtype that sums have (float32, or float64 for float64);
            or, where that is float32, bfloat16, float16 or int8.
        bias: (n_rows,), the dtype of the sums or of x, or None.
        scales: float32 (n_rows,), what int8 values are multiplied by.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a shape does not fit.
    """
    kernels, (m, n_columns) = gpu(), x.shape
    if not 0 < m <= kernels.SPMM_GEMV_ROWS or n_columns > kernels.SPMM_GEMV_COLUMNS:
        return product(x, PackedValues(csr.forward, values), bias, scales)
    y = x.new_empty(m, csr.shape[0])
    bias = bias if bias is None else bias.to(_acc(x.dtype))
    kernels.spmm_gemv(csr.row_start, csr.narrow_columns, values, scales, x, bias, y)
    return y


def spmm_t(dy: Tensor, csr: GpuCsr, values: Tensor) -> Tensor:
    """``dy @ W``: (m, n_columns), the dtype of dy (m, n_rows); `values` as in `spmm`, not int8."""
    return product(dy, PackedValues(csr.backward, values))


def sddmm(dy: Tensor, x: Tensor, csr: GpuCsr) -> Tensor:
    """``dy.T @ x`` at the kept entries of W: (n_kept,), float32 or, for float64, float64.

    Args:
        dy: (m, n_rows), contiguous.
        x: (m, n_columns), contiguous, the dtype of dy.
        csr: of W.
    """
    out = x.new_empty(csr.n_kept, dtype=_acc(x.dtype))
    sample(dy, x, csr, None, out)
    return out


def sample(dy: Tensor, x: Tensor, csr: GpuCsr, kept: Tensor | None, out: Tensor) -> None:
    """Writes the sampled values to out, in the order of values or, with `kept`, to those places."""
    plan, m = csr.forward, x.shape[0]
    partial = x.new_empty(gpu().sddmm_splits(m), plan.source.numel(), dtype=_acc(x.dtype))
    lists = plan.slabs, plan.starts, plan.columns, *plan.shape, plan.source, kept
    gpu().sddmm(*lists, _lanes(dy), _lanes(x), m, partial, out)
