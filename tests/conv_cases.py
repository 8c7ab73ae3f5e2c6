"""Rows of the operator table: convolutions over pair lists, dense and pruned weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from inputs import (
    MASKS,
    grid_plan,
    numbers,
    random_plan,
    random_segments,
    weight_mask,
)
from op_case import OpCase, Rng, Sample

WIDTHS = ((1, 1), (1, 64), (2, 32), (3, 8), (4, 5), (5, 4), (7, 1), (8, 16), (16, 17), (17, 3))
WIDTHS += ((31, 33), (32, 32), (33, 15), (48, 2), (64, 64))


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


CONV_CASES = [
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
]
