"""A MinkUNet-like network at batch 1: ours eager and as a CUDA graph, spconv's eager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import doublesparse as ds
from cuda_harness import Bench
from doublesparse.bench import Action
from peers_cuda import import_spconv

WIDTHS = (32, 64, 128, 256)


class Ours:
    """Layers and joins by `ds.nn`; a level is the tensor before it was made coarser."""

    @staticmethod
    def submanifold(c_in: int, c_out: int, key: str) -> nn.Module:
        return ds.nn.SubmanifoldConv3d(c_in, c_out, 3, bias=False)

    @staticmethod
    def coarser(c_in: int, c_out: int, key: str) -> nn.Module:
        return ds.nn.SparseConv3d(c_in, c_out, 2, stride=2, bias=False)

    @staticmethod
    def finer(c_in: int, c_out: int, key: str) -> nn.Module:
        return ds.nn.SparseInverseConv3d(c_in, c_out, 2, stride=2, bias=False)

    @staticmethod
    def undo(layer: nn.Module, x: Any, like: Any) -> Any:
        return layer(x, like=like)

    @staticmethod
    def features(x: Any) -> Tensor:
        return x.features

    @staticmethod
    def replace(x: Any, features: Tensor) -> Any:
        return x.replace(features=features)


class Theirs:
    """The same by spconv, rulebooks shared by key; implicit GEMM."""

    @staticmethod
    def _make(kind: str, *args: Any, **kwargs: Any) -> nn.Module:
        spconv = import_spconv()
        algorithm = spconv.ConvAlgo.MaskImplicitGemm
        return getattr(spconv, kind)(*args, bias=False, algo=algorithm, **kwargs)

    @classmethod
    def submanifold(cls, c_in: int, c_out: int, key: str) -> nn.Module:
        return cls._make("SubMConv3d", c_in, c_out, 3, indice_key=f"subm{key}")

    @classmethod
    def coarser(cls, c_in: int, c_out: int, key: str) -> nn.Module:
        return cls._make("SparseConv3d", c_in, c_out, 2, stride=2, indice_key=f"down{key}")

    @classmethod
    def finer(cls, c_in: int, c_out: int, key: str) -> nn.Module:
        return cls._make("SparseInverseConv3d", c_in, c_out, 2, indice_key=f"down{key}")

    @staticmethod
    def undo(layer: nn.Module, x: Any, like: Any) -> Any:
        return layer(x)

    @staticmethod
    def features(x: Any) -> Tensor:
        return x.features

    @staticmethod
    def replace(x: Any, features: Tensor) -> Any:
        return x.replace_feature(features)


class Block(nn.Module):
    """Convolution, batch norm, ReLU, twice, around a shortcut."""

    def __init__(self, kit: Any, c_in: int, c_out: int, key: str) -> None:
        """Widths, and the name of the level's rulebook."""
        super().__init__()
        self.kit = kit
        self.first = kit.submanifold(c_in, c_out, key)
        self.second = kit.submanifold(c_out, c_out, key)
        self.norms = nn.ModuleList([nn.BatchNorm1d(c_out), nn.BatchNorm1d(c_out)])
        self.shortcut = nn.Identity() if c_in == c_out else nn.Linear(c_in, c_out, bias=False)

    def forward(self, x: Any) -> Any:
        """Same sites."""
        short = self.shortcut(self.kit.features(x))
        x = self.first(x)
        x = self.kit.replace(x, torch.relu(self.norms[0](self.kit.features(x))))
        x = self.second(x)
        return self.kit.replace(x, torch.relu(self.norms[1](self.kit.features(x)) + short))


class MinkUNet(nn.Module):
    """Down by strided convolutions, up by inverse ones, skip connections; features out."""

    def __init__(self, kit: Any, c_in: int = 4, widths: tuple[int, ...] = WIDTHS) -> None:
        """One level for every width."""
        super().__init__()
        self.kit = kit
        self.stem = kit.submanifold(c_in, widths[0], "0")
        steps = list(zip(widths, widths[1:], strict=False))
        numbered = list(enumerate(steps))
        self.downs = nn.ModuleList(kit.coarser(a, b, str(i)) for i, (a, b) in numbered)
        self.encoders = nn.ModuleList(Block(kit, b, b, str(i + 1)) for i, (_, b) in numbered)
        self.ups = nn.ModuleList(kit.finer(b, a, str(i)) for i, (a, b) in numbered)
        self.decoders = nn.ModuleList(Block(kit, 2 * a, a, str(i)) for i, (a, _) in numbered)
        self.head = nn.Linear(widths[0], 20)

    def forward(self, x: Any) -> Tensor:
        """(n_sites, 20)."""
        x = self.stem(x)
        skips = []
        for down, encoder in zip(self.downs, self.encoders, strict=True):
            skips.append(x)
            x = encoder(down(x))
        for up, decoder in reversed(list(zip(self.ups, self.decoders, strict=True))):
            skip = skips.pop()
            x = self.kit.undo(up, x, skip)
            joined = torch.cat([self.kit.features(x), self.kit.features(skip)], 1)
            x = decoder(self.kit.replace(x, joined))
        return self.head(self.kit.features(x))


def minkunet(
    bench: Bench, scene: tuple[Tensor, tuple[int, ...]], widths: tuple[int, ...] = WIDTHS
) -> None:
    """Whole forward passes in half precision; the host's time counts.

    spconv builds the rulebooks of strided layers in every pass: it cannot keep them. Ours are
    measured both ways.
    """
    coords, shape = scene[0].to(bench.device), scene[1]
    torch.manual_seed(0)
    values = torch.rand(len(coords), 4).to(bench.device)
    net = MinkUNet(Ours, widths=widths).eval().to(bench.device)
    if bench.on_gpu:
        net, values = net.bfloat16(), values.bfloat16()

    def fresh() -> ds.SparseTensor:
        return ds.SparseTensor(values, coords, shape, 1, ground=None)

    theirs: dict[str, Action] = {}
    if bench.on_gpu and (spconv := import_spconv()):
        peer = MinkUNet(Theirs, widths=widths).eval().to(bench.device).half()
        sites = spconv.SparseConvTensor(values.half(), coords, list(shape), 1)
        theirs["spconv fp16"] = lambda: peer(sites)
    sizes = f"{len(coords)} sites, widths {widths}, wall time"
    with torch.no_grad():
        kept = fresh()
        times = bench.wall_times({"ours": lambda: net(fresh()), **theirs})
        bench.add("minkunet", times, note=f"{sizes}, rulebooks built in every pass")
        note = f"{sizes}, our rulebooks kept"
        what = "MinkUNet-like forward, batch 1, eager, our rulebooks kept"
        times = bench.wall_times({"ours": lambda: net(kept), **theirs})
        bench.add("minkunet-kept", times, what=what, unit="x", note=note)
        if bench.on_gpu:
            fixed = ds.nn.FixedGeometry(net, kept)
            replay = bench.graphed(lambda: fixed(values))
            times = bench.wall_times({"ours": replay, **theirs})
            bench.add("minkunet-graph", times, note=note)
