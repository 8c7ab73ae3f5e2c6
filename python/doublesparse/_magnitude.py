"""Masks by magnitude: the largest weights, or blocks of weights, exactly as many as asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._largest import flat_indices, keep_largest, largest_nonzero
from ._patterns import NM, Block, Pattern, TopKColumns, TopKRows, check_pattern, check_sparsity


def _magnitudes(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """|w|, contiguous, wide enough to be exact; NaN becomes -1, below every number."""
    if dtype is None:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.detach().abs().to(dtype).contiguous().nan_to_num_(-1.0, math.inf)


def _padded(x: Tensor, *multiples: int, value: float = 0.0) -> Tensor:
    """The trailing axes lengthened to multiples of these numbers."""
    pads: list[int] = []
    for size, multiple in zip(reversed(x.shape), reversed(multiples), strict=False):
        pads += [0, -size % multiple]
    return torch.nn.functional.pad(x, pads, value=value) if any(pads) else x


class _Blocks:
    """Blocks of one weight: (groups * row blocks, channel blocks, offsets), in flat order."""

    def __init__(self, weight: Tensor, pattern: Block, groups: int) -> None:
        self.shape = weight.shape
        self.split = (groups, weight.shape[0] // groups, weight.shape[1])
        self.r, self.c = pattern.r, pattern.c

    def sums(self, values: Tensor) -> Tensor:
        """The sum over every block, in float64: exact enough that order does not matter."""
        n_offsets = math.prod(self.shape[2:])
        g, rows, channels = self.split
        x = _padded(values.reshape(g, rows, channels, n_offsets), self.r, self.c, 1)
        x = x.view(g, x.shape[1] // self.r, self.r, x.shape[2] // self.c, self.c, n_offsets)
        return x.sum((2, 4), dtype=torch.float64).flatten(0, 1)

    def scores(self, weight: Tensor, per_element: bool) -> Tensor:
        """Sums of |w|; divided by the weights that exist in the block, where sizes must compare."""
        magnitude = weight.detach().abs()
        scores = self.sums(magnitude.to(torch.promote_types(magnitude.dtype, torch.float32)))
        if per_element:
            scores /= self.sums(torch.ones_like(magnitude))
        return scores.nan_to_num_(-1.0, math.inf)

    def expand(self, kept: Tensor) -> Tensor:
        """The weight's mask, from one flag per block."""
        g, rows, channels = self.split
        x = kept.view(g, -(-rows // self.r), *kept.shape[1:])
        x = x.repeat_interleave(self.r, 1)[:, :rows].repeat_interleave(self.c, 2)[:, :, :channels]
        return x.reshape(self.shape).contiguous()


# ------------------------------------------------------------------ masks by magnitude
def _check(operation: str, weight: Any, pattern: Any, sparsity: Any, groups: Any) -> None:
    """What a mask is made of: types, shapes and ranges."""
    check_pattern(operation, pattern)
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{operation}: weight must be a Tensor, got {type(weight).__name__}; pass layer.weight"
        )
    if not weight.dtype.is_floating_point or weight.layout is not torch.strided:
        raise TypeError(
            f"{operation}: weight must be a strided floating-point tensor, got {weight.dtype}, "
            f"{weight.layout}; use weight.float() or weight.to_dense()"
        )
    if weight.is_meta:
        raise NotImplementedError(
            f"{operation}: weight must hold data, got a meta tensor; use a CPU tensor"
        )
    if weight.dim() < 2:
        raise ValueError(
            f"{operation}: weight must be (c_out, c_in / groups, *kernel), got shape "
            f"{tuple(weight.shape)}; biases and norms are not pruned"
        )
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{operation}: groups must be an int, got {groups!r}; pass conv.groups")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"{operation}: groups must divide the {weight.shape[0]} output channels, got {groups}; "
            "pass conv.groups"
        )
    check_sparsity(operation, sparsity, pattern)


def _n_kept(n: int, sparsity: float) -> int:
    return round((1 - sparsity) * n)


def _fixed_mask(operation: str, weight: Tensor, pattern: Pattern, sparsity: Any) -> Tensor:
    """The mask of a pattern that says itself how much is kept; a sparsity must agree with it."""
    if weight.numel() == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    lines = _magnitudes(weight).view(*weight.shape[:2], math.prod(weight.shape[2:]))
    rows, channels, offsets = lines.shape
    if isinstance(pattern, NM):
        own = 1 - pattern.n / pattern.m
        runs = _padded(lines.transpose(1, 2), pattern.m, value=-2.0)  # ranks below NaN, at -1
        kept = keep_largest(runs.reshape(rows, offsets, -1, pattern.m), pattern.n)
        mask = kept.view(rows, offsets, -1)[:, :, :channels].transpose(1, 2)
    elif isinstance(pattern, TopKRows):
        own = 1 - min(pattern.s / (channels * offsets), 1.0)
        mask = keep_largest(lines.view(rows, -1), min(pattern.s, channels * offsets))
    else:
        assert isinstance(pattern, TopKColumns)
        own = 1 - min(pattern.s / rows, 1.0)
        mask = keep_largest(lines.view(rows, -1).t().contiguous(), min(pattern.s, rows)).t()
    if sparsity is not None and not math.isclose(sparsity, own, abs_tol=1e-6):
        raise ValueError(
            f"{operation}: sparsity must be None or agree with {pattern}, which prunes {own:g} of "
            f"a weight of shape {tuple(weight.shape)}, got {sparsity}; leave it out"
        )
    return mask.reshape(weight.shape).contiguous()


def keep_magnitudes_(weight: Tensor, pattern: Pattern) -> None:
    """Set to zero, in place, what is not in `magnitude_mask(weight, pattern)`; not recorded.

    For a pattern that says itself how many weights it keeps: these are written back into zeros.
    """
    weight = weight.detach()
    if not weight.is_contiguous():
        weight.masked_fill_(~magnitude_mask(weight, pattern), 0.0)
        return
    flat = weight.view(-1)
    if not isinstance(pattern, TopKRows | TopKColumns) or not weight.numel():
        at = flat_indices(magnitude_mask(weight, pattern))
    else:
        rows, columns = len(weight), weight[0].numel()
        lines = _magnitudes(weight).view(rows, columns)
        if isinstance(pattern, TopKRows):
            at = largest_nonzero(lines, min(pattern.s, columns))
        else:
            at = largest_nonzero(lines.t().contiguous(), min(pattern.s, rows))
            at = at % rows * columns + torch.div(at, rows, rounding_mode="floor")
    values = flat[at]
    flat.zero_()[at] = values


def magnitude_mask(
    weight: Tensor, pattern: Pattern, sparsity: float | None = None, groups: int = 1
) -> Tensor:
    """The mask that keeps the largest weights, in absolute value, of a pattern.

    `Unstructured` keeps exactly round((1 - sparsity) * numel) weights; `Block` keeps exactly
    round((1 - sparsity) * n_blocks) blocks, those with the largest sum of |w|; `NM`, `TopKRows` and
    `TopKColumns` say themselves how many they keep. Of equal weights (or blocks), those with the
    lower flat index in `weight` are kept (of a block: the index of its first weight). NaN ranks
    below every number, so it is pruned first, and a block with a NaN is; infinity ranks highest.

    Args:
        weight: (c_out, c_in) or (c_out, c_in / groups, *kernel), any floating-point dtype and
            strides.
        pattern: what shape the mask has on the weight's matrix.
        sparsity: share to prune, in [0, 1]; for a pattern that says it itself, None (or the same
            number).
        groups: of the convolution; blocks do not cross them.

    Returns:
        bool, of the weight's shape; True is kept.

    Raises:
        TypeError: a weight that is no floating-point tensor, an unknown pattern, or a sparsity that
            is no number.
        ValueError: a weight of fewer than two axes, a sparsity outside [0, 1], missing, or in
            disagreement with the pattern; groups that do not divide.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[0.5, -2.0, 1.0, 1.0]])
        >>> ds.prune.magnitude_mask(weight, ds.Unstructured(), sparsity=0.5)
        tensor([[False,  True,  True, False]])
    """
    return magnitude_masks([weight], pattern, sparsity, [groups], per_element=False)[0]


def magnitude_masks(
    weights: Sequence[Tensor],
    pattern: Pattern,
    sparsity: float | None = None,
    groups: Sequence[int] | None = None,
    *,
    per_element: bool = True,
) -> list[Tensor]:
    """Masks of several weights by one common threshold: `magnitude_mask` over all of them at once.

    Exactly round((1 - sparsity) * n) weights, or blocks, are kept of the n of all weights together.
    Of equal ones, those of the earlier weight. A pattern that says itself how much it keeps has no
    common threshold: each weight gets its own mask.

    Args:
        weights: as of `magnitude_mask`.
        pattern: of every mask.
        sparsity: share to prune, of all together.
        groups: one number per weight; default: 1 for each.
        per_element: score a block by the mean of |w|, so that blocks of different size (edges)
            compare; otherwise by the sum.

    Returns:
        one mask per weight.

    Raises:
        TypeError: as `magnitude_mask`.
        ValueError: as `magnitude_mask`.
    """
    groups = [1] * len(weights) if groups is None else groups
    for weight, n_groups in zip(weights, groups, strict=True):
        _check("magnitude_mask", weight, pattern, sparsity, n_groups)
    if pattern.fixed:
        return [_fixed_mask("magnitude_mask", w, pattern, sparsity) for w in weights]
    assert sparsity is not None
    if isinstance(pattern, Block):
        blocks = [_Blocks(w, pattern, g) for w, g in zip(weights, groups, strict=True)]
        scores = [b.scores(w, per_element) for b, w in zip(blocks, weights, strict=True)]
        kept = _select(scores, sparsity)
        return [b.expand(k) for b, k in zip(blocks, kept, strict=True)]
    wide = any(w.dtype == torch.float64 for w in weights)
    dtype = torch.float64 if wide else torch.float32
    return _select([_magnitudes(w, dtype) for w in weights], sparsity)


def _select(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """The largest scores of all tensors together, as masks."""
    flat = scores[0].reshape(-1) if len(scores) == 1 else torch.cat([s.reshape(-1) for s in scores])
    kept = keep_largest(flat, _n_kept(flat.numel(), sparsity))
    parts = kept.split([s.numel() for s in scores])
    return [part.view(s.shape).clone() for part, s in zip(parts, scores, strict=True)]
