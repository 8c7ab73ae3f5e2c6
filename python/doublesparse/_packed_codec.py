"""How a `PackedWeight` writes down which units are kept, and int8 values.

A unit is a weight, or a block of a `Block` pattern; units are numbered row-major over the matrix
view. Of three ways to write the ascending numbers of the kept units the smallest is taken:

    bitmask  uint8, a bit per unit, the lowest bit of a byte first
    gaps     uint8 or int16, a number per kept unit: how many units are skipped before it. The
             largest value of the dtype (255, 32767) is an escape: that many units skipped, none
             kept; so the distance between two kept units has no bound

At 90 % sparse a gap of one byte beats the 10 bits of the mask, and 2 bytes of a column index.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ESCAPE = {torch.uint8: 255, torch.int16: 32767}


def encode(keep: Tensor) -> dict[str, Tensor]:
    """The kept units of a bool tensor, as {"bitmask": ...} or {"gaps": ...}."""
    flags = keep.reshape(-1).numpy()
    n_bitmask = (flags.size + 7) // 8
    best: torch.dtype | None = None
    if np.count_nonzero(flags) < n_bitmask:  # no gap is shorter than a byte
        units = torch.from_numpy(np.flatnonzero(flags))
        skipped = torch.diff(units, prepend=units.new_full((1,), -1)) - 1
        best_size = n_bitmask
        for dtype, escape in _ESCAPE.items():
            size = dtype.itemsize * (len(units) + int((skipped // escape).sum()))
            if size < best_size:
                best, best_size = dtype, size
    if best is None:
        return {"bitmask": torch.from_numpy(np.packbits(flags, bitorder="little"))}
    return {"gaps": _gaps(skipped, best)}


def _gaps(skipped: Tensor, dtype: torch.dtype) -> Tensor:
    escape = _ESCAPE[dtype]
    place = (skipped // escape).cumsum(0) + torch.arange(len(skipped), device="cpu")
    gaps = torch.full((int(place[-1]) + 1 if len(place) else 0,), escape, dtype=dtype, device="cpu")
    gaps[place] = (skipped % escape).to(dtype)
    return gaps


def decode(tensors: dict[str, Tensor], n_units: int) -> Tensor:
    """The numbers of the kept units: int64, ascending.

    Args:
        tensors: with a key "bitmask" or "gaps", as `encode` makes them.
        n_units: how many units there are.

    Raises:
        ValueError: they are of another dtype or size, or name units that do not exist. The text
            says what is wrong, as "name must be X, got Y".
    """
    if "bitmask" in tensors:
        return _from_bitmask(tensors["bitmask"], n_units)
    gaps = tensors["gaps"]
    if gaps.dtype not in _ESCAPE or gaps.dim() != 1:
        raise ValueError(f"gaps must be uint8 or int16 of rank 1, got {_kind(gaps)}")
    kept = gaps != _ESCAPE[gaps.dtype]
    if len(gaps) and (int(gaps.min()) < 0 or not kept[-1]):
        raise ValueError("gaps must be at least 0 and end with a kept unit, got others")
    if len(gaps) > n_units:  # before the sum: it cannot overflow then
        raise ValueError(f"gaps must name at most {n_units} units, got {len(gaps)}")
    units = gaps.long().add_(kept).cumsum(0)[kept].sub_(1)
    if len(units) and int(units[-1]) >= n_units:
        raise ValueError(f"gaps must stay below {n_units} units, got {int(units[-1])}")
    return units


def _from_bitmask(bitmask: Tensor, n_units: int) -> Tensor:
    wanted = (n_units + 7) // 8
    if bitmask.dtype != torch.uint8 or bitmask.shape != (wanted,):
        raise ValueError(f"bitmask must be uint8 of shape ({wanted},), got {_kind(bitmask)}")
    bits = np.unpackbits(bitmask.contiguous().numpy(), bitorder="little")
    if bits[n_units:].any():
        raise ValueError(f"bitmask must be 0 behind its {n_units} bits, got ones")
    return torch.from_numpy(np.flatnonzero(bits[:n_units].view(np.bool_)))


def _kind(t: Tensor) -> str:
    return f"{t.dtype} of shape {tuple(t.shape)}"


def as_integers(values: Tensor) -> Tensor:
    """The bits of floating-point values."""
    return values.view(_BITS[values.element_size()])


def select(matrix: Tensor, keep: Tensor) -> Tensor:
    """`matrix[keep]`, without the two int64 per kept element that torch makes on the way."""
    kept = as_integers(matrix).numpy()[keep.numpy()]
    return torch.from_numpy(kept).view(matrix.dtype)


def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and a scale per row: the largest |w| of a row is 127 (rounded half to even).

    Rows whose scale would be 0 (all zeros, or so small that a 127th of it underflows) get scale 1.

    Args:
        matrix: (n_rows, n_columns), finite, zeros where nothing is kept.

    Returns:
        int8 of the same shape, and scales (n_rows,): float64 for float64, otherwise float32.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    largest = wide.new_zeros(len(wide)) if wide.numel() == 0 else wide.abs().amax(1)
    scales = largest / 127.0
    scales = torch.where(scales == 0, 1.0, scales)
    return (wide / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales
