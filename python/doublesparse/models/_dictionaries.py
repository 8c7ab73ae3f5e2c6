"""Fixed base dictionaries D0 of the double sparsity encoder, applied by fast transforms.

A picture in a dictionary's terms: x = D0 b, with D0 (n_inputs, n_atoms) of atoms of norm 1. The
encoder needs b = D0^T x and D0^T D0 b only, so D0 itself is never formed where a transform exists.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Sizes = tuple[int, ...]
_WHOLE = 1 << 14  # entries of a product of factors up to which one product with it is faster
_REDUNDANCY = 1.25  # atoms per pixel and axis: 8 x 8 pixels have 10 x 10 atoms


class Dictionary(nn.Module, ABC):
    """A fixed matrix D0 that is applied to rows of a batch, never trained.

    Attributes:
        n_inputs: m, rows of D0.
        n_atoms: p, columns of D0.
    """

    n_inputs: int
    n_atoms: int

    @abstractmethod
    def analysis(self, x: Tensor) -> Tensor:
        """D0^T of each row: (batch, n_inputs) to (batch, n_atoms)."""

    @abstractmethod
    def synthesis(self, b: Tensor) -> Tensor:
        """D0 of each row: (batch, n_atoms) to (batch, n_inputs)."""

    def gram(self, b: Tensor) -> Tensor:
        """D0^T D0 of each row: (batch, n_atoms) to (batch, n_atoms)."""
        return self.analysis(self.synthesis(b))

    def matrix(self) -> Tensor:
        """D0, (n_inputs, n_atoms): for tests and for learning, not for inference."""
        some = next(self.buffers())
        return self.analysis(torch.eye(self.n_inputs, dtype=some.dtype, device=some.device))

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"n_inputs={self.n_inputs}, n_atoms={self.n_atoms}"


class SeparableDictionary(Dictionary):
    """A Kronecker product of one small matrix per axis: two small products instead of a large one.

    x of m_1 x m_2 pixels costs m_1 m_2 p_2 + m_1 p_1 p_2 multiply-adds instead of m_1 m_2 p_1 p_2.
    D0^T D0 is the Kronecker product of the (p_i, p_i) matrices C_i^T C_i: one product per axis,
    which is less work than there and back wherever p_i < 2 m_i. Small ones (8 x 8 pixels) are
    multiplied out, since one product of matrices then is faster than many of tiny ones.

    Args:
        factors: C_i (m_i, p_i), float64, one per axis, of one or two axes; D0 is their Kronecker
            product, atoms and pixels in row-major order.
        device: of the factors.
        dtype: of the factors.
    """

    def __init__(
        self,
        factors: Sequence[Tensor],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._exact = [factor.to(torch.float64) for factor in factors]
        self.input_shape: Sizes = tuple(factor.shape[0] for factor in factors)
        self.atom_shape: Sizes = tuple(factor.shape[1] for factor in factors)
        self.n_inputs, self.n_atoms = math.prod(self.input_shape), math.prod(self.atom_shape)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        device = torch.empty(0, device=device).device  # as parameters: torch's default
        for name, exact in self._exact_buffers().items():
            self.register_buffer(name, exact.to(device, dtype), persistent=False)

    def _exact_buffers(self) -> dict[str, Tensor]:
        """By name: a matrix per axis of D0 and of D0^T D0, or the whole where that is small."""
        kinds = {"factor": self._exact, "gram": [f.t() @ f for f in self._exact]}
        found: dict[str, Tensor] = {}
        for kind, matrices in kinds.items():
            if len(matrices) > 1 and math.prod(m.numel() for m in matrices) <= _WHOLE:
                matrices = [torch.kron(*matrices)]
            found |= {f"{kind}{i}": matrix for i, matrix in enumerate(matrices)}
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Another dtype rounds the exact factors, not those that were rounded before."""
        super()._apply(fn, recurse)
        for name, exact in self._exact_buffers().items():
            buffer = self.get_buffer(name)
            if not buffer.is_meta:
                setattr(self, name, exact.to(buffer.device, buffer.dtype))
        return self

    def analysis(self, x: Tensor) -> Tensor:
        """D0^T of each row: (batch, n_inputs) to (batch, n_atoms)."""
        return self._along(x, self.input_shape, self._matrices("factor"))

    def synthesis(self, b: Tensor) -> Tensor:
        """D0 of each row: (batch, n_atoms) to (batch, n_inputs)."""
        return self._along(b, self.atom_shape, [c.t() for c in self._matrices("factor")])

    def gram(self, b: Tensor) -> Tensor:
        """D0^T D0 of each row: (batch, n_atoms) to (batch, n_atoms)."""
        if any(p >= 2 * m for m, p in zip(self.input_shape, self.atom_shape, strict=True)):
            return super().gram(b)
        return self._along(b, self.atom_shape, self._matrices("gram"))

    def _matrices(self, kind: str) -> list[Tensor]:
        whole = f"{kind}1" not in self._buffers
        return [self.get_buffer(f"{kind}{i}") for i in range(1 if whole else 2)]

    def _along(self, x: Tensor, shape: Sizes, matrices: list[Tensor]) -> Tensor:
        """Multiply every axis by its matrix: (batch, prod(shape)) to (batch, product of p)."""
        if len(matrices) == 1:
            return x @ matrices[0]
        vertical, horizontal = matrices
        return (vertical.t() @ (x.reshape(x.shape[0], *shape) @ horizontal)).flatten(1)


def dct_matrix(n_inputs: int, n_atoms: int) -> Tensor:
    """The overcomplete DCT of one axis, (n_inputs, n_atoms), float64.

    Atom k is cos(pi k (i + 1/2) / n_atoms) over the pixels i, without its mean where k > 0, scaled
    to norm 1 (the base dictionary of Rubinstein, Zibulevsky and Elad 2010). With as many atoms as
    pixels it is the orthonormal DCT-II.
    """
    i = torch.arange(n_inputs, dtype=torch.float64, device="cpu") + 0.5
    k = torch.arange(n_atoms, dtype=torch.float64, device="cpu")
    atoms = torch.cos(math.pi * torch.outer(i, k) / n_atoms)
    if n_inputs > 1:
        atoms[:, 1:] -= atoms[:, 1:].mean(0)
    return atoms / atoms.norm(dim=0)


class WaveletDictionary(Dictionary):
    """The orthonormal Haar wavelet of every axis, by sums and differences of neighbours.

    The transform of Mallat: each level halves the low-pass part along all axes whose extent is
    even; `levels` times, or until no axis is even. D0 is orthogonal, so n_atoms = n_inputs and
    D0^T D0 b = b. The order of the atoms is that of the pixels, with each level's low-pass part
    first.

    Args:
        input_shape: extents of the axes.
        levels: None: as many as there are.
        device: of what is computed with.
        dtype: the same.

    Raises:
        ValueError: no axis is even, or fewer levels exist.
    """

    def __init__(
        self,
        input_shape: Sizes,
        levels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.n_inputs = self.n_atoms = math.prod(input_shape)
        self._boxes = [input_shape]  # the low-pass part before each level
        while any(size % 2 == 0 for size in self._boxes[-1]):
            self._boxes.append(tuple(n // 2 if n % 2 == 0 else n for n in self._boxes[-1]))
        n_levels = len(self._boxes) - 1
        if n_levels == 0 or (levels is not None and not 1 <= levels <= n_levels):
            raise ValueError(
                f"DoubleSparsityEncoder: input_shape must have an even axis for each wavelet "
                f"level, got {input_shape}, which has {n_levels} levels, and levels={levels}; "
                "pad the input or use dictionary='dct'"
            )
        self._boxes = self._boxes[: (levels or n_levels)]
        self.register_buffer("one", torch.ones((), device=device, dtype=dtype), persistent=False)

    def analysis(self, x: Tensor) -> Tensor:
        """D0^T of each row: (batch, n_inputs) to (batch, n_atoms)."""
        y = x.reshape(x.shape[0], *self.input_shape)
        for box in self._boxes:
            y = self._level(y, box, _halve)
        return y.reshape(x.shape[0], self.n_atoms)

    def synthesis(self, b: Tensor) -> Tensor:
        """D0 of each row: (batch, n_atoms) to (batch, n_inputs)."""
        y = b.reshape(b.shape[0], *self.input_shape)
        for box in reversed(self._boxes):
            y = self._level(y, box, _double)
        return y.reshape(b.shape[0], self.n_inputs)

    def gram(self, b: Tensor) -> Tensor:
        """b: the dictionary is orthogonal."""
        return b

    @staticmethod
    def _level(y: Tensor, box: Sizes, step: Callable[[Tensor, int], Tensor]) -> Tensor:
        """One level: of the corner of the array that is the low-pass part."""
        corner = (slice(None), *(slice(n) for n in box))
        part = y[corner]
        for axis, size in enumerate(box):
            if size % 2 == 0:
                part = step(part, axis + 1)
        y = y.clone()
        y[corner] = part
        return y


def _halve(x: Tensor, axis: int) -> Tensor:
    """Sums, then differences, of neighbours along an axis."""
    even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return torch.cat([even + odd, even - odd], axis) * math.sqrt(0.5)


def _double(x: Tensor, axis: int) -> Tensor:
    """The inverse of `_halve`."""
    low, high = x.chunk(2, axis)
    return torch.stack([low + high, low - high], axis + 1).flatten(axis, axis + 1) * math.sqrt(0.5)


class GivenDictionary(Dictionary):
    """A matrix (n_inputs, n_atoms) as it is; saved with the model.

    Args:
        matrix: D0; the columns need not have norm 1.
        device: of the matrix.
        dtype: of the matrix.
    """

    atoms: Tensor

    def __init__(
        self,
        matrix: Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_inputs, self.n_atoms = matrix.shape
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.register_buffer("atoms", matrix.detach().to(device, dtype, copy=True))

    def analysis(self, x: Tensor) -> Tensor:
        """D0^T of each row: (batch, n_inputs) to (batch, n_atoms)."""
        return x @ self.atoms

    def synthesis(self, b: Tensor) -> Tensor:
        """D0 of each row: (batch, n_atoms) to (batch, n_inputs)."""
        return b @ self.atoms.t()


# ------------------------------------------------------------------ which one
def make_dictionary(
    dictionary: str | Tensor | Dictionary,
    n_inputs: int,
    input_shape: Sizes | None,
    n_atoms: int | Sizes | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Dictionary:
    """The dictionary that an encoder's arguments name; see `DoubleSparsityEncoder`."""
    if isinstance(dictionary, Tensor):
        made: Dictionary = GivenDictionary(_checked_matrix(dictionary), device, dtype)
    elif isinstance(dictionary, Dictionary):
        made = dictionary.to(device=device, dtype=dtype)
    elif isinstance(dictionary, str) and dictionary == "dct":
        shape = _shape(n_inputs, input_shape)
        counts = _atom_shape(shape, n_atoms)
        factors = [dct_matrix(m, p) for m, p in zip(shape, counts, strict=True)]
        return SeparableDictionary(factors, device, dtype)
    elif isinstance(dictionary, str) and dictionary == "wavelet":
        made = WaveletDictionary(_shape(n_inputs, input_shape), None, device, dtype)
    else:
        kind, got = (ValueError, repr(dictionary)) if isinstance(dictionary, str) else (
            TypeError,
            type(dictionary).__name__,
        )
        raise kind(
            f"DoubleSparsityEncoder: dictionary must be 'dct', 'wavelet' or an (n_inputs, n_atoms) "
            f"Tensor, got {got}; pass one of them, e.g. torch.from_numpy(matrix)"
        )
    if made.n_inputs != n_inputs or n_atoms not in (None, made.n_atoms):
        raise ValueError(
            f"DoubleSparsityEncoder: dictionary must have {n_inputs} inputs and "
            f"{n_atoms or 'its'} atoms, got {made.n_inputs} and {made.n_atoms}; leave n_atoms out "
            "and pass the dictionary's own n_inputs"
        )
    return made


def _checked_matrix(matrix: Tensor) -> Tensor:
    if not matrix.dtype.is_floating_point or matrix.layout is not torch.strided:
        raise TypeError(
            f"DoubleSparsityEncoder: dictionary must be a strided floating-point tensor, got "
            f"{matrix.dtype}, {matrix.layout}; use dictionary.float()"
        )
    if matrix.dim() != 2 or matrix.numel() == 0 or not bool(matrix.isfinite().all()):
        raise ValueError(
            f"DoubleSparsityEncoder: dictionary must be a finite (n_inputs, n_atoms) matrix, got "
            f"shape {tuple(matrix.shape)}; one atom per column"
        )
    return matrix


def _shape(n_inputs: int, input_shape: Sizes | None) -> Sizes:
    """Of a picture; that of a square number of inputs is a square."""
    if input_shape is None:
        side = math.isqrt(n_inputs)
        return (side, side) if side > 1 and side * side == n_inputs else (n_inputs,)
    if math.prod(input_shape) != n_inputs or len(input_shape) not in (1, 2):
        raise ValueError(
            f"DoubleSparsityEncoder: input_shape must be one or two extents of product {n_inputs}, "
            f"got {input_shape}; it is (height, width) of n_inputs pixels"
        )
    return input_shape


def _atom_shape(shape: Sizes, n_atoms: int | Sizes | None) -> Sizes:
    """Atoms per axis; one number for a picture is their product, a square."""
    if n_atoms is None:
        return tuple(math.ceil(_REDUNDANCY * size) for size in shape)
    if isinstance(n_atoms, int):
        side = math.isqrt(n_atoms)
        counts: Sizes = (n_atoms,) if len(shape) == 1 else (side, side)
    else:
        counts = n_atoms
    wrong = isinstance(n_atoms, int) and math.prod(counts) != n_atoms
    if wrong or len(counts) != len(shape) or min(counts) < 1:
        raise ValueError(
            f"DoubleSparsityEncoder: n_atoms must be one number per axis of {shape}, or a square "
            f"number for a picture, got {n_atoms}; pass e.g. {_atom_shape(shape, None)}"
        )
    return counts
