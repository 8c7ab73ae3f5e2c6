"""One of several processes of a distributed job: torchrun starts it, a test reads what it saves.

    torchrun --standalone --nproc-per-node=2 distributed_child.py FOLDER

Each process runs every case on its own share of the batch and writes FOLDER/<rank>.pt. The models
and the batches are here, so that the single process of the test has the very same ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

import doublesparse as ds
from inputs import make_input

N_RANKS = 2
SHAPE = (9, 10)


def dense_net() -> nn.Module:
    """Unmodified torch, with no norm."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def norm_net(momentum: float | None = 0.3, tracked: bool = True, affine: bool = True) -> nn.Module:
    """Unmodified torch, with batch norms: after padding there are nine classes."""
    options = dict(momentum=momentum, track_running_stats=tracked, affine=affine)
    return nn.Sequential(
        nn.BatchNorm2d(3, **options),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6, **options),
        nn.Softplus(),
        nn.Conv2d(6, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4, **options),
    )


class ActiveNet(nn.Module):
    """The package's modules where inactive sites do not exist: an encoder and a decoder."""

    def __init__(self, process_group=None) -> None:
        super().__init__()
        self.enter = ds.nn.SubmanifoldConv2d(3, 4, 3)
        self.norm = ds.nn.SparseBatchNorm(4, momentum=0.3, process_group=process_group)
        self.down = ds.nn.SparseConv2d(4, 6, 3, stride=2, padding=1)
        self.pool = ds.nn.SparseMaxPool2d(3, 1, 1)
        self.norm_down = ds.nn.SparseBatchNorm(6, momentum=0.3, process_group=process_group)
        self.up = ds.nn.SparseInverseConv2d(6, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.enter(x)))
        y = self.norm_down(self.down(x))
        z = self.up(y, like=x)
        peak = torch.relu(self.pool(y)).mean((2, 3))
        return self.head(torch.cat([ds.functional.global_avg_pool(torch.cat([x, z], 1))], 1)), peak


def share_of(kind: str, rank: int):
    """The samples of one process: (SparseTensor, weights of its outputs)."""
    options = dict(dtype=torch.float64, integers=False, shape=SHAPE)
    rng = np.random.default_rng(100 + rank)
    geometry = dict(c_in=3)
    ground, sites, batch = "channels", "random", 2
    if kind == "active only":
        ground = "none"
    if kind in ("no site", "active only") and rank == 1:
        sites = "none"
    if kind == "no sample" and rank == 1:
        batch = 0
    if kind == "uneven":
        batch, sites = (1, "one") if rank else (3, "all")
    if kind == "other classes":
        ground = "image" if rank else "number"
    x = make_input(rng, 2, geometry, ground=ground, kind=sites, batch=batch, **options)
    return x.sparse(ds)


SHARES = ("even", "no site", "no sample", "uneven", "other classes")


def loss_of(out, rank: int) -> Tensor:
    """A sum over samples, so that the batch's loss is the sum of the processes' losses."""
    total = torch.zeros((), dtype=torch.float64)
    for part in out if isinstance(out, tuple) else (out,):
        dense = part.to_dense() if isinstance(part, ds.SparseTensor) else part
        seed = torch.Generator().manual_seed(rank)
        total = total + (dense * torch.randn(dense.shape, generator=seed, dtype=dense.dtype)).sum()
    return total


def step(net: nn.Module, module: nn.Module, x: ds.SparseTensor | Tensor, rank: int) -> dict:
    """Forward and backward of `module`, which wraps `net`."""
    if isinstance(x, ds.SparseTensor):
        x = x.replace(features=x.features.clone().requires_grad_())
        leaf = x.features
    else:
        leaf = x
    out = module(x)
    loss_of(out, rank).backward()
    if module is net:
        average_gradients(net)
    parts = out if isinstance(out, tuple) else (out,)
    dense = [p.to_dense() if isinstance(p, ds.SparseTensor) else p for p in parts]
    return dict(
        out=[d.detach() for d in dense],
        grads={n: p.grad for n, p in net.named_parameters()},
        leaf=leaf.grad,
        buffers={n: b.clone() for n, b in net.named_buffers()},
    )


def average_gradients(net: nn.Module) -> None:
    """What DistributedDataParallel does, which refuses `nn.SyncBatchNorm` on a CPU."""
    for p in net.parameters():
        dist.all_reduce(p.grad)
        p.grad /= N_RANKS


def parallel(net: nn.Module, **options) -> nn.Module:
    if any(isinstance(m, nn.SyncBatchNorm) for m in net.modules()) or not list(net.parameters()):
        return net
    return nn.parallel.DistributedDataParallel(net, **options)


def seeded(make) -> nn.Module:
    torch.manual_seed(5)
    return make().double()


def synchronized(make, ours: bool) -> nn.Module:
    """Batch norms of a model made synchronous: torch's way, or with the package's own."""
    net = seeded(make)
    if not ours:
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net = ds.nn.SparseBatchNorm.convert_sync_batchnorm(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    return net


NORM_OPTIONS = {
    "usual": dict(),
    "cumulative": dict(momentum=None),
    "untracked": dict(tracked=False),
    "plain": dict(affine=False),
}


def run_all(rank: int) -> dict:
    results = {}
    for kind in SHARES:
        x = share_of(kind, rank)
        net = seeded(dense_net)
        results["dense", kind] = step(net, parallel(net), x, rank)
        for ours in (False, True):
            net = synchronized(norm_net, ours)
            results["norm", kind, ours] = step(net, parallel(net), x, rank)
    x = share_of("even", rank)
    for name, options in NORM_OPTIONS.items():
        for ours in (False, True):
            net = synchronized(lambda options=options: norm_net(**options), ours)
            module = parallel(net)
            step(net, module, share_of("uneven", rank), rank)
            net.zero_grad()
            results["options", name, ours] = step(net, module, x, rank)
            net.eval()
            results["options", name, ours]["eval"] = net(x).to_dense().detach()
    for name, options in (("plain", {}), ("static", dict(static_graph=True))):
        net = seeded(lambda: ActiveNet(dist.group.WORLD))
        x = share_of("active only", rank)
        results["active", name] = step(net, parallel(net, **options), x, rank)
    net = synchronized(norm_net, True)
    dense = share_of("uneven", rank).to_dense().requires_grad_()
    results["dense input"] = step(net, parallel(net), dense, rank)
    net = synchronized(norm_net, False)
    results["again"] = step(net, parallel(net), share_of("uneven", rank), rank)
    return results


def fully_sharded(rank: int) -> dict:
    """FSDP2: parameters live in shards; one step of SGD, then the whole parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (N_RANKS,))
    net = seeded(dense_net)
    for layer in (net[0], net[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.125)
    out = net(share_of("no site", rank))
    loss_of(out, rank).backward()
    optimizer.step()
    return dict(
        out=[out.detach()],
        sharded=all(p.to_local().shape != p.shape for p in net.parameters() if p.shape[0] > 1),
        parameters={n: p.full_tensor().detach() for n, p in net.named_parameters()},
    )


def masked(ranks: list[int]) -> dict:
    """Training pruned weights on these processes' samples; the mask grows on the way."""
    net = ds.prune.sparsify_(seeded(masked_net), 0.75)
    module = parallel(net) if dist.is_initialized() else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    revived = 0
    for i in range(4):
        optimizer.zero_grad()
        module(torch.cat([masked_batch(rank, i) for rank in ranks])).pow(2).mean().backward()
        optimizer.step()
        for layer in (net[0], net[3]):
            states = [s for s in optimizer.state[layer.weight].values() if s.dim()]
            for value in (layer.weight.detach(), layer.weight.grad, *states):
                revived += int((value[~layer.mask] != 0).sum())
        if i == 1:
            ds.prune.sparsify_(net, 0.5, optimizer=optimizer)
    return dict(revived=revived, state=net.state_dict())


def masked_net() -> nn.Module:
    layers = (nn.Conv2d(2, 8, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 4))
    return nn.Sequential(*layers)


def masked_batch(rank: int, i: int) -> Tensor:
    seed = torch.Generator().manual_seed(10 * rank + i)
    return torch.randn(4, 2, 5, 5, generator=seed, dtype=torch.float64)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    ds.set_crossover(None)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    results = run_all(rank)
    results["fsdp"] = fully_sharded(rank)
    results["masked"] = masked([rank])
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
