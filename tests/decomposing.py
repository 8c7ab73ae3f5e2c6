"""What the tests of layers of low rank share."""

from __future__ import annotations

import torch
import torch.nn as nn

import doublesparse as ds

METHODS = ("pca", "svd", "kmeans")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def filled(layer: nn.Module, seed: int = 1) -> nn.Module:
    """Deterministic parameters, biases too."""
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed + i, dtype=parameter.dtype)
    return layer


def always(layer, energy=1.0, **options):
    return ds.lowrank.decompose(layer, energy, cost="always", **options)


def sparse_input(n_axes: int, channels: int, extent: int = 9, ground: float = 0.5):
    """Some sites over a ground that is not zero, so that a layer's ground state is at stake."""
    coords = torch.unique(
        torch.randint(extent, (12, n_axes), generator=torch.Generator().manual_seed(3)), dim=0
    )
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int64), coords], 1)
    features = randn(len(coords), channels, seed=4)
    grounds = torch.full((channels,), ground, dtype=torch.float64) if ground else 0.0
    return ds.SparseTensor(features, coords, (extent,) * n_axes, 1, ground=grounds)
