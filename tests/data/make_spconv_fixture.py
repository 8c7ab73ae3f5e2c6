"""What spconv computes on a CPU, for `test_checkpoints.py`; run where spconv is installed:

    python make_spconv_fixture.py          # writes spconv_cpu.npz beside itself

Of each network: the tree with what its layers know of themselves, the state dict, an input and the
output. Layers with a bias run in training, as spconv's CPU kernels refuse it in evaluation.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import spconv.pytorch as spconv
import torch
from torch import nn

KEPT = (
    *("ndim", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("output_padding", "subm", "inverse", "transposed", "conv1x1", "indice_key", "act_type"),
    *("inplace", "num_features", "eps", "momentum", "affine", "track_running_stats", "training"),
)

NETWORKS = {
    "submanifold": lambda: spconv.SubMConv3d(3, 5, 3),
    "submanifold_dilated": lambda: spconv.SubMConv2d(3, 4, (3, 5), dilation=2, bias=False),
    "submanifold_line": lambda: spconv.SubMConv1d(3, 4, 3),
    "submanifold_1": lambda: spconv.SubMConv3d(3, 5, 1),
    "strided": lambda: spconv.SparseConv3d(3, 5, 3, stride=2, padding=1),
    "uneven": lambda: spconv.SparseConv3d(3, 6, (3, 1, 2), (2, 1, 1), (1, 0, 1), bias=False),
    "dilated": lambda: spconv.SparseConv2d(3, 4, 3, padding=2, dilation=2),
    "line": lambda: spconv.SparseConv1d(3, 4, 3, stride=2),
    "pointwise": lambda: spconv.SparseConv3d(3, 5, 1),
    "pointwise_strided": lambda: spconv.SparseConv3d(3, 5, 1, stride=2, bias=False),
    "transposed": lambda: spconv.SparseConvTranspose3d(3, 5, 3, stride=2, padding=1),
    "transposed_plane": lambda: spconv.SparseConvTranspose2d(3, 5, 2, stride=2),
    "max_pool": lambda: spconv.SparseSequential(nn.ReLU(), spconv.SparseMaxPool3d(3, 2, 1)),
    "max_pool_negative": lambda: spconv.SparseMaxPool2d(2, 2),
    "u_net": lambda: spconv.SparseSequential(
        spconv.SubMConv3d(3, 4, 3, bias=False, indice_key="fine"),
        nn.BatchNorm1d(4, eps=1e-3, momentum=0.01),
        nn.ReLU(inplace=True),
        spconv.SparseSequential(
            spconv.SparseConv3d(4, 6, 3, stride=2, padding=1, bias=False, indice_key="down"),
            spconv.SparseBatchNorm(6),
            spconv.SparseReLU(),
        ),
        spconv.SubMConv3d(6, 6, 3, bias=False, indice_key="coarse"),
        nn.ReLU(),  # spconv's pool starts from 0
        spconv.SparseMaxPool3d(2, 2, indice_key="pool"),
        nn.Linear(6, 6),
        spconv.SparseInverseConv3d(6, 6, 2, indice_key="pool", bias=False),
        spconv.SparseInverseConv3d(6, 4, 3, indice_key="down", bias=False),
        spconv.ToDense(),
        nn.Flatten(),
    ),
}


def describe(module: nn.Module) -> dict:
    """Class, attributes and children."""
    known = {}
    for name in KEPT:
        if hasattr(module, name):
            value = getattr(module, name)
            plain = value is None or isinstance(value, (bool, int, float, str, list, tuple))
            known[name] = value if plain else str(value)
    kinds = [f"{k.__module__}:{k.__name__}" for k in type(module).__mro__]
    children = {name: describe(child) for name, child in module.named_children()}
    return {"kinds": kinds, "known": known, "children": children}


def inputs(n_axes: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    shape = {1: [23], 2: [9, 11], 3: [7, 8, 9]}[n_axes]
    coords = (torch.rand(2, *shape) < {1: 0.4, 2: 0.25, 3: 0.12}[n_axes]).nonzero().int()
    coords = coords[torch.randperm(len(coords))]
    return torch.randn(len(coords), 3), coords, shape


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    trees = {}
    for number, (case, build) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        net = build()
        axes = [m.ndim for m in net.modules() if hasattr(m, "ndim")][0]
        for name, buffer in net.named_buffers():  # statistics that are not those of a new layer
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
        has_bias = any(getattr(m, "bias", None) is not None for m in net.modules())
        net.train(has_bias and case != "u_net")
        features, coords, shape = inputs(axes)
        if case == "max_pool_negative":
            features = -features.abs()
        state = {f"{case}/state/{k}": v.numpy().copy() for k, v in net.state_dict().items()}
        with torch.no_grad():
            y = net(spconv.SparseConvTensor(features.clone(), coords, shape, 2))
        arrays |= state
        arrays[f"{case}/features"], arrays[f"{case}/coords"] = features.numpy(), coords.numpy()
        if isinstance(y, torch.Tensor):
            arrays[f"{case}/dense"] = y.numpy()
        else:
            arrays[f"{case}/out"], arrays[f"{case}/sites"] = y.features.numpy(), y.indices.numpy()
        trees[case] = {"shape": shape, "tree": describe(net)}
    arrays["trees"] = np.array(json.dumps(trees))
    np.savez_compressed(Path(__file__).with_name("spconv_cpu.npz"), **arrays)


if __name__ == "__main__":
    main()
