"""The pair lists of a rulebook as one argument, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from . import _C
from ._gpu_pairs import GpuPairs


class Lists(NamedTuple):
    """The three tensors of ``Pairs``, unchecked: its stand-in where tensors have no data."""

    src_rows: Tensor
    dst_rows: Tensor
    offset_start: Tensor

    def reversed(self) -> Lists:
        """Source and destination swapped."""
        return Lists(self.dst_rows, self.src_rows, self.offset_start)


class _OnAnyDevice(type):
    """A class whose instances are of one class per device."""

    def __call__(cls, src_rows: Any, dst_rows: Any, offset_start: Any) -> Any:
        on_gpu = getattr(src_rows, "is_cuda", False)
        return (GpuPairs if on_gpu else _C.Pairs)(src_rows, dst_rows, offset_start)

    def __instancecheck__(cls, given: object) -> bool:
        return isinstance(given, (_C.Pairs, GpuPairs))


if TYPE_CHECKING:
    Pairs = _C.Pairs
else:

    class Pairs(metaclass=_OnAnyDevice):
        """``Pairs(src_rows, dst_rows, offset_start)``, int32 twice and int64 (n_offsets + 1,).

        The list of offset k is ``[offset_start[k], offset_start[k + 1])``; both rows strictly
        ascend within it, which is checked once, here (on the CPU: what is in a GPU's memory is not
        looked at). ``.reversed()`` swaps source and destination; ``.n_pairs``, ``.n_offsets``,
        ``.src_rows``, ``.dst_rows``, ``.offset_start``.
        """
