"""Rows of the operator table: sums over segments, pooling over windows, rows set and added."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import torch

from inputs import numbers, random_segments, random_table
from op_case import OpCase, Rng, Sample


# ------------------------------------------------------------------ sums over segments
def segment_sum_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    shapes = ((60, 5, 7), (20, 1, 3), (300, 17, 2), (4, 64, 9), (0, 3, 4), (9, 33, 0))
    for (n, c, s), with_rows, with_bias in product(shapes, (False, True), (False, True)):
        m = 2 * n if with_rows else n
        args = dict(values=numbers(rng, (n, c), dtype, integers), rows=None)
        if with_rows:
            kind = np.int64 if c % 2 else np.int32
            args["rows"] = torch.from_numpy(rng.integers(0, max(n, 1), m).astype(kind))
        args["start"] = random_segments(rng, m, s)
        if with_bias:
            args["bias"] = numbers(rng, (c,), dtype, integers)
        yield Sample(args, integers, f"{n} {c} {s} rows={with_rows} bias={with_bias}")


def segment_sum_oracle(values, rows, start, bias=None):
    out = np.zeros((len(start) - 1, values.shape[1]), np.longdouble)
    if bias is not None:
        out += bias
    for s in range(len(start) - 1):
        at = np.arange(start[s], start[s + 1])
        out[s] += values[at if rows is None else rows[at]].sum(0)
    return (out,)


def segment_sum_large(rng: Rng, dtype) -> Sample:
    values = numbers(rng, (30000, 9), dtype, False)
    return Sample(dict(values=values, rows=None, start=random_segments(rng, 30000, 3)), False)


def segment_sum_sq_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for n, c, s in ((60, 5, 7), (300, 17, 2), (4, 64, 9), (0, 3, 4)):
        values = numbers(rng, (n, c), dtype, integers)
        mean = numbers(rng, (s, c), dtype, integers)
        start = random_segments(rng, n, s)
        yield Sample(dict(values=values, start=start, mean=mean), integers, f"{n} {c} {s}")


def segment_sum_sq_oracle(values, start, mean):
    out = np.zeros((len(start) - 1, values.shape[1]), np.longdouble)
    for s in range(len(start) - 1):
        out[s] = ((values[start[s] : start[s + 1]] - mean[s]) ** 2).sum(0)
    return (out,)


def segment_sum_sq_terms(values, start, mean):
    # a difference, a product of it with itself: two roundings more than a product has, so 2 terms
    n_terms = np.diff(start)[:, None] + 2 + 0 * mean
    return n_terms, segment_sum_sq_oracle(values, start, mean)[0]


def segment_sum_sq_large(rng: Rng, dtype) -> Sample:
    values = numbers(rng, (30000, 9), dtype, False)
    start = random_segments(rng, 30000, 3)
    return Sample(dict(values=values, start=start, mean=numbers(rng, (3, 9), dtype, False)), False)


# ------------------------------------------------------------------ pooling over windows
TABLES = ((40, 9, 25, 4), (30, 4, 12, 1), (7, 27, 9, 5), (11, 8, 6, 0), (6, 3, 0, 4), (0, 4, 5, 2))


def window_inputs(rng: Rng, dtype, integers: bool, sizes, c: int) -> dict:
    n_out, n_offsets, n_active, n_ground = sizes
    ground = numbers(rng, (n_ground, c), dtype, integers) if n_ground else None
    return dict(
        x=numbers(rng, (n_active, c), dtype, integers) - 5 * integers,  # all negative: no 0 may win
        ground_rows=ground,
        table=random_table(rng, n_out, n_offsets, n_active, n_ground),
    )


def window_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for sizes, c in product(TABLES, (1, 3, 16, 33)):
        args = window_inputs(rng, dtype, integers, sizes, c)
        yield Sample(args, integers, f"{sizes} channels={c}")


def max_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    yield from window_samples(rng, dtype, integers)
    for c in (1, 16):  # NaN wins, -inf is a value, +0 and -0 tie
        args = window_inputs(rng, dtype, integers, (40, 9, 25, 4), c)
        x = args["x"]
        x[torch.from_numpy(rng.random(tuple(x.shape)) < 0.1)] = float("nan")
        x[torch.from_numpy(rng.random(tuple(x.shape)) < 0.2)] = -float("inf")
        yield Sample(args, integers, f"nan and inf, channels={c}")


def tap_value(row: int, x, ground_rows):
    return x[row] if row >= 0 else ground_rows[-2 - row]


def window_max_oracle(x, ground_rows, table):
    y = np.full((len(table), x.shape[1]), -np.inf, np.longdouble)
    arg = np.full(y.shape, -1, np.int32)
    for o, taps in enumerate(table):
        for k, row in enumerate(taps):
            if row == -1:
                continue
            value = tap_value(row, x, ground_rows)
            wins = (arg[o] < 0) | (value > y[o]) | (np.isnan(value) & ~np.isnan(y[o]))
            y[o], arg[o] = np.where(wins, value, y[o]), np.where(wins, k, arg[o])
    return y, arg


def window_sum_oracle(x, ground_rows, table):
    y = np.zeros((len(table), x.shape[1]), np.longdouble)
    for o, taps in enumerate(table):
        for row in taps:
            if row != -1:
                y[o] += tap_value(row, x, ground_rows)
    return (y,)


def window_large(rng: Rng, dtype) -> Sample:
    return Sample(window_inputs(rng, dtype, False, (5000, 9, 4000, 7), 20), False)


def max_grad_sample(rng: Rng, dtype, integers: bool, sizes, c: int) -> Sample:
    n_rows = sizes[2]
    table = random_table(rng, *sizes)
    arg = rng.integers(-1, table.shape[1], (len(table), c)).astype(np.int32)
    flat = table.numpy().flatten()
    order = np.argsort(flat, kind="stable")
    index = order[np.searchsorted(flat[order], 0) :].astype(np.int64)
    start = np.searchsorted(flat[index], np.arange(n_rows + 1)).astype(np.int64)
    grads = dict(dy=numbers(rng, (len(table), c), dtype, integers), arg=torch.from_numpy(arg))
    grads |= dict(start=torch.from_numpy(start), index=torch.from_numpy(index))
    note = f"{sizes} channels={c}"
    return Sample(dict(**grads, K=table.shape[1], n_rows=n_rows), integers, note)


def max_grad_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for sizes, c in product(TABLES, (1, 3, 16)):
        yield max_grad_sample(rng, dtype, integers, sizes, c)


def max_grad_oracle(dy, arg, start, index, K, n_rows):  # noqa: N803 (the operator's own name)
    dx = np.zeros((n_rows, dy.shape[1]), np.longdouble)
    for v in range(n_rows):
        for j in index[start[v] : start[v + 1]]:
            o, k = divmod(int(j), K)
            dx[v] += np.where(arg[o] == k, dy[o], 0)
    return (dx,)


def max_grad_large(rng: Rng, dtype) -> Sample:
    return max_grad_sample(rng, dtype, False, (3000, 9, 1500, 7), 20)


# ------------------------------------------------------------------ rows set and added
def ascending(rng: Rng, n: int, n_all: int) -> torch.Tensor:
    """n of n_all numbers, ascending: int64."""
    return torch.from_numpy(np.sort(rng.choice(n_all, n, replace=False)).astype(np.int64))


def scatter_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for n, n_out, c in ((5, 9, 3), (0, 4, 2), (7, 7, 1), (300, 1000, 17), (1, 1, 0), (0, 0, 3)):
        args = dict(rows=numbers(rng, (n, c), dtype, integers), place=ascending(rng, n, n_out))
        yield Sample(args | dict(n_out=n_out), integers, f"{n}->{n_out} C={c}")


def scatter_oracle(rows, place, n_out):
    out = np.zeros((n_out, rows.shape[1]), rows.dtype)
    for row, at in zip(rows, place, strict=True):
        out[at] = row
    return (out,)


def scatter_large(rng: Rng, dtype) -> Sample:
    rows = numbers(rng, (20000, 24), dtype, False)
    return Sample(dict(rows=rows, place=ascending(rng, 20000, 50000), n_out=50000), False)


def join_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for n_a, n_b, n in ((4, 3, 10), (0, 5, 9), (5, 0, 9), (0, 0, 1), (6, 6, 6), (40, 90, 100)):
        yield Sample(dict(a=ascending(rng, n_a, n), b=ascending(rng, n_b, n)), note=f"{n_a} {n_b}")


def join_oracle(a, b):
    keys = sorted({*a.tolist(), *b.tolist()})
    rows = ({key: i for i, key in enumerate(side.tolist())} for side in (a, b))
    found = (np.array([row.get(key, -1) for key in keys], np.int32) for row in rows)
    return (np.array(keys, np.int64), *found)


def join_large(rng: Rng, dtype) -> Sample:
    return Sample(dict(a=ascending(rng, 4000, 9000), b=ascending(rng, 5000, 9000)))


def add_sample(rng: Rng, dtype, integers: bool, n: int, sizes, c: int, scale: float) -> Sample:
    args: dict = {}
    for name, (n_rows, n_ground) in zip("ab", sizes, strict=True):
        least = -1 - n_ground
        args[name] = numbers(rng, (n_rows, c), dtype, integers)
        ground = numbers(rng, (n_ground, c), dtype, integers) if n_ground else None
        args[f"ground_{name}"] = ground
        rows = rng.integers(least, n_rows, n).astype(np.int32)
        args[f"from_{name}"] = torch.from_numpy(rows)
    return Sample(args | dict(scale=scale), integers, f"{n} {sizes} C={c} scale={scale}")


def add_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for sizes, c, scale in product(
        (((5, 2), (7, 0)), ((0, 3), (4, 1)), ((3, 0), (0, 0))), (1, 17), (1.0, -1.0)
    ):
        yield add_sample(rng, dtype, integers, 20, sizes, c, scale)


def add_oracle(a, ground_a, from_a, b, ground_b, from_b, scale=1.0):
    def value(rows, ground, at):
        if at == -1:
            return np.zeros(a.shape[1], np.longdouble)
        return rows[at] if at >= 0 else ground[-2 - at]

    out = np.zeros((len(from_a), a.shape[1]), np.longdouble)
    for i, (at_a, at_b) in enumerate(zip(from_a, from_b, strict=True)):
        out[i] = value(a, ground_a, at_a) + scale * value(b, ground_b, at_b)
    return (out,)


def add_terms(scale=1.0, **operands):
    def total(f):
        changed = {
            name: f(v) if v is not None and v.dtype.kind == "f" else v
            for name, v in operands.items()
        }
        return add_oracle(**changed, scale=abs(scale))[0]

    return total(np.ones_like), total(np.abs)


def add_large(rng: Rng, dtype) -> Sample:
    return add_sample(rng, dtype, False, 20000, ((9000, 5), (8000, 3)), 24, -1.0)


ROW_CASES = [
    OpCase("segment_sum", segment_sum_samples, segment_sum_oracle, segment_sum_large),
    OpCase(
        "segment_sum_sq",
        segment_sum_sq_samples,
        segment_sum_sq_oracle,
        segment_sum_sq_large,
        terms=segment_sum_sq_terms,
    ),
    OpCase("window_max", max_samples, window_max_oracle, window_large, indices=True),
    OpCase("window_max_grad", max_grad_samples, max_grad_oracle, max_grad_large),
    OpCase("window_sum", window_samples, window_sum_oracle, window_large),
    OpCase("scatter_rows", scatter_samples, scatter_oracle, scatter_large, indices=True),
    OpCase("join_rows", join_samples, join_oracle, join_large, indices=True, typed=False),
    OpCase("add_rows", add_samples, add_oracle, add_large, terms=add_terms, half=False),
]
