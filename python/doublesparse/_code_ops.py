"""Raw operators of multilayer bootstrap networks: nearest centres, most agreeing centres.

Codes are clustering-major: row ``v`` of ``codes`` holds, for every point, the index of its centre
in clustering ``v``; uint8 or uint16. Results have the same bits for any number of threads. CPU
only; no gradient, for codes have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C
from ._scratch import scratch

_CODES = (torch.uint8, torch.uint16)
_MOST_CODES = 65537  # counts of a histogram: every 16-bit code, and one that no centre has


def _check_device(name: str, operand: Tensor, operation: str) -> None:
    if operand.device.type != "cpu":
        message = f"{operation}: {name} must be on the CPU, got {operand.device}; use .cpu()"
        raise RuntimeError(message)


# --- most agreeing centres


def most_agreeing(
    codes: Tensor,
    columns: Tensor,
    center_codes: Tensor,
    out: Tensor | None = None,
    *,
    way: str | None = None,
) -> Tensor:
    """For each point the centre with the most equal codes: an upper layer of an MBN.

    Zhang, "Multilayer bootstrap networks", 2018: above the first layer a point is the one-hot code
    of its centres, and the nearest of k sampled centres is the one that shares the most ones with
    it. The one-hot code is never expanded. Two ways, one answer: where k is large the centres are
    kept in lists by their code, and a point counts those in its lists; else all are compared. The
    choice depends on the operands alone.

    Args:
        codes: (V, n) uint8 or uint16, contiguous.
        columns: (s,) int64, the clusterings that vote, in [0, V); repeated ones vote repeatedly.
        center_codes: (s, k) of the dtype of `codes`: row i holds the codes of the k centres in
            clustering ``columns[i]``; 1 <= k <= 65536, s >= 1.
        out: (n,) uint8 (k <= 256) or uint16, contiguous, to write into.
        way: "compare" or "lists" instead of the choice, for tests and benchmarks.

    Returns:
        (n,) uint8 where k <= 256, else uint16 (`out`, if given): the lowest index among the centres
        with the largest number of votes i with ``codes[columns[i], point] == center_codes[i, c]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, no vote, a column out of range, too many centres for `out`.
        RuntimeError: a tensor that is not on the CPU.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.uint8)
        >>> centers = torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8)
        >>> most_agreeing(codes, torch.tensor([0, 1]), centers).tolist()
        [0, 0, 1]
    """
    for name, operand in (("codes", codes), ("columns", columns), ("center_codes", center_codes)):
        _check_device(name, operand, "most_agreeing")
    for name, operand in (("codes", codes), ("center_codes", center_codes)):
        if operand.dtype not in _CODES:
            message = f"most_agreeing: {name} must be uint8 or uint16, got {operand.dtype}"
            raise TypeError(message)
    if way not in (None, "compare", "lists"):
        message = f'most_agreeing: way must be None, "compare" or "lists", got {way!r}'
        raise ValueError(message)
    threads = torch.get_num_threads()
    n = codes.shape[1] if codes.dim() == 2 else 0
    histogram = scratch(_MOST_CODES, torch.int64)
    n_values, lists, *sizes = _C.plan_agreeing(center_codes, histogram, n, threads)
    if way is not None:
        lists = way == "lists"
    if out is None:
        small = center_codes.shape[1] <= 256
        out = torch.empty(n, dtype=torch.uint8 if small else torch.uint16)
    workspace = scratch((sizes[lists] + 64) // 8, torch.int64)
    vote = (codes, columns, center_codes, n_values, lists)
    _C.most_agreeing(*vote, workspace, out, threads)
    return out
