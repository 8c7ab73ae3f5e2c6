"""SparseTensors in PyTorch's own machinery: trees, loaders, pickles, DDP, checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import pytest
import torch
import torch.nn as nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, default_collate

import doublesparse as ds
from checks import densify
from inputs import make_input

GEOMETRY = dict(shape=(6, 7), c_in=2)


def sparse(rng, ground="channels", batch=2):
    options = dict(ground=ground, batch=batch, dtype=torch.float64)
    return make_input(rng, 2, GEOMETRY, **options).sparse(ds)


def equal(a, b) -> bool:
    same = torch.equal(a.features, b.features) and torch.equal(a.coords, b.coords)
    same = same and a.spatial_shape == b.spatial_shape and a.batch_size == b.batch_size
    return same and (a.ground is None) == (b.ground is None) and torch.equal(densify(a), densify(b))


def test_pytree_node(rng):
    x = sparse(rng)
    leaves, tree = pytree.tree_flatten({"x": x, "n": 1})
    assert any(leaf is x.features for leaf in leaves)
    back = pytree.tree_unflatten(leaves, tree)
    assert equal(back["x"], x)
    doubled = pytree.tree_map(lambda t: t * 2 if isinstance(t, torch.Tensor) else t, [x])[0]
    assert torch.equal(doubled.features, 2 * x.features)
    for ground in ("none", "zero", "image"):
        y = sparse(rng, ground)
        assert equal(pytree.tree_map(lambda t: t, y), y)


@pytest.mark.parametrize("ground", ("zero", "none", "channels", "number"))
def test_collate_joins_samples(ground, rng):
    """Batches of one become a batch; ds.collate and default_collate agree."""
    shared = make_input(rng, 2, GEOMETRY, ground=ground, dtype=torch.float64).ground
    items = []
    for _ in range(4):
        part = make_input(rng, 2, GEOMETRY, batch=1, dtype=torch.float64)
        items.append(ds.SparseTensor(part.features, part.coords, part.shape, 1, ground=shared))
    for joined in (ds.collate(items), default_collate(items)):
        assert joined.batch_size == 4 and joined.shape == (4, 2, 6, 7)
        assert torch.equal(densify(joined), torch.cat([densify(i) for i in items]))
    pairs = default_collate([(item, n) for n, item in enumerate(items)])
    assert equal(pairs[0], ds.collate(items)) and pairs[1].tolist() == [0, 1, 2, 3]


def test_collate_of_different_grounds_and_refusals(rng):
    a, b = sparse(rng, "channels", 1), sparse(rng, "number", 1)
    joined = ds.collate([a, b])
    assert torch.equal(densify(joined), torch.cat([densify(a), densify(b)]))
    for bad in ([], [a, sparse(rng, "none", 1)], [a, a.to_dense()], [a, None], None):
        with pytest.raises((ValueError, TypeError)):
            ds.collate(bad)
    other = ds.SparseTensor(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.int32), (5, 5), 1)
    with pytest.raises(ValueError, match="collate"):
        ds.collate([a, other.double()])


class Strokes(Dataset):
    """Builds its tensors, and their rulebooks, in the worker."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        coords = torch.tensor([[0, i % 5, j] for j in range(1 + i % 4)])
        features = torch.full((len(coords), 1), float(i + 1))
        x = ds.SparseTensor(features, coords, (6, 6), 1)
        ds.functional.conv2d(x, torch.ones(1, 1, 3, 3), padding=1)
        return x, i


def collate_and_convolve(items):
    """Runs kernels in a worker process, on several threads' worth of settings."""
    batch, labels = default_collate(items)
    torch.set_num_threads(2)
    y = ds.functional.conv2d(batch, torch.ones(1, 1, 3, 3), padding=1)
    return batch, labels, y.to_dense()


@pytest.mark.parametrize("method", ("fork", "spawn"))
def test_data_loader_workers(method):
    """Also after kernels ran in this process, with threads: a forked child must not hang."""
    torch.set_num_threads(2)
    x = ds.SparseTensor(torch.ones(1, 1), torch.zeros(1, 3, dtype=torch.int32), (64, 64), 1)
    ds.functional.conv2d(x, torch.ones(1, 1, 3, 3), padding=1)
    loader = DataLoader(
        Strokes(),
        batch_size=4,
        num_workers=1,
        collate_fn=collate_and_convolve,
        multiprocessing_context=method,
        timeout=60,
    )
    seen = 0
    for batch, labels, y in loader:
        assert batch.batch_size == 4
        assert torch.equal(densify(batch).amax((1, 2, 3)), labels + 1.0)
        again = ds.functional.conv2d(batch, torch.ones(1, 1, 3, 3), padding=1)
        assert torch.equal(again.to_dense(), y)
        seen += 1
    assert seen == 3


def test_pin_memory(rng):
    if not torch.cuda.is_available():
        x = sparse(rng)
        assert callable(x.pin_memory)
        pytest.skip(
            "page-locked memory needs a CUDA driver; only that the method exists is checked"
        )
    assert sparse(rng).pin_memory().features.is_pinned()


@pytest.mark.parametrize("ground", ("zero", "none", "channels", "image"))
def test_copies_and_pickles(ground, rng):
    x = sparse(rng, ground)
    ds.functional.conv2d(x, torch.ones(1, 2, 3, 3, dtype=torch.float64), padding=1)
    buffer = io.BytesIO()
    torch.save({"x": x}, buffer)
    for back in (
        copy.deepcopy(x),
        copy.copy(x),
        pickle.loads(pickle.dumps(x)),
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)["x"],
    ):
        assert equal(back, x)
        assert equal(back + back, x + x)
    clone = copy.deepcopy(x)
    clone.features.zero_()
    assert x.features.any(), "a deep copy shares its features"


@pytest.mark.parametrize("ground", ("zero", "none", "channels"))
def test_load_with_weights_only(ground, rng):
    """The package registers its classes as safe, as the contract says."""
    x, buffer = sparse(rng, ground), io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    assert equal(torch.load(buffer, weights_only=True), x)


def test_pickles_leave_the_cache_out(rng):
    """A rulebook of many pairs must not travel with a small tensor."""
    x = make_input(rng, 2, dict(c_in=1), shape=(60, 60), dtype=torch.float64).sparse(ds)
    before = len(pickle.dumps(x))
    ds.functional.conv2d(x, torch.ones(1, 1, 5, 5, dtype=torch.float64), padding=2)
    assert len(x.sites.cache) > 0, "this proves nothing: nothing was remembered"
    assert len(pickle.dumps(x)) - before < before / 10
    assert len(pickle.loads(pickle.dumps(x)).sites.cache) == 0


def test_checkpoint(rng):
    """Activation checkpointing with use_reentrant=False recomputes the same values."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus()).double()
    twin = copy.deepcopy(net)
    a, b = sparse(rng), None
    b = a.replace(features=a.features.clone())
    a.features.requires_grad_()
    b.features.requires_grad_()
    checkpoint(net, a, use_reentrant=False).to_dense().square().sum().backward()
    twin(b).to_dense().square().sum().backward()
    assert torch.equal(a.features.grad, b.features.grad)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_distributed_data_parallel(rng, tmp_path):
    """One process, gloo: DDP finds the tensors of a sparse output; its gradients are the net's."""
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()).double()
        twin = copy.deepcopy(net)
        parallel = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
        x = sparse(rng)
        parallel(x).to_dense().sum().backward()
        twin(x).to_dense().sum().backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_see_sparse_tensors(rng):
    net, seen = nn.Conv2d(2, 3, 3).double(), []
    net.register_forward_hook(lambda m, args, out: seen.append((type(args[0]), type(out))))
    net(sparse(rng))
    assert seen == [(ds.SparseTensor, ds.SparseTensor)]


def test_compile_gives_the_same_answer(rng):
    """Graph breaks are fine; another answer is not."""
    if sys.version_info >= (3, 15):
        pytest.skip("torch.compile does not know this Python")
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).double()
    x = sparse(rng)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    assert torch.allclose(compiled(x).to_dense(), net(x).to_dense(), rtol=1e-12)
