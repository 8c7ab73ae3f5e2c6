"""Pruned weights to measure on: Gaussian ones, and ones shaped and skewed as trained networks' are.

Everything is generated, the same every time, and pruned by magnitude. In a Gaussian matrix each row
keeps nearly the same number of weights. Trained networks do not: the **deep learning matrix
collection** (Gale, Zaharia, Young, Elsen 2020, "Sparse GPU Kernels for Deep Learning") holds the
pruned layers of a ResNet-50 and a Transformer at 50 to 98 %. Here are its layer shapes; its values
are not shipped, so weights are drawn with lognormal scales of rows and columns before they are
pruned. With a deviation of 0.25 the kept weights of a row vary by a coefficient of 0.2 at 50 %, 0.7
at 90 % and 1.3 at 98 %, where a Gaussian matrix of 512 columns has 0.04, 0.13 and 0.31.
"""

from __future__ import annotations

from functools import lru_cache

import torch

import doublesparse as ds

SPARSITIES = (0.6, 0.8, 0.9, 0.95, 0.98)
SKEW = 0.25

# (c_out, kernel volume x c_in): one layer of each kind in each stage.
COLLECTION: dict[str, tuple[tuple[int, int], ...]] = {
    "Transformer": ((512, 512), (2048, 512), (512, 2048)),
    "ResNet-50": (
        (64, 256),
        (64, 576),
        (256, 64),
        (128, 1152),
        (512, 128),
        (256, 2304),
        (1024, 256),
        (512, 4608),
        (2048, 512),
    ),
}

Pruned = tuple[torch.Tensor, torch.Tensor]


@lru_cache(maxsize=4)
def weights(n: int, k: int, skew: float = 0.0, seed: int = 0) -> torch.Tensor:
    """A Gaussian matrix, of unit variance per output.

    Args:
        n: outputs.
        k: inputs.
        skew: deviation of the logarithm of each row's and each column's scale.
        seed: of the generator.

    Returns:
        float32 (n, k); the caller must not write into it.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) / k**0.5
    if skew:
        rows, columns = (torch.randn(size, generator=generator) for size in (n, k))
        weight *= torch.exp(skew * rows)[:, None] * torch.exp(skew * columns)
    return weight


@lru_cache(maxsize=2)
def _magnitudes(n: int, k: int, skew: float) -> torch.Tensor:
    """All magnitudes in order: sorting 4096 x 4096 takes seconds, and a dozen cases prune it."""
    return weights(n, k, skew).abs().flatten().sort().values


@lru_cache(maxsize=8)
def pruned(
    n: int, k: int, sparsity: float, pattern: object | None = None, skew: float = 0.0
) -> Pruned:
    """Such a matrix, pruned by magnitude.

    Without a pattern everything at or below one threshold goes; equal magnitudes there, of which
    there are hardly any, go together, so that a weight fewer may be kept than was asked for.

    Returns:
        The weight with zeros, float32 (n, k), and its mask, bool (n, k); not to be written into.
    """
    dense = weights(n, k, skew)
    if pattern is None:
        n_pruned = round(sparsity * n * k)
        threshold = _magnitudes(n, k, skew)[n_pruned - 1] if n_pruned else -1.0
        mask = dense.abs() > threshold
    else:
        mask = ds.prune.magnitude_mask(dense, pattern, sparsity)
    return torch.where(mask, dense, 0), mask


def activations(m: int, k: int) -> torch.Tensor:
    """Rows of uniform numbers around 0, float32 (m, k)."""
    return torch.rand(m, k, generator=torch.Generator().manual_seed(1)) - 0.5


def row_variation(mask: torch.Tensor) -> float:
    """Deviation of the rows' kept counts over their mean."""
    kept = mask.sum(1).double()
    return (kept.std() / kept.mean()).item()
