"""One row per operator on whole sparse tensors: how to call it, the dense twin, the parameters.

`test_layers.py` makes from each row: exact forward on small integers, the error bound on floats,
gradients of features, parameters and ground, thread counts, sites and classes; `test_properties.py`
draws its geometry at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

import oracle
import semantics
from inputs import numbers, weight_mask

Geometry = dict[str, Any]
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class LayerCase:
    """`sparse(ds, x, parameters, geometry)` and `dense(image, parameters, geometry)` agree.

    `spec`: the executable specification's twin, for sites and classes. `linear`: the error bound of
    the contract applies, with sums from the dense twin. `exact`: integers stay integers.
    """

    name: str
    n_axes: int
    sparse: Callable
    dense: Callable
    spec: Callable | None
    parameters: Callable
    geometries: tuple[Geometry, ...]
    draw: Callable[[Callable], Geometry]
    linear: bool = True
    exact: bool = True
    selects: bool = False


def no_parameters(rng, channels, geometry, dtype, integers=True):
    return {}


def axes(draw: Callable, n: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(n))


def pick(geometry: Geometry, *names: str) -> Geometry:
    return {name: geometry[name] for name in names if name in geometry}


# ------------------------------------------------------------------ convolutions
CONV_KEYS = ("stride", "padding", "dilation", "groups")


def conv_geometry(n: int, k, s=1, p=0, d=1, groups: int = 1, c=(3, 4), **more) -> Geometry:
    c_in, c_out = c
    sizes = {"kernel_size": oracle.per_axis(k, n), "stride": oracle.per_axis(s, n)}
    sizes |= {"padding": oracle.per_axis(p, n), "dilation": oracle.per_axis(d, n)}
    return dict(**sizes, groups=groups, c_in=c_in, c_out=c_out, **more)


def conv_geometries(n: int) -> tuple[Geometry, ...]:
    rows = [
        conv_geometry(n, 3, 1, 1),
        conv_geometry(n, 2, 2, 0),
        conv_geometry(n, 1, 1, 0, c=(5, 7)),
        conv_geometry(n, 1, 2, 1),
        conv_geometry(n, 3, 2, 1, groups=2, c=(4, 6)),
        conv_geometry(n, 3, 1, 1, groups=4, c=(4, 4)),
        conv_geometry(n, 3, 1, 1, groups=3, c=(3, 6)),
        conv_geometry(n, 4, 3, 2, c=(1, 3)),
        conv_geometry(n, 3, 1, 2, 2, c=(2, 1)),
    ]
    if n == 2:
        rows += [conv_geometry(n, (5, 1), (2, 3), (5, 1), (1, 2), c=(17, 16))]
        rows += [conv_geometry(n, 3, 1, 1, shape=(1, 1)), conv_geometry(n, 5, 1, 5, shape=(3, 2))]
    return tuple(rows[: 4 if n == 4 else None])


def draw_conv(n: int, transposed: bool = False) -> Callable[[Callable], Geometry]:
    def draw_geometry(draw: Callable) -> Geometry:
        most = {1: 5, 2: 5, 3: 4, 4: 3}[n]
        k, s, d = axes(draw, n, 1, most), axes(draw, n, 1, 3), axes(draw, n, 1, 2)
        p = tuple(draw(st.integers(0, width)) for width in k)
        groups = draw(st.sampled_from((1, 1, 2, 3)))
        c_in, c_out = (groups * draw(st.integers(1, 3)) for _ in range(2))
        if draw(st.booleans()) and not transposed:
            c_out = c_in * draw(st.integers(1, 2))
            groups = c_in  # depthwise
        g = conv_geometry(n, k, s, p, d, groups, (c_in, c_out), bias=draw(st.booleans()))
        shape = []
        for width, step, pad, spread in zip(k, s, p, d):
            span = spread * (width - 1) + 1
            room = {1: 14, 2: 7, 3: 4, 4: 2}[n]
            if transposed:  # the output extent must be positive
                least = max(1, -(-(2 * pad - span + 1) // step) + 1)
            else:
                least = max(1, span - 2 * pad)
            shape.append(draw(st.integers(least, least + room)))
        g["shape"] = tuple(shape)
        if transposed:
            most_extra = [max(step, spread) - 1 for step, spread in zip(s, d)]
            g["output_padding"] = tuple(draw(st.integers(0, e)) for e in most_extra)
        return g

    return draw_geometry


def conv_parameters(rng, channels, geometry, dtype, integers=True):
    shape = (geometry["c_out"], channels // geometry["groups"], *geometry["kernel_size"])
    p = {"weight": numbers(rng, shape, dtype, integers)}
    if geometry.get("bias", True):
        p["bias"] = numbers(rng, (geometry["c_out"],), dtype, integers)
    return p


def conv_case(n: int) -> LayerCase:
    def sparse(ds, x, p, g):
        function = getattr(ds.functional, f"conv{n}d")
        return function(x, p["weight"], p.get("bias"), **pick(g, *CONV_KEYS))

    def dense(x, p, g):
        return oracle.dense_conv(x, p["weight"], p.get("bias"), **pick(g, *CONV_KEYS))

    def spec(x, p, g):
        return semantics.conv(x, p["weight"], p.get("bias"), **pick(g, *CONV_KEYS))

    name, geometries = f"conv{n}d", conv_geometries(n)
    spec = spec if n < 4 else None
    return LayerCase(name, n, sparse, dense, spec, conv_parameters, geometries, draw_conv(n))


def transpose_case(n: int) -> LayerCase:
    keys = (*CONV_KEYS, "output_padding")

    def sparse(ds, x, p, g):
        function = getattr(ds.functional, f"conv_transpose{n}d")
        return function(x, p["weight"], p.get("bias"), **pick(g, *keys))

    def dense(x, p, g):
        return oracle.CONV_TRANSPOSE[n](x, p["weight"], p.get("bias"), **pick(g, *keys))

    def spec(x, p, g):
        return semantics.conv_transpose(x, p["weight"], p.get("bias"), **pick(g, *keys))

    def parameters(rng, channels, geometry, dtype, integers=True):
        shape = (channels, geometry["c_out"] // geometry["groups"], *geometry["kernel_size"])
        p = {"weight": numbers(rng, shape, dtype, integers)}
        if geometry.get("bias", True):
            p["bias"] = numbers(rng, (geometry["c_out"],), dtype, integers)
        return p

    rows = (
        conv_geometry(n, 2, 2, 0),
        conv_geometry(n, 3, 2, 1),
        conv_geometry(n, 3, 1, 1, c=(2, 5)),
        conv_geometry(n, 4, 3, 1, groups=2, c=(4, 6)),
        conv_geometry(n, 3, 1, 2, 2),
        conv_geometry(n, 1, 3, 0, c=(4, 4), groups=4),
    )
    draw = draw_conv(n, transposed=True)
    return LayerCase(f"conv_transpose{n}d", n, sparse, dense, spec, parameters, rows, draw)


# ------------------------------------------------------------------ pruned weights
def kept(weight, geometry: Geometry):
    """The same mask for the same layer, whatever the weight's dtype and number of channels."""
    rng = np.random.default_rng(weight.shape[0])
    return weight_mask(rng, weight.shape, geometry.get("mask", "random"))


def masked_case(of: LayerCase, rows: tuple[Geometry, ...]) -> LayerCase:
    """A convolution with a mask: that of the weight with zeros where the mask is False."""

    def whole(p, g):
        weight = p["weight"]
        return {**p, "weight": torch.where(kept(weight, g), weight, weight.new_zeros(()))}

    def sparse(ds, x, p, g):
        function = getattr(ds.functional, of.name)
        options = pick(g, *CONV_KEYS, "output_padding")
        return function(x, p["weight"], p.get("bias"), **options, mask=kept(p["weight"], g))

    def spec(x, p, g):
        return of.spec(x, whole(p, g), g)

    def dense(x, p, g):
        return of.dense(x, whole(p, g), g)

    name = f"masked_{of.name}"
    return LayerCase(name, of.n_axes, sparse, dense, spec, of.parameters, rows, of.draw)


def masked_cases() -> list[LayerCase]:
    def rows(n: int) -> tuple[Geometry, ...]:
        return (
            conv_geometry(n, 3, 1, 1, c=(8, 12), mask="blocks"),
            conv_geometry(n, 2, 2, 0, c=(16, 5), mask="one offset"),
            conv_geometry(n, 3, 1, 2, 2, groups=2, c=(12, 20), mask="random"),
            conv_geometry(n, 3, 2, 1, groups=4, c=(4, 4), mask="random"),
            conv_geometry(n, 3, 1, 1, c=(6, 6), mask="none"),
        )

    found = [masked_case(conv_case(n), rows(n)) for n in (1, 2, 3)]
    return [*found, masked_case(transpose_case(2), rows(2))]


# ------------------------------------------------------------------ pools
def draw_pool(n: int, dilated: bool) -> Callable[[Callable], Geometry]:
    def draw_geometry(draw: Callable) -> Geometry:
        most = {1: 5, 2: 5, 3: 3}[n]
        k, s = axes(draw, n, 1, most), axes(draw, n, 1, 3)
        d = axes(draw, n, 1, 2) if dilated else (1,) * n
        p = tuple(draw(st.integers(0, width // 2)) for width in k)
        shape = []
        for width, pad, spread in zip(k, p, d):
            # torch's avg_pool3d wants the kernel to fit the grid without its padding
            span = spread * (width - 1) + 1
            least = span if n == 3 else max(1, span - 2 * pad)
            shape.append(draw(st.integers(least, least + {1: 14, 2: 7, 3: 4}[n])))
        g = dict(kernel_size=k, stride=s, padding=p, shape=tuple(shape), c_in=2)
        g["ceil_mode"] = draw(st.booleans())
        if dilated:
            return g | dict(dilation=d)
        g["count_include_pad"] = draw(st.booleans())
        if n > 1 and draw(st.booleans()):
            g["divisor_override"] = draw(st.integers(1, 5))
        return g

    return draw_geometry


def pool_rows(n: int) -> list[Geometry]:
    rows = [dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1)]
    rows += [dict(kernel_size=3, stride=2, ceil_mode=True), dict(kernel_size=2, stride=1)]
    rows += [
        dict(kernel_size=4, stride=3, padding=2, ceil_mode=True),
        dict(kernel_size=1, stride=2),
    ]
    if n == 3:
        rows = [r | dict(shape=(4, 6, 5)) for r in rows]
    return [r | dict(c_in=5 if i % 2 else 17) for i, r in enumerate(rows)]


def max_pool_case(n: int) -> LayerCase:
    keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def sparse(ds, x, p, g):
        return getattr(ds.functional, f"max_pool{n}d")(x, **pick(g, *keys))

    def dense(x, p, g):
        return MAX_POOL[n](x, **pick(g, *keys))

    def spec(x, p, g):
        return semantics.max_pool(x, **pick(g, *keys))

    rows = [*pool_rows(n), dict(kernel_size=3, stride=1, padding=1, dilation=2)]
    draw = draw_pool(n, dilated=True)
    case = (f"max_pool{n}d", n, sparse, dense, spec, no_parameters, tuple(rows), draw)
    return LayerCase(*case, linear=False, selects=True)


def avg_pool_case(n: int) -> LayerCase:
    keys = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    keys += ("divisor_override",) if n > 1 else ()

    def sparse(ds, x, p, g):
        return getattr(ds.functional, f"avg_pool{n}d")(x, **pick(g, *keys))

    def dense(x, p, g):
        return AVG_POOL[n](x, **pick(g, *keys))

    def spec(x, p, g):
        return semantics.avg_pool(x, **pick(g, *keys))

    rows = pool_rows(n)
    rows += [dict(kernel_size=3, stride=2, padding=1, count_include_pad=False, ceil_mode=True)]
    rows += [dict(kernel_size=3, stride=1, padding=1, divisor_override=5)]
    draw = draw_pool(n, dilated=False)
    case = (f"avg_pool{n}d", n, sparse, dense, spec, no_parameters, tuple(rows), draw)
    return LayerCase(*case, exact=False)


def adaptive_case(n: int) -> LayerCase:
    def sparse(ds, x, p, g):
        return ADAPTIVE[n](x, g["output_size"])

    def dense(x, p, g):
        return ADAPTIVE[n](x, g["output_size"])

    def spec(x, p, g):
        return semantics.adaptive_avg_pool(x, g["output_size"])

    def draw(draw: Callable) -> Geometry:
        shape = axes(draw, n, 1, {1: 15, 2: 8, 3: 5}[n])
        size = axes(draw, n, 1, 6)
        return dict(shape=shape, output_size=size if max(size) > 1 else (2,) * n, c_in=2)

    sizes = ((3, 2, 4)[:n], (2, 5, 1)[:n], (7, 6, 5)[:n])
    rows = tuple(dict(shape=(7, 6, 5)[:n], output_size=s, c_in=3) for s in sizes)
    case = (f"adaptive_avg_pool{n}d", n, sparse, dense, spec, no_parameters, rows, draw)
    return LayerCase(*case, exact=False)


# ------------------------------------------------------------------ moving sites, norms
def pad_case(n: int) -> LayerCase:
    def sparse(ds, x, p, g):
        return F.pad(x, g["pad"], g["mode"], g.get("value"))

    def dense(x, p, g):
        return F.pad(x, g["pad"], g["mode"], g.get("value"))

    def spec(x, p, g):
        return semantics.pad(x, g["pad"], g["mode"], g.get("value") or 0.0)

    def draw(draw: Callable) -> Geometry:
        mode = draw(st.sampled_from(("constant", "constant", "reflect", "replicate", "circular")))
        if mode == "reflect" and n == 3:
            mode = "replicate"
        shape = axes(draw, n, 4, 7)
        sides = 2 * n if mode != "constant" else 2 * draw(st.integers(1, n))
        low = -1 if mode == "constant" else 0
        g = dict(pad=axes(draw, sides, low, 3), mode=mode, shape=shape, c_in=2)
        return g | (dict(value=float(draw(st.integers(-2, 2)))) if mode == "constant" else {})

    rows = [dict(pad=(1, 2) * n, mode=m) for m in ("constant", "reflect", "replicate", "circular")]
    rows += [dict(pad=(1, 0), mode="constant", value=3.0)]
    rows += [dict(pad=(-1, 2) * n, mode="constant", value=0.0)]
    rows = tuple(r | dict(c_in=3, shape=(6, 5, 4)[:n]) for r in rows)
    case = (f"pad{n}d", n, sparse, dense, spec, no_parameters, rows, draw)
    return LayerCase(*case, linear=False, selects=True)


def interpolate_case(n: int) -> LayerCase:
    def call(x, p, g):
        return F.interpolate(x, g.get("size"), g.get("scale_factor"), g.get("mode", "nearest"))

    def sparse(ds, x, p, g):
        return call(x, p, g)

    def spec(x, p, g):
        size = g.get("size") or [int(np.floor(m * g["scale_factor"])) for m in x.spatial_shape]
        return semantics.interpolate(x, size, g.get("mode", "nearest"))

    def draw(draw: Callable) -> Geometry:
        mode = draw(st.sampled_from(("nearest", "nearest-exact")))
        return dict(size=axes(draw, n, 1, 9), mode=mode, shape=axes(draw, n, 1, 7), c_in=2)

    rows = (dict(scale_factor=2.0), dict(size=(9, 4, 5)[:n]), dict(size=(3, 7, 2)[:n]))
    rows += (dict(size=(3, 7, 2)[:n], mode="nearest-exact"),)
    rows = tuple(r | dict(c_in=3, shape=(6, 5, 4)[:n]) for r in rows)
    case = (f"interpolate{n}d", n, sparse, call, spec, no_parameters, rows, draw)
    return LayerCase(*case, linear=False, selects=True)


def linear_case(n: int) -> LayerCase:
    mode = ("linear", "bilinear", "trilinear")[n - 1]

    def sparse(ds, x, p, g):
        return ds.functional.interpolate(x, g["size"], None, mode, g["align_corners"])

    def dense(x, p, g):
        return F.interpolate(x, g["size"], None, mode, g["align_corners"])

    def spec(x, p, g):
        return semantics.interpolate_linear(x, g["size"], g["align_corners"])

    def draw(draw: Callable) -> Geometry:
        sizes = dict(size=axes(draw, n, 1, 9), shape=axes(draw, n, 1, 7))
        return dict(**sizes, align_corners=draw(st.booleans()), c_in=2)

    sizes = ((12, 10, 8)[:n], (9, 4, 5)[:n], (3, 7, 1)[:n])
    rows = [dict(size=s, align_corners=a) for s in sizes for a in (False, True)]
    rows = tuple(r | dict(c_in=3, shape=(6, 5, 4)[:n]) for r in rows)
    case = (f"interpolate_linear{n}d", n, sparse, dense, spec, no_parameters, rows, draw)
    return LayerCase(*case, linear=False, exact=False)


def norm_parameters(rng, channels, geometry, dtype, integers=True):
    return {
        "weight": numbers(rng, (channels,), dtype, False),
        "bias": numbers(rng, (channels,), dtype, False),
    }


def draw_norm(n: int) -> Callable[[Callable], Geometry]:
    return lambda draw: dict(shape=axes(draw, n, 2, 6), c_in=draw(st.sampled_from((2, 4, 6))))


def norm_case(name: str, n: int) -> LayerCase:
    def call(batch_norm, x, p, g):
        w, b = p["weight"], p["bias"]
        if name == "group_norm":
            return F.group_norm(x, 2, w, b)
        if name == "instance_norm":
            return F.instance_norm(x, weight=w, bias=b)
        mean, var = w.detach() * 0.5, w.detach().square() + 0.5
        return batch_norm(x, mean, var, w, b, training=name == "batch_norm_train")

    rows = (dict(c_in=4, shape=(7, 6, 5)[:n]), dict(c_in=2, shape=(2, 3, 1)[:n]))
    return LayerCase(
        f"{name}_{n}d",
        n,
        lambda ds, x, p, g: call(ds.functional.batch_norm, x, p, g),
        lambda x, p, g: call(F.batch_norm, x, p, g),
        None,
        norm_parameters,
        rows,
        draw_norm(n),
        linear=False,
        exact=False,
    )


def layer_cases() -> list[LayerCase]:
    cases = [conv_case(n) for n in (1, 2, 3, 4)]
    cases += [make(n) for make in (transpose_case, max_pool_case, avg_pool_case) for n in (1, 2, 3)]
    cases += [make(n) for make in (adaptive_case, pad_case, interpolate_case) for n in (1, 2, 3)]
    cases += [*[linear_case(n) for n in (1, 2, 3)], *masked_cases()]
    norms = ("batch_norm_train", "batch_norm_eval", "group_norm", "instance_norm")
    return cases + [norm_case(name, n) for name in norms for n in (1, 2, 3)]


CASES = {case.name: case for case in layer_cases()}
