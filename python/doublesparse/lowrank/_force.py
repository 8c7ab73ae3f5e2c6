"""Force regularization: filters that attract each other while they train."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._force_ops import constant_forces
from ..nn._masked import Masked
from ..prune._sparsify import Select, check_model
from ._filters import check_weight, filter_rows, filters_back, grouping, is_filtering

NORMS = ("l2", "l1")
DIRECTIONS = ("all", "same")

# Filters shorter than this have no direction, and filters nearer than this no force of constant
# size between them, as in the reference code.
_EPS = 1e-4
# Bytes of a table of distances; of more filters it is computed in blocks of rows.
_PAIR_BYTES = 1 << 27
_DTYPES = (torch.float32, torch.float64)  # what forces are computed in
_KERNELS = _DTYPES  # dtypes that forces of constant size have kernels for


# ------------------------------------------------------------------ the force
def force(weight: Tensor, norm: str = "l2") -> Tensor:
    """The force on each filter towards the others, along its sphere (Wen et al. 2017).

    With filters W_i as rows, w_i = W_i / ||W_i|| and f_ji = w_j - w_i,

        Delta W_i = ||W_i|| * sum_j (g_ji - (g_ji . w_i) w_i),

    where g_ji is f_ji ("l2": in proportion to the distance) or f_ji / ||f_ji|| ("l1": of constant
    size). It is orthogonal to the filter, so that to first order it turns a filter and leaves its
    length. With R = 1/2 sum_ij ||w_i - w_j||^2 for l2, and R = sum_ij ||w_i - w_j|| for l1:
    ||W_i||^2 dR/dW_i = -2 Delta W_i.

    A filter of length 1e-4 or less has no direction: it neither feels nor exerts a force. Filters
    nearer than 1e-4 (of unit length) exert no l1 force on each other.

    l2 takes O(n d) operations for n filters of d weights, since the sum over j of f_ji is one
    vector less n w_i, and the latter has no part along the sphere. l1 takes O(n^2 d) and memory for
    the (n, n) distances, or, of many filters, for a block of their rows.

    Args:
        weight: (n, ...), float32 or float64: filters along axis 0.
        norm: "l2" or "l1".

    Returns:
        the force, of the weight's shape, dtype and device; without gradient.

    Raises:
        TypeError: `weight` is no floating-point tensor.
        NotImplementedError: another floating-point dtype.
        ValueError: a scalar, NaN or infinity in it, or an unknown norm.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> ds.lowrank.force(weight)
        tensor([[0., 2.],
                [1., 0.]])
    """
    _check_choice("force", "norm", norm, NORMS)
    return _force(check_weight("force", weight), norm)


def _check_choice(operation: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{operation}: {name} must be one of {choices}, got {value!r}; pass one of them"
        )


@torch.no_grad()
def _force(weight: Tensor, norm: str, groups: int = 1, transposed: bool = False) -> Tensor:
    """`force` of a layer's weight, whose filters interact within their group; nothing checked."""
    if weight.dtype not in _DTYPES:  # half precision: sums of many filters want more digits
        return _force(weight.float(), norm, groups, transposed).to(weight.dtype)
    rows = filter_rows(weight, groups, transposed)
    if rows.numel() == 0:
        return torch.zeros_like(weight)
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    unit = rows / torch.where(lengths > _EPS, lengths, math.inf)
    # A filter without direction feels nothing, by its length of zero.
    lengths = torch.where(lengths > _EPS, lengths, 0.0)
    if norm == "l1" and rows.device.type == "cpu" and rows.dtype in _KERNELS:
        unit, lengths = unit.contiguous(), lengths.squeeze(2).contiguous()
        pulls = torch.empty_like(unit)
        for parts in zip(unit, lengths, pulls, strict=True):
            constant_forces(*parts, min(unit.shape[1], _table_rows(unit)))
        return filters_back(pulls, weight, transposed)
    total = unit.sum(1, keepdim=True).expand_as(unit) if norm == "l2" else _constant_forces(unit)
    along = (total * unit).sum(2, keepdim=True)
    return filters_back(lengths * (total - along * unit), weight, transposed)


def _table_rows(unit: Tensor) -> int:
    """Rows of a table of distances that _PAIR_BYTES hold."""
    return max(1, _PAIR_BYTES // (unit.shape[1] * unit.element_size()))


def _constant_forces(unit: Tensor) -> Tensor:
    """(groups, n, d): sum over j of (w_j - w_i) / ||w_j - w_i||, of rows of unit length or zero.

    For what has no kernel: other devices.

    A row of zeros adds a multiple of w_i, which the projection removes. Distances are of
    differences: those of near filters out of a Gram matrix, 2 - 2 w_i . w_j, would be rounding.
    """
    n = unit.shape[1]
    if n <= _table_rows(unit):
        return torch.stack([_pull(_inverse_distances(rows), rows, rows) for rows in unit])
    step = _table_rows(unit)
    total = torch.empty_like(unit)
    for rows, out in zip(unit, total, strict=True):
        for start in range(0, n, step):
            block = rows[start : start + step]
            distance = torch.cdist(block, rows, compute_mode="donot_use_mm_for_euclid_dist")
            out[start : start + step] = _pull(_inverse(distance), block, rows)
    return total


def _inverse(distance: Tensor) -> Tensor:
    return torch.where(distance > _EPS, 1.0 / distance, 0.0)


def _inverse_distances(rows: Tensor) -> Tensor:
    """(n, n), each pair computed once; about a ninth of the time of `torch.cdist`."""
    n = len(rows)
    table = rows.new_zeros(n, n)
    above = torch.ones(n, n, dtype=torch.bool, device=rows.device).triu_(1)
    table[above] = _inverse(torch.nn.functional.pdist(rows))  # row after row, like the mask
    return table + table.T


def _pull(inverse: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    return torch.addcmul(inverse @ others, inverse.sum(1, keepdim=True), rows, value=-1)


# ------------------------------------------------------------------ in training
class Force:
    """Force regularization of a model in training (Wen et al. 2017): filters attract each other.

    Call `apply_()` between `backward()` and `step()`, after gradients are unscaled
    (`GradScaler.unscale_`) and clipped: it adds -strength * force(weight) to the gradient of every
    selected layer, W <- W - lr (dE/dW - strength Delta W), before momentum and beside weight decay.
    Filters of a layer grow alike, its rank falls, and `ds.lowrank.decompose` replaces it by two
    thin ones.

    The force is a sum over the other filters, so a strength that fits a layer of n filters is too
    strong for one of 10 n; beyond a sharp threshold all filters of a layer collapse into one.
    Start from a trained network and scan the strength in small steps, from about 1e-3 / n.

    An optimizer that divides by the size of the gradient, like Adam, divides the force as well.
    With `optimizer` the force is decoupled from the gradient, as weight decay is in AdamW: the
    weight itself moves by lr * strength * force(weight), with the learning rate of its group.

    Filters interact within their group; those of a transposed convolution lie along axis 1. Masked
    layers stay masked. Weights that have no gradient at the moment are left alone, and so are
    parametrized ones and those of frozen (packed) layers. A weight in several layers counts once.

    Args:
        model: any module; its convolutions and linear layers, of torch, of this package and of
            subclasses, are regularized. Biases are not.
        strength: lambda of the paper, 0 or more to attract; negative to repel.
        norm: "l2" or "l1", see `force`.
        select: (name, module) -> bool, which layers; default: all.
        adaptive: multiply, per layer, by ||gradient|| / ||force||: the strength is then the ratio
            of the two, whatever the layer.
        direction: "all", or "same": leave out what of the force opposes the error's gradient.
        iterations: do nothing after this many calls of `apply_`; None: never stop.
        decoupled: move the weights, not the gradients; default: where there is an optimizer.
        optimizer: whose learning rates the decoupled form takes.

    Attributes:
        strength, iterations: may be changed between calls.
        names: of the layers.
        n_applied: calls of `apply_` so far.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, no layer that is selected, `decoupled` without an
            optimizer, or an optimizer that trains none of the layers.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> force = ds.lowrank.Force(net, 1e-2)
        >>> net(torch.randn(16, 8)).square().mean().backward()
        >>> force.apply_()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        norm: str = "l2",
        select: Select | None = None,
        *,
        adaptive: bool = False,
        direction: str = "all",
        iterations: int | None = None,
        decoupled: bool | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        check_model("Force", model)
        _check_strength(strength)
        _check_choice("Force", "norm", norm, NORMS)
        _check_choice("Force", "direction", direction, DIRECTIONS)
        _check_iterations(iterations)
        if select is not None and not callable(select):
            raise TypeError(
                "Force: select must be a function (name, module) -> bool, got "
                f"{type(select).__name__}; pass e.g. lambda name, module: name != 'head'"
            )
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "Force: optimizer must be a torch.optim.Optimizer or None, got "
                f"{type(optimizer).__name__}; pass the one that trains the model"
            )
        self.decoupled = optimizer is not None if decoupled is None else bool(decoupled)
        if self.decoupled and optimizer is None:
            raise ValueError(
                "Force: optimizer must be given where the force is decoupled, got None; its "
                "learning rates say how far the weights move"
            )
        self.model, self.strength, self.norm = model, strength, norm
        self.adaptive, self.direction, self.iterations = bool(adaptive), direction, iterations
        self.optimizer = optimizer
        self.n_applied = 0
        self.names = [
            name
            for name, module in model.named_modules()
            if is_filtering(module)
            and module._parameters.get("weight") is not None
            and (select is None or select(name, module))
        ]
        if not self.names:
            raise ValueError(
                "Force: model must have a convolution or a linear layer that select takes, got "
                "none; print([name for name, _ in model.named_modules()])"
            )
        if self.decoupled and not self._learning_rates().keys() & {
            id(module._parameters["weight"]) for module in map(self._layer, self.names)
        }:
            raise ValueError(
                "Force: optimizer must train a selected layer, got one that trains none of them; "
                "pass the one that trains the model"
            )

    @torch.no_grad()
    def apply_(self) -> None:
        """Add the force: to the gradients, or, decoupled, to the weights."""
        if self.iterations is not None and self.n_applied >= self.iterations:
            return
        self.n_applied += 1
        if self.strength == 0:
            return
        rates = self._learning_rates() if self.decoupled else {}
        for module, weight, gradient in self._trained():
            term = self._term(module, weight, gradient)
            if not self.decoupled:
                gradient.sub_(term)
            elif id(weight) in rates:
                weight.add_(term * rates[id(weight)])

    def _trained(self) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Layers, weights and gradients, each weight once."""
        seen: set[int] = set()
        for name in self.names:
            module = self._layer(name)
            weight = module._parameters.get("weight")
            if weight is None or weight.grad is None or id(weight) in seen:
                continue
            seen.add(id(weight))
            yield module, weight, weight.grad

    def _term(self, module: nn.Module, weight: Tensor, gradient: Tensor) -> Tensor:
        """The force of one layer times the strength, as the options want it."""
        pull = _force(weight, self.norm, *grouping(module))
        if isinstance(module, Masked):
            pull *= module.mask
        if self.adaptive:
            size = torch.linalg.vector_norm(pull)
            ratio = torch.linalg.vector_norm(gradient) / size
            # No force, or a gradient that overflowed, whose step a GradScaler will skip.
            pull *= torch.where(torch.isfinite(ratio), ratio, 0.0)
        pull *= self.strength
        if self.direction == "same":
            pull *= pull * gradient <= 0  # it is subtracted from the gradient
        return pull

    def _learning_rates(self) -> dict[int, Any]:
        """{id of a weight: learning rate}."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return {id(p): group["lr"] for group in groups for p in group["params"]}

    def _layer(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def state_dict(self) -> dict[str, Any]:
        """How often it was applied, and the strength."""
        return {"n_applied": self.n_applied, "strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            ValueError: it is no state of a Force.
        """
        if not isinstance(state, dict) or set(state) != {"n_applied", "strength"}:
            raise ValueError(
                "Force.load_state_dict: state must have 'n_applied' and 'strength', got "
                f"{sorted(state) if isinstance(state, dict) else type(state).__name__}; pass what "
                "state_dict() returned"
            )
        self.n_applied, self.strength = state["n_applied"], state["strength"]


def _check_strength(strength: Any) -> None:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise TypeError(
            f"Force: strength must be a number, got {type(strength).__name__}; pass e.g. 1e-5"
        )
    if not math.isfinite(strength):
        raise ValueError(f"Force: strength must be finite, got {strength}; pass e.g. 1e-5")


def _check_iterations(iterations: Any) -> None:
    if iterations is None:
        return
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(
            f"Force: iterations must be an int or None, got {type(iterations).__name__}; "
            "pass a number of steps"
        )
    if iterations < 0:
        raise ValueError(f"Force: iterations must be >= 0, got {iterations}; pass None for no end")
