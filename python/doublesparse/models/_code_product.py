"""W2 Z for inference where few of each code are active: sparse times sparse.

A product with dense codes visits all s n weights of W2. Where a sample has M of n codes active, the
M columns that they meet are enough. Two ways, and which is predicted fastest is a pure function of
sizes (`cheapest`):

* "rows": torch's embedding bag over W2^T, M rows of p numbers each, zeros included, at the speed
  of vectors: for p up to about 70 s;
* "entries": the s indices and values of each of the M columns, added one by one: M s of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._functional_packed import spmm
from .._packed_weight import PackedWeight
from .._spmm_costs import counts_of, sparse_ns

# Nanoseconds of one core, measured with (p, n) of (100, 128), (1024, 256) and (1024, 1024), s = 20,
# M of 4 to 64 and batches of 1, 64 and 512; ratios matter only.
_ROWS = {"call": 50e3, "number": 0.18}
_ENTRIES = {"call": 90e3, "number": 13.0, "output": 0.05}
_CHUNK = 1 << 16  # entries at a time: they and their indices stay in the cache


def cheapest(packed: PackedWeight, s: int, batch: int, active: int) -> str:
    """Which product is predicted to be the fastest: "dense", "rows" or "entries".

    Args:
        packed: W2 (n_atoms, n_codes).
        s: kept weights of a column.
        batch: samples.
        active: M.
    """
    n_atoms = packed.shape[0]
    rows = batch * active * n_atoms * _ROWS["number"]
    entries = batch * (active * s * _ENTRIES["number"] + n_atoms * _ENTRIES["output"])
    times = {
        "dense": sparse_ns(counts_of(packed, batch)),
        "rows": _ROWS["call"] + rows,
        "entries": _ENTRIES["call"] + entries,
    }
    return min(times, key=lambda name: times[name])


def code_product(packed: PackedWeight, z: Tensor, index: Tensor) -> Tensor:
    """W2 of each code: (batch, n_codes) to (batch, n_atoms).

    Args:
        packed: W2 (n_atoms, n_codes) under `ds.TopKColumns(s)`.
        z: codes, float32 or float64.
        index: (batch, M), which codes are active; all others are zero.
    """
    n_atoms, n_codes = packed.shape
    if z.numel() == 0 or packed.n_kept == 0:
        return spmm(packed, z)
    s = -(-packed.n_kept // n_codes)
    way = cheapest(packed, s, *index.shape)
    if way == "dense":
        return spmm(packed, z)
    values = z.gather(1, index)
    columns = _form(packed, way, s, z.dtype)
    if way == "rows":
        return F.embedding_bag(index, columns, per_sample_weights=values, mode="sum")
    places, weights = columns
    return _add_entries(places, weights, index, values, n_atoms)


def _add_entries(
    places: Tensor, weights: Tensor, index: Tensor, values: Tensor, n_atoms: int
) -> Tensor:
    """The sum of the columns, given by places and weights (n_codes, s), of each sample."""
    batch, active = index.shape
    y = values.new_zeros(batch, n_atoms)
    step = max(1, _CHUNK // max(1, active * places.shape[1]))
    for begin in range(0, batch, step):
        here = index[begin : begin + step]
        terms = weights[here] * values[begin : begin + step].unsqueeze(-1)
        y[begin : begin + step].scatter_add_(1, places[here].flatten(1), terms.flatten(1))
    return y


def _form(packed: PackedWeight, way: str, s: int, dtype: torch.dtype) -> Any:
    """W2 as the product needs it: made once, neither saved nor copied."""
    key = "columns", way, dtype
    form = packed._forms.get(key)
    if form is None:
        rows = packed.unpack().to(dtype).t().contiguous()  # int8 is unpacked as float32
        form = rows
        if way == "entries":
            kept = packed.mask().t().to(torch.uint8)
            places = kept.topk(s, 1).indices  # of a column with fewer, some weights are zero
            form = places, rows.gather(1, places)
        packed._forms[key] = form
    return form
