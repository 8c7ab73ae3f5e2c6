"""What sparse weights cost in accuracy: check M3 of the double sparsity encoder, on real digits."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch.nn import functional as F

import doublesparse as ds


def error(nonzeros: int, n_labels: int, seed: int) -> float:
    """Test error in percent of 128 codes over 100 atoms, trained on some labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits of scikit-learn")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    x = x - x.mean(1, keepdim=True)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=random)
    train, test = order[:n_labels], order[-500:]
    torch.manual_seed(seed)
    model = ds.models.DoubleSparsityEncoder(64, 128, 10, nonzeros=nonzeros, n_atoms=(10, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ds.prune.Project(model).attach(optimizer)
    for step in range(300):
        chosen = train[torch.randint(n_labels, (50,), generator=random)]
        for group in optimizer.param_groups:
            group["lr"] = 0.1 if step < 200 else 0.01
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    model = ds.prune.freeze(model.eval())
    with torch.no_grad():
        return 100 * float((model(x[test]).argmax(1) != y[test]).float().mean())


@pytest.mark.parametrize(
    "n_labels, most", [(200, 1.5), pytest.param(1000, 1.0, marks=pytest.mark.slow)]
)
def test_a_fifth_of_the_weights(n_labels: int, most: float) -> None:
    """20 of 100 weights a row or column, packed, against all of them: paired over seeds."""
    lost = [error(20, n_labels, seed) - error(100, n_labels, seed) for seed in range(3)]
    assert statistics.mean(lost) < most, lost
