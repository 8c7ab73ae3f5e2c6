"""Layers of a multilayer bootstrap network on codes, one clustering: 200 votes a point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from doublesparse._code_ops import most_agreeing
from doublesparse.bench import interleave, milliseconds
from report import Report

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
VOTES = 200

# --- most agreeing centres
POINTS = 8192
PEER_POINTS = 256  # of the formulations that take longest; their times are a point's


def agreeing_operands(k: int) -> Operands:
    """Codes of a layer of 2 k centres, of which k points are the centres of this one."""
    rng = np.random.default_rng(0)
    kind = np.uint8 if 2 * k <= 256 else np.uint16
    codes = rng.integers(0, 2 * k, (2 * VOTES, POINTS), dtype=kind)
    columns = np.sort(rng.choice(2 * VOTES, VOTES, replace=False))
    centers = codes[columns].take(rng.choice(POINTS, k, replace=False), 1)
    return torch.from_numpy(codes), torch.from_numpy(columns), torch.from_numpy(centers)


def agreeing_by_numpy(codes: torch.Tensor, columns: torch.Tensor, centers: torch.Tensor) -> object:
    """Compares every point with every centre, vote by vote."""
    voting, table = codes.numpy()[columns.numpy(), :PEER_POINTS], centers.numpy()
    counts = np.zeros((PEER_POINTS, table.shape[1]), dtype=np.uint8)
    for row, vote in zip(voting, table, strict=True):
        counts += row[:, None] == vote
    return counts.argmax(axis=1)


def agreeing_by_scipy(
    codes: torch.Tensor, columns: torch.Tensor, centers: torch.Tensor
) -> Callable[[], object]:
    """The product of one-hot codes in CSR; making the matrices is not in the time."""
    sparse = pytest.importorskip("scipy.sparse")

    def one_hot(rows: np.ndarray) -> object:
        n_codes = 1 + int(codes.to(torch.int32).max())
        at = rows.T.astype(np.int32) + n_codes * np.arange(VOTES, dtype=np.int32)
        start = np.arange(0, at.size + 1, VOTES, dtype=np.int32)
        ones = np.ones(at.size, dtype=np.int32)
        return sparse.csr_matrix((ones, at.ravel(), start), (len(at), n_codes * VOTES))

    points = one_hot(codes.numpy()[columns.numpy(), :PEER_POINTS])
    table = one_hot(centers.numpy()).T.tocsr()
    return lambda: (points @ table).toarray().argmax(axis=1)


@pytest.mark.parametrize("k", [2000, 1000, 500, 250, 125, 65, 30, 15])
def test_most_agreeing(report: Report, k: int) -> None:
    """Both ways, and what numpy and scipy.sparse make of it; microseconds a point."""
    operands = agreeing_operands(k)
    by_scipy = agreeing_by_scipy(*operands)
    wanted = most_agreeing(*operands).numpy()
    np.testing.assert_array_equal(agreeing_by_numpy(*operands), wanted[:PEER_POINTS])
    np.testing.assert_array_equal(by_scipy(), wanted[:PEER_POINTS])
    actions: dict[str, Callable[[], object]] = {
        "ours": lambda: most_agreeing(*operands),
        "compare": lambda: most_agreeing(*operands, way="compare"),
        "lists": lambda: most_agreeing(*operands, way="lists"),
        "numpy": lambda: agreeing_by_numpy(*operands),
        "scipy.sparse": by_scipy,
    }
    times = interleave(actions, 5)
    points = {"numpy": PEER_POINTS, "scipy.sparse": PEER_POINTS}
    us = {name: 1e3 * milliseconds(times[name]) / points.get(name, POINTS) for name in actions}
    texts = [f"{name} {us[name]:.3f}" for name in actions if name != "ours"]
    rate = VOTES * k / us["compare"] / 1e3
    report.add(
        f"agreeing-{k}",
        us["ours"],
        note=f"{', '.join(texts)}; {rate:.0f} compares/ns",
        what=f"most agreeing of {k} centres, {VOTES} votes",
        unit="us a point",
    )
