"""Raw operators on windows and on segments of feature rows; exported by ``ops.py``.

A *window table* is int32 (n_out, n_offsets): an entry >= 0 is the feature row of the active site
that the tap reads, -1 reads nothing, -2 - g reads row g of the ground values (a *class row*).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C, _gpu_ops
from ._torch_compat import traced

# The operators need shapes to allocate results; every other check is made by the kernels' binding.
_NO_SHAPE = (AttributeError, TypeError, ValueError)


def _on_gpu(tensor: Tensor) -> bool:
    """No other kind of argument is refused here."""
    return getattr(tensor, "is_cuda", False)


def _refuse(operation: str, **wanted: tuple[Tensor | None, int]) -> None:
    """Says which tensor has no shape or the wrong number of dimensions."""
    for name, (tensor, dims) in wanted.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise TypeError(f"{operation}: {name} must be a torch.Tensor, got {kind}")
        if tensor.dim() != dims:
            raise ValueError(
                f"{operation}: {name} must have {dims} dimensions, got {tensor.dim()}; "
                f"its shape is {tuple(tensor.shape)}"
            )


def _require_size(operation: str, name: str, size: int) -> None:
    """A number of rows: their numbers must fit int32."""
    if not 0 <= size < 2**31:
        raise ValueError(f"{operation}: {name} must lie in [0, 2^31), got {size}")


# ------------------------------------------------------------------ index work
def window_table(
    pairs: _C.Pairs,
    n_out: int,
    out_class: Tensor | None = None,
    tap_class: Tensor | None = None,
    rows_per_sample: int = 0,
    out_batch: Tensor | None = None,
) -> Tensor:
    """What every tap of every output row reads: int32 (n_out, n_offsets).

    Args:
        pairs: the active reads; dst = output rows, src = feature rows.
        n_out: rows of the table; those that no pair names have ground taps only.
        out_class: int32 (n_out,): class of each output row; None: inactive taps read nothing.
        tap_class: int32 (n_classes, n_offsets): the input class that the tap reads, or -1
            (padding, no such tap).
        rows_per_sample: class rows of one sample, where samples have different grounds; else 0.
        out_batch: int32 (n_out,): sample of each output row, with ``rows_per_sample``.

    Raises:
        ValueError: a row, class or sample is out of range, or a class row does not fit int32.
    """
    on_gpu = isinstance(pairs, _gpu_ops.Pairs)  # whose lists are made only if somebody looks
    if traced(None if on_gpu else pairs.src_rows):
        lists = (pairs.src_rows, pairs.dst_rows, pairs.offset_start)
        ground = (out_class, tap_class, rows_per_sample, out_batch)
        return torch.ops.doublesparse.window_table(*lists, n_out, *ground)
    _require_size("window_table", "n_out", n_out)
    if on_gpu:
        ground = (out_class, tap_class, rows_per_sample, out_batch)
        return _gpu_ops.window_table(pairs, n_out, *ground)
    table = torch.empty(n_out, pairs.n_offsets, dtype=torch.int32, device="cpu")
    threads = torch.get_num_threads()
    _C.window_table(pairs, out_class, tap_class, rows_per_sample, out_batch, table, threads)
    return table


def ground_taps(table: Tensor, n_class_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ground reads of a window table, as CSR into the sorted distinct (offset, class row).

    Args:
        table: int32 (n_out, n_offsets).
        n_class_rows: every entry must be at least ``-1 - n_class_rows``.

    Returns:
        ``start`` int64 (n_out + 1,) and ``u_rows`` int32 (n_taps,): the u rows that each output row
        adds, offsets ascending; ``class_rows`` int32 (n_u,) and ``u_offset_start`` int64
        (n_offsets + 1,): u row u is the product of class row ``class_rows[u]`` with the weight of
        the offset whose range holds u, so ``Pairs(class_rows, arange(n_u), u_offset_start)``
        computes u.

    Raises:
        ValueError: an entry is out of range, or n_u does not fit int32.
    """
    if traced(table):
        return torch.ops.doublesparse.ground_taps(table, n_class_rows)
    _require_size("ground_taps", "n_class_rows", n_class_rows)
    if _on_gpu(table):
        return _gpu_ops.ground_taps(table, n_class_rows)
    try:
        n_out, n_offsets = table.shape
    except _NO_SHAPE:
        _refuse("ground_taps", table=(table, 2))
        raise
    flags = torch.zeros(1 + n_offsets * n_class_rows, dtype=torch.int32, device="cpu")
    start = torch.empty(n_out + 1, dtype=torch.int64, device="cpu")
    u_offset_start = torch.empty(n_offsets + 1, dtype=torch.int64, device="cpu")
    plan = (table, n_class_rows, flags, start, u_offset_start)
    threads = torch.get_num_threads()
    n_taps, n_u = _C.plan_ground_taps(*plan, threads)
    u_rows = torch.empty(n_taps, dtype=torch.int32, device="cpu")
    class_rows = torch.empty(n_u, dtype=torch.int32, device="cpu")
    _C.fill_ground_taps(*plan, u_rows, class_rows, threads)
    return start, u_rows, class_rows, u_offset_start


def every_tap(table: Tensor, n_class_rows: int) -> tuple[Tensor, Tensor]:
    """The ground reads of a window table, as CSR into all (offset, class row) products.

    Args:
        table: int32 (n_out, n_offsets).
        n_class_rows: every entry must be at least ``-1 - n_class_rows``.

    Returns:
        ``start`` int64 (n_out + 1,) and ``u_rows`` int32 (n_taps,): row ``k * n_class_rows + g``
        where offset k reads class row g, offsets ascending.

    Raises:
        ValueError: an entry is out of range, or the products do not fit int32.
    """
    if traced(table):
        return torch.ops.doublesparse.every_tap(table, n_class_rows)
    _require_size("every_tap", "n_class_rows", n_class_rows)
    if _on_gpu(table):
        return _gpu_ops.every_tap(table, n_class_rows)
    try:
        n_out, _ = table.shape
    except _NO_SHAPE:
        _refuse("every_tap", table=(table, 2))
        raise
    start, threads = (
        torch.empty(n_out + 1, dtype=torch.int64, device="cpu"),
        torch.get_num_threads(),
    )
    n_taps = _C.plan_every_tap(table, n_class_rows, start, threads)
    u_rows = torch.empty(n_taps, dtype=torch.int32, device="cpu")
    _C.fill_every_tap(table, n_class_rows, start, u_rows, threads)
    return start, u_rows


def invert_rows(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Where each value of [0, n) occurs in ``rows``, as CSR; negative rows are skipped.

    Args:
        rows: int32 (m,), below n.
        n: number of values.

    Returns:
        ``start`` int64 (n + 1,) and ``index`` int64: positions j with ``rows[j] == v`` are
        ``index[start[v] : start[v + 1]]``, ascending.
    """
    if traced(rows):
        return torch.ops.doublesparse.invert_rows(rows, n)
    _require_size("invert_rows", "n", n)
    if _on_gpu(rows):
        return _gpu_ops.invert_rows(rows, n)
    try:
        (n_rows,) = rows.shape
    except _NO_SHAPE:
        _refuse("invert_rows", rows=(rows, 1))
        raise
    threads = torch.get_num_threads()
    counts = torch.empty(_C.invert_chunks(n_rows, n, threads), n, dtype=torch.int64, device="cpu")
    start = torch.empty(n + 1, dtype=torch.int64, device="cpu")
    index = torch.empty(
        _C.plan_inverse(rows, counts, start, threads), dtype=torch.int64, device="cpu"
    )
    _C.fill_inverse(rows, counts, index, threads)
    return start, index


# ------------------------------------------------------------------ sums over segments
def _workspace(values: Tensor, n_positions: int, n_channels: int) -> Tensor:
    size = _C.segment_workspace(values.dtype == torch.float64, n_positions, n_channels)
    return torch.empty(size, dtype=torch.int64, device="cpu")


def join_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The union of two sorted lists of keys.

    Args:
        a: int64 (n_a,), strictly ascending.
        b: int64 (n_b,), strictly ascending.

    Returns:
        the keys int64 (n,), and for each the row of `a` and of `b` that has it, or -1: int32.
    """
    if traced(a):
        return torch.ops.doublesparse.join_rows(a, b)
    if _on_gpu(a):
        return _gpu_ops.join_rows(a, b)
    try:
        most = len(a) + len(b)
    except TypeError:
        _refuse("join_rows", a=(a, 1), b=(b, 1))
        raise
    keys = torch.empty(most, dtype=torch.int64, device="cpu")
    from_a, from_b = (torch.empty(most, dtype=torch.int32, device="cpu") for _ in range(2))
    n = _C.join_rows(a, b, keys, from_a, from_b)
    return keys[:n], from_a[:n], from_b[:n]


def add_rows(
    a: Tensor,
    ground_a: Tensor | None,
    from_a: Tensor,
    b: Tensor,
    ground_b: Tensor | None,
    from_b: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """Sums of rows of two tensors, ``a + scale * b``: (n_out, C).

    Args:
        a: (n_a, C), float32 or float64.
        ground_a: (n_ground, C) or None.
        from_a: int32 (n_out,): a row of `a`; or -1, zero; or -2 - g, row g of its ground.
        b: as `a`.
        ground_b: as `ground_a`.
        from_b: as `from_a`.
        scale: of `b`.
    """
    if traced(a):
        args = (a, ground_a, from_a, b, ground_b, from_b, scale)
        return torch.ops.doublesparse.add_rows(*args)
    if _on_gpu(a):
        return _gpu_ops.add_rows(a, ground_a, from_a, b, ground_b, from_b, scale)
    try:
        y = a.new_empty(len(from_a), a.shape[1])
    except (*_NO_SHAPE, IndexError):
        _refuse("add_rows", a=(a, 2), from_a=(from_a, 1))
        raise
    threads = torch.get_num_threads()
    _C.add_rows(a, ground_a, from_a, b, ground_b, from_b, scale, y, threads)
    return y


def scatter_rows(rows: Tensor, place: Tensor, n_out: int) -> Tensor:
    """Rows at their places, zero elsewhere: (n_out, C).

    Args:
        rows: (n, C), float32 or float64.
        place: int64 (n,), strictly ascending, in [0, n_out).
        n_out: rows of the result.

    Raises:
        ValueError: places out of order or range.
    """
    if traced(rows):
        return torch.ops.doublesparse.scatter_rows(rows, place, n_out)
    _require_size("scatter_rows", "n_out", n_out)
    if _on_gpu(rows):
        return _gpu_ops.scatter_rows(rows, place, n_out)
    try:
        out = rows.new_empty(n_out, rows.shape[1])
    except (*_NO_SHAPE, IndexError):
        _refuse("scatter_rows", rows=(rows, 2))
        raise
    _C.scatter_rows(rows, place, out, torch.get_num_threads())
    return out


def segment_sum(
    values: Tensor, rows: Tensor | None, start: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``out[s] = bias + sum of values[rows[j]], start[s] <= j < start[s + 1]``: (n_segments, C).

    Up to 1024 rows are added one after the other, longer segments in chunks of 1024 whose sums are
    added pairwise.

    Args:
        values: (n, C).
        rows: int32 or int64 (m,), or None: row j is j.
        start: int64 (n_segments + 1,), ascending within 0 and m (or n); it need not begin at 0.
        bias: (C,) or None.
    """
    if traced(values):
        return torch.ops.doublesparse.segment_sum(values, rows, start, bias)
    if _on_gpu(values):
        return _gpu_ops.segment_sum(values, rows, start, bias)
    try:
        n_values, n_channels = values.shape
        (n_starts,) = start.shape
        (n_positions,) = (n_values,) if rows is None else rows.shape
    except _NO_SHAPE:
        _refuse("segment_sum", values=(values, 2), start=(start, 1))
        _refuse("segment_sum", rows=(rows, 1))
        raise
    out = values.new_empty(max(n_starts - 1, 0), n_channels)
    workspace = _workspace(values, n_positions, n_channels)
    _C.segment_sum(values, rows, start, bias, workspace, out, torch.get_num_threads())
    return out


def segment_sum_sq(values: Tensor, start: Tensor, mean: Tensor) -> Tensor:
    """``out[s] = sum of (values[j] - mean[s])^2, start[s] <= j < start[s + 1]``: (n_segments, C).

    Args:
        values: (n, C).
        start: int64 (n_segments + 1,), ascending within 0 and n.
        mean: (n_segments, C).
    """
    if traced(values):
        return torch.ops.doublesparse.segment_sum_sq(values, start, mean)
    if _on_gpu(values):
        return _gpu_ops.segment_sum_sq(values, start, mean)
    try:
        n_values, n_channels = values.shape
        (n_starts,) = start.shape
    except _NO_SHAPE:
        _refuse("segment_sum_sq", values=(values, 2), start=(start, 1))
        raise
    out = values.new_empty(max(n_starts - 1, 0), n_channels)
    workspace = _workspace(values, n_values, n_channels)
    _C.segment_sum_sq(values, start, mean, workspace, out, torch.get_num_threads())
    return out


# ------------------------------------------------------------------ reductions over windows
def window_max(x: Tensor, ground_rows: Tensor | None, table: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over each window, and the tap that won.

    The first of equal values wins, a NaN beats every number, and a window without any tap gives
    -inf and -1.

    Args:
        x: (n_active, C).
        ground_rows: (n_class_rows, C), or None where the table names none.
        table: int32 (n_out, n_offsets).

    Returns:
        ``y`` (n_out, C) and ``arg`` int32 (n_out, C).
    """
    if traced(x):
        return torch.ops.doublesparse.window_max(x, ground_rows, table)
    if _on_gpu(x):
        return _gpu_ops.window_max(x, ground_rows, table)
    try:
        (_, n_channels), (n_out, _) = x.shape, table.shape
    except _NO_SHAPE:
        _refuse("window_max", x=(x, 2), table=(table, 2))
        raise
    y = x.new_empty(n_out, n_channels)
    arg = torch.empty(n_out, n_channels, dtype=torch.int32, device="cpu")
    _C.window_max(x, ground_rows, table, y, arg, torch.get_num_threads())
    return y, arg


def window_sum(x: Tensor, ground_rows: Tensor | None, table: Tensor) -> Tensor:
    """Sum over each window's active and ground values, taps ascending: (n_out, C).

    Arguments as for ``window_max``. Its gradient is ``segment_sum(dy, index // n_offsets, start)``
    with ``invert_rows`` of the flat table.
    """
    if traced(x):
        return torch.ops.doublesparse.window_sum(x, ground_rows, table)
    if _on_gpu(x):
        return _gpu_ops.window_sum(x, ground_rows, table)
    try:
        (_, n_channels), (n_out, _) = x.shape, table.shape
    except _NO_SHAPE:
        _refuse("window_sum", x=(x, 2), table=(table, 2))
        raise
    y = x.new_empty(n_out, n_channels)
    _C.window_sum(x, ground_rows, table, y, torch.get_num_threads())
    return y


def window_max_grad(
    dy: Tensor,
    arg: Tensor,
    start: Tensor,
    index: Tensor,
    K: int,  # noqa: N803 - the formula's own name
    n_rows: int,
) -> Tensor:
    """Gradient of ``window_max`` with respect to the rows that the windows read: (n_rows, C).

    ``dx[v] = sum over j = o * K + k in index[start[v] : start[v + 1]] of dy[o] where arg[o] == k``.

    Args:
        dy: (n_out, C).
        arg: int32 (n_out, C): the winning taps.
        start: int64 (n_rows + 1,), and
        index: int64: ``invert_rows`` of the flat table, or of ``-2 - table`` for the ground's rows.
        K: number of offsets.
        n_rows: rows of the result.
    """
    if traced(dy):
        return torch.ops.doublesparse.window_max_grad(dy, arg, start, index, K, n_rows)
    _require_size("window_max_grad", "n_rows", n_rows)
    if _on_gpu(dy):
        return _gpu_ops.window_max_grad(dy, arg, start, index, K, n_rows)
    try:
        (_, n_channels), (n_positions,) = dy.shape, index.shape
    except _NO_SHAPE:
        _refuse("window_max_grad", dy=(dy, 2), index=(index, 1))
        raise
    dx = dy.new_empty(n_rows, n_channels)
    workspace = _workspace(dy, n_positions, n_channels)
    _C.window_max_grad(dy, arg, start, index, K, dx, workspace, torch.get_num_threads())
    return dx
