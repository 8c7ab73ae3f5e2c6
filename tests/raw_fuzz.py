"""Mutates real calls of the extension module: records what the operators of `cases.py` pass to
`_C`, breaks one argument at a time, and calls again. `test_malformed.py` is the parent.

usage: python raw_fuzz.py START
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cases
import doublesparse as ds
import tile_cases
from doublesparse import _C

FLOATS = (torch.float32, torch.float64)
NO_TENSORS = (None, "text", 1.5, [1, 2], object(), b"bytes")
NUMBERS = (-1, 0, 2**31, 2**63 - 1, -(2**63), 2**64, None, 1.5, "3", 10**6)
CHECKED = ("Pairs", "TileBlocks", "Tiles")  # classes of arguments: broken in rows of their own
PER_CASE = 1  # calls of each entry and operator that are broken


def recorded() -> list[tuple[str, tuple]]:
    """(entry, arguments) of real calls, constructors among them, several per entry."""
    calls: list[tuple[str, tuple]] = []
    seen: dict[tuple[str, str], int] = {}
    current = [""]

    def spy(name: str, entry: Callable) -> Callable:
        def recorder(*args):
            key = (name, current[0])
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= PER_CASE:
                calls.append((name, tuple(copied(a) for a in args)))
            return entry(*args)

        return recorder

    names = [n for n in dir(_C) if not n.startswith("_") and callable(getattr(_C, n))]
    originals = {name: getattr(_C, name) for name in names if name not in CHECKED}
    for name, entry in originals.items():
        setattr(_C, name, spy(name, entry))
    try:
        for case in cases.OP_CASES:
            current[0] = case.name
            samples = case.samples(np.random.default_rng(1), torch.float32, True)
            for sample in itertools.islice(samples, 6):
                sample.call(ds.ops, case.name)
        current[0] = "tile_blocks"
        columns = torch.arange(80, dtype=torch.int32) % 40
        ds.ops.tile_blocks(torch.tensor([0, 40, 80]), columns, torch.ones(80), 40)
    finally:
        for name, entry in originals.items():
            setattr(_C, name, entry)
    lists = [torch.arange(n, dtype=torch.int32) for n in (4, 4)]
    pairs = ("Pairs", (*lists, torch.tensor([0, 1, 4])))
    blocks = ("TileBlocks", tile_blocks())
    return [*calls, pairs, blocks, ("Tiles", tiles()), *plan_steps(calls)]


def tiles() -> tuple:
    """The arguments of a matrix of two blocks and three units."""
    columns = torch.tensor([0, 3, 1, 2, 0], dtype=torch.int16)
    return torch.tensor([0, 2, 2, 4, 4, 4, 5]), columns, 12, 6, 4, 4


def tile_blocks() -> tuple:
    """The arguments of a weight with a packed block and a whole one."""
    weight = tile_cases.weight_args(np.random.default_rng(1), 40, 70, 0.76, False, True)
    return (*weight.values(), 70)


def plan_steps(calls: list[tuple[str, tuple]]) -> Iterator[tuple[str, tuple]]:
    """The two steps of a PairPlan as entries of their own, with the plan's arguments in front."""
    plans = [args for name, args in calls if name == "PairPlan"]
    for given in plans[:1] + plans[-1:]:
        plan = _C.PairPlan(*given)
        workspace = torch.zeros(plan.workspace(), dtype=torch.int64)
        start = torch.zeros(math.prod(given[3]) + 1, dtype=torch.int64)
        yield "PairPlan.count", (given, workspace, start, 1)
        rows = torch.zeros(plan.count(workspace, start, 1), dtype=torch.int32)
        yield "PairPlan.fill", (given, rows, rows.clone(), 1)


def run(name: str, args: tuple) -> None:
    if name == "PairPlan.count":
        _C.PairPlan(*args[0]).count(*args[1:])
    elif name == "PairPlan.fill":
        plan = _C.PairPlan(*args[0])
        workspace = torch.zeros(plan.workspace(), dtype=torch.int64)
        start = torch.zeros(math.prod(args[0][3]) + 1, dtype=torch.int64)
        plan.count(workspace, start, 1)
        plan.fill(*args[1:])
    else:
        getattr(_C, name)(*args)


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def broken_tensors(t: Tensor) -> Iterator[tuple[str, Any]]:
    """Tensors that are not what the call needs."""
    yield from ((f"{v!r:.12}", v) for v in NO_TENSORS)
    yield "meta", t.to("meta")
    yield "float16", t.to(torch.float16)
    yield "bool", t.to(torch.bool)
    yield "complex", t.to(torch.complex64)
    yield "other float", t.to(torch.float64 if t.dtype == torch.float32 else torch.float32)
    yield "other int", t.to(torch.int64 if t.dtype == torch.int32 else torch.int32)
    yield "rank + 1", t[None]
    yield "rank 0", torch.zeros((), dtype=t.dtype)
    yield "sparse layout", t.to_sparse()
    yield "empty", torch.zeros([0] * t.dim(), dtype=t.dtype)
    if t.dim():
        yield "one row more", torch.cat([t, t[-1:]]) if len(t) else t
        yield "one row less", t[:-1]
        yield "expanded", torch.zeros([1] * t.dim(), dtype=t.dtype).expand(t.shape)
        yield "reversed", t.flip(0)
        yield "strided", torch.stack([t, t], t.dim())[..., 0]
        yield "overlapping", torch.zeros(4, dtype=t.dtype).as_strided(t.shape, [0] * t.dim())
    if t.dim() > 1:
        yield "transposed", t.t() if t.dim() == 2 else t.transpose(0, 1)
        yield "column less", t[:, :-1]
        yield "no column", t[:, :0]
    if not t.is_floating_point() and t.numel():
        limits = torch.iinfo(t.dtype)
        for value in (-1, -2, -3, min(10**6, limits.max), limits.max, limits.min):
            for at in (0, t.numel() // 2, t.numel() - 1):
                wrong = t.clone()
                wrong.view(-1)[at] = value
                yield f"{value} at {at}", wrong
        yield "all minus one", torch.full_like(t, -1)
        yield "all zero", torch.zeros_like(t)
        yield "descending", t.flatten().sort(descending=True).values.view(t.shape)


def broken(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield from broken_tensors(value)
    elif isinstance(value, bool):
        yield from (("None", None), ("other", not value), ("text", "yes"))
    elif isinstance(value, int):
        yield from ((repr(v), v) for v in NUMBERS)
    elif isinstance(value, (tuple, list)):
        kind = type(value)
        yield from (("None", None), ("empty", kind()), ("longer", kind([*value, 1])))
        yield from (("shorter", value[:-1]), ("text", "33"), ("a number", 3))
        for number in (-1, 0, 2**31, 2**62, 2**64, None, 1.5):
            yield f"{number} inside", kind([number, *value[1:]])
    else:
        yield from ((f"{v!r:.12}", v) for v in NO_TENSORS)
        yield "a tensor", torch.zeros(3)
        yield "a number", 7


def mutations() -> Iterator[tuple[str, str, tuple]]:
    for name, args in recorded():
        yield name, "too few arguments", args[:-1]
        yield name, "too many arguments", (*args, 1)
        first = 1 if name.startswith("PairPlan.") else 0
        for at, value in enumerate(args[first:], first):
            for label, wrong in broken(value):
                yield name, f"argument {at}: {label}", (*args[:at], wrong, *args[at + 1 :])
        tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.numel()]
        for i in tensors:  # one tensor for two arguments: an output that overlaps an input
            for j in tensors:
                same_kind = args[i].dtype == args[j].dtype and args[i].numel() >= args[j].numel()
                if i != j and same_kind:
                    shared = args[i].view(-1)[: args[j].numel()].view(args[j].shape)
                    yield (
                        name,
                        f"arguments {i} and {j} overlap",
                        (*args[:j], shared, *args[j + 1 :]),
                    )


def main(start: int) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    for number, (name, label, args) in enumerate(mutations()):
        if number < start:
            continue
        print(json.dumps({"begin": number, "name": name, "label": label}), flush=True)
        try:
            run(name, args)
            verdict = "answered"
        except (TypeError, ValueError, RuntimeError, OverflowError, BufferError):
            verdict = "refused"
        except MemoryError:
            verdict = f"{name}, {label}: MemoryError"
        except Exception as error:
            verdict = f"{name}, {label}: {type(error).__name__}: {error}"
        print(json.dumps({"end": number, "verdict": verdict}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
