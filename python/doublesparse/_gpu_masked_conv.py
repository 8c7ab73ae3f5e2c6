"""Convolutions with pruned weights on a CUDA device: the offsets that a mask keeps, on `conv`.

Kernel offsets that keep nothing are left out of the neighbour table and of the weight. Within those
that keep something the work is that of all weights, pruned ones as exact zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import check_mask
from ._gpu_conv import conv, pack_weight
from ._gpu_conv_grad import conv_weight_grad
from ._gpu_pairs import GpuPairs
from ._kept import masked
from ._structure import of_mask


class _KeptOffsets(NamedTuple):
    """Offsets that keep something: their numbers, and as an index, None where all do."""

    numbers: tuple[int, ...]
    places: Tensor | None

    def of_weight(self, weight: Tensor) -> Tensor:
        """The part of these offsets; of a weight that keeps nothing one offset, any of them."""
        if self.places is None:
            return weight
        return weight.index_select(2, self.places) if self.numbers else weight[:, :, :1]

    def of_pairs(self, pairs: GpuPairs, n_src: int, n_dst: int) -> GpuPairs:
        """The part of these offsets, or one without pairs; remembered with the pairs."""
        if self.places is None:
            return pairs
        key = ("offsets", n_src, n_dst, self.numbers)
        part: GpuPairs | None = pairs.memo.get(key)
        if part is None:
            table = pairs.table(n_src, n_dst)
            if self.numbers:
                table = table.index_select(0, self.places)
            else:
                table = torch.full_like(table[:1], -1)
            part = GpuPairs.of_table(table, n_src)
            pairs.remember(key, part, table.device)
        return part


def _find_offsets(mask: Tensor) -> _KeptOffsets:
    kept = mask.detach().flatten(2).any(0).any(0).tolist()
    numbers = tuple(k for k, some in enumerate(kept) if some)
    if len(numbers) == len(kept):
        return _KeptOffsets(numbers, None)
    return _KeptOffsets(numbers, torch.tensor(numbers, dtype=torch.int64, device=mask.device))


def _kept_offsets(mask: Tensor) -> _KeptOffsets:
    """Read from the device once, until the mask is written to."""
    return of_mask(mask, "kept offsets", _find_offsets)


def pack_masked_weight(
    weight: Tensor, mask: Tensor, groups: int = 1, transposed: bool = False
) -> Tensor:
    """`ops.pack_masked_weight`."""
    check_mask("pack_masked_weight", mask, weight.shape, weight.device)
    kept = _kept_offsets(mask).of_weight(masked(weight, mask))
    return pack_weight(kept.contiguous(), groups, transposed)


def masked_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    pairs: Any,
    n_dst: int,
    bias: Tensor | None = None,
    groups: int = 1,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
    transposed: bool = False,
    packed: Tensor | None = None,
) -> Tensor:
    """`ops.masked_conv`; a feature that is not finite meets the pruned weights of kept offsets."""
    check_mask("masked_conv", mask, weight.shape, weight.device)
    offsets = _kept_offsets(mask)
    part = offsets.of_pairs(pairs, len(x), n_dst)
    if packed is None:
        weight = offsets.of_weight(masked(weight, mask)).contiguous()
    else:  # of the weight only the shape is read
        weight = weight[:, :, : part.n_offsets]
    return conv(x, weight, part, n_dst, bias, groups, u, u_start, u_rows, transposed, packed)


def masked_conv_input_grad(
    dy: Tensor, weight: Tensor, mask: Tensor, pairs: Any, n_src: int, groups: int = 1
) -> Tensor:
    """`ops.masked_conv_input_grad`."""
    turned = pairs.reversed()
    return masked_conv(dy, weight, mask, turned, n_src, groups=groups, transposed=True)


def masked_conv_weight_grad(
    x: Tensor, dy: Tensor, mask: Tensor, pairs: Any, groups: int = 1
) -> Tensor:
    """`ops.masked_conv_weight_grad`."""
    shape = (dy.shape[1], x.shape[1] // groups, pairs.n_offsets)
    check_mask("masked_conv_weight_grad", mask, shape, x.device)
    offsets = _kept_offsets(mask)
    if offsets.places is None:
        return masked(conv_weight_grad(x, dy, pairs, groups), mask)
    dw = x.new_zeros(shape)
    if offsets.numbers:
        part = offsets.of_pairs(pairs, len(x), len(dy))
        dw.index_copy_(2, offsets.places, conv_weight_grad(x, dy, part, groups))
    return masked(dw, mask)
