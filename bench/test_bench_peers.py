"""The same layer by spconv: rulebook, forward, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import doublesparse as ds
import peers
import workloads
from doublesparse.bench import milliseconds, paired_ratio
from report import Report

CHANNELS = 64
Duel = Callable[..., dict[str, list[float]]]


def add(report: Report, key: str, times: dict[str, list[float]]) -> None:
    """Reports the peer's time over ours."""
    report.add(
        key,
        paired_ratio(times["spconv"], times["ours"]),
        ms=milliseconds(times["ours"]),
        peer="spconv",
        peer_ms=milliseconds(times["spconv"]),
    )


@pytest.fixture
def spconv(request: pytest.FixtureRequest, report: Report) -> peers.Spconv:
    """The adapter on the LiDAR sites; without spconv the row says why it is empty."""
    reason = peers.Spconv.unavailable()
    if reason is not None:
        report.add(request.node.get_closest_marker("row").args[0], None, note=reason)
        pytest.skip(reason)
    load = workloads.load("lidar")
    return peers.Spconv(load.coords, load.spatial_shape, load.batch_size)


@pytest.mark.row("spconv-rulebook")
def test_rulebook(duel: Duel, report: Report, spconv: peers.Spconv) -> None:
    """From sorted sites to pair lists; ours gets new Sites every round, so nothing is cached."""
    load = workloads.load("lidar")
    geometry = ds.Geometry((3, 3, 3), padding=(1, 1, 1))

    def build(x: ds.SparseTensor) -> object:
        return ds.build_rulebook(x.sites, geometry, kind="submanifold")

    times = duel(build, {"spconv": spconv.rulebook(3)}, fresh=lambda: load.tensor(1, ground=None))
    add(report, "spconv-rulebook", times)


@pytest.mark.row("spconv-forward")
def test_forward(duel: Duel, report: Report, spconv: peers.Spconv) -> None:
    x = workloads.load("lidar").tensor(CHANNELS, ground=None)
    layer = ds.nn.SubmanifoldConv3d(CHANNELS, CHANNELS, 3, bias=False)
    peer, _ = spconv.submanifold(layer.weight)
    with torch.no_grad():
        # A peer that computes something else is no peer.
        torch.testing.assert_close(layer(x).features, peer(x.features), rtol=1e-3, atol=1e-3)
        add(report, "spconv-forward", duel(lambda: layer(x), {"spconv": lambda: peer(x.features)}))


@pytest.mark.row("spconv-train")
def test_forward_and_backward(duel: Duel, report: Report, spconv: peers.Spconv) -> None:
    """Gradients of the features and of the weight."""
    x = workloads.load("lidar").tensor(CHANNELS, ground=None)
    layer = ds.nn.SubmanifoldConv3d(CHANNELS, CHANNELS, 3, bias=False)
    peer, peer_weight = spconv.submanifold(layer.weight)
    features = x.features.requires_grad_()
    x = x.replace(features=features)
    dy = torch.rand(x.sites.n_sites, CHANNELS) - 0.5

    def ours() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(layer(x).features, (features, layer.weight), dy)

    def theirs() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(peer(features), (features, peer_weight), dy)

    torch.testing.assert_close(ours()[0], theirs()[0], rtol=1e-3, atol=1e-3)
    add(report, "spconv-train", duel(ours, {"spconv": theirs}))
