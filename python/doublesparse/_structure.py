"""What the kernels need of a mask: its *tiles*, made once for every mask.

A matrix of n_rows x n_columns weights is cut into blocks of columns, so that a block's part of the
activations stays in L1, and its rows into units (of one row, or of 4, 8 or 16 where a pattern keeps
whole columns of them). See csrc/cpu/spmm/spmm.h.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _C
from ._torch_compat import StorageWeakRef

_UNITS = (16, 8, 4)
# Columns of a block. 256 of them and 4 vectors of lanes fill 32 KiB; a unit of several rows reads
# its columns several times, so its block is to leave room in L1.
_UNIT_BLOCK, _BLOCK, _WIDE_BLOCK = 128, 256, 512
_MIXERS = (-0xAE502812AA7333, -0x3B314601E57A13AD)  # odd, of MurmurHash3
_FEW = 0.15  # density below which the segments of a narrow block are too short
_MADE = TypeVar("_MADE")


class Structure:
    """Tiles of a matrix, with the place of every value in it.

    Attributes:
        tiles: what kernels read.
        index: int64 (n_values,): row * n_columns + column of every value, in the tiles' order.
        shape: of the matrix.
    """

    __slots__ = ("index", "shape", "tiles")

    def __init__(self, matrix: Tensor, unit_rows: int = 1, bitmask: bool = False) -> None:
        """Cut up a bool matrix.

        Args:
            matrix: (n_rows, n_columns): which weights are kept.
            unit_rows: 1, 4, 8 or 16 rows that keep whole columns.
            bitmask: units of 16 rows that keep what they like, a bit for every weight.
        """
        n_rows, n_columns = self.shape = tuple(matrix.shape)
        unit_rows = _UNITS[0] if bitmask else unit_rows
        units = matrix.reshape(n_rows // unit_rows, unit_rows, n_columns)
        kept = units.any(1) if bitmask else units[:, 0]
        density = float(kept.sum()) / max(1, kept.numel())
        block = block_columns(n_columns, density, unit_rows)
        starts, in_block = _segments(kept, block)
        first = _first_of(starts, in_block, n_rows // unit_rows, unit_rows, n_columns, block)
        self.index, bits = first, None
        if unit_rows > 1:
            rows = torch.arange(unit_rows, device="cpu")
            self.index = first[:, None] + rows * n_columns
            if bitmask:
                chosen = matrix.reshape(-1)[self.index]
                bits = (chosen * (1 << rows)).sum(1).to(torch.int16)
                self.index = self.index[chosen]
            self.index = self.index.flatten()
        columns = in_block.to(torch.int16)
        self.tiles = _C.Tiles(starts, columns, n_rows, n_columns, block, unit_rows, bits)


def _segments(kept: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Where the entries of (block, unit) start, and the column of each in its block."""
    n_units, n_columns = kept.shape
    n_blocks = -(-n_columns // block)
    padded = torch.nn.functional.pad(kept, (0, n_blocks * block - n_columns))
    segments = padded.view(n_units, n_blocks, block).transpose(0, 1)
    starts = torch.zeros(n_blocks * n_units + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(segments.sum(-1).flatten(), 0, out=starts[1:])
    return starts, segments.flatten().nonzero().view(-1) % block


def _first_of(
    starts: Tensor, in_block: Tensor, n_units: int, unit_rows: int, n_columns: int, block: int
) -> Tensor:
    """Place in the matrix of the first row of every entry."""
    segment = torch.repeat_interleave(starts.diff())
    n_units = max(1, n_units)
    first = (segment % n_units).mul_(unit_rows * n_columns).add_(in_block)
    return first.add_(segment.div_(n_units, rounding_mode="floor").mul_(block))


def index_of_tiles(tiles: _C.Tiles) -> Tensor:
    """`Structure.index` of given tiles."""
    unit, n_columns = tiles.unit_rows, tiles.n_columns
    n_units = tiles.n_rows // unit
    sizes = (n_units, unit, n_columns, tiles.block_columns)
    first = _first_of(tiles.starts, tiles.columns, *sizes)
    if unit == 1:
        return first
    index = first[:, None] + torch.arange(unit, device="cpu") * n_columns
    if tiles.bits is not None:
        index = index[(tiles.bits[:, None].int() >> torch.arange(unit, device="cpu")) & 1 == 1]
    return index.flatten()


def block_columns(n_columns: int, density: float, unit_rows: int = 1) -> int:
    """Columns of a block: a pure function, as the order of a product's sums is."""
    if density < _FEW:
        return min(max(1, n_columns), _WIDE_BLOCK)
    return min(max(1, n_columns), _BLOCK if unit_rows == 1 else _UNIT_BLOCK)


def unit_rows_of(matrix: Tensor) -> int:
    """The most rows, 16, 8 or 4, of which every unit keeps whole columns; else 1."""
    n_rows = matrix.shape[0]
    for unit in _UNITS:
        if n_rows and n_rows % unit == 0:
            units = matrix.view(n_rows // unit, unit, -1)
            if bool((units == units[:, :1]).all()):
                return unit
    return 1


class MatrixStructures:
    """What products with a pruned matrix, with its transpose and at its kept entries need.

    Attributes:
        forward: of the matrix.
        backward: of its transpose.
        order: int64: where each value of `backward` is among those of `forward`.
        sampled: of the matrix, in units of one row.
        n_kept: kept entries.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.forward = Structure(matrix, unit_rows_of(matrix))
        self.n_kept = self.forward.index.numel()
        self._backward: tuple[Structure, Tensor] | None = None
        self._sampled = self.forward if self.forward.tiles.unit_rows == 1 else None

    @property
    def backward(self) -> tuple[Structure, Tensor]:
        """Of the transpose, and the order of its values; built on first use."""
        if self._backward is None:
            n_rows, n_columns = self.forward.shape
            transpose = self._matrix().t().contiguous()
            made = Structure(transpose, unit_rows_of(transpose))
            place = torch.empty(n_rows * n_columns, dtype=torch.int64, device="cpu")
            place[self.forward.index] = torch.arange(self.n_kept, device="cpu")
            index = made.index
            self._backward = made, place[index % n_rows * n_columns + index // n_rows]
        return self._backward

    @property
    def sampled(self) -> Structure:
        """In units of one row; built on first use."""
        if self._sampled is None:
            self._sampled = Structure(self._matrix())
        return self._sampled

    def _matrix(self) -> Tensor:
        """Made again: the mask itself, held here, would be remembered for ever."""
        matrix = torch.zeros(self.forward.shape, dtype=torch.bool, device="cpu")
        matrix.view(-1)[self.forward.index] = True
        return matrix


# ------------------------------------------------------------------ remembered per mask
class _Remembered:
    """What was made of one mask, and how to know that it still is that mask."""

    __slots__ = ("content", "made", "storage", "version")

    def __init__(self, mask: Tensor, storage: StorageWeakRef, content: bytes) -> None:
        self.storage, self.version, self.content = storage, mask._version, content
        self.made: dict[Hashable, Any] = {}


def _content(mask: Tensor) -> bytes:
    mask = mask.detach()
    if mask.is_cuda:
        return _mixed(mask)
    return blake2b(mask.contiguous().numpy().tobytes()).digest()


def _mixed(mask: Tensor) -> bytes:
    """Two sums of mixed places, on the mask's device, so that 16 bytes are read back."""
    bits = mask.flatten().nonzero().view(-1)
    for factor in _MIXERS:  # multiply and fold, modulo 2^64: as the finalizer of MurmurHash3
        bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * factor
    low, high = torch.stack((bits.sum(), (bits ^ ((bits >> 29) & 0x7FFFFFFFF)).sum())).tolist()
    return b"".join(n.to_bytes(8, "little", signed=True) for n in (low, high))


_remembered: dict[Hashable, _Remembered] = {}
_lock = Lock()


def of_mask(mask: Tensor, key: Hashable, make: Callable[[Tensor], _MADE]) -> _MADE:
    """What `make` makes of a mask, remembered while the mask lives and is not written to.

    Args:
        mask: a bool tensor; known by its memory, so that a view or a detached alias will do.
        key: of what is made.
        make: called with the mask.
    """
    if mask.is_inference():  # such tensors do not count their changes
        return make(mask)
    storage = mask.untyped_storage()
    name = storage._cdata, mask.storage_offset(), mask.shape, mask.stride()
    found = _remembered.get(name)
    if found is None or found.storage.expired() or found.version != mask._version:
        found = _renewed(name, mask, found)
    if key not in found.made:
        found.made[key] = make(mask)
    result: _MADE = found.made[key]
    return result


def _renewed(name: Hashable, mask: Tensor, found: _Remembered | None) -> _Remembered:
    """Remembers a mask; one that was written to but has not changed (DDP does that) stays."""
    content = _content(mask)
    with _lock:
        if found is not None and not found.storage.expired() and found.content == content:
            found.version = mask._version
            return found
        for old in [k for k, kept in _remembered.items() if kept.storage.expired()]:
            del _remembered[old]
        found = _Remembered(mask, StorageWeakRef(mask.untyped_storage()), content)
        _remembered[name] = found
        return found


def n_remembered() -> int:
    """Masks that live and are remembered."""
    return sum(not kept.storage.expired() for kept in list(_remembered.values()))


def of_matrix(mask: Tensor) -> MatrixStructures:
    """The structures of the mask (n_rows, n_columns) of a linear layer."""
    return of_mask(mask, "matrix", MatrixStructures)
