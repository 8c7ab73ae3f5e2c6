"""What is made while a CUDA graph is captured is not remembered."""

from __future__ import annotations

import pytest
import torch

import doublesparse as ds
from doublesparse import _autograd, _gpu_ops, _windows
from doublesparse._device import capturing

pytestmark = pytest.mark.usefixtures("traffic")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Torch says that a graph is being captured, until it is undone."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return monkeypatch


def test_nothing_is_asked_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", None)
    assert not capturing(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not capturing(torch.device("cuda:0"))


def test_tables_and_plans_of_pairs(capture: pytest.MonkeyPatch) -> None:
    rows, start = torch.arange(3, dtype=torch.int32), torch.tensor([0, 1, 3])
    pairs = _gpu_ops.Pairs(rows.cuda(), rows.cuda(), start.cuda())
    x, weight = torch.randn(3, 2).cuda(), torch.randn(4, 2, 2).cuda()
    first = _gpu_ops.conv(x, weight, pairs, 3)
    assert not pairs.memo and pairs.table(3, 3) is not pairs.table(3, 3)
    capture.undo()
    assert torch.equal(first.cpu(), _gpu_ops.conv(x, weight, pairs, 3).cpu())
    assert pairs.memo and pairs.table(3, 3) is pairs.table(3, 3)


def test_what_sites_and_functions_remember(capture: pytest.MonkeyPatch) -> None:
    x = ds.SparseTensor.from_dense(torch.randn(1, 2, 5, 5)).cuda()
    conv = ds.nn.SubmanifoldConv2d(2, 3, 3, ground="drop").cuda()
    functions = _autograd._one_segment, _windows._every_tap
    before = [f.cache_info().currsize for f in functions]
    known = dict(x.sites.cache)
    conv(x)
    _autograd.column_sum(x.features)
    _windows.every_tap(17, 19, x.device)
    assert dict(x.sites.cache) == known
    assert [f.cache_info().currsize for f in functions] == before
    capture.undo()
    conv(x)
    assert dict(x.sites.cache) != known
