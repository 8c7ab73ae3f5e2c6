"""Double-sparsity dictionary learning: constraints, falling error, planted dictionaries, errors."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch

import doublesparse as ds

sklearn = pytest.importorskip("sklearn.linear_model", reason="the OMP is scikit-learn's")
learn = ds.models.learn_double_sparsity


def cosines(m: int, p: int) -> np.ndarray:
    """An overcomplete cosine dictionary, (m, p), unit columns."""
    D = np.cos(np.pi * (np.arange(m)[:, None] + 0.5) * np.arange(p) / p)
    return D / np.linalg.norm(D, axis=0)


def planted(seed: int, n_samples: int, m: int, p: int, n: int, s: int, k: int):
    """Samples that are k-sparse over D0 S with S s-sparse; D0 and S."""
    rng = np.random.default_rng(seed)
    D0 = cosines(m, p)
    S = np.zeros((p, n))
    for j in range(n):
        S[rng.choice(p, s, replace=False), j] = rng.choice([-1, 1], s) * rng.uniform(0.5, 1.5, s)
    S /= np.linalg.norm(D0 @ S, axis=0)
    Z = np.zeros((n_samples, n))
    for i in range(n_samples):
        Z[i, rng.choice(n, k, replace=False)] = rng.choice([-1, 1], k) * rng.uniform(0.5, 1.5, k)
    return Z @ (D0 @ S).T, D0, S


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constraints(dtype):
    """At most s non-zeros a column, unit atoms, the dtype of the samples."""
    X, D0, _ = planted(0, 120, 16, 24, 20, 3, 2)
    S = learn(torch.tensor(X, dtype=dtype), D0, 20, 3, 2, n_iterations=2, random_state=1)
    assert S.dtype == dtype and S.shape == (24, 20) and S.device.type == "cpu"
    counts = (S != 0).sum(0)
    assert int(counts.min()) >= 1 and int(counts.max()) <= 3
    norms = np.linalg.norm(D0 @ S.double().numpy(), axis=0)
    # Rounding S once to its dtype moves a unit atom by at most u times sum |D0| |S|.
    bound = torch.finfo(dtype).eps * (np.abs(D0) @ S.double().abs().numpy()).max() * 16
    assert np.abs(norms - 1).max() <= bound


def oracle_error(X, D, k):
    """Relative error of scikit-learn's own codes over a dictionary of unit atoms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        Z = sklearn.orthogonal_mp(D, X.T, n_nonzero_coefs=k)
    return np.linalg.norm(X.T - D @ Z) / np.linalg.norm(X)


def test_error_falls():
    """From iteration to iteration; scikit-learn's codes confirm it at the ends."""
    rng = np.random.default_rng(3)
    X, D0, _ = planted(2, 400, 25, 36, 40, 4, 3)
    X = X + 0.05 * rng.normal(size=X.shape)
    errors: list[float] = []
    S = learn(X, D0, 40, 4, 3, 8, 0, callback=lambda i, error: errors.append(error))
    assert len(errors) == 8
    assert all(later < sooner for sooner, later in zip(errors, errors[1:]))
    first = learn(X, D0, 40, 4, 3, 1, 0)
    before, after = (oracle_error(X, D0 @ part.numpy(), 3) for part in (first, S))
    assert after < before


def test_more_room_is_not_worse():
    """Atoms of up to s base atoms: the error falls with s, on samples that need many."""
    X = np.random.default_rng(0).normal(size=(150, 16)) @ cosines(16, 16)
    found = []
    for s in (1, 4, 16):
        errors: list[float] = []
        learn(X, np.eye(16), 24, s, 3, 6, 0, callback=lambda i, error: errors.append(error))
        found.append(errors[-1])
    assert found[0] > found[1] > found[2]


def recovered(D0: np.ndarray, S: np.ndarray, found: torch.Tensor) -> float:
    """Share of the planted atoms that were found again: |<d, d'>| > 0.99, the paper's measure."""
    return float((np.abs((D0 @ S).T @ (D0 @ found.numpy())).max(1) > 0.99).mean())


def test_planted_dictionary_is_recovered():
    """Two thirds of the atoms and more; like every K-SVD it can stop where two atoms are one."""
    X, D0, S = planted(0, 600, 24, 32, 24, 3, 2)
    begin, end = (recovered(D0, S, learn(X, D0, 24, 3, 2, n, random_state=0)) for n in (1, 10))
    assert end >= 2 / 3 and end > begin, (begin, end)


def test_one_atom_is_the_principal_direction():
    """n = k = 1, D0 = I, s full: K-SVD converges to the leading singular vector."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6)) @ np.diag([4, 1, 1, 0.5, 0.5, 0.5])
    S = learn(X, np.eye(6), 1, 6, 1, n_iterations=60, random_state=0)
    top = np.linalg.svd(X)[2][0]
    assert abs(S[:, 0].numpy() @ top) > 1 - 1e-9


def test_deterministic():
    X, D0, _ = planted(0, 80, 16, 24, 20, 3, 2)
    one = learn(X, D0, 12, 3, 2, 2, random_state=5)
    state = np.random.get_state()[1].copy()
    assert torch.equal(one, learn(X, D0, 12, 3, 2, 2, random_state=5))
    assert torch.equal(one, learn(X, D0, 12, 3, 2, 2, random_state=np.random.default_rng(5)))
    assert not torch.equal(one, learn(X, D0, 12, 3, 2, 2, random_state=6))
    assert (np.random.get_state()[1] == state).all()


def test_scale_and_kind_of_the_arguments():
    """Samples of any scale and shape, base atoms of any norm, tensors, arrays and objects."""

    class Base:
        def matrix(self):
            return torch.from_numpy(D0)

    X, D0, _ = planted(0, 60, 16, 24, 20, 3, 2)
    S = learn(X, D0, 10, 3, 2, 2, 0)
    assert torch.equal(S, learn(torch.from_numpy(X), Base(), 10, 3, 2, 2, 0))
    assert torch.equal(S, learn(X.reshape(60, 4, 4), torch.from_numpy(D0), 10, 3, 2, 2, 0))
    assert torch.equal(S, learn(2.0**1000 * X, D0, 10, 3, 2, 2, 0))
    read_only = X.copy()
    read_only.flags.writeable = False
    backward = X[::-1, ::-1].copy()[::-1, ::-1]
    for same in (read_only, backward, X.astype(">f8"), X.astype(np.longdouble)):
        assert torch.equal(S, learn(same, D0, 10, 3, 2, 2, 0))
    scale = 2.0 ** np.arange(-12, 12)
    scaled = learn(X, D0 * scale, 10, 3, 2, 2, 0)
    assert torch.equal(S, scaled * torch.from_numpy(scale)[:, None])  # powers of two: no rounding


def test_few_and_repeated_samples():
    """Zeros, copies and exactly representable samples leave finite unit atoms."""
    X = np.repeat(np.eye(5), 4, axis=0)
    S = learn(np.concatenate([np.zeros((3, 5)), X]), np.eye(5), 8, 2, 2, 3, 0)
    assert torch.isfinite(S).all() and torch.allclose(S.norm(dim=0), torch.ones(8).double())


def test_unused_atoms_are_replaced():
    """Copies of one sample would leave dead atoms; those go to what is represented worst."""
    X = np.concatenate([np.repeat(np.eye(6)[:1], 50, axis=0), np.eye(6)])
    errors: list[float] = []
    learn(X, np.eye(6), 6, 1, 1, 8, 0, callback=lambda i, error: errors.append(error))
    assert errors[-1] == 0.0


X0, D00 = np.ones((20, 6)) + np.eye(20, 6), np.eye(6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X": [[1.0]]}, TypeError, "X must be a floating-point"),
        ({"X": X0.astype(int)}, TypeError, "got torch.int64|got int64"),
        ({"X": X0 > 0}, TypeError, "X must be"),
        ({"X": X0.astype(complex)}, TypeError, "X must be"),
        ({"X": X0[0]}, ValueError, "shape"),
        ({"X": X0[:0]}, ValueError, "not be empty"),
        ({"X": 0 * X0}, ValueError, "not zero"),
        ({"X": np.where(np.eye(20, 6) > 0, np.nan, X0)}, ValueError, "NaN"),
        ({"X": np.inf * X0}, ValueError, "finite"),
        ({"dictionary": "dct"}, TypeError, "dictionary must be"),
        ({"dictionary": np.eye(6, dtype=int)}, TypeError, "dictionary must be"),
        ({"dictionary": np.eye(7)}, ValueError, r"\(6, p\)"),
        ({"dictionary": np.zeros((6, 0))}, ValueError, r"\(6, p\)"),
        ({"dictionary": np.diag([1.0, 1, 1, 0, 1, 1])}, ValueError, "column 3"),
        ({"dictionary": np.nan * D00}, ValueError, "finite"),
        ({"dictionary": np.array([[1.0], [-1], [0], [0], [0], [0]]), "nonzeros": 1},
         ValueError, "orthogonal"),
        ({"n_codes": 21}, ValueError, "in 1..20"),
        ({"n_codes": 10**30}, ValueError, "in 1..20"),
        ({"n_codes": 0}, ValueError, "in 1..20"),
        ({"n_codes": 2.0}, TypeError, "n_codes must be an int"),
        ({"n_codes": True}, TypeError, "n_codes must be an int"),
        ({"nonzeros": 7}, ValueError, "in 1..6"),
        ({"nonzeros": None}, TypeError, "nonzeros must be an int"),
        ({"code_nonzeros": 5}, ValueError, "in 1..4"),
        ({"n_iterations": 0}, ValueError, "positive"),
        ({"random_state": "0"}, TypeError, "random_state"),
        ({"random_state": -1}, ValueError, "not be negative"),
        ({"callback": 3}, TypeError, "callback"),
    ],
)  # fmt: skip
def test_wrong_arguments(change, error, words):
    arguments = {"X": X0, "dictionary": D00, "n_codes": 4, "nonzeros": 2, "code_nonzeros": 2}
    if "orthogonal" in words:
        arguments["X"] = np.ones((20, 6))
    with pytest.raises(error, match=words) as caught:
        learn(**(arguments | {"random_state": 0} | change))
    assert str(caught.value).startswith("learn_double_sparsity: ")


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        learn(X0, D00, 4, 2, 2)
