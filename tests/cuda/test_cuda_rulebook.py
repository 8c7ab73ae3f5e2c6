"""Neighbour tables, their lists and output sites on the device: the CPU's, row for row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import op_case
from doublesparse import _gpu_ops as gpu_ops
from doublesparse import _gpu_rulebook, ops

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
