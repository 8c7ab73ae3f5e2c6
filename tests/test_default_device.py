"""Whatever torch's default device and dtype are, what is on the CPU stays there.

The default device is meta: a tensor that is made on it by mistake holds nothing, and the call
raises. It stands for a GPU, which a test need not have.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import doublesparse as ds

X = np.random.default_rng(0).normal(size=(60, 6)) + np.repeat([0, 5, 10], 20)[:, None]


@pytest.fixture
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


class Teacher:
    """Stands for a fitted network."""

    n_features_in_, labels_ = 6, np.repeat([0, 1, 2], 20)

    def transform(self, X: np.ndarray) -> np.ndarray:
        return X[:, :2]


def compressed(target: str) -> np.ndarray:
    options = {"epochs": 2, "random_state": 0}
    made = ds.bootstrap.compress(Teacher(), X, (16,), target, **options)
    again = pickle.loads(pickle.dumps(made))
    return np.concatenate([made.predict(X), again.bfloat16().predict(X, "packed")])


@pytest.mark.parametrize("target", ["clusters", "codes"])
def test_compress(elsewhere: None, target: str) -> None:
    found = compressed(target)
    torch.set_default_device(None)
    assert np.array_equal(found, compressed(target))


def test_compress_in_another_default_dtype() -> None:
    want = compressed("clusters")
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(compressed("clusters"), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_bootstrap_network(elsewhere: None) -> None:
    pytest.importorskip("sklearn")
    net = ds.bootstrap.MultilayerBootstrapNetwork(12, [30, 10], 2, random_state=0).fit(X)
    assert np.array_equal(net.transform(X), net.embedding_)


def test_encoder(elsewhere: None) -> None:
    models = []
    for _ in range(2):
        model = ds.models.DoubleSparsityEncoder(
            64, 32, 5, nonzeros=4, neuron="topm", random_state=0, device="cpu"
        )
        models.append(ds.prune.freeze(model.eval()))
        torch.set_default_device(None)  # for the second
    x = torch.ones(3, 64, device="cpu")
    assert torch.equal(models[0].encode(x), models[1].encode(x))


def test_packed_weights(elsewhere: None) -> None:
    for pattern in (ds.Unstructured(), ds.Block(16, 1), ds.Block(4, 4)):
        weight = torch.arange(32.0 * 32, device="cpu").view(32, 32)
        mask = ds.prune.magnitude_mask(weight, pattern, 0.5)
        packed = pickle.loads(pickle.dumps(ds.PackedWeight.pack(weight, mask, pattern)))
        x = torch.ones(3, 32, device="cpu")
        want = x @ (weight * mask).t()
        torch.testing.assert_close(ds.functional.spmm(packed, x), want)


def sparse_answer() -> list[torch.Tensor]:
    """Layers, pools, joins and reads of a SparseTensor, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    coords = torch.tensor([[0, 1, 1], [0, 4, 6], [1, 2, 3], [1, 2, 4]], device="cpu")
    features = torch.rand(4, 3, generator=generator, device="cpu").requires_grad_()
    with torch.device("cpu"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 8, 3, stride=2, padding=1),
            torch.nn.Upsample(scale_factor=2, mode="bilinear"),
            torch.nn.AdaptiveAvgPool2d(2),
        )
        inverse = ds.nn.SubmanifoldConv2d(3, 4, 3)
    x = ds.SparseTensor(features, coords, (8, 8))
    y = net(x).to_dense()
    z = inverse(x)
    joined = torch.cat([z, z + z], 1).to_dense()
    (y.square().mean() + joined.square().mean()).backward()
    assert features.grad is not None
    return [y.detach(), joined.detach(), features.grad]


def test_sparse_tensors(elsewhere: None) -> None:
    found = sparse_answer()
    torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, sparse_answer(), strict=True))


def test_voxels(elsewhere: None) -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), device="cpu")
    x, voxel = ds.functional.voxelize(points, points, 0.25, ground=None)
    back = ds.functional.devoxelize(x, points, 0.25, mode="trilinear")
    assert voxel.device.type == back.device.type == "cpu"
