"""Products with a `PackedWeight` on a CUDA device: what is kept there, and which kernel runs.

The stored tensors stay with the host. The device holds one form of the kept weights, made when they
are first used: blocks or bitmaps of 16-bit weights, which products decode on their way, or else the
kept values and their places. Where bitmaps keep less than an eighth, products of 1 to 4 rows have a
second form, with a byte per place. Only products that a dense kernel does better make the weight
dense, for as long as they run.
"""

from __future__ import annotations

from threading import RLock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._crossover import get_crossover
from ._device import capturing, gpu
from ._gpu_bitmap import BitmapWeight, bitmap_spmm, semi_structured
from ._gpu_blocks import SIZES, BlockWeight, block_spmm, block_spmm_t
from ._gpu_delta import DeltaWeight, delta_gemv
from ._gpu_masked import runs_sparse
from ._gpu_spmm import GpuCsr, PackedValues, product, sddmm, spmm
from ._packed_weight import PackedWeight
from ._patterns import NM, Block, from_matrix, to_matrix

BITMAP_ROWS = 128
"""Rows of activations up to which 16-bit weights are decoded inside the product, once per 64 of
them. By counting, decoding 4096 x 4096 weights twice takes 11 us of an H100, as long as writing the
dense ones does for torch to read. Not measured."""

MOST_BLOCKS = 0.6
"""Share of kept blocks up to which the product skips the others. By counted loads: a product of
kept blocks reads activations anew for every row of blocks. Not measured."""

_HALVES = (torch.bfloat16, torch.float16)
_lock = RLock()


class KeptWeight:
    """The kept values of a matrix and their places: 8 bytes a weight in float32, 5 in int8.

    The lists of the sparse kernels, made on their first use, are 10 bytes more for few rows.

    Attributes:
        kept: int32 (n_kept,), or int64 where the matrix is larger: row * n_columns + column.
        values: (n_kept,), as stored.
        scales: float32 (n_rows,) of int8 values, or None.
        shape: of the matrix.
    """

    def __init__(self, matrix: Tensor, keep: Tensor, scales: Tensor | None) -> None:
        self.shape = matrix.shape
        places = keep.flatten().nonzero().view(-1)
        self.values = matrix.flatten()[places]
        self.kept = places.int() if matrix.numel() < 2**31 else places
        self.scales = None if scales is None else scales.float()
        self._csr: GpuCsr | None = None
        self._products: dict[Any, PackedValues] = {}

    @property
    def csr(self) -> GpuCsr:
        """Its structure for the sparse kernels; made on first use."""
        if self._csr is None:
            mask = torch.zeros(self.shape, dtype=torch.bool, device=self.kept.device)
            mask.view(-1)[self.kept.long()] = True
            self._csr = GpuCsr(mask)
        return self._csr

    def unpack(self) -> Tensor:
        """The matrix, zeros where nothing is kept; int8 times its scales."""
        matrix = self.values.new_zeros(self.shape)
        matrix.view(-1)[self.kept.long()] = self.values
        return matrix if self.scales is None else matrix * self.scales[:, None]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ W.T + bias` by the sparse kernels."""
        values, scales = self._operands(x.dtype)
        if _is_gemv(x):
            return spmm(x, self.csr, values, bias, scales)
        return product(x, self._packed("forward", values), bias, scales)

    def product_t(self, dy: Tensor) -> Tensor:
        """`dy @ W` by the sparse kernels."""
        values, scales = self._operands(dy.dtype)
        if scales is not None:  # they go by row, which are columns of the transpose
            values = values.float() * scales[self.csr.rows]
        return product(dy, self._packed("backward", values))

    def _operands(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Values as the kernels take them with activations of this dtype, and their scales."""
        values, scales = self.values, self.scales
        if dtype != torch.float64:
            return (values.float() if values.dtype == torch.float64 else values), scales
        values = values.double()
        return (values if scales is None else values * scales.double()[self.csr.rows]), None

    def _packed(self, way: str, values: Tensor) -> PackedValues:
        key = way, values.dtype
        found = self._products.get(key)
        if found is None:
            found = PackedValues(getattr(self.csr, way), values)
            if not capturing(values.device):
                self._products[key] = found
        return found


Stored = KeptWeight | BitmapWeight | BlockWeight


def stored(packed: PackedWeight) -> Stored:
    """What the device holds of a packed weight."""
    found: Stored | None = packed._forms.get("gpu")
    if found is None:
        with _lock:
            found = packed._forms.get("gpu")
            if found is None:
                found = packed._forms["gpu"] = _stored(packed)
    return found


def _stored(packed: PackedWeight) -> Stored:
    matrix, keep, scales = (
        None if t is None else t.to(packed.device) for t in packed.stored_matrix()
    )
    assert matrix is not None and keep is not None
    if packed.dtype in _HALVES:
        size = _block_size(packed)
        return BlockWeight.pack(matrix, keep, size) if size else BitmapWeight.pack(matrix, keep)
    return KeptWeight(matrix, keep, scales)


def _block_size(packed: PackedWeight) -> int:
    """Of the largest square blocks that are kept whole, or 0."""
    pattern = packed.pattern
    if not isinstance(pattern, Block) or packed.density > MOST_BLOCKS:
        return 0
    whole = len(packed.shape) == 2 or packed.shape[1] % pattern.c == 0
    fits = [s for s in SIZES if whole and pattern.r % s == 0 and pattern.c % s == 0]
    return max(fits, default=0)


def dense(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The weight on its device, zeros where nothing is kept."""
    return from_matrix(stored(packed).unpack(), packed.shape).to(dtype).contiguous()


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """`x @ packed.unpack().T + bias`: x (m, c_in), contiguous -> (m, c_out); no gradient."""
    form, ours = stored(packed), get_crossover() is None
    if isinstance(form, KeptWeight):
        if _is_gemv(x) or _runs_sparse(x, packed):
            return form.product(x, bias)
    elif x.dtype == packed.dtype:
        if isinstance(form, BlockWeight):
            return block_spmm(x, form, bias)
        if (delta := _delta(x, packed, form)) is not None:
            return delta_gemv(x, delta, bias)
        if ours or x.shape[0] <= BITMAP_ROWS:
            return bitmap_spmm(x, form, bias)
        if packed.pattern == NM(2, 4) and (weight := _semi_structured(packed)) is not None:
            return F.linear(x, weight, bias)
    elif ours:
        return _kept(packed).product(x, bias)
    return F.linear(x, dense(packed, x.dtype), bias)


def input_grad(dy: Tensor, packed: PackedWeight) -> Tensor:
    """`dy @ packed.unpack()`: dy (m, c_out), contiguous -> (m, c_in); no gradient."""
    form = stored(packed)
    if isinstance(form, BlockWeight) and dy.dtype == packed.dtype:
        return block_spmm_t(dy, form)
    if get_crossover() is None or (isinstance(form, KeptWeight) and _runs_sparse(dy, packed)):
        return _kept(packed).product_t(dy)
    return dy @ dense(packed, dy.dtype)


def sampled(dy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """`dy.T @ x` at a mask (c_out, c_in), zeros elsewhere, the dtype of x."""
    csr, out = GpuCsr(mask), x.new_zeros(mask.shape)
    out.view(-1)[csr.kept] = sddmm(dy, x, csr).to(x.dtype)
    return out


def _runs_sparse(x: Tensor, packed: PackedWeight) -> bool:
    return runs_sparse(x.shape[0], packed.n_kept, packed.numel(), x.dtype)


def _is_gemv(x: Tensor) -> bool:
    """Whether `spmm` reads the kept weights once, as they are: no dense kernel does better."""
    return 0 < x.shape[0] <= gpu().SPMM_GEMV_ROWS and x.shape[1] <= gpu().SPMM_GEMV_COLUMNS


def _delta(x: Tensor, packed: PackedWeight, form: BitmapWeight) -> DeltaWeight | None:
    """For few rows: the form that is read in fewer bytes than bitmaps, or None.

    A second one on the device, made on first use, where less than an eighth is kept.
    """
    few = 0 < x.shape[0] <= gpu().DELTA_GEMV_ROWS
    if not few or 8 * packed.n_kept >= packed.numel():
        return None
    if "gpu delta" not in packed._forms:
        if capturing(packed.device):
            return None
        delta = DeltaWeight.pack(form.unpack(), form.mask())
        packed._forms["gpu delta"] = delta if delta.nbytes < form.nbytes else None
    found: DeltaWeight | None = packed._forms["gpu delta"]
    return found


def _kept(packed: PackedWeight) -> KeptWeight:
    """For products that blocks and bitmaps have no kernel for, where all must run on ours."""
    form = stored(packed)
    if isinstance(form, KeptWeight):
        return form
    found: KeptWeight | None = packed._forms.get("gpu kept")
    if found is None:
        keep = to_matrix(packed.mask())
        found = packed._forms["gpu kept"] = KeptWeight(form.unpack(), keep, None)
    return found


def _semi_structured(packed: PackedWeight) -> Tensor | None:
    if "gpu 2:4" in packed._forms:
        found: Tensor | None = packed._forms["gpu 2:4"]
        return found
    weight = semi_structured(dense(packed, packed.dtype))
    if not capturing(packed.device):
        packed._forms["gpu 2:4"] = weight
    return weight
