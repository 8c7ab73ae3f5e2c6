"""`nearest_centers` and `most_agreeing` in plain torch: slow, the same codes but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 22  # products that are held at a time
_COUNTS = 1 << 16


def nearest_centers(
    points: Tensor, centers: Tensor, columns: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """For each point the centre with the largest x.c - |c|^2 / 2, lowest index on ties."""
    k = centers.shape[0]
    out = _new(len(points), k) if out is None else out
    half = centers.square().sum(1) / 2
    for rows in torch.arange(len(points)).split(max(1, _BLOCK // k)):
        x = points[rows] if columns is None else points[rows][:, columns]
        best = torch.addmm(-half, x, centers.t()).argmax(1)
        out[int(rows[0]) : int(rows[-1]) + 1] = best.to(out.dtype)
    return out


def most_agreeing(
    codes: Tensor, columns: Tensor, center_codes: Tensor, out: Tensor | None = None
) -> Tensor:
    """For each point the centre with the most equal codes, lowest index on ties."""
    n, k = codes.shape[1], center_codes.shape[1]
    out = _new(n, k) if out is None else out
    # Equality does not mind the sign: torch compares int16 and not uint16.
    codes, center_codes = (
        x if x.dtype == torch.uint8 else x.view(torch.int16) for x in (codes, center_codes)
    )
    for first in range(0, n, max(1, _COUNTS // k)):
        last = min(n, first + max(1, _COUNTS // k))
        counts = torch.zeros(last - first, k, dtype=torch.int16)
        for row, column in zip(center_codes, columns.tolist(), strict=True):
            counts += codes[column, first:last, None] == row
        # max * k - index: the lowest index of the most counts, which argmax does not promise.
        key = counts.to(torch.int32) * k - torch.arange(k, dtype=torch.int32)
        out[first:last] = key.argmax(1).to(out.dtype)
    return out


def _new(n: int, k: int) -> Tensor:
    return torch.empty(n, dtype=torch.uint8 if k <= 256 else torch.uint16)
