"""What a row of the operator tables is, and how one is checked against its oracle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import oracle

Rng = np.random.Generator
LISTS = ("src_rows", "dst_rows", "offset_start")
TILES = ("starts", "columns", "n_rows", "n_columns", "block_columns", "unit_rows")
BLOCKS = ("start", "columns", "place", "masks", "values", "n_out")


@dataclass
class Sample:
    """Arguments by name, in the operator's order; `n_in` is not one of them (see `BLOCKS`)."""

    args: dict[str, Any]
    integers: bool = True
    note: str = ""
    n_in: int = 0

    def call(self, ops, name: str) -> tuple:
        """Run the operator; lists travel as one `Pairs` or `TileBlocks` where it takes it."""
        op = getattr(ops, name)
        wanted, args = inspect.signature(op).parameters, dict(self.args)
        if "pairs" in wanted:
            args["pairs"] = ops.Pairs(*[args.pop(n) for n in LISTS])
        if "tiles" in wanted:
            args["tiles"] = ops.Tiles(*[args.pop(n) for n in TILES])
        if "blocks" in wanted:
            args["blocks"] = ops.TileBlocks(*[args.pop(n) for n in BLOCKS], self.n_in)
        out = op(**args)
        if isinstance(out, ops.Pairs):
            return tuple(getattr(out, n) for n in LISTS)
        return out if isinstance(out, tuple) else (out,)


@dataclass(frozen=True)
class OpCase:
    """`samples(rng, dtype, integers)` draws arguments; `oracle(**arrays)` gives the outputs.

    Float arguments reach the oracle as longdouble. `indices`: outputs are integers or selected
    values, equal in every number type. Otherwise the operator is multilinear in its float
    arguments, so the oracle on absolute values and on ones gives the two sums of the error bound;
    `terms` says them where it is not. `typed`: has float arguments at all; `half`: 16-bit ones too;
    `only`: the one type that it takes, whatever samples are asked for.
    """

    name: str
    samples: Callable[[Rng, torch.dtype, bool], Iterable[Sample]]
    oracle: Callable[..., tuple[np.ndarray, ...]]
    large: Callable[[Rng, torch.dtype], Sample]
    indices: bool = False
    typed: bool = True
    terms: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    half: bool = True
    only: torch.dtype | None = None

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        if self.only is not None:
            return (self.only,)
        floats = (torch.float32, torch.float64, *(oracle.HALF if self.half else ()))
        return floats if self.typed else (torch.float32,)


def to_numpy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype in oracle.HALF:  # numpy has no bfloat16
        value = value.double()
    return value.numpy().astype(np.longdouble) if value.is_floating_point() else value.numpy()


def arrays(args: dict[str, Any], f: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> dict:
    out = {}
    for name, value in args.items():
        array = to_numpy(value)
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        out[name] = f(array) if is_float else array
    return out


def check(case: OpCase, sample: Sample, ops) -> bool:
    """Outputs against the oracle; True if the oracle's answer was not all zero or empty."""
    got = sample.call(ops, case.name)
    want = case.oracle(**arrays(sample.args))
    assert len(got) == len(want), f"{case.name}: {len(got)} outputs, expected {len(want)}"
    proof = False
    for number, (y, truth) in enumerate(zip(got, want)):
        where = f"{case.name} output {number} of {sample.note}"
        assert tuple(y.shape) == truth.shape, f"{where}: shape {tuple(y.shape)} != {truth.shape}"
        proof |= bool(truth.size) and bool((truth != 0).any())
        if case.indices or sample.integers:
            same = np.asarray(to_numpy(y).astype(truth.dtype))
            if y.dtype in oracle.HALF:  # an exact sum, rounded once
                truth = to_numpy(torch.from_numpy(truth.astype(np.float64)).to(y.dtype))
            assert np.array_equal(same, truth, equal_nan=truth.dtype.kind == "f"), where
            continue
        if case.terms is None:
            n_terms = case.oracle(**arrays(sample.args, np.ones_like))[number]
            magnitude = case.oracle(**arrays(sample.args, np.abs))[number]
        else:
            n_terms, magnitude = case.terms(**arrays(sample.args))
        u = oracle.unit_roundoff(y.dtype)
        u_acc = oracle.unit_roundoff(oracle.acc_dtype(y.dtype))
        error = np.abs(to_numpy(y) - truth)
        # rounding is relative down to the smallest normal number, absolute below
        rounding = u * np.maximum(np.abs(truth), torch.finfo(y.dtype).tiny)
        allowed = 2 * (n_terms + 2) * u_acc * magnitude + rounding
        worst = float((error - allowed).max()) if error.size else 0.0
        assert worst <= 0, f"{where}: {worst} beyond the bound"
    return proof

