"""DataLoader workers by fork, spawn and forkserver give the bits that the main process gives."""

from __future__ import annotations

import multiprocessing
import warnings

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import doublesparse as ds
from inputs import make_input

SHAPE = (9, 8)
N_SAMPLES = 7
METHODS = multiprocessing.get_all_start_methods()
GEOMETRY = ds.Geometry((3, 3), stride=(2, 2), padding=(1, 1))


def sample(i: int, ground: str) -> ds.SparseTensor:
    """The same in every process; the fourth has no active site."""
    kind = "none" if i == 3 else "random"
    options = dict(ground=ground, kind=kind, batch=1, integers=False, shape=SHAPE)
    return make_input(np.random.default_rng(i), 2, dict(c_in=3), **options).sparse(ds)


def network() -> nn.Module:
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers).eval()


class Samples(Dataset):
    """A nesting of a tensor, its features after a network, its rulebook and a label.

    The rulebook and the network's kernels run where the sample is made.
    """

    def __init__(self, ground: str) -> None:
        self.ground, self.net = ground, network()

    def __len__(self) -> int:
        return N_SAMPLES

    def __getitem__(self, i: int) -> dict:
        x = sample(i, self.ground)
        pairs = ds.build_rulebook(x.sites, GEOMETRY, kind="conv").pairs()
        with torch.no_grad():
            out = self.net(x)
        return {"x": x, "out": (out, i), "n_pairs": len(pairs), "worker": worker_number()}


def worker_number() -> int:
    info = get_worker_info()
    return -1 if info is None else info.id


class Stream(IterableDataset):
    """Each worker yields its share, a SparseTensor at a time."""

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return (sample(i, "zero") for i in range(first, N_SAMPLES, step))


class RulebookOfABatch:
    """A collate function that prepares in the worker what the first layer needs."""

    def __call__(self, items):
        batch = ds.collate([item["x"] for item in items])
        book = ds.build_rulebook(batch.sites, GEOMETRY, kind="conv")
        return batch, book.pairs(), book.out_sites.coords


def as_in_tests(_: int) -> None:
    """Every layer on the sparse path; a spawned process starts with the default."""
    ds.set_crossover(None)


def load(dataset, method: str | None, workers: int = 1, **options) -> list:
    if method is not None:
        options |= dict(num_workers=workers, multiprocessing_context=method, timeout=90)
        options |= dict(worker_init_fn=as_in_tests)
    return list(DataLoader(dataset, batch_size=3, **options))


def same(a, b) -> bool:
    """The same bits in the same nesting."""
    if isinstance(a, ds.SparseTensor):
        equal = torch.equal(a.features, b.features) and torch.equal(a.coords, b.coords)
        equal = equal and a.shape == b.shape and (a.ground is None) == (b.ground is None)
        return equal and torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "worker")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b)


@pytest.fixture(autouse=True)
def threads_before():
    """Kernels ran on two threads before workers start: a forked child must not wait for them."""
    torch.set_num_threads(2)
    network()(sample(0, "zero").to_dense())
    network()(sample(0, "zero"))


@pytest.mark.parametrize("method", METHODS)
def test_default_collate(method):
    """No collate_fn: SparseTensors in nestings, grounds with classes, a sample with no site."""
    dataset = Samples("channels")
    got, want = load(dataset, method), load(dataset, None)
    assert len(got) == 3 and all(map(same, got, want))
    assert got[0]["x"].batch_size == 3 and got[2]["x"].batch_size == 1
    assert [b["worker"].tolist() for b in got] == [[0, 0, 0], [0, 0, 0], [0]], "not in a worker"
    assert got[0]["n_pairs"].sum() > 0 and got[0]["out"][0].ground.n_rows > 1


@pytest.mark.parametrize("method", METHODS)
def test_batches_with_their_rulebook(method):
    """Collated with `ds.collate`, pairs built in the worker; two workers; inactive: nothing."""
    dataset = Samples("none")
    prepare = RulebookOfABatch()
    workers = 2 if method == "fork" else 1  # others import torch again: seconds each
    got = load(dataset, method, workers, collate_fn=prepare)
    want = load(dataset, None, collate_fn=prepare)
    assert len(got) == 3 and all(map(same, got, want))
    batch, pairs, coords = got[0]
    here = ds.build_rulebook(batch.sites, GEOMETRY, kind="conv")
    assert torch.equal(here.pairs(), pairs) and torch.equal(here.out_sites.coords, coords)


@pytest.mark.skipif("fork" not in METHODS, reason="this system cannot fork")
def test_persistent_workers_and_streams():
    """Two epochs of the same workers; an iterable dataset, as it comes and in batches."""
    loader = DataLoader(
        Samples("image"),
        batch_size=2,
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=True,
        timeout=90,
        prefetch_factor=1,
    )
    first, second = list(loader), list(loader)
    assert all(map(same, first, second)) and {int(b["worker"][0]) for b in first} == {0, 1}
    del loader
    single = DataLoader(Stream(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    rows = sorted((x.features for x in single), key=len)
    want = sorted((sample(i, "zero").features for i in range(N_SAMPLES)), key=len)
    assert [len(r) for r in rows] == [len(w) for w in want]
    batches = load(Stream(), "fork")
    assert all(map(same, batches, load(Stream(), None)))


def test_pin_memory_without_a_device_changes_nothing():
    """torch warns and leaves batches alone."""
    if hasattr(torch, "accelerator") and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator, so memory is pinned")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = load(Samples("channels"), None, pin_memory=True)
    assert all(map(same, got, load(Samples("channels"), None)))
