"""One row per raw operator of `doublesparse.ops`; every test of an operator is generated from it.

A row says how to draw arguments, what the answer is (numpy, in longdouble, no code of the package)
and how large an argument set must be for several tiles and threads. `test_ops.py` makes from it:
forward, malformed input, determinism over thread counts, every instruction set, fuzz.
`layer_cases.py` is the same for operators on whole sparse tensors, gradients included.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import torch

import oracle
from conv_cases import CONV_CASES
from inputs import (
    random_plan,
    random_table,
    site_set,
)
from op_case import LISTS, OpCase, Rng, Sample, arrays, check, to_numpy
from row_cases import ROW_CASES
from spmm_cases import SPMM_CASES
from tile_cases import TILE_CASES

__all__ = ["LISTS", "OP_CASES", "OpCase", "Rng", "Sample", "arrays", "check", "to_numpy"]

# ------------------------------------------------------------------ geometry: pairs, sites, keys
GEOMETRIES = [
    # shape, kernel, stride, padding, dilation
    ((17,), (3,), (1,), (1,), (1,)),
    ((23,), (4,), (3,), (2,), (2,)),
    ((9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((9, 11), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((12, 7), (5, 1), (2, 3), (5, 0), (1, 2)),
    ((6, 7, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((6, 7, 5), (1, 2, 4), (1, 2, 3), (0, 2, 3), (2, 1, 1)),
    ((4, 5, 3, 4), (3, 1, 2, 3), (1, 2, 1, 1), (1, 0, 1, 2), (1, 1, 2, 1)),
]


def tuples(coords: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in row) for row in coords]


def pair_arrays(found: list[tuple[int, int, int]], n_offsets: int) -> tuple[np.ndarray, ...]:
    table = np.array(found, np.int64).reshape(-1, 3)
    start = np.searchsorted(table[:, 0], np.arange(n_offsets + 1)).astype(np.int64)
    return table[:, 1].astype(np.int32), table[:, 2].astype(np.int32), start


def build_pairs_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    for (shape, kernel, stride, padding, dilation), kind in product(
        GEOMETRIES, ("random", "none", "all", "empty sample")
    ):
        target = site_set(rng, 2, shape, kind)
        out = tuple(oracle.out_extent(*g) for g in zip(shape, kernel, stride, padding, dilation))
        plan = dict(
            target_shape=shape, kernel=kernel, stride=stride, padding=padding, dilation=dilation
        )
        query = site_set(rng, 2, out, "none" if kind == "empty sample" else "random")
        note = f"{kind} {plan}"
        yield Sample(dict(query_coords=query, target_coords=target, **plan), note=note)
    for n_axes, k, d in ((1, 5, 2), (2, 3, 1), (2, 1, 1), (3, 3, 1), (3, 3, 2), (4, 3, 1)):
        shape = (21, 9, 6, 5)[:n_axes] if n_axes > 1 else (21,)
        sites = site_set(rng, 3, shape, density=0.3)
        yield Sample(
            dict(
                query_coords=sites,
                target_coords=sites,
                target_shape=shape,
                kernel=(k,) * n_axes,
                stride=(1,) * n_axes,
                padding=(d * (k - 1) // 2,) * n_axes,
                dilation=(d,) * n_axes,
                symmetric=True,
            ),
            note=f"symmetric {n_axes} {k} {d}",
        )


def build_pairs_oracle(
    query_coords, target_coords, target_shape, kernel, stride, padding, dilation, symmetric=False
):
    row_of = {site: row for row, site in enumerate(tuples(target_coords))}
    found = []
    for query, site in enumerate(tuples(query_coords)):
        for k, source in oracle.reads(site, target_shape, kernel, stride, padding, dilation):
            if source in row_of:
                found.append((k, query, row_of[source]))
    return pair_arrays(sorted(found), int(np.prod(kernel)))


def build_pairs_large(rng: Rng, dtype: torch.dtype) -> Sample:
    sites = site_set(rng, 4, (60, 60), density=0.4)
    plan = dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), symmetric=True)
    return Sample(dict(query_coords=sites, target_coords=sites, target_shape=(60, 60), **plan))


def output_coords_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    for (shape, kernel, stride, padding, dilation), kind, transposed in product(
        GEOMETRIES, ("random", "one", "none", "all"), (False, True)
    ):
        out = tuple(
            oracle.out_extent(*g, transposed) for g in zip(shape, kernel, stride, padding, dilation)
        )
        if min(out) < 1:
            continue
        plan = dict(in_shape=shape, out_shape=out, kernel=kernel, stride=stride)
        plan |= dict(padding=padding, dilation=dilation, transposed=transposed)
        yield Sample(dict(coords=site_set(rng, 3, shape, kind), **plan), note=f"{kind} {plan}")


def output_coords_oracle(
    coords, in_shape, out_shape, kernel, stride, padding, dilation, transposed
):
    geometry = (kernel, stride, padding, dilation, transposed)
    _, sites = oracle.pairs(tuples(coords), out_shape, *geometry)
    return (np.array(sites, np.int32).reshape(-1, 1 + len(in_shape)),)


def output_coords_large(rng: Rng, dtype: torch.dtype) -> Sample:
    plan = dict(in_shape=(90, 90), out_shape=(90, 90), kernel=(3, 3), stride=(1, 1))
    plan |= dict(padding=(1, 1), dilation=(1, 1), transposed=False)
    return Sample(dict(coords=site_set(rng, 4, (90, 90), density=0.1), **plan))


def linear_keys_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    edge = 2**31 - 1
    for shape in (
        (5,),
        (6, 7),
        (3, 4, 5),
        (2, 3, 4, 5),
        (10**6,) * 3,
        (65536, 65536),
        (edge, edge),
    ):
        high = np.array([2, *shape])
        coords = rng.integers(0, high, (50, len(high)))
        coords = np.unique(np.concatenate([coords, [high - 1], 0 * high[None]]), axis=0)
        sites = torch.from_numpy(coords.astype(np.int32))
        yield Sample(dict(coords=sites, shape=shape), note=str(shape))
        yield Sample(dict(coords=sites[:0], shape=shape), note=f"{shape} no site")


def linear_keys_oracle(coords, shape):
    keys = []
    for site in tuples(coords):
        key = 0
        for at, n in zip(site, (1, *shape)):
            key = key * n + at
        keys.append(key)
    return (np.array(keys, np.int64),)


def linear_keys_large(rng: Rng, dtype: torch.dtype) -> Sample:
    return Sample(dict(coords=site_set(rng, 4, (90, 90)), shape=(90, 90)))


# ------------------------------------------------------------------ windows: tables of taps
def window_table_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    for n_src, n_dst, n_offsets in ((12, 15, 9), (40, 3, 4), (1, 1, 1), (0, 5, 3), (6, 0, 3)):
        plan = random_plan(rng, n_src, n_dst, n_offsets)
        lists = dict(src_rows=plan.src_rows, dst_rows=plan.dst_rows, offset_start=plan.offset_start)
        yield Sample(dict(**lists, n_out=n_dst), note=f"{n_src} {n_dst} {n_offsets}")
        for per_sample in (0, 7):
            classes = rng.integers(0, 4, n_dst).astype(np.int32)
            taps = rng.integers(-1, 7, (4, n_offsets)).astype(np.int32)
            args = dict(out_class=torch.from_numpy(classes), tap_class=torch.from_numpy(taps))
            if per_sample:
                batch = np.sort(rng.integers(0, 3, n_dst)).astype(np.int32)
                args |= dict(rows_per_sample=7, out_batch=torch.from_numpy(batch))
            yield Sample(dict(**lists, n_out=n_dst, **args), note=f"classes {per_sample}")


def window_table_oracle(
    src_rows,
    dst_rows,
    offset_start,
    n_out,
    out_class=None,
    tap_class=None,
    rows_per_sample=0,
    out_batch=None,
):
    n_offsets = len(offset_start) - 1
    table = np.full((n_out, n_offsets), -1, np.int32)
    for o, k in product(range(n_out), range(n_offsets)) if out_class is not None else ():
        tap = int(tap_class[out_class[o], k])
        if tap >= 0:
            row = tap + (int(out_batch[o]) * rows_per_sample if rows_per_sample else 0)
            table[o, k] = -2 - row
    for k in range(n_offsets):
        for j in range(offset_start[k], offset_start[k + 1]):
            table[dst_rows[j], k] = src_rows[j]
    return (table,)


def window_table_large(rng: Rng, dtype: torch.dtype) -> Sample:
    plan = random_plan(rng, 3000, 4000, 9)
    classes = torch.from_numpy(rng.integers(0, 9, 4000).astype(np.int32))
    taps = torch.from_numpy(rng.integers(-1, 9, (9, 9)).astype(np.int32))
    lists = dict(src_rows=plan.src_rows, dst_rows=plan.dst_rows, offset_start=plan.offset_start)
    return Sample(dict(**lists, n_out=4000, out_class=classes, tap_class=taps))


def ground_taps_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    for n_out, n_offsets, n_ground in ((14, 9, 5), (40, 4, 1), (3, 27, 12), (5, 3, 0), (0, 4, 3)):
        table = random_table(rng, n_out, n_offsets, 8, n_ground)
        yield Sample(dict(table=table, n_class_rows=n_ground), note=f"{tuple(table.shape)}")


def ground_taps_oracle(table, n_class_rows):
    n_offsets = table.shape[1]
    needed = sorted(
        {(k, -2 - int(row[k])) for row in table for k in range(n_offsets) if row[k] <= -2}
    )
    number = {tap: u for u, tap in enumerate(needed)}
    rows, start = [], [0]
    for row in table:
        rows += [number[k, -2 - int(row[k])] for k in range(n_offsets) if row[k] <= -2]
        start.append(len(rows))
    by_offset = [sum(k < end for k, _ in needed) for end in range(n_offsets + 1)]
    return (
        np.array(start, np.int64),
        np.array(rows, np.int32),
        np.array([c for _, c in needed], np.int32),
        np.array(by_offset, np.int64),
    )


def every_tap_oracle(table, n_class_rows):
    """Row k * n_class_rows + g of u where offset k reads class row g."""
    start, u_rows = [0], []
    for row in table:
        u_rows += [k * n_class_rows - 2 - g for k, g in enumerate(row.tolist()) if g <= -2]
        start.append(len(u_rows))
    return np.array(start, np.int64), np.array(u_rows, np.int32)


def ground_taps_large(rng: Rng, dtype: torch.dtype) -> Sample:
    return Sample(dict(table=random_table(rng, 5000, 9, 3000, 20), n_class_rows=20))


def invert_rows_samples(rng: Rng, dtype: torch.dtype, integers: bool) -> Iterable[Sample]:
    for m, n in ((30, 7), (7, 30), (1, 1), (0, 4), (5, 0), (200, 3)):
        rows = rng.integers(-3, max(n, 1), m) if n else rng.integers(-3, 0, m)
        yield Sample(dict(rows=torch.from_numpy(rows.astype(np.int32)), n=n), note=f"{m} {n}")


def invert_rows_oracle(rows, n):
    found: list[list[int]] = [[] for _ in range(n)]
    for j, v in enumerate(rows):
        if v >= 0:
            found[v].append(j)
    start = np.cumsum([0] + [len(f) for f in found]).astype(np.int64)
    return start, np.array([j for f in found for j in f], np.int64)


def invert_rows_large(rng: Rng, dtype: torch.dtype) -> Sample:
    rows = rng.integers(-2, 3000, 40000).astype(np.int32)
    return Sample(dict(rows=torch.from_numpy(rows), n=3000))


OP_CASES = [
    OpCase(
        "build_pairs",
        build_pairs_samples,
        build_pairs_oracle,
        build_pairs_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "output_coords",
        output_coords_samples,
        output_coords_oracle,
        output_coords_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "linear_keys",
        linear_keys_samples,
        linear_keys_oracle,
        linear_keys_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "window_table",
        window_table_samples,
        window_table_oracle,
        window_table_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "ground_taps",
        ground_taps_samples,
        ground_taps_oracle,
        ground_taps_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "every_tap",
        ground_taps_samples,
        every_tap_oracle,
        ground_taps_large,
        indices=True,
        typed=False,
    ),
    OpCase(
        "invert_rows",
        invert_rows_samples,
        invert_rows_oracle,
        invert_rows_large,
        indices=True,
        typed=False,
    ),
    *CONV_CASES,
    *ROW_CASES,
    *TILE_CASES,
    *SPMM_CASES,
]
