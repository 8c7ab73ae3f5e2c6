"""The deep double sparsity encoder (Wang and Huang 2016, arXiv:1608.06374).

Sparse coding over a dictionary D = D0 S, with D0 fixed and fast and S sparse: one step of ISTA or
iterative hard thresholding is Z <- N(S^T D0^T x + (I - S^T D0^T D0 S) Z), with the step size folded
in. K steps are unfolded and S becomes three sparse matrices that are trained:

    B = D0^T x      Z^1 = N(W1 B)      Z^(t+1) = N(W1 B + Z^t - W3 (D0^T D0) W2 Z^t)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._packed_weight import PackedWeight
from .._patterns import TopKColumns, TopKRows
from ..nn._projected import PackedProjectedLinear, ProjectedLinear
from ._code_product import code_product
from ._dictionaries import Dictionary, make_dictionary
from ._neurons import HELU, SoftThreshold, TopM

_NEURONS = ("soft", "helu", "topm")


class DoubleSparsityEncoder(nn.Module):
    """K unfolded steps of sparse coding with sparse weights, and a linear classifier on the code.

    At most `nonzeros` weights are kept in each row of W1 and W3 and in each column of W2: 3 n s
    weights at most, n = n_codes, against n m + n^2 of a dense encoder (LISTA). In training they are
    dense parameters, projected after each step; for inference they are packed:

        project = ds.prune.Project(model).attach(optimizer)
        ...
        model = ds.prune.freeze(model.eval())

    Args:
        n_inputs: m, numbers of an input.
        n_codes: n, length of the code.
        n_classes: outputs.
        iterations: K, how many nonlinearities; 1 is N(W1 B).
        nonzeros: s, weights kept of each row of W1 and W3 and of each column of W2.
        dictionary: the base dictionary D0. "dct": overcomplete and separable; "wavelet": the
            orthonormal Haar transform, as many levels as the extents are even; or a Tensor
            (n_inputs, n_atoms).
        neuron: N. "soft": soft threshold; "helu": from soft to hard, as `set_progress` goes from 0
            to 1; "topm": the M largest of each code. The thresholds of the first two are trained,
            one per unit.
        n_atoms: p, columns of D0, in all or one number per axis; default: 5/4 of each axis for
            "dct" (8 x 8 pixels have 10 x 10 atoms), else the dictionary's own.
        input_shape: (length,) or (height, width) of an input; default: a square where n_inputs is
            one, else one axis.
        penalty: lambda of the sparse coding that the first weights solve; the first threshold is
            lambda / L.
        code_nonzeros: M of "topm"; default: an eighth of n_codes.
        random_state: seed of the first weights; None: torch's global generator.
        device: of parameters and dictionary.
        dtype: of the same.

    Attributes:
        w1: `ds.nn.ProjectedLinear`, weight (n_codes, n_atoms) under `ds.TopKRows(nonzeros)`.
        w2: the same, (n_atoms, n_codes) under `ds.TopKColumns(nonzeros)`; None where K is 1.
        w3: the same as w1; None where K is 1.
        dictionary: D0; `analysis`, `synthesis`, `gram` and `matrix()`.
        neuron: N.
        classifier: the last `nn.Linear`.

    Shapes:
        (batch, n_inputs), or any axes after the batch of that many numbers, to (batch, n_classes)
        of logits. A NaN in an input makes that sample's logits NaN.

    Raises:
        TypeError: an argument of the wrong type; an input of another dtype than the parameters.
        ValueError: a number out of range, an unknown name, shapes that do not fit.

    Example:
        >>> import torch, doublesparse as ds
        >>> model = ds.models.DoubleSparsityEncoder(64, 128, 10, nonzeros=20)
        >>> model(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 10])
        >>> [int((w.weight != 0).sum()) for w in (model.w1, model.w2, model.w3)]
        [2560, 2560, 2560]
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> handle = ds.prune.Project(model).attach(optimizer)
        >>> model(torch.randn(5, 64)).logsumexp(1).sum().backward()
        >>> optimizer.step()
        >>> int((model.w2.weight != 0).sum(0).max())
        20
    """

    w2: ProjectedLinear | None
    w3: ProjectedLinear | None

    def __init__(
        self,
        n_inputs: int,
        n_codes: int,
        n_classes: int,
        iterations: int = 2,
        nonzeros: int = 20,
        dictionary: str | Tensor | Dictionary = "dct",
        neuron: str = "soft",
        *,
        n_atoms: int | Sequence[int] | None = None,
        input_shape: Sequence[int] | None = None,
        penalty: float = 0.1,
        code_nonzeros: int | None = None,
        random_state: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_inputs, self.n_codes = _natural("n_inputs", n_inputs), _natural("n_codes", n_codes)
        self.n_classes = _natural("n_classes", n_classes)
        self.iterations = _natural("iterations", iterations)
        self.nonzeros = _natural("nonzeros", nonzeros)
        self.penalty = _penalty(penalty)
        atoms = _natural("n_atoms", n_atoms) if _single(n_atoms) else _sizes("n_atoms", n_atoms)
        shape = _sizes("input_shape", input_shape)
        self.dictionary = make_dictionary(dictionary, self.n_inputs, shape, atoms, device, dtype)
        self.neuron = _neuron(neuron, self.n_codes, code_nonzeros, device, dtype)
        n, p, s = self.n_codes, self.dictionary.n_atoms, self.nonzeros
        factory: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.w1 = ProjectedLinear(p, n, pattern=TopKRows(s), **factory)
        self.w2 = self.w3 = None
        if self.iterations > 1:
            self.w2 = ProjectedLinear(n, p, pattern=TopKColumns(s), **factory)
            self.w3 = ProjectedLinear(p, n, pattern=TopKRows(s), **factory)
        self.classifier = nn.Linear(n, self.n_classes, device=device, dtype=dtype)
        generator = None
        if random_state is not None:
            seed = _natural("random_state", random_state, 0)
            generator = torch.Generator().manual_seed(seed)
        if not self.w1.weight.is_meta:
            self.initialize_(self._random_dictionary(generator))
            self._start_classifier(generator)

    @property
    def n_atoms(self) -> int:
        """p, columns of the base dictionary."""
        return self.dictionary.n_atoms

    # -------------------------------------------------------------- first weights
    def _random_dictionary(self, generator: torch.Generator | None) -> Tensor:
        """S (n_atoms, n_codes), float64: random columns of s numbers, with ||D0 S e_j|| = 1."""
        shape = (self.n_codes, self.n_atoms)
        on: dict[str, Any] = {"generator": generator, "device": "cpu"}
        where = torch.rand(shape, **on).topk(min(self.nonzeros, shape[1]), 1).indices
        values = torch.randn(where.shape, dtype=torch.float64, **on)
        columns = values.new_zeros(shape).scatter_(1, where, values)
        norms = self._synthesis(columns).norm(dim=1, keepdim=True)
        return (columns / norms.clamp_min(torch.finfo(torch.float64).tiny)).t()

    @torch.no_grad()
    def _start_classifier(self, generator: torch.Generator | None) -> None:
        """What `nn.Linear` draws, of this generator."""
        bound = self.n_codes**-0.5
        for parameter in self.classifier.parameters():
            drawn = torch.empty(parameter.shape, device="cpu")
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def _synthesis(self, columns: Tensor) -> Tensor:
        """D0 of each row, computed in the model's dtype and device."""
        weight = self.w1.weight
        with torch.no_grad():
            return self.dictionary.synthesis(columns.to(weight)).to(columns)

    @torch.no_grad()
    def initialize_(self, s: Tensor, penalty: float | None = None) -> DoubleSparsityEncoder:
        """Start from a sparse dictionary S: W1 = W3 = S^T / L, W2 = S, theta = lambda / L.

        L = ||D0 S||^2, the largest squared singular value: the untrained network is K steps of
        ISTA on D = D0 S ("soft"), of iterative hard thresholding with threshold lambda / L ("helu"
        at sigma 0), or of hard thresholding that keeps M ("topm").

        Args:
            s: (n_atoms, n_codes), finite, at most `nonzeros` in each column; usually with
                ||D0 S e_j|| = 1.
            penalty: lambda; None: that of the constructor.

        Returns:
            the model.

        Raises:
            TypeError: `s` is no floating-point tensor, `penalty` no number.
            ValueError: of another shape, not finite, D0 S is zero, too many non-zeros in a column;
                a negative penalty.
            RuntimeError: the model is frozen.

        Example:
            >>> import torch, doublesparse as ds
            >>> model = ds.models.DoubleSparsityEncoder(4, 4, 2, dictionary=torch.eye(4))
            >>> model = model.initialize_(torch.eye(4), penalty=0.5)
            >>> model.encode(torch.tensor([[2.0, -1.0, 0.25, 0.0]]))
            tensor([[ 1.5000, -0.5000,  0.0000,  0.0000]], ...)
        """
        penalty = self.penalty if penalty is None else _penalty(penalty)
        if self.w1.frozen:
            raise RuntimeError(
                "DoubleSparsityEncoder.initialize_: model must not be frozen, got a frozen one; "
                "call ds.thaw(model) first"
            )
        self._check_sparse_dictionary(s)
        s = s.to(device="cpu", dtype=torch.float64)
        atoms = self._synthesis(s.t().contiguous())
        short = atoms if atoms.shape[0] <= atoms.shape[1] else atoms.t()
        largest = float(torch.linalg.eigvalsh(short @ short.t())[-1])
        if not 0 < largest < math.inf:
            raise ValueError(
                f"DoubleSparsityEncoder.initialize_: s must give a D0 S that is not zero, got "
                f"||D0 S||^2 = {largest}; scale its columns to ||D0 S e_j|| = 1"
            )
        self.w1.weight.copy_(s.t() / largest)
        if self.w2 is not None and self.w3 is not None:
            self.w2.weight.copy_(s)
            self.w3.weight.copy_(s.t() / largest)
        self.neuron.set_threshold_(penalty / largest)
        return self

    def _check_sparse_dictionary(self, s: Any) -> None:
        name = "DoubleSparsityEncoder.initialize_"
        if not isinstance(s, Tensor) or not s.dtype.is_floating_point:
            got = getattr(s, "dtype", type(s).__name__)
            raise TypeError(f"{name}: s must be a floating-point Tensor, got {got}; pass a Tensor")
        shape = (self.n_atoms, self.n_codes)
        if tuple(s.shape) != shape or not bool(s.isfinite().all()):
            raise ValueError(
                f"{name}: s must be finite and (n_atoms, n_codes) = {shape}, got shape "
                f"{tuple(s.shape)}; one atom of D = D0 S per column"
            )
        most = int((s != 0).sum(0).max())
        if most > self.nonzeros:
            raise ValueError(
                f"{name}: s must have at most nonzeros = {self.nonzeros} in a column, got {most}; "
                "keep the largest, or build the model with more"
            )

    # -------------------------------------------------------------- the network
    def encode(self, x: Tensor) -> Tensor:
        """The code Z^K: (batch, n_inputs), or more axes, to (batch, n_codes)."""
        b = self.dictionary.analysis(self._rows(x))
        drive = self.w1(b)
        z, active = self._activate(drive)
        if self.w2 is not None and self.w3 is not None:
            for _ in range(self.iterations - 1):
                atoms = self.w2(z) if active is None else code_product(_packed(self.w2), z, active)
                z, active = self._activate(drive + z - self.w3(self.dictionary.gram(atoms)))
        return z

    def _activate(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """N(u); and which codes are active, where the next product can be sparse times sparse."""
        neuron, plain = self.neuron, u.dtype in (torch.float32, torch.float64)
        frozen = u.is_cpu and self.w2 is not None and self.w2.frozen
        if not isinstance(neuron, TopM) or not frozen or not plain or torch.is_grad_enabled():
            return neuron(u), None
        active = neuron.active(u)
        return neuron.codes(u, active), active

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of (batch, n_inputs), or more axes."""
        return self.classifier(self.encode(x))

    def _rows(self, x: Any) -> Tensor:
        """The input, checked, as (batch, n_inputs)."""
        dtype = self.classifier.weight.dtype
        if not isinstance(x, Tensor) or x.dtype != dtype:
            got = getattr(x, "dtype", type(x).__name__)
            raise TypeError(
                f"DoubleSparsityEncoder: input must be a {dtype} Tensor like the parameters, got "
                f"{got}; use x.to({dtype})"
            )
        if x.dim() < 2 or math.prod(x.shape[1:]) != self.n_inputs:
            raise ValueError(
                f"DoubleSparsityEncoder: input must be (batch, {self.n_inputs}), or more axes of "
                f"that many numbers, got {tuple(x.shape)}; put the batch first"
            )
        return x.reshape(x.shape[0], self.n_inputs)

    def set_progress(self, progress: float) -> None:
        """How far training is: sigma of "helu" becomes 1 - progress; the others do not change.

        Args:
            progress: 0, at the start, to 1, at the end.

        Raises:
            TypeError: it is no number.
            ValueError: it is outside [0, 1].
        """
        if isinstance(progress, bool) or not isinstance(progress, (int, float)):
            raise TypeError(
                f"DoubleSparsityEncoder.set_progress: progress must be a number, got {progress!r}; "
                "pass epoch / n_epochs"
            )
        if not 0 <= progress <= 1:
            raise ValueError(
                f"DoubleSparsityEncoder.set_progress: progress must lie in [0, 1], got {progress}; "
                "pass epoch / n_epochs"
            )
        self.neuron.anneal(float(progress))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        """Where parameters are assigned to a model on meta, its dictionary follows them."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        weight = state_dict.get(f"{prefix}classifier.weight")
        assigned = local_metadata.get("assign_to_params_buffers") and isinstance(weight, Tensor)
        if assigned and any(buffer.is_meta for buffer in self.dictionary.buffers()):
            self.dictionary.to_empty(device=weight.device).to(weight.dtype)

    def extra_repr(self) -> str:
        """Constructor arguments."""
        return (
            f"n_inputs={self.n_inputs}, n_codes={self.n_codes}, n_classes={self.n_classes}, "
            f"iterations={self.iterations}, nonzeros={self.nonzeros}"
        )


def _packed(layer: nn.Module) -> PackedWeight:
    """Of a frozen layer."""
    return cast("PackedProjectedLinear", layer).packed


# ------------------------------------------------------------------ arguments
def _natural(name: str, value: Any, smallest: int = 1) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"DoubleSparsityEncoder: {name} must be an integer, got {value!r}; pass a number"
        ) from error
    if number < smallest:
        raise ValueError(
            f"DoubleSparsityEncoder: {name} must be >= {smallest}, got {number}; raise it"
        )
    return number


def _single(value: Any) -> bool:
    return value is not None and not isinstance(value, Sequence)


def _sizes(name: str, values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(
            f"DoubleSparsityEncoder: {name} must be a sequence of integers, got {values!r}; pass "
            "e.g. (28, 28)"
        )
    return tuple(_natural(name, value) for value in values)


def _penalty(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"DoubleSparsityEncoder: penalty must be a number, got {value!r}; pass e.g. 0.1"
        )
    if not 0 <= value < math.inf:
        raise ValueError(
            f"DoubleSparsityEncoder: penalty must be finite and not negative, got {value}; pass "
            "e.g. 0.1"
        )
    return float(value)


def _neuron(
    name: Any,
    n_codes: int,
    code_nonzeros: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> SoftThreshold | TopM:
    if name not in _NEURONS:
        raise ValueError(
            f"DoubleSparsityEncoder: neuron must be one of {_NEURONS}, got {name!r}; pass one of "
            "them"
        )
    if name != "topm":
        if code_nonzeros is not None:
            raise ValueError(
                f"DoubleSparsityEncoder: code_nonzeros must be None for neuron {name!r}, got "
                f"{code_nonzeros}; use neuron='topm'"
            )
        return (SoftThreshold if name == "soft" else HELU)(n_codes, device, dtype)
    m = max(1, n_codes // 8) if code_nonzeros is None else _natural("code_nonzeros", code_nonzeros)
    if m > n_codes:
        raise ValueError(
            f"DoubleSparsityEncoder: code_nonzeros must be at most n_codes = {n_codes}, got {m}; "
            "lower it"
        )
    return TopM(m)
