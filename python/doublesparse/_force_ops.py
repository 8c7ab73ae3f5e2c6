"""Raw operator of force regularization: forces of constant size between filters. CPU only."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._scratch import scratch


def constant_forces(
    unit: Tensor, lengths: Tensor, out: Tensor | None = None, table_rows: int | None = None
) -> Tensor:
    """The force of every filter on each other one, of a size that does not depend on distance.

    ``lengths[i] * (F_i - (F_i . w_i) w_i)`` with ``F_i = sum_j (w_j - w_i) / |w_j - w_i|`` over the
    rows w of `unit`, but for pairs that are 1e-4 apart or less.

    Distances are sums of squared differences. The relative error of one is at most 1e-5 in float32
    for 2304 weights, about ``(256 + d / 256) u / 2`` of ``u = 2^-24`` (2^-53 in float64).
    Results have the same bits for any number of threads and any `table_rows`, and on every
    instruction set that fuses multiply-adds.

    Args:
        unit: (n, d) float32 or float64, contiguous: rows of length 1, or of zeros. A row of zeros
            takes part.
        lengths: (n,), of the same dtype.
        out: (n, d), apart from the others: written to and returned; None for a new tensor.
        table_rows: rows of the (n, n) table of inverse distances that are in memory at a time; None
            for all of them, which halves the time for distances.

    Returns:
        Tensor: (n, d).

    Raises:
        TypeError: a dtype is another one, or an argument is no tensor.
        ValueError: a shape does not fit, `unit` is empty, or `table_rows` is out of range.
        RuntimeError: a tensor is not on the CPU.

    Example:
        >>> import torch
        >>> constant_forces(torch.eye(2), torch.tensor([1.0, 2.0]))
        tensor([[0.0000, 0.7071],
                [1.4142, 0.0000]])
    """
    for name, tensor in (("unit", unit), ("lengths", lengths)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"constant_forces: {name} must be a torch.Tensor, got {type(tensor).__name__}"
            )
        if tensor.device.type != "cpu":
            raise RuntimeError(
                f"constant_forces: {name} must be on the CPU, got {tensor.device}; use .cpu()"
            )
    if unit.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"constant_forces: unit must be float32 or float64, got {unit.dtype}; use .float()"
        )
    if unit.dim() != 2 or unit.numel() == 0:
        raise ValueError(
            f"constant_forces: unit must have 2 dimensions and elements, got {tuple(unit.shape)}"
        )
    n, d = unit.shape
    if table_rows is None:
        table_rows = n
    threads = torch.get_num_threads()
    size = _C.force_workspace(unit.dtype == torch.float64, n, d, table_rows, threads)
    out = torch.empty_like(unit) if out is None else out
    _C.constant_forces(unit, lengths, table_rows, scratch(size, unit.dtype), out, threads)
    return out
