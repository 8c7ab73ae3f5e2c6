"""The geometry of a layer on a grid, checked: what output position reads what input position."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from . import _classes
from ._classes import Array, AxisClasses

Ints = tuple[int, ...]


class Steps:
    """A geometry made definite for one grid, and checked: what the kernels need.

    Hashable, and made once per geometry.

    Attributes:
        kind: "conv" (also pools), "submanifold" or "transposed".
        kernel, stride, dilation, output_padding: one number per axis.
        padding: (left, right) per axis.
        ceil: torch's ceil_mode.
        in_shape, out_shape: extents.
        n_offsets: kernel volume.
    """

    __slots__ = (
        "_hash",
        "ceil",
        "dilation",
        "in_shape",
        "kernel",
        "kind",
        "n_offsets",
        "out_shape",
        "output_padding",
        "padding",
        "stride",
    )

    def __init__(
        self,
        kind: str,
        in_shape: Ints,
        out_shape: Ints,
        kernel: Ints,
        stride: Ints,
        padding: tuple[tuple[int, int], ...],
        dilation: Ints,
        output_padding: Ints,
        ceil: bool,
    ) -> None:
        self.kind, self.in_shape, self.out_shape, self.kernel = kind, in_shape, out_shape, kernel
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.output_padding, self.ceil = output_padding, ceil
        self.n_offsets = math.prod(kernel)
        self._hash = hash(self._fields())

    def _fields(self) -> tuple[Any, ...]:
        return (
            *(self.kind, self.in_shape, self.out_shape, self.kernel, self.stride),
            *(self.padding, self.dilation, self.output_padding, self.ceil),
        )

    def __hash__(self) -> int:
        """Computed once."""
        return self._hash

    def __eq__(self, other: object) -> bool:
        """The same geometry on the same grid."""
        return self is other or (isinstance(other, Steps) and self._fields() == other._fields())

    @property
    def left(self) -> Ints:
        """Left padding per axis."""
        return tuple(p[0] for p in self.padding)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output reads the input at its own position, and nothing else."""
        return (
            self.n_offsets == 1
            and self.in_shape == self.out_shape
            and all(s == 1 for s in self.stride)
            and all(p == (0, 0) for p in self.padding)
        )

    def axis(self, a: int, axis: AxisClasses) -> tuple[AxisClasses, Array]:
        """Class map of output axis `a`, and what each output class reads of `axis`."""
        k, s, p, d = self.kernel[a], self.stride[a], self.padding[a], self.dilation[a]
        if self.kind == "transposed":
            return _classes.transposed(axis, k, s, p[0], d, self.output_padding[a])
        return _classes.window(axis, k, s, p, d, self.ceil)

    def covers(self) -> bool:
        """Whether every output position reads at least one position of the grid."""
        reads = [self.axis(a, AxisClasses.uniform(n))[1] for a, n in enumerate(self.in_shape)]
        return all(bool((r >= 0).any(1).all()) for r in reads)


# ------------------------------------------------------------------ from what the user gives
def per_axis(operation: str, name: str, value: Any, n_axes: int, least: int) -> Ints:
    """One int per axis from an int or a sequence of 1 or `n_axes` of them.

    Raises:
        TypeError: no integers.
        ValueError: another number of them, or one below `least`.
    """
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,) * n_axes
    if any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        raise TypeError(
            f"{operation}: {name} must be an int or {n_axes} ints, got {value!r}; pass integers"
        )
    values = tuple(v.__index__() for v in values)
    if len(values) == 1:
        values *= n_axes
    if len(values) != n_axes:
        raise ValueError(
            f"{operation}: {name} must be an int or {n_axes} ints, got {value!r}; "
            "give one value per axis"
        )
    if min(values) < least or max(values) > 2**31 - 1:
        raise ValueError(
            f"{operation}: {name} must be at least {least} and below 2^31, got {value!r}; "
            f"use {name}={least} or more"
        )
    return values


def _paddings(
    operation: str, padding: Any, kernel: Ints, stride: Ints, dilation: Ints
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ValueError(
                f'{operation}: padding must be ints, "same" or "valid", got {padding!r}; '
                "pass one of them"
            )
        if any(s != 1 for s in stride):
            raise ValueError(
                f'{operation}: padding="same" needs stride 1, got stride {stride}; '
                "give the padding in numbers"
            )
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((s // 2, s - s // 2) for s in spans)  # torch puts the odd one on the right
    return tuple((p, p) for p in per_axis(operation, "padding", padding, len(kernel), 0))


def _centred(operation: str, padding: Any, kernel: Ints, dilation: Ints) -> str:
    """The padding of a submanifold convolution: 0 (not given) and "same" both mean centred."""
    wanted = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if not isinstance(padding, str):
        given = per_axis(operation, "padding", padding, len(kernel), 0)
        if any(given) and given != wanted:
            raise ValueError(
                f"{operation}: padding must be {wanted} where output sites are the input sites, "
                f"got {given}; leave it out"
            )
        padding = "same"
    return padding


@lru_cache(maxsize=4096, typed=True)
def _resolve(
    operation: str,
    kind: str,
    batch_size: int,
    in_shape: Ints,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any,
    ceil: bool,
) -> Steps:
    n_axes = len(in_shape)
    k = per_axis(operation, "kernel_size", kernel, n_axes, 1)
    s = per_axis(operation, "stride", stride, n_axes, 1)
    d = per_axis(operation, "dilation", dilation, n_axes, 1)
    o = per_axis(operation, "output_padding", output_padding, n_axes, 0)
    if math.prod(k) > 2**31 - 1:
        raise ValueError(
            f"{operation}: kernel_size must have a volume below 2^31, got {k}; use a smaller kernel"
        )
    if kind == "submanifold":
        if any(n % 2 == 0 for n in k):
            raise ValueError(
                f"{operation}: kernel_size must be odd, so that it has a centre, got {k}; "
                "use an odd kernel or the ordinary convolution"
            )
        if any(n != 1 for n in s):
            raise ValueError(
                f"{operation}: stride must be 1 where output sites are the input sites, got {s}; "
                "use the ordinary convolution"
            )
        padding = _centred(operation, padding, k, d)
    p = _paddings(operation, padding, k, s, d)
    if kind == "transposed":
        if any(a >= max(b, c) for a, b, c in zip(o, s, d, strict=True)):
            raise ValueError(
                f"{operation}: output_padding must be smaller than stride or dilation, "
                f"got {o} with stride {s} and dilation {d}; lower it"
            )
        low = tuple(q[0] for q in p)
        out = tuple(map(_classes.transposed_extent, in_shape, k, s, low, d, o))
    else:
        out = tuple(
            _classes.window_extent(n, k[a], s[a], p[a], d[a], ceil) for a, n in enumerate(in_shape)
        )
    if min(out) < 1:
        raise ValueError(
            f"{operation}: kernel_size must fit the padded grid, got kernel {k} (dilation {d}, "
            f"stride {s}) on {in_shape} with padding {p}; use a smaller kernel or more padding"
        )
    # sites are moved axis by axis, last one first: the grids on the way need keys too
    cells = max(math.prod(in_shape[:a] + out[a:]) for a in range(n_axes + 1))
    if max(out) > 2**31 - 1 or batch_size * cells >= 2**63:
        raise ValueError(
            f"{operation}: the output grid must have extents below 2^31 and, with the batch, a "
            f"product below 2^63, got {(batch_size, *out)} from {in_shape}; use a smaller grid"
        )
    return Steps(kind, in_shape, out, k, s, p, d, o, ceil)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def resolve(
    operation: str,
    kind: str,
    batch_size: int,
    in_shape: Ints,
    kernel: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = 0,
    ceil: bool = False,
) -> Steps:
    """Check a geometry against a batch of grids; remembered, so that a layer pays for it once.

    Raises:
        TypeError: values that are no integers.
        ValueError: values out of range, a kernel larger than the padded grid, too large an output.
    """
    grid = (operation, kind, batch_size, in_shape)
    try:
        return _resolve(*grid, kernel, stride, padding, dilation, output_padding, ceil)
    except TypeError:  # a list is not hashable; anything else fails again, with its own message
        values = [_hashable(v) for v in (kernel, stride, padding, dilation, output_padding)]
        return _resolve.__wrapped__(*grid, *values, ceil)
