"""What a layer costs, sparse and dense: a shipped model, a pure function of counts.

Times are nanoseconds on one core, fitted to measurements on the instruction set that is named; only
their ratios decide anything, so they hold for machines of another speed. A decision must not depend
on a clock, a thread count or what happens to be cached: then sites and bits would differ from run
to run. So building the rulebook always counts, even where it is remembered.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from . import _C


class Machine(NamedTuple):
    """Costs in ns of one core.

    Attributes:
        mac: a multiply-add of our kernel; dense_mac: of torch's.
        pair: a pair of rows; pair_channel: per channel of it, in and out.
        row_channel: an output row, per channel, in and out; the same for torch's kernel.
        dense_tap: a tap of torch's kernel, beside its multiply-adds.
        tap: an inactive tap over a ground that is not zero; tap_channel: per output channel of it.
        site: finding an output site; site_tap: looking for a pair.
        layer: a call; ground: more for a ground that is not zero; dense: a call that runs dense.
        reorder: of one weight by torch, where it is not stored channels-last; pack: by our kernel.
        scatter: one number of an input that is made dense; cell: one site of it.
    """

    mac: float = 0.0217
    dense_mac: float = 0.0201
    pair: float = 1.0
    pair_channel: float = 0.04
    row_channel: float = 0.1
    dense_tap: float = 0.7
    tap: float = 4.0
    tap_channel: float = 0.12
    site: float = 30.0
    site_tap: float = 3.0
    layer: float = 200e3
    ground: float = 250e3
    dense: float = 60e3
    reorder: float = 0.7
    pack: float = 0.5
    scatter: float = 0.5
    cell: float = 5.0


_AVX2 = Machine()
# Not measured: multiply-adds at twice the rate, the rest as on AVX2.
_AVX512 = _AVX2._replace(mac=0.0110, dense_mac=0.0102)
# SSE has half the lanes and no fused multiply-add; torch is taken to run on the same machine.
_BASELINE = _AVX2._replace(mac=0.085, dense_mac=0.080)
# Not measured either: bfloat16 on matrix tiles, after the instructions per product of both kernels.
_AMX = _AVX512._replace(mac=0.0035, dense_mac=0.0017, pair_channel=0.02)
# An H100. Not measured either: arithmetic and memory at half of what the data sheet promises, with
# the time that launches and the read of a size take.
_CUDA = Machine(
    mac=6e-5,
    dense_mac=4e-5,
    pair=0.002,
    pair_channel=0.002,
    row_channel=0.002,
    dense_tap=0.0,
    tap=0.01,
    tap_channel=0.002,
    site=0.1,
    site_tap=0.02,
    layer=60e3,
    ground=80e3,
    dense=30e3,
    reorder=0.004,
    pack=0.0,
    scatter=0.003,
    cell=0.003,
)
_CUDA_HALF = _CUDA._replace(mac=5e-6, dense_mac=3e-6, pair_channel=0.001, row_channel=0.001)
_MACHINES = {"baseline": _BASELINE, "avx2": _AVX2, "avx512": _AVX512, "amx": _AVX512}


@cache
def machine(dtype: torch.dtype, on_cuda: bool = False) -> Machine:
    """The costs on a GPU, or on the instruction set in use.

    On a CPU 16-bit values count as float32, but for AMX.
    """
    if on_cuda:
        m = _CUDA_HALF if dtype.itemsize == 2 else _CUDA
    else:
        isa = _C.isa_chosen()
        m = _AMX if isa == "amx" and dtype == torch.bfloat16 else _MACHINES.get(isa, _AVX2)
    if dtype == torch.float64:
        m = m._replace(mac=2 * m.mac, dense_mac=2 * m.dense_mac)
    return m


class Work(NamedTuple):
    """The counts that a layer's cost depends on.

    Attributes:
        n_in, n_out: active sites, in and out.
        cells_in, cells_out: all sites, in and out.
        n_offsets: kernel volume.
        n_pairs: active taps.
        c_in, c_out: channels; groups: divides both.
        class_rows: of the ground; 0 where it is zero or remembered.
        ground: whether inactive taps add anything.
        reorders: torch has to reorder the weight first; packed: our kernel has not.
        kept: of a pruned weight, the share of our kernel's time that its multiply-adds still take;
            torch's kernel takes all of it. What is read, written and found is the same.
    """

    n_in: int
    n_out: int
    cells_in: int
    cells_out: int
    n_offsets: int
    n_pairs: int
    c_in: int
    c_out: int
    groups: int
    class_rows: int
    ground: bool
    reorders: bool
    packed: bool
    kept: float = 1.0

    @property
    def macs(self) -> int:
        """Multiply-adds of a pair."""
        return self.c_in * self.c_out // self.groups

    def pack(self, m: Machine) -> float:
        """Bringing the weight into our kernel's order."""
        return 0.0 if self.packed else self.macs * self.n_offsets * self.kept * m.pack

    @property
    def channels(self) -> int:
        """Of a pair of rows."""
        return self.c_in + self.c_out


def _pairs(m: Machine, w: Work, n: int, kept: float = 1.0) -> float:
    return n * (w.macs * kept * m.mac + w.channels * m.pair_channel + m.pair)


def sparse(m: Machine, w: Work) -> float:
    """A convolution on sites not seen before, the ground's response included."""
    total = m.layer + _pairs(m, w, w.n_pairs, w.kept) + w.n_out * w.channels * m.row_channel
    total += w.pack(m)
    if w.n_offsets > 1:
        total += (w.n_in + w.n_out) * m.site + w.n_in * w.n_offsets * m.site_tap
    if w.ground:
        inactive = max(w.n_out * w.n_offsets - w.n_pairs, 0)
        total += m.ground + inactive * (m.tap + w.c_out * m.tap_channel)
        total += _pairs(m, w, w.class_rows * w.n_offsets)
    return total


def ours(m: Machine, w: Work) -> float:
    """Our kernel on a saturated input, whose rulebook is remembered."""
    total = m.dense + _pairs(m, w, w.cells_out * w.n_offsets, w.kept)
    return total + w.cells_out * w.channels * m.row_channel + w.pack(m)


def torchs(m: Machine, w: Work) -> float:
    """Torch's kernel on a saturated input."""
    tap = w.macs * m.dense_mac + m.dense_tap
    total = m.dense + w.cells_out * (w.n_offsets * tap + w.channels * m.row_channel)
    weights = w.macs * w.n_offsets
    return total + weights * (m.pack + (m.reorder if w.reorders else 0))


class Factors(NamedTuple):
    """Measured over predicted times of a layer, where `autotune` measured it."""

    sparse: float = 1.0
    ours: float = 1.0
    torch: float = 1.0


AS_SHIPPED = Factors()


def scatter(m: Machine, w: Work) -> float:
    """Making the input dense."""
    return 0.0 if w.n_in == w.cells_in else w.cells_in * (w.c_in * m.scatter + m.cell)


def dense(m: Machine, w: Work, factors: Factors = AS_SHIPPED) -> float:
    """The better of the two; the input is made dense first."""
    return scatter(m, w) + min(factors.ours * ours(m, w), factors.torch * torchs(m, w))
