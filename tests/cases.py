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
from inputs import (
    MASKS,
    grid_plan,
    numbers,
    random_plan,
    random_segments,
    random_table,
    site_set,
    weight_mask,
)
from op_case import LISTS, OpCase, Rng, Sample, arrays, check, to_numpy
from row_cases import ROW_CASES
from spmm_cases import SPMM_CASES
from tile_cases import TILE_CASES

__all__ = ["LISTS", "OP_CASES", "OpCase", "Rng", "Sample", "arrays", "check", "to_numpy"]

WIDTHS = ((1, 1), (1, 64), (2, 32), (3, 8), (4, 5), (5, 4), (7, 1), (8, 16), (16, 17), (17, 3))
WIDTHS += ((31, 33), (32, 32), (33, 15), (48, 2), (64, 64))


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


# ------------------------------------------------------------------ convolution
def conv_plans(rng: Rng) -> list:
    plans = [grid_plan(rng, (13, 11)), grid_plan(rng, (12, 11), 2, 2, 0), grid_plan(rng, (30,), 5)]
    plans += [grid_plan(rng, (9, 9), 1, 1, 0), grid_plan(rng, (5, 6, 5)), grid_plan(rng, (40, 9))]
    plans += [
        random_plan(rng, n, m, k) for n, m, k in ((50, 20, 3), (1, 1, 1), (0, 6, 2), (6, 0, 2))
    ]
    return plans


def conv_sample(rng: Rng, plan, c_in: int, c_out: int, groups: int, dtype, integers: bool, **rest):
    lists = dict(src_rows=plan.src_rows, dst_rows=plan.dst_rows, offset_start=plan.offset_start)
    x = numbers(rng, (plan.n_src, c_in), dtype, integers)
    weight = numbers(rng, (c_out, c_in // groups, plan.n_offsets), dtype, integers)
    args = dict(x=x, weight=weight, **lists, n_dst=plan.n_dst, groups=groups)
    note = f"{plan.n_src}->{plan.n_dst} K={plan.n_offsets} {c_in}->{c_out} groups={groups}"
    if rest.get("bias"):
        args["bias"] = numbers(rng, (c_out,), dtype, integers)
    if rest.get("ground"):
        n_u = 6
        start = random_segments(rng, 2 * plan.n_dst, plan.n_dst)
        rows = rng.integers(0, n_u, int(start[-1])).astype(np.int32)
        args |= dict(u=numbers(rng, (n_u, c_out), dtype, integers), u_start=start)
        args["u_rows"] = torch.from_numpy(rows)
    return Sample(args, integers, note + f" {rest}")


def conv_widths(rng: Rng, dtype, integers: bool, **rest) -> Iterable[Sample]:
    plans = conv_plans(rng)
    for i, (c_in, c_out) in enumerate(WIDTHS):
        options = {name: bool((i >> bit) % 2) for bit, name in enumerate(rest)}
        yield conv_sample(rng, plans[i % 3], c_in, c_out, 1, dtype, integers, **options)
    for plan in plans:
        yield conv_sample(rng, plan, 4, 6, 2, dtype, integers, **{name: True for name in rest})
    for c_in, c_out, groups in ((8, 8, 8), (5, 10, 5), (17, 17, 17), (48, 48, 48), (12, 18, 6)):
        yield conv_sample(rng, plans[0], c_in, c_out, groups, dtype, integers, **rest)


def conv_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    return conv_widths(rng, dtype, integers, bias=True, ground=True)


def split_groups(weight: np.ndarray, groups: int):
    """(group, output channels of it, input channels of it)."""
    per_out, per_in = weight.shape[0] // groups, weight.shape[1]
    for g in range(groups):
        yield slice(g * per_out, (g + 1) * per_out), slice(g * per_in, (g + 1) * per_in)


def each_pair(src_rows, dst_rows, offset_start):
    for k in range(len(offset_start) - 1):
        for j in range(offset_start[k], offset_start[k + 1]):
            yield k, src_rows[j], dst_rows[j]


def conv_oracle(
    x,
    weight,
    src_rows,
    dst_rows,
    offset_start,
    n_dst,
    groups=1,
    bias=None,
    u=None,
    u_start=None,
    u_rows=None,
):
    y = np.zeros((n_dst, weight.shape[0]), np.longdouble)
    if bias is not None:
        y += bias
    if u is not None:
        for o in range(n_dst):
            for j in range(u_start[o], u_start[o + 1]):
                y[o] += u[u_rows[j]]
    for out, into in split_groups(weight, groups):
        for k in range(weight.shape[2]):
            at = slice(offset_start[k], offset_start[k + 1])
            y[dst_rows[at], out] += x[src_rows[at], into] @ weight[out, :, k].T
    return (y,)


def conv_large(rng: Rng, dtype) -> Sample:
    plan = random_plan(rng, 5000, 5000, 9, 0.5)
    return conv_sample(rng, plan, 20, 24, 1, dtype, False, bias=True, ground=True)


def with_dy(sample: Sample, rng: Rng, dtype, drop: tuple[str, ...], **more) -> Sample:
    """A gradient's arguments from the forward ones."""
    args = dict(sample.args)
    dy = numbers(rng, (args.pop("n_dst"), args["weight"].shape[0]), dtype, sample.integers)
    values = {**args, "dy": dy, **more}
    return Sample({k: v for k, v in values.items() if k not in drop}, sample.integers, sample.note)


def input_grad_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for s in conv_widths(rng, dtype, integers):
        yield with_dy(s, rng, dtype, ("x",), n_src=len(s.args["x"]))


def input_grad_oracle(dy, weight, src_rows, dst_rows, offset_start, n_src, groups=1):
    dx = np.zeros((n_src, weight.shape[1] * groups), np.longdouble)
    for out, into in split_groups(weight, groups):
        for k in range(weight.shape[2]):
            at = slice(offset_start[k], offset_start[k + 1])
            dx[src_rows[at], into] += dy[dst_rows[at], out] @ weight[out, :, k]
    return (dx,)


def input_grad_large(rng: Rng, dtype) -> Sample:
    sample = conv_sample(rng, random_plan(rng, 5000, 5000, 9, 0.5), 20, 24, 1, dtype, False)
    return with_dy(sample, rng, dtype, ("x",), n_src=5000)


def weight_grad_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for s in conv_widths(rng, dtype, integers):
        yield with_dy(s, rng, dtype, ("weight",))


def weight_grad_oracle(x, dy, src_rows, dst_rows, offset_start, groups=1):
    dw = np.zeros((dy.shape[1], x.shape[1] // groups, len(offset_start) - 1), np.longdouble)
    for out, into in split_groups(dw, groups):
        for k in range(dw.shape[2]):
            at = slice(offset_start[k], offset_start[k + 1])
            dw[out, :, k] = dy[dst_rows[at], out].T @ x[src_rows[at], into]
    return (dw,)


def weight_grad_large(rng: Rng, dtype) -> Sample:
    sample = conv_sample(rng, random_plan(rng, 5000, 5000, 9, 0.5), 20, 24, 1, dtype, False)
    return with_dy(sample, rng, dtype, ("weight",))


# ------------------------------------------------------------------ pruned weights
def with_mask(sample: Sample, rng: Rng, kind: str, poison: bool = True) -> Sample:
    """A mask of the weight, which holds NaN where it is False."""
    args = {}
    for name, value in sample.args.items():
        args[name] = value
        if name == "weight":
            args["mask"] = weight_mask(rng, value.shape, kind)
            if poison:
                args[name] = torch.where(args["mask"], value, torch.nan)
    return Sample(args, sample.integers, f"{sample.note} mask={kind}")


def masked_widths(rng: Rng, dtype, integers: bool, **rest) -> Iterable[Sample]:
    """Every kind of mask where lists are used, then every other width."""
    plan = grid_plan(rng, (9, 11))
    widths = ((20, 56, 1), (32, 32, 2), (300, 7, 1))
    for i, kind in enumerate(MASKS):
        for c_in, c_out, groups in (widths[i % 3], (12, 40, 1)):
            sample = conv_sample(rng, plan, c_in, c_out, groups, dtype, integers, **rest)
            yield with_mask(sample, rng, kind)
    for i, sample in enumerate(conv_widths(rng, dtype, integers, **rest)):
        if i % 2:
            yield with_mask(sample, rng, MASKS[i // 2 % len(MASKS)], poison=i % 4 == 1)


def masked_conv_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    return masked_widths(rng, dtype, integers, bias=True, ground=True)


def masked_conv_oracle(x, weight, mask, *lists, **rest):
    return conv_oracle(x, np.where(mask, weight, 0), *lists, **rest)


def masked_input_grad_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for s in masked_widths(rng, dtype, integers):
        yield with_dy(s, rng, dtype, ("x",), n_src=len(s.args["x"]))


def masked_input_grad_oracle(dy, weight, mask, *lists, **rest):
    return input_grad_oracle(dy, np.where(mask, weight, 0), *lists, **rest)


def masked_weight_grad_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for s in masked_widths(rng, dtype, integers):
        yield with_dy(s, rng, dtype, ("weight",))


def masked_weight_grad_oracle(x, dy, mask, *lists, **rest):
    (dw,) = weight_grad_oracle(x, dy, *lists, **rest)
    return (np.where(mask, dw, 0),)


def masked_large(f):
    """The large sample of the operator on all weights, with a fifth of them."""

    def large(rng: Rng, dtype) -> Sample:
        sample = f(rng, dtype)
        if "weight" in sample.args:
            return with_mask(sample, rng, "blocks", poison=False)
        mask = weight_mask(rng, (24, 20, 9), "blocks")
        return Sample({**sample.args, "mask": mask}, sample.integers, sample.note)

    return large


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
    OpCase(
        "conv",
        conv_samples,
        conv_oracle,
        conv_large,
    ),
    OpCase(
        "conv_input_grad",
        input_grad_samples,
        input_grad_oracle,
        input_grad_large,
    ),
    OpCase(
        "conv_weight_grad",
        weight_grad_samples,
        weight_grad_oracle,
        weight_grad_large,
    ),
    OpCase(
        "masked_conv",
        masked_conv_samples,
        masked_conv_oracle,
        masked_large(conv_large),
    ),
    OpCase(
        "masked_conv_input_grad",
        masked_input_grad_samples,
        masked_input_grad_oracle,
        masked_large(input_grad_large),
    ),
    OpCase(
        "masked_conv_weight_grad",
        masked_weight_grad_samples,
        masked_weight_grad_oracle,
        masked_large(weight_grad_large),
    ),
    *ROW_CASES,
    *TILE_CASES,
    *SPMM_CASES,
]
