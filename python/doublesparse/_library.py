"""The operators `torch.ops.doublesparse.*`: what torch.compile and torch.export see of us.

Eager calls never come here: a hop through torch's dispatcher costs microseconds. Where a graph is
traced, the functions of `ops` and the autograd functions call these operators instead, whose
implementations are those very functions again. A `Pairs` travels as its three tensors and is made,
and so checked, anew in every call: one pass over the lists.

*Run operators* have sizes that follow from their inputs; *plan operators* (pairs, output sites,
ground taps, inverses) have sizes that depend on data: unbacked symbols in a traced graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import _autograd, ops
from . import _autograd_windows as _windows
from . import _library_masked_conv as _of_masked_conv
from . import _library_spmm as _of_spmm
from ._autograd import Grads, Segments, once
from ._autograd_windows import Table
from ._tile_ops import out_extents, whole_blocks
from ._torch_compat import is_forward_mode, operator_tags, traced

NAMESPACE = "doublesparse"

_LISTS = "Tensor src_rows, Tensor dst_rows, Tensor offset_start"
_BLOCKS = "Tensor start, Tensor columns, Tensor place, Tensor masks, Tensor values, SymInt n_out"
_WALK = "SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation"

_SUMS = (
    f"{_LISTS}, SymInt n_dst, Tensor? bias=None, SymInt groups=1, Tensor? u=None, "
    "Tensor? u_start=None, Tensor? u_rows=None, bool transposed=False"
)

SCHEMAS = {
    # run operators
    "conv": f"(Tensor x, Tensor weight, {_SUMS}) -> Tensor",
    "masked_conv": f"(Tensor x, Tensor weight, Tensor mask, {_SUMS}) -> Tensor",
    "masked_conv_input_grad": f"(Tensor dy, Tensor weight, Tensor mask, {_LISTS}, SymInt n_src, "
    "SymInt groups=1) -> Tensor",
    "masked_conv_weight_grad": f"(Tensor x, Tensor dy, Tensor mask, {_LISTS}, SymInt groups=1) "
    "-> Tensor",
    "conv_input_grad": f"(Tensor dy, Tensor weight, {_LISTS}, SymInt n_src, SymInt groups=1) "
    "-> Tensor",
    "conv_weight_grad": f"(Tensor x, Tensor dy, {_LISTS}, SymInt groups=1) -> Tensor",
    "segment_sum": "(Tensor values, Tensor? rows, Tensor start, Tensor? bias=None) -> Tensor",
    "segment_sum_grad": "(Tensor dy, Tensor? rows, Tensor start, SymInt n_values) -> Tensor",
    "segment_sum_sq": "(Tensor values, Tensor start, Tensor mean) -> Tensor",
    "segment_sum_sq_grads": "(Tensor dy, Tensor values, Tensor start, Tensor mean) "
    "-> (Tensor, Tensor)",
    "column_sum": "(Tensor rows) -> Tensor",
    "gather_rows": "(Tensor values, Tensor rows) -> Tensor",
    "gather_rows_grad": "(Tensor dy, Tensor rows, SymInt n_values) -> Tensor",
    "scatter_rows": "(Tensor rows, Tensor place, SymInt n_out) -> Tensor",
    "add_rows": "(Tensor a, Tensor? ground_a, Tensor from_a, Tensor b, Tensor? ground_b, "
    "Tensor from_b, float scale=1.0) -> Tensor",
    "window_max": "(Tensor x, Tensor? ground_rows, Tensor table) -> (Tensor, Tensor)",
    "window_max_grad": "(Tensor dy, Tensor arg, Tensor start, Tensor index, SymInt K, "
    "SymInt n_rows) -> Tensor",
    "window_max_rows_grad": "(Tensor dy, Tensor arg, Tensor table, SymInt n_rows, bool ground) "
    "-> Tensor",
    "window_sum": "(Tensor x, Tensor? ground_rows, Tensor table) -> Tensor",
    "window_sum_rows_grad": "(Tensor dy, Tensor table, SymInt n_rows, bool ground) -> Tensor",
    "window_table": f"({_LISTS}, SymInt n_out, Tensor? out_class=None, Tensor? tap_class=None, "
    "SymInt rows_per_sample=0, Tensor? out_batch=None) -> Tensor",
    "tile_spmm": f"(Tensor x, {_BLOCKS}, Tensor? bias=None) -> Tensor",
    "tile_conv": f"(Tensor x, {_BLOCKS}, {_WALK}, Tensor? bias=None) -> Tensor",
    "linear_keys": "(Tensor coords, SymInt[] shape) -> Tensor",
    "coords_of_keys": "(Tensor keys, SymInt[] shape) -> Tensor",
    # plan operators
    "build_pairs": "(Tensor query_coords, Tensor target_coords, SymInt[] target_shape, "
    f"{_WALK}, bool symmetric=False) -> (Tensor, Tensor, Tensor)",
    "output_coords": "(Tensor coords, SymInt[] in_shape, SymInt[] out_shape, "
    f"{_WALK}, bool transposed) -> Tensor",
    "ground_taps": "(Tensor table, SymInt n_class_rows) -> (Tensor, Tensor, Tensor, Tensor)",
    "every_tap": "(Tensor table, SymInt n_class_rows) -> (Tensor, Tensor)",
    "invert_rows": "(Tensor rows, SymInt n) -> (Tensor, Tensor)",
    "join_rows": "(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor)",
}
SCHEMAS |= _of_spmm.SCHEMAS
SCHEMAS |= _of_masked_conv.SCHEMAS
"""Every operator; arguments are named as in `ops` and `_autograd`."""


# ------------------------------------------------------------------ what runs
def _on_pairs(run: Callable[..., Any], at: int) -> Callable[..., Any]:
    """An operator of `ops` whose argument number `at` are pairs, given as three tensors."""

    def call(*args: Any) -> Any:
        return run(*args[:at], ops.Pairs(*args[at : at + 3]), *args[at + 3 :])

    return call


def _segment_sum_grad(dy: Tensor, rows: Tensor | None, start: Tensor, n_values: int) -> Tensor:
    return _autograd.spread(dy, Segments(rows, start, n_values))


def _window_max_rows_grad(
    dy: Tensor, arg: Tensor, table: Tensor, n_rows: int, ground: bool
) -> Tensor:
    return _windows.window_max_rows_grad(dy, arg, Table(table), n_rows, ground)


def _window_sum_rows_grad(dy: Tensor, table: Tensor, n_rows: int, ground: bool) -> Tensor:
    return _windows.window_sum_rows_grad(dy, Table(table), n_rows, ground)


def _build_pairs(query: Tensor, target: Tensor, *geometry: Any) -> tuple[Tensor, Tensor, Tensor]:
    if geometry[-1] is True and torch.equal(query, target):  # a graph may hold two copies of one
        target = query
    pairs = ops.build_pairs(query, target, *geometry)
    return pairs.src_rows, pairs.dst_rows, pairs.offset_start


def _tile_blocks(tensors: Sequence[Any], n_in: int) -> ops.TileBlocks:
    start, columns, place, masks, values, n_out = tensors
    return ops.TileBlocks(start, columns, place, masks, values, n_out, n_in)


def _tile_spmm(x: Tensor, *blocks: Any) -> Tensor:
    return ops.tile_spmm(x, _tile_blocks(blocks[:6], x.shape[1]), *blocks[6:])


def _tile_conv(x: Tensor, *blocks: Any) -> Tensor:
    n_in = whole_blocks(x.shape[1]) * math.prod(blocks[6])
    return ops.tile_conv(x, _tile_blocks(blocks[:6], n_in), *blocks[6:])


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "conv": _on_pairs(ops.conv, 2),
    "conv_input_grad": _on_pairs(ops.conv_input_grad, 2),
    "conv_weight_grad": _on_pairs(ops.conv_weight_grad, 2),
    "masked_conv": _on_pairs(ops.masked_conv, 3),
    "masked_conv_input_grad": _on_pairs(ops.masked_conv_input_grad, 3),
    "masked_conv_weight_grad": _on_pairs(ops.masked_conv_weight_grad, 3),
    "segment_sum": ops.segment_sum,
    "segment_sum_grad": _segment_sum_grad,
    "segment_sum_sq": ops.segment_sum_sq,
    "segment_sum_sq_grads": _autograd.segment_sum_sq_grads,
    "column_sum": _autograd.column_sum,
    "gather_rows": _autograd.gather_rows,
    "gather_rows_grad": _autograd.gather_rows_grad,
    "scatter_rows": ops.scatter_rows,
    "add_rows": ops.add_rows,
    "join_rows": ops.join_rows,
    "window_max": ops.window_max,
    "window_max_grad": ops.window_max_grad,
    "window_max_rows_grad": _window_max_rows_grad,
    "window_sum": ops.window_sum,
    "window_sum_rows_grad": _window_sum_rows_grad,
    "window_table": _on_pairs(ops.window_table, 0),
    "tile_spmm": _tile_spmm,
    "tile_conv": _tile_conv,
    "linear_keys": ops.linear_keys,
    "coords_of_keys": ops.coords_of_keys,
    "build_pairs": _build_pairs,
    "output_coords": ops.output_coords,
    "ground_taps": ops.ground_taps,
    "every_tap": ops.every_tap,
    "invert_rows": ops.invert_rows,
}
_IMPLEMENTATIONS |= _of_spmm.IMPLEMENTATIONS
_IMPLEMENTATIONS |= _of_masked_conv.IMPLEMENTATIONS


# ------------------------------------------------------------------ shapes without data
def _int32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.int32)


def _int64(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


def _new_size() -> Any:
    """A size that only the data will tell."""
    return torch.library.get_ctx().new_dynamic_size()


def _conv_shape(
    x: Tensor,
    weight: Tensor,
    src: Tensor,
    dst: Tensor,
    start: Tensor,
    n_dst: int,
    bias: Tensor | None = None,
    groups: int = 1,
    u: Tensor | None = None,
    u_start: Tensor | None = None,
    u_rows: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    return x.new_empty(n_dst, weight.shape[1] * groups if transposed else weight.shape[0])


def _window_max_shape(x: Tensor, ground: Tensor | None, table: Tensor) -> tuple[Tensor, Tensor]:
    shape = table.shape[0], x.shape[1]
    return x.new_empty(shape), _int32(x, *shape)


def _build_pairs_shape(
    query: Tensor, target: Tensor, shape: Sequence[int], kernel: Sequence[int], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n_pairs = _new_size()
    rows = _int32(query, n_pairs)
    return rows, torch.empty_like(rows), _int64(query, math.prod(kernel) + 1)


def _join_rows_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = _new_size()
    return _int64(a, n), _int32(a, n), _int32(a, n)


def _ground_taps_shape(table: Tensor, n_class_rows: int) -> tuple[Tensor, ...]:
    n_out, n_offsets = table.shape
    start, u_start = _int64(table, n_out + 1), _int64(table, n_offsets + 1)
    return start, _int32(table, _new_size()), _int32(table, _new_size()), u_start


def _tile_conv_shape(x: Tensor, *blocks: Any) -> Tensor:
    out = out_extents(tuple(x.shape[2:]), *blocks[6:10])
    return x.new_empty(x.shape[0], *out, blocks[5]).movedim(-1, 1)


_SHAPES: dict[str, Callable[..., Any]] = {
    "conv": _conv_shape,
    "conv_input_grad": lambda dy, weight, src, dst, start, n_src, groups=1: dy.new_empty(
        n_src, weight.shape[1] * groups
    ),
    "conv_weight_grad": lambda x, dy, src, dst, start, groups=1: x.new_empty(
        dy.shape[1], x.shape[1] // groups, start.shape[0] - 1
    ),
    "masked_conv": lambda x, weight, mask, *sums, **named: _conv_shape(x, weight, *sums, **named),
    "masked_conv_input_grad": lambda dy, weight, mask, src, dst, start, n_src, groups=1: (
        dy.new_empty(n_src, weight.shape[1] * groups)
    ),
    "masked_conv_weight_grad": lambda x, dy, mask, src, dst, start, groups=1: x.new_empty(
        dy.shape[1], x.shape[1] // groups, start.shape[0] - 1
    ),
    "segment_sum": lambda values, rows, start, bias=None: values.new_empty(
        start.shape[0] - 1, values.shape[1]
    ),
    "segment_sum_grad": lambda dy, rows, start, n: dy.new_empty(n, dy.shape[1]),
    "segment_sum_sq": lambda values, start, mean: torch.empty_like(mean),
    "segment_sum_sq_grads": lambda dy, values, start, mean: (
        torch.empty_like(values),
        torch.empty_like(mean),
    ),
    "column_sum": lambda rows: rows.new_empty(rows.shape[1]),
    "gather_rows": lambda values, rows: values.new_empty(rows.shape[0], values.shape[1]),
    "gather_rows_grad": lambda dy, rows, n: dy.new_empty(n, dy.shape[1]),
    "scatter_rows": lambda rows, place, n: rows.new_empty(n, rows.shape[1]),
    "add_rows": lambda a, ground_a, from_a, *b: a.new_empty(from_a.shape[0], a.shape[1]),
    "window_max": _window_max_shape,
    "window_max_grad": lambda dy, arg, start, index, K, n: dy.new_empty(n, dy.shape[1]),
    "window_max_rows_grad": lambda dy, arg, table, n, ground: dy.new_empty(n, dy.shape[1]),
    "window_sum": lambda x, ground, table: x.new_empty(table.shape[0], x.shape[1]),
    "window_sum_rows_grad": lambda dy, table, n, ground: dy.new_empty(n, dy.shape[1]),
    "window_table": lambda src, dst, start, n_out, *ground: _int32(src, n_out, start.shape[0] - 1),
    "tile_spmm": lambda x, *blocks: x.new_empty(x.shape[0], blocks[5]),
    "tile_conv": _tile_conv_shape,
    "linear_keys": lambda coords, shape: _int64(coords, coords.shape[0]),
    "coords_of_keys": lambda keys, shape: _int32(keys, keys.shape[0], 1 + len(shape)),
    "build_pairs": _build_pairs_shape,
    "output_coords": lambda coords, *geometry: _int32(coords, _new_size(), coords.shape[1]),
    "ground_taps": _ground_taps_shape,
    "every_tap": lambda table, n: (
        _int64(table, table.shape[0] + 1),
        _int32(table, _new_size()),
    ),
    "join_rows": _join_rows_shape,
    "invert_rows": lambda rows, n: (_int64(rows, n + 1), _int64(rows, _new_size())),
}
_SHAPES |= _of_spmm.SHAPES
_SHAPES |= _of_masked_conv.SHAPES


# ------------------------------------------------------------------ gradients
def _needs(ctx: Any, *positions: int) -> list[bool]:
    """Whether these inputs want a gradient; the dispatcher drops trailing inputs left at None."""
    needs = ctx.needs_input_grad
    return [i < len(needs) and needs[i] for i in positions]


def _save_conv(
    ctx: Any, inputs: tuple[Any, ...], output: Tensor, mask: Tensor | None = None
) -> None:
    x, weight, src, dst, start, _, _, groups, u, u_start, u_rows, transposed = inputs
    ctx.save_for_backward(x, weight, src, dst, start, u_start, u_rows, mask)
    ctx.args = groups, transposed
    ctx.u = (0, None) if u is None else (u.shape[0], u.dtype)


def _save_masked_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, mask, *rest = inputs
    _save_conv(ctx, (x, weight, *rest), output, mask)


@once
def _conv_backward(ctx: Any, dy: Tensor) -> Grads:
    x, weight, src, dst, start, u_start, u_rows, mask = ctx.saved_tensors
    n_u, u_dtype = ctx.u
    pairs: Any = (ops.Lists if traced(dy) else ops.Pairs)(src, dst, start)
    taps = None if u_start is None else Segments(u_rows, u_start, n_u)
    given: tuple[None, ...] = () if mask is None else (None,)  # the mask comes third
    needs = _needs(ctx, 0, 1, 6 + len(given), 8 + len(given))
    args = (x, weight, pairs, *ctx.args, taps, u_dtype, mask)
    dx, dw, db, du = _autograd.conv_grads(needs, dy, *args)
    return dx, dw, *given, None, None, None, None, db, None, du, None, None, None


def _save_segment_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, rows, start, _ = inputs
    ctx.save_for_backward(rows, start)
    ctx.n_values = values.shape[0]


@once
def _segment_sum_backward(ctx: Any, dy: Tensor) -> Grads:
    rows, start = ctx.saved_tensors
    segments = Segments(rows, start, ctx.n_values)
    d_values, d_bias = _autograd.segment_sum_grads(_needs(ctx, 0, 3), dy, segments)
    return d_values, None, None, d_bias


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@once
def _segment_sum_sq_backward(ctx: Any, dy: Tensor) -> Grads:
    d_values, d_mean = _autograd.segment_sum_sq_grads(dy.contiguous(), *ctx.saved_tensors)
    return d_values, None, d_mean


def _save_column_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.n_rows = inputs[0].shape[0]


@once
def _column_sum_backward(ctx: Any, dy: Tensor) -> Tensor:
    return dy.expand(ctx.n_rows, -1)


def _save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, rows = inputs
    ctx.save_for_backward(rows)
    ctx.n_values = values.shape[0]


@once
def _gather_backward(ctx: Any, dy: Tensor) -> Grads:
    (rows,) = ctx.saved_tensors
    return _autograd.gather_rows_grad(dy.contiguous(), rows, ctx.n_values), None


def _save_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


@once
def _scatter_backward(ctx: Any, dy: Tensor) -> Grads:
    (place,) = ctx.saved_tensors
    return dy.index_select(0, place), None, None


def _save_window(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ground, table = inputs
    if isinstance(output, tuple):
        ctx.save_for_backward(table, output[1])
        ctx.mark_non_differentiable(output[1])
    else:
        ctx.save_for_backward(table)
    ctx.n_rows = x.shape[0], 0 if ground is None else ground.shape[0]


@once
def _window_max_backward(ctx: Any, dy: Tensor, _: Tensor | None) -> Grads:
    table, arg = ctx.saved_tensors
    grad = partial(_windows.window_max_rows_grad, dy.contiguous(), arg, Table(table))
    return (*_windows.each_operand(ctx.needs_input_grad, ctx.n_rows, grad), None)


@once
def _window_sum_backward(ctx: Any, dy: Tensor) -> Grads:
    (table,) = ctx.saved_tensors
    grad = partial(_windows.window_sum_rows_grad, dy.contiguous(), Table(table))
    return (*_windows.each_operand(ctx.needs_input_grad, ctx.n_rows, grad), None)


_GRADIENTS: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
    "conv": (_conv_backward, _save_conv),
    "masked_conv": (_conv_backward, _save_masked_conv),
    "segment_sum": (_segment_sum_backward, _save_segment_sum),
    "segment_sum_sq": (_segment_sum_sq_backward, _save_all),
    "column_sum": (_column_sum_backward, _save_column_sum),
    "gather_rows": (_gather_backward, _save_gather),
    "scatter_rows": (_scatter_backward, _save_scatter),
    "window_max": (_window_max_backward, _save_window),
    "window_sum": (_window_sum_backward, _save_window),
}
_GRADIENTS |= _of_spmm.GRADIENTS
_GRADIENTS |= _of_masked_conv.GRADIENTS


# ------------------------------------------------------------------ autocast
def _autocast_conv(name: str, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """As `nn.Conv2d` under autocast: operands rounded to 16 bits, sums in float32."""
    operands = (x, weight, *rest)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device)
    if x.dtype != torch.float64:
        operands = tuple(
            t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in operands
        )
    with torch.autocast(device, enabled=False):
        return cast("Tensor", getattr(torch.ops.doublesparse, name)(*operands))


# ------------------------------------------------------------------ registration
def _reverse_only(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation, unless tangents are carried forward, which it would lose in silence."""

    def call(*args: Any) -> Any:
        if is_forward_mode():
            raise NotImplementedError(
                f"{name}: must run outside forward-mode differentiation, got a call inside "
                "torch.func.jvp or forward_ad.dual_level; use reverse mode (torch.autograd)"
            )
        return run(*args)

    return call


def _register() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "DEF")
    tags = operator_tags()
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=tags)
        run = _reverse_only(name, _IMPLEMENTATIONS[name])
        for device in ("CPU", "CUDA"):
            library.impl(name, run, device)
        torch.library.register_fake(f"{NAMESPACE}::{name}", _SHAPES[name], lib=library)
    for name, (backward, save) in _GRADIENTS.items():
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=save, lib=library
        )
    for name in ("conv", "masked_conv", "masked_linear"):
        for device in ("AutocastCPU", "AutocastCUDA"):
            library.impl(name, partial(_autocast_conv, name), device)
    return library


_library = _register()  # operators live as long as this object
