"""Comparisons that several test modules share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import doublesparse as ds
import semantics
from inputs import Input


def densify(out) -> Tensor:
    """The dense tensor of a sparse result, or of a view of one with channels last."""
    return out if isinstance(out, Tensor) else out.to_dense()


def both_ways(case, x: Input, parameters: dict, geometry: dict) -> tuple[Tensor, Tensor]:
    """The package's answer, dense, and torch's in float64."""
    got = densify(case.sparse(ds, x.sparse(ds), parameters, geometry))
    wide = {name: p.to(torch.float64) for name, p in parameters.items()}
    return got, case.dense(x.to(torch.float64).dense(), wide, geometry)


def integer_like(got: Tensor, want: Tensor, exact: bool) -> bool:
    """Equal; or, for operators that divide, equal up to rounding in float64."""
    if got.shape != want.shape:
        return False
    return torch.equal(got, want) if exact else torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def leaves_of(x: Input, parameters: dict, with_ground: bool) -> dict[str, Tensor]:
    """Fresh leaves: features, ground, parameters."""
    leaves = {"features": x.features.detach().clone().requires_grad_()}
    if with_ground and isinstance(x.ground, Tensor):
        leaves["ground"] = x.ground.detach().clone().requires_grad_()
    for name, value in parameters.items():
        leaves[name] = value.detach().clone().requires_grad_()
    return leaves


def gradients(leaves: dict[str, Tensor], out: Tensor, weights: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), grads, strict=True)
    return {n: torch.zeros_like(v) if g is None else g for (n, v), g in pairs}


def differentiate(
    case,
    x: Input,
    parameters: dict,
    geometry: dict,
    *,
    ground: bool = True,
    integers: bool = False,
    sparse_only: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the package, and those of dense torch in float64."""

    def weights_like(y: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(3)
        if integers:
            return torch.randint(-3, 4, y.shape, generator=random).to(y.dtype)
        return torch.randn(y.shape, generator=random, dtype=torch.float64).to(y.dtype)

    leaves = leaves_of(x, parameters, ground)
    sparse = x.sparse(ds, leaves["features"], leaves.get("ground"))
    out = densify(case.sparse(ds, sparse, leaves, geometry))
    got = {"output": out.detach()}
    if out.requires_grad:
        got |= gradients(leaves, out, weights_like(out))
    if sparse_only:
        return got, {}
    wide = {name: p.to(torch.float64) for name, p in parameters.items()}
    leaves = leaves_of(x.to(torch.float64), wide, ground)
    dense = x.to(torch.float64).dense(leaves["features"], leaves.get("ground"))
    want_out = case.dense(dense, leaves, geometry)
    want = {"output": want_out.detach()} | gradients(leaves, want_out, weights_like(want_out))
    for name in want:  # an output that depends on nothing needs no gradient
        got.setdefault(name, torch.zeros_like(want[name]))
    return got, want


def assert_close_gradients(got: dict, want: dict, note: str, share: float = 1e-10) -> None:
    """Outputs and gradients to 1e-10 of the layer's largest (float64)."""
    grads = [v for n, v in want.items() if n != "output" and v.numel()]
    largest = max((float(v.abs().max()) for v in grads), default=0.0)
    for name, truth in want.items():
        assert got[name].shape == truth.shape, (note, name, got[name].shape, truth.shape)
        if not truth.numel():
            continue
        finite = torch.where(truth.isfinite(), truth, 0)  # -inf: a max pool's window without a tap
        scale = float(finite.abs().max()) if name == "output" else largest
        gap = torch.where(got[name] == truth, 0, got[name] - truth)
        error = float(gap.abs().max())
        assert error <= share * max(scale, 1e-300), f"{note}: {name} off by {error} of {scale}"


def same_partition(a: Tensor, b: Tensor) -> bool:
    """Do two class maps split the positions alike, whatever the numbers of the classes?"""
    joint = torch.unique(torch.stack([a.long(), b.long()], 1), dim=0)
    return len(joint) == len(a.unique()) == len(b.unique())


def class_maps(ground) -> list[Tensor]:
    return [torch.from_numpy(axis.expand()).long() for axis in ground.axes]


def expanded(ground) -> Tensor:
    """Values of a GroundState on every position: (1 or B, C, *spatial)."""
    values = ground.values.movedim(-1, 1)
    for a, cls in enumerate(class_maps(ground)):
        values = values.index_select(2 + a, cls)
    return values


def assert_same_as_specification(case, x: Input, parameters: dict, geometry: dict, out) -> None:
    """Sites, classes and ground values of a sparse result, against `semantics.py`."""
    given = semantics.SparseTensor.build(
        x.features, x.coords.long(), x.shape, x.batch, 0.0 if x.ground is None else x.ground
    )
    spec = case.spec(given, parameters, geometry)
    assert tuple(out.spatial_shape) == tuple(spec.spatial_shape), x.note
    assert out.coords.dtype == torch.int32
    assert torch.equal(out.coords.long(), spec.coords), x.note
    if out.saturated or len(x.coords) == x.batch * math.prod(x.shape):
        return  # a ground that no site holds is arbitrary, and so is what becomes of it
    # a ground that is 0 everywhere is known to be: one class will do
    if isinstance(x.ground, Tensor) and bool(x.ground.any()):
        for mine, truth in zip(class_maps(out.ground), spec.ground.axes, strict=True):
            assert same_partition(mine, truth), f"{x.note}: classes {mine} are not {truth}"
    assert integer_like(expanded(out.ground), spec.ground.expand(), case.exact), x.note
