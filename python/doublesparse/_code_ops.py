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


def _check_tensor(operation: str, name: str, operand: Tensor) -> None:
    """A tensor on the CPU."""
    if not isinstance(operand, Tensor):
        raise TypeError(
            f"{operation}: {name} must be a torch.Tensor, got {type(operand).__name__}; convert it"
        )
    if operand.device.type != "cpu":
        raise RuntimeError(
            f"{operation}: {name} must be on the CPU, got {operand.device}; use .cpu()"
        )


# --- nearest centres

_SIGNED = {torch.uint8: torch.int8, torch.uint16: torch.int16}  # what the binding takes: same bits
_MOST_NARROW = 256  # codes of one byte


def _nearest_out(n: int, k: int, out: Tensor | None) -> Tensor:
    """`out` where it is a tensor of codes of k centres, or a new tensor."""
    if out is None:
        dtype = torch.uint8 if k <= _MOST_NARROW else torch.uint16
        return torch.empty(n, dtype=dtype, device="cpu")
    if not isinstance(out, Tensor) or out.dtype not in _SIGNED:
        got = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"nearest_centers: out must be a uint8 or uint16 tensor, got {got}")
    if out.dtype == torch.uint8 and k > _MOST_NARROW:
        raise ValueError(
            f"nearest_centers: out must be uint16 for more than {_MOST_NARROW} centers, got uint8"
        )
    return out


def nearest_centers(
    points: Tensor, centers: Tensor, columns: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """The nearest centre of every point, by Euclidean distance in some of the features.

    The index of the largest ``x . c - |c|^2 / 2``, the lowest one on ties. Zeros of the points are
    skipped, which makes images with a background of zeros several times faster than a dense
    product; subtract the most common value first where that is another one, from points and
    centres: distances do not change.

    Sums are float32, one chain of fused multiply-adds per (point, centre) in ascending order of the
    features: the same bits for any number of threads, any batch, and every instruction set that
    fuses (x86 without AVX2 rounds products first).

    Args:
        points: (n, d) float32, contiguous.
        centers: (k, d_sub) float32, contiguous, 1 <= k <= 65536.
        columns: (d_sub,) int64, strictly ascending: the features of `points` that take part, or
            None for all of them. The other features are not looked at.
        out: (n,) uint8 or, for any k, uint16: written to and returned; None for a new tensor.

    Returns:
        Tensor: (n,), uint8 for k <= 256, else uint16.

    Raises:
        TypeError: a dtype is another one, or an argument is no tensor.
        ValueError: a shape does not fit, there are no centres or no features, columns are out of
            range or do not ascend, or a value is not finite, or so large that sums of d_sub
            products might overflow (sqrt(3.4e38 / d_sub)).
        RuntimeError: a tensor is not on the CPU.

    Example:
        >>> import torch
        >>> points = torch.tensor([[0.0, 7.0, 1.0], [5.0, 7.0, 4.0]])
        >>> centers = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
        >>> nearest_centers(points, centers, columns=torch.tensor([0, 2])).tolist()
        [0, 1]
    """
    for name, tensor in (("points", points), ("centers", centers)):
        _check_tensor("nearest_centers", name, tensor)
        if tensor.dtype != torch.float32:
            raise TypeError(
                f"nearest_centers: {name} must be float32, got {tensor.dtype}; use .float()"
            )
        if tensor.dim() != 2:
            raise ValueError(
                f"nearest_centers: {name} must have 2 dimensions, got {tuple(tensor.shape)}"
            )
    (n, d), (k, d_sub) = points.shape, centers.shape
    if columns is None and d != d_sub > 0:
        raise ValueError(
            f"nearest_centers: centers must have {d} features as points have, got {d_sub}; "
            f"name theirs in columns"
        )
    threads = torch.get_num_threads()
    workspace = scratch(_C.nearest_workspace(n, k, d_sub, threads), torch.float32)
    out = _nearest_out(n, k, out)
    signed = out.view(_SIGNED[out.dtype])
    _C.nearest_centers(points, centers, columns, workspace, signed, threads)
    return out


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
        _check_tensor("most_agreeing", name, operand)
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
        out = torch.empty(n, dtype=torch.uint8 if small else torch.uint16, device="cpu")
    workspace = scratch((sizes[lists] + 64) // 8, torch.int64)
    vote = (codes, columns, center_codes, n_values, lists)
    _C.most_agreeing(*vote, workspace, out, threads)
    return out
