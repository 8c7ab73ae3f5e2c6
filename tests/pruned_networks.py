"""A pruned network with every masked layer, for several test modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import doublesparse as ds

PATTERNS = [
    ds.Unstructured(),
    ds.Block(4, 2),
    ds.NM(1, 4),
    ds.TopKRows(6),
    ds.TopKColumns(3),
]


def network(sparsity: float = 0.8, pattern=PATTERNS[0], dtype=torch.float32) -> nn.Module:
    """Every masked layer, groups, dilation, strides, padding modes, an unmasked layer, buffers."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, stride=2, groups=4, dilation=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 8, (1, 3), padding="same", padding_mode="circular"),
        nn.Flatten(2),
        nn.Conv1d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Unflatten(2, (4, 2, 2)),
        nn.Conv3d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(12, 16, bias=False),
        nn.Linear(16, 5),
    )
    ds.prune.sparsify_(net, None if pattern.fixed else sparsity, pattern)
    return net.to(dtype).eval()


def images(dtype=torch.float32) -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=dtype)


def layers(net: nn.Module) -> list:
    found = [m for m in net.modules() if hasattr(m, "set_mask")]
    assert len(found) == 7
    return found


def is_frozen(net: nn.Module) -> bool:
    """All layers or none."""
    states = {isinstance(m.__dict__.get("packed"), ds.PackedWeight) for m in layers(net)}
    assert len(states) == 1
    return states.pop()


def contents(net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight.detach().clone(), m.mask.clone()) for m in layers(net)]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))
