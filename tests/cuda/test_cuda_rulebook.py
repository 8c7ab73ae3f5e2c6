"""Neighbour tables, their lists and output sites on the device: the CPU's, row for row."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from emulated_device import emulated_cuda
from torch import Tensor

import cases
import doublesparse as ds
import op_case
from doublesparse import _device, _gpu_rulebook, ops
from doublesparse import _gpu_ops as gpu_ops

LISTS = op_case.LISTS
WAYS = ("bitmap", "search")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a table is looked up."""
    if request.param == "search":
        monkeypatch.setattr(_gpu_rulebook, "BITMAP_BYTES", 0)
    return request.param


def random_sites(rng: np.random.Generator, n: int, batch: int, shape: tuple[int, ...]) -> Tensor:
    """Different sites in order: at most n."""
    columns = [rng.integers(0, high, n) for high in (batch, *shape)]
    return torch.from_numpy(np.unique(np.stack(columns, 1), axis=0).astype(np.int32))


def check_pairs(device: torch.device, query: Tensor, target: Tensor, *walk, **more) -> int:
    """All of a rulebook against the CPU's; the number of pairs."""
    want = ops.build_pairs(query, target, *walk, **more)
    same = query is target
    query_there = query.to(device)
    target_there = query_there if same else target.to(device)
    got = gpu_ops.build_pairs(query_there, target_there, *walk, **more)
    assert got.n_offsets == want.n_offsets
    for turned in (False, True):
        g, w = (got.reversed(), want.reversed()) if turned else (got, want)
        n_src, n_dst = (len(target), len(query)) if turned else (len(query), len(target))
        table = ops.window_table(w, n_dst).T  # (n_offsets, n_dst), -1 where there is no row
        assert torch.equal(g.table(n_src, n_dst).cpu(), table)
        for name in LISTS:
            assert torch.equal(getattr(g, name).cpu(), getattr(w, name)), name
        again = gpu_ops.Pairs(*[getattr(w, name).to(device) for name in LISTS])
        assert torch.equal(again.table(n_src, n_dst).cpu(), table)
        assert torch.equal(
            again.reversed().table(n_dst, n_src).cpu(), g.reversed().table(n_dst, n_src).cpu()
        )
        assert g.n_pairs == again.n_pairs == w.n_pairs
    return want.n_pairs


GEOMETRIES = [
    # shape, kernel, stride, padding, dilation
    ((300,), (3,), (1,), (1,), (1,)),
    ((64,), (4,), (2,), (0,), (3,)),
    ((9, 70), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((13, 33), (2, 4), (2, 3), (-1, 5), (4, 2)),
    ((8, 9, 40), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((7, 9, 10), (1, 2, 5), (2, 1, 2), (3, 0, 1), (1, 2, 1)),
    ((4, 5, 3, 6), (2, 3, 1, 3), (1, 2, 1, 1), (1, 1, 0, 2), (1, 1, 2, 3)),
]


@pytest.mark.parametrize("walk", GEOMETRIES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 40, 700])
def test_tables_are_the_cpus(any_order: torch.device, way: str, walk, n: int) -> None:
    shape = walk[0]
    rng = np.random.default_rng(n + len(shape))
    target = random_sites(rng, n, 3, shape)
    query = random_sites(rng, n // 2 + 1, 4, tuple(math.ceil(e * 0.7) for e in shape))
    check_pairs(any_order, query, target, *walk)
    check_pairs(any_order, query[:0], target, *walk)


@pytest.mark.parametrize("name", ["build_pairs", "output_coords", "linear_keys"])
def test_cases(gpu_device: torch.device, name: str) -> None:
    case = next(c for c in cases.OP_CASES if c.name == name)
    rng = np.random.default_rng(5)
    for sample in case.samples(rng, torch.float32, True):
        want = sample.call(ops, name)
        sample.args = {
            k: v.to(gpu_device) if isinstance(v, Tensor) else v for k, v in sample.args.items()
        }
        if sample.args.get("symmetric"):
            sample.args["target_coords"] = sample.args["query_coords"]
        got = sample.call(gpu_ops, name)
        assert len(got) == len(want)
        for g, w in zip(got, want):
            assert g.dtype == w.dtype and torch.equal(g.cpu(), w), sample.note


def check_outputs(device: torch.device, coords: Tensor, *walk) -> int:
    want = ops.output_coords(coords, *walk)
    got = gpu_ops.output_coords(coords.to(device), *walk)
    assert got.dtype == torch.int32 and torch.equal(got.cpu(), want)
    return len(want)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("walk", GEOMETRIES, ids=str)
def test_output_sites_are_the_cpus(any_order: torch.device, walk, transposed: bool) -> None:
    shape, kernel, stride, padding, dilation = walk
    rng = np.random.default_rng(3)
    out = tuple(e * s + 2 if transposed else -(-e // s) + 1 for e, s in zip(shape, stride))
    found = 0
    for n in (0, 1, 300):
        coords = random_sites(rng, n, 3, shape)
        found += check_outputs(
            any_order, coords, shape, out, kernel, stride, padding, dilation, transposed
        )
    assert found > 50


def test_taps_that_meet_no_output(gpu_device: torch.device) -> None:
    """Strides and dilations with a common divisor: some cells are read by no output."""
    coords = torch.tensor([[0, i] for i in range(40)], dtype=torch.int32)
    for stride, dilation, padding in [(6, 4, 0), (6, 4, 1), (4, 8, 3), (5, 3, -2), (7, 7, 2)]:
        walk = ((40,), (9,), (4,), (stride,), (padding,), (dilation,), False)
        check_outputs(gpu_device, coords, *walk)
        check_outputs(gpu_device, coords[1:2], *walk)


HUGE = [  # batch, shape: cells by extents alone, and with the batch, up to 2^62
    (2, (2**31 - 1,)),
    (2**31 - 1, (2**31 - 1,)),
    (2**20, (2**21, 2**21)),
    (3, (2**20, 2**20, 2**20)),
    (2**15, (2**15, 2**10, 2**10, 2**12)),
]


@pytest.mark.parametrize(("batch", "shape"), HUGE, ids=str)
def test_huge_grids(any_order: torch.device, batch: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    near = random_sites(rng, 60, 1, (4,) * len(shape))
    far = near.clone()
    far[:, 0] = batch - 1
    far[:, 1:] = torch.tensor(shape, dtype=torch.int32) - 4 + near[:, 1:]
    sites = torch.cat([near, far])
    d = len(shape)
    walk = (shape, (3,) * d, (1,) * d, (1,) * d, (1,) * d)
    assert check_pairs(any_order, sites, sites, *walk, symmetric=True) > len(sites)
    out = check_outputs(any_order, sites, shape, *walk, False)
    assert out > len(sites)


def test_keys_that_overflow_are_an_error(gpu_device: torch.device) -> None:
    coords = torch.tensor([[1, 0, 0]], dtype=torch.int32, device=gpu_device)
    wide = (2**31 - 1, 2**31 - 1)
    walk = ((3, 3), (1, 1), (1, 1), (1, 1), False)
    with pytest.raises(ValueError, match="must multiply"):
        gpu_ops.output_coords(coords, (8 * 2**30, 2**31 - 1), wide, *walk)


def test_samples_past_the_bitmap_are_searched(
    gpu_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many samples there are is only known on the device; so is the way then."""
    monkeypatch.setattr(_gpu_rulebook, "BITMAP_BYTES", 8 * 4)
    rng = np.random.default_rng(2)
    walk = ((8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    for batch in (1, 2, 3, 9):
        sites = random_sites(rng, 100, batch, (8, 8))
        check_pairs(gpu_device, sites, sites, *walk, symmetric=True)


def test_kernels_of_many_rows(gpu_device: torch.device) -> None:
    sites = torch.tensor([[0, 3, 0], [0, 66000, 1], [1, 66003, 2]], dtype=torch.int32)
    walk = ((70000, 3), (66001, 1), (1, 1), (3, 0), (1, 1))
    want = ops.build_pairs(sites, sites, *walk)
    got = gpu_ops.build_pairs(sites.to(gpu_device), sites.to(gpu_device), *walk).reversed()
    k, query = (got.table(3, 3) >= 0).nonzero().T.cpu()
    start = want.offset_start
    offsets = torch.repeat_interleave(torch.arange(66001), start[1:] - start[:-1])
    assert torch.equal(k, offsets) and torch.equal(query.int(), want.src_rows)


def test_wrong_sites_give_a_table_all_the_same(any_order: torch.device, way: str) -> None:
    """Unsorted, repeated and outside of the grid: rows are rows of the target or -1."""
    rng = np.random.default_rng(4)
    coords = torch.from_numpy(rng.integers(-9, 20, (300, 3)).astype(np.int32)).to(any_order)
    pairs = gpu_ops.build_pairs(coords, coords, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    table = pairs.reversed().table(300, 300)
    assert int(table.min()) >= -1 and int(table.max()) < 300
    assert int(pairs.table(300, 300).max()) < 300
    lists = (table.new_tensor([5, 400, -3, 2]), table.new_tensor([1, 2, 3, 900]))
    start = torch.tensor([0, 2, 9], device=any_order)
    made = gpu_ops.Pairs(*lists, start).table(300, 300)
    assert made.nonzero().numel() and int((made >= 0).sum()) == 1 and int(made[0, 1]) == 5


def test_tables_fit_larger_operands_and_no_smaller(gpu_device: torch.device) -> None:
    sites = torch.tensor([[0, 1], [0, 2], [0, 5]], dtype=torch.int32, device=gpu_device)
    pairs = gpu_ops.build_pairs(sites, sites, (9,), (3,), (1,), (1,), (1,), symmetric=True)
    after = [[1, -1, -1, -1, -1], [0, 1, 2, -1, -1], [-1, 0, -1, -1, -1]]
    assert pairs.table(7, 5).tolist() == after
    with pytest.raises(ValueError, match="join 3 to 3 rows"):
        pairs.table(3, 2)
    with pytest.raises(ValueError, match="join 3 to 3 rows"):
        pairs.reversed().table(2, 3)
    assert pairs.table(3, 3) is pairs.table(3, 3)
    assert pairs.reversed().reversed().memo is pairs.memo is not pairs.reversed().memo


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    rows = torch.zeros(2, dtype=torch.int32, device=gpu_device)
    start = torch.tensor([0, 2], device=gpu_device)
    with pytest.raises(TypeError, match="src_rows must be"):
        gpu_ops.Pairs(rows.long(), rows, start)
    with pytest.raises(ValueError, match="offset_start must have 1 axis"):
        gpu_ops.Pairs(rows, rows, start[None])
    with pytest.raises(ValueError, match="n, n and n_offsets"):
        gpu_ops.Pairs(rows, rows[:1], start)
    sites = torch.tensor([[0, 1], [0, 2]], dtype=torch.int32, device=gpu_device)
    with pytest.raises(ValueError, match="symmetric needs one site list"):
        gpu_ops.build_pairs(sites, sites.clone(), (5,), (3,), (1,), (1,), (1,), symmetric=True)
    with pytest.raises(ValueError, match="kernel must have 1 values"):
        gpu_ops.build_pairs(sites, sites, (5,), (3, 3), (1,), (1,), (1,))
    with pytest.raises(TypeError, match="query_coords must be int32"):
        gpu_ops.build_pairs(sites.long(), sites, (5,), (3,), (1,), (1,), (1,))


STEPS = [
    ("submanifold", ds.Geometry(3, padding=1)),
    ("conv", ds.Geometry(3, 2, 1)),
    ("conv", ds.Geometry(1)),
    ("transposed", ds.Geometry(2, 2)),
]


@pytest.fixture
def cuda(gpu_device: torch.device) -> Iterator[torch.device]:
    """A CUDA device, or what says that it is one."""
    if gpu_device.type == "cuda":
        yield gpu_device
        return
    with emulated_cuda(_device.gpu()):
        yield torch.device("cuda")


def test_tables_read_nothing_back(gpu_device: torch.device) -> None:
    if gpu_device.type == "cuda":
        pytest.skip("reads are counted by the emulated device")
    with emulated_cuda(_device.gpu()) as traffic:
        sites = torch.tensor([[0, 1], [0, 2], [1, 0]], dtype=torch.int32).cuda()
        pairs = ops.build_pairs(sites, sites, (4,), (3,), (1,), (1,), (1,), symmetric=True)
        pairs.table(3, 3), pairs.reversed().table(3, 3)
        assert traffic.reads == 0
        assert (pairs.n_pairs, len(pairs.src_rows), len(pairs.offset_start)) == (5, 5, 4)
        assert traffic.reads == 1


@pytest.mark.parametrize(("kind", "geometry"), STEPS, ids=str)
def test_rulebooks_of_sites_on_cuda(cuda: torch.device, kind: str, geometry: ds.Geometry) -> None:
    """Sites in any order, with repeats: numbered, joined and listed as on the CPU."""
    rng = np.random.default_rng(6)
    coords = torch.from_numpy(rng.integers(0, (2, 12, 9), (90, 3)))
    here, order, start = ds.sites.Sites.from_coords(coords, (12, 9))
    there, order_there, start_there = ds.sites.Sites.from_coords(coords.to(cuda), (12, 9))
    assert torch.equal(order_there.cpu(), order) and torch.equal(start_there.cpu(), start)
    for name in ("coords", "keys", "batch_start", "batch"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    want = ds.build_rulebook(here, geometry, kind)
    got = ds.build_rulebook(there, geometry, kind)
    assert torch.equal(got.out_sites.coords.cpu(), want.out_sites.coords)
    assert torch.equal(got.pairs().cpu(), want.pairs())
    assert (got.n_pairs, got.n_offsets) == (want.n_pairs, want.n_offsets)
    assert isinstance(got._entry.pairs, ops.Pairs) and isinstance(want._entry.pairs, ops.Pairs)
    again = ops.Pairs(*[getattr(got._entry.pairs, name) for name in LISTS])
    assert type(again) is gpu_ops.Pairs and again.n_pairs == want.n_pairs
