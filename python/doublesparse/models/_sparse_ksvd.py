"""Sparse K-SVD: a dictionary whose atoms are sparse over a base dictionary, learnt from samples."""

from __future__ import annotations

import importlib
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
_NAME = "learn_double_sparsity"


class HasMatrix(Protocol):
    """A base dictionary that can be written out, as those of `DoubleSparsityEncoder` can."""

    def matrix(self) -> Tensor:
        """Its atoms as columns, (m, p)."""
        ...


def learn_double_sparsity(
    X: Tensor | npt.NDArray[Any],  # noqa: N803 - scikit-learn's name
    dictionary: Tensor | npt.NDArray[Any] | HasMatrix,
    n_codes: int,
    nonzeros: int = 20,
    code_nonzeros: int = 10,
    n_iterations: int = 5,
    random_state: int | np.random.Generator | None = None,
    *,
    callback: Callable[[int, float], object] | None = None,
) -> Tensor:
    """Double-sparsity dictionary learning by sparse K-SVD (Rubinstein, Zibulevsky, Elad 2010).

    Looks for S with few non-zeros per column such that D0 S, the learnt dictionary, has sparse
    codes Z with X^T ~ D0 S Z^T. Each iteration codes all samples by orthogonal matching pursuit
    (OMP), then goes through the atoms: the sparse K-SVD step (figure 2 of the paper) refits one
    column of S to what the other atoms leave, by OMP over D0, and the codes on it by least squares.
    OMP is greedy: a code or an atom that it finds is taken only where it lowers the error, so the
    error never rises. Atoms that no sample uses are replaced by the sample that is represented
    worst. Begins with n_codes samples drawn at random, each approximated over D0.

    Computes in float64 on the CPU, and needs scikit-learn, whose OMP it runs.

    Args:
        X: (n_samples, m), or (n_samples, ...) with m values each: samples, floating point. Centre
            them first if they have a common mean that the atoms should not spend themselves on.
        dictionary: D0, (m, p), one base atom a column; or an object whose `matrix()` is that.
        n_codes: n, the number of atoms to learn, at most the number of samples that are not zero.
        nonzeros: s, the most non-zeros in a column of S.
        code_nonzeros: the most atoms that a sample is coded with.
        n_iterations: of codes and atoms.
        random_state: seed, or generator, that draws the first atoms; None: from the system.
        callback: called as `callback(iteration, error)` after each iteration, counted from 0;
            error: ||X^T - D0 S Z^T|| / ||X||, Frobenius norms.

    Returns:
        S, (p, n_codes), of X's dtype and device: at most `nonzeros` non-zeros a column, and
        ||D0 S e_j|| = 1.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: an argument of the wrong type.
        ValueError: shapes that do not fit, NaN or infinity, a zero base atom, or a number out of
            range.

    Example:
        >>> import torch, doublesparse as ds
        >>> random = torch.Generator().manual_seed(0)
        >>> samples = torch.randn(100, 16, generator=random)
        >>> S = ds.models.learn_double_sparsity(samples, torch.eye(16), 8, nonzeros=3,
        ...     code_nonzeros=2, random_state=0)
        >>> S.shape, int((S != 0).sum(0).max())
        (torch.Size([16, 8]), 3)
        >>> torch.allclose(S.norm(dim=0), torch.ones(8))
        True
    """
    samples, like = _samples(X)
    base = _base(dictionary, samples.shape[1])
    alive = np.flatnonzero(samples.any(1))
    _check_count("n_codes", n_codes, len(alive), "number of samples that are not zero")
    _check_count("nonzeros", nonzeros, base.shape[1], "number of base atoms")
    _check_count("code_nonzeros", code_nonzeros, n_codes, "number of codes")
    _check_count("n_iterations", n_iterations, None, "")
    if callback is not None and not callable(callback):
        raise TypeError(
            f"{_NAME}: callback must be a function (iteration, error), got "
            f"{type(callback).__name__}; pass one, or None"
        )
    first = _generator(random_state).choice(alive, n_codes, replace=False)
    fit = _Fit(samples, _Base.of(base), nonzeros, code_nonzeros)
    fit.begin(first)
    for iteration in range(n_iterations):
        fit.code()
        fit.update_atoms()
        if callback is not None:
            callback(iteration, fit.error())
    return torch.from_numpy(fit.sparse / fit.base.norms[:, None]).to(like)


# ------------------------------------------------------------------ arguments
def _samples(X: Any) -> tuple[Array, Tensor]:  # noqa: N803
    """Samples as float64 rows in [-1, 1] (S does not depend on their scale), and a model of X."""
    tensor = _tensor(X)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = getattr(X, "dtype", type(X).__name__)
        raise TypeError(
            f"{_NAME}: X must be a floating-point tensor or array, got {got}; convert it, e.g. "
            "X.float()"
        )
    if tensor.dim() < 2 or tensor.numel() == 0:
        raise ValueError(
            f"{_NAME}: X must have shape (n_samples, m) and not be empty, got "
            f"{tuple(tensor.shape)}; pass one sample a row"
        )
    rows = _finite("X", tensor.detach().flatten(1))
    largest = np.abs(rows).max()
    if largest == 0:
        raise ValueError(
            f"{_NAME}: X must have samples that are not zero, got zeros only; check it"
        )
    return rows / largest, tensor.detach()[:0]


def _base(dictionary: Any, m: int) -> Array:
    """D0 in float64."""
    given = dictionary
    if not isinstance(given, (Tensor, np.ndarray)) and callable(getattr(given, "matrix", None)):
        given = given.matrix()
    given = _tensor(given)
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = getattr(given, "dtype", type(given).__name__)
        raise TypeError(
            f"{_NAME}: dictionary must be a floating-point (m, p) tensor or array, or have "
            f"matrix(), got {got}; pass D0 with its atoms as columns"
        )
    if given.dim() != 2 or given.shape[0] != m or given.shape[1] == 0:
        raise ValueError(
            f"{_NAME}: dictionary must have shape ({m}, p), for samples of {m} values, got "
            f"{tuple(given.shape)}; one base atom a column"
        )
    matrix = _finite("dictionary", given.detach())
    if not matrix.any(0).all():
        raise ValueError(
            f"{_NAME}: dictionary must have no zero atom, got one at column "
            f"{int(np.argmin(matrix.any(0)))}; drop it"
        )
    return matrix


def _tensor(values: Any) -> Any:
    """A tensor with a copy of an array: torch takes no negative strides nor other byte orders."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        return values
    wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if wide else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(values, dtype, order="C"))


def _finite(name: str, values: Tensor) -> Array:
    found = values.to("cpu", torch.float64).numpy()
    if not np.isfinite(found).all():
        raise ValueError(f"{_NAME}: {name} must be finite, got NaN or infinity; clean it first")
    return found


def _check_count(name: str, value: Any, largest: int | None, of_what: str) -> None:
    if isinstance(value, bool):
        value = None
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{_NAME}: {name} must be an int, got {value!r}; pass a count") from None
    if number < 1 or (largest is not None and number > largest):
        bound = "positive" if largest is None else f"in 1..{largest}, the {of_what}"
        raise ValueError(f"{_NAME}: {name} must be {bound}, got {number}; pass such a number")


def _generator(random_state: Any) -> np.random.Generator:
    seed = isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool)
    if not (seed or random_state is None or isinstance(random_state, np.random.Generator)):
        raise TypeError(
            f"{_NAME}: random_state must be an int, a numpy Generator or None, got "
            f"{type(random_state).__name__}; pass e.g. 0"
        )
    if seed and random_state < 0:
        raise ValueError(
            f"{_NAME}: random_state must not be negative, got {random_state}; pass e.g. 0"
        )
    return np.random.default_rng(random_state)


# ------------------------------------------------------------------ the algorithm
def _omp(gram: Array, correlations: Array, nonzeros: int) -> Array:
    """OMP codes, (n_atoms, k), of k signals given as (n_atoms, k) correlations with unit atoms."""
    try:
        linear_model = importlib.import_module("sklearn.linear_model")
    except ImportError as wrong:
        raise ImportError(
            f"{_NAME}: scikit-learn, whose OMP it runs, is not installed; pip install scikit-learn"
        ) from wrong
    with warnings.catch_warnings():  # "ended prematurely": an exact code, or dependent atoms
        warnings.simplefilter("ignore", RuntimeWarning)
        codes = linear_model.orthogonal_mp_gram(gram, correlations, n_nonzero_coefs=nonzeros)
    return cast("Array", codes.reshape(correlations.shape))


class _Base(NamedTuple):
    """D0 with unit atoms, what they were scaled by, and its Gram matrix."""

    atoms: Array  # (m, p)
    norms: Array  # (p,)
    gram: Array  # (p, p)

    @classmethod
    def of(cls, matrix: Array) -> _Base:
        # In two steps: squares of the largest or smallest numbers have no room in a float64.
        largest = np.abs(matrix).max(0)
        norms = largest * np.linalg.norm(matrix / largest, axis=0)
        atoms = matrix / norms
        # scikit-learn copies the Gram matrix in column-major order; from such a one it is faster.
        return cls(atoms, norms, np.asfortranarray(atoms.T @ atoms))

    def approximate(self, signal: Array, nonzeros: int) -> tuple[Array, Array] | None:
        """Sparse a (p,) with D0 a near the direction of a signal (m,), and D0 a, of norm 1."""
        a = _omp(self.gram, self.atoms.T @ signal, nonzeros)
        used = np.flatnonzero(a)
        atom = self.atoms[:, used] @ a[used]
        norm = np.linalg.norm(atom)
        # Nothing of the signal lies in the span of D0: what is left of it is rounding.
        if not norm > 1e-12 * np.linalg.norm(signal):
            return None
        return a / norm, atom / norm


class _Fit:
    """The state of the iteration. Samples and codes are rows; R = X - Z (D0 S)^T throughout."""

    def __init__(self, samples: Array, base: _Base, nonzeros: int, code_nonzeros: int) -> None:
        self.samples, self.base = samples, base
        self.nonzeros, self.code_nonzeros = nonzeros, code_nonzeros
        self.sparse: Array = np.zeros((base.atoms.shape[1], 0))  # S over unit base atoms
        self.atoms: Array = np.zeros((base.atoms.shape[0], 0))  # D0 S
        self.codes: Array = np.zeros((len(samples), 0))
        self.residual = samples.copy()

    def begin(self, first: npt.NDArray[np.int64]) -> None:
        """The first atoms are samples, as far as so few base atoms can say them."""
        found = [self.base.approximate(self.samples[i], self.nonzeros) for i in first]
        if any(pair is None for pair in found):
            raise ValueError(
                f"{_NAME}: dictionary must span the samples in part, got a sample that is "
                "orthogonal to all its atoms; use one with more atoms"
            )
        pairs = [pair for pair in found if pair is not None]
        self.sparse = np.stack([a for a, _ in pairs], axis=1)
        self.atoms = np.stack([atom for _, atom in pairs], axis=1)
        self.codes = np.zeros((len(self.samples), len(first)))

    def error(self) -> float:
        """||X - Z (D0 S)^T|| / ||X||."""
        return float(np.linalg.norm(self.residual) / np.linalg.norm(self.samples))

    def code(self) -> None:
        """OMP codes of all samples; a sample keeps its old one where that is the better."""
        gram = np.asfortranarray(self.atoms.T @ self.atoms)
        codes = _omp(gram, (self.samples @ self.atoms).T, self.code_nonzeros).T
        residual = self.samples - codes @ self.atoms.T
        old = self.samples - self.codes @ self.atoms.T  # afresh: rounding must not add up
        better = np.square(residual).sum(1) < np.square(old).sum(1)
        self.codes = np.where(better[:, None], codes, self.codes)
        self.residual = np.where(better[:, None], residual, old)

    def update_atoms(self) -> None:
        """Every column of S in turn, and the codes on it."""
        taken = np.zeros(len(self.samples), dtype=bool)  # by replaced atoms
        for j in range(self.atoms.shape[1]):
            rows = np.flatnonzero(self.codes[:, j])
            if len(rows):
                self._update_atom(j, rows)
            else:
                self._replace_atom(j, taken)

    def _update_atom(self, j: int, rows: npt.NDArray[np.int64]) -> None:
        code, old = self.codes[rows, j], self.atoms[:, j]
        without = self.residual[rows] + np.outer(code, old)  # what the other atoms leave
        found = self.base.approximate(code @ without / np.linalg.norm(code), self.nonzeros)
        # With the best codes on a unit atom d the error is |E|^2 - |E d|^2.
        if found is not None:
            a, atom = found
            if np.square(without @ atom).sum() > np.square(without @ old).sum():
                self.sparse[:, j], self.atoms[:, j] = a, atom
        self.codes[rows, j] = without @ self.atoms[:, j]
        self.residual[rows] = without - np.outer(self.codes[rows, j], self.atoms[:, j])

    def _replace_atom(self, j: int, taken: npt.NDArray[np.bool_]) -> None:
        worst = int(np.where(taken, -1.0, np.square(self.residual).sum(1)).argmax())
        if taken[worst] or not self.residual[worst].any():
            return  # nothing is represented badly
        taken[worst] = True
        found = self.base.approximate(self.samples[worst], self.nonzeros)
        if found is not None:
            self.sparse[:, j], self.atoms[:, j] = found
