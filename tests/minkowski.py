"""MinkowskiEngine 0.5 by its own definition, in plain Python: it cannot be installed everywhere.

Coordinates are tuples (batch, x, y, ...) in units of the input's grid, whatever the stride. The
offsets of a kernel are enumerated as `kernel_region::coordinate_at` of its source does.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn


def offsets(size, step):
    """All offsets in the order of the kernel's volume: the first axis of space runs fastest."""
    found = []
    for index in range(math.prod(size)):
        offset = []
        for k, d in zip(size, step, strict=True):
            at = index % k if k % 2 == 0 else index % k - k // 2
            offset.append(at * d)
            index //= k
        found.append(tuple(offset))
    return found


def moved(coord, offset):
    return (coord[0], *(c + o for c, o in zip(coord[1:], offset, strict=True)))


def strided(sites, stride):
    """Coordinates after a layer: rounded down to multiples of the stride, once each."""
    return sorted(
        {(c[0], *(x // s * s for x, s in zip(c[1:], stride, strict=True))) for c in sites}
    )


def product(a, b):
    return tuple(x * y for x, y in zip(a, b, strict=True))


def convolution(sites, kernel, bias, size, stride, dilation, now):
    """`sites` of the tensor stride `now`, by coordinate; returns those of now * stride."""
    volume = kernel.reshape(math.prod(size), *kernel.shape[-2:])
    out = {}
    for coord in strided(sites, product(now, stride)):
        total = torch.zeros(volume.shape[2], dtype=volume.dtype)
        for weight, offset in zip(volume, offsets(size, product(dilation, now)), strict=True):
            if moved(coord, offset) in sites:
                total = total + sites[moved(coord, offset)] @ weight
        out[coord] = total if bias is None else total + bias[0]
    return out


def transposed(sites, kernel, bias, size, dilation, now, targets):
    """Onto `targets`, of the tensor stride `now`: pairs of the convolution, swapped."""
    volume = kernel.reshape(math.prod(size), *kernel.shape[-2:])
    out = {c: torch.zeros(volume.shape[2], dtype=volume.dtype) for c in targets}
    for coord, feature in sites.items():
        for weight, offset in zip(volume, offsets(size, product(dilation, now)), strict=True):
            if moved(coord, offset) in out:
                out[moved(coord, offset)] = out[moved(coord, offset)] + feature @ weight
    return out if bias is None else {c: f + bias[0] for c, f in out.items()}


def pool(sites, kind, size, stride, now):
    """Over the active sites of a window; a kernel that is the stride joins what floors alike."""
    out = {}
    for coord in strided(sites, product(now, stride)):
        if tuple(size) == tuple(stride):
            seen = [f for c, f in sites.items() if strided([c], product(now, stride)) == [coord]]
        else:
            at = [moved(coord, o) for o in offsets(size, now)]
            seen = [sites[c] for c in at if c in sites]
        rows = torch.stack(seen)
        out[coord] = rows.amax(0) if kind == "max" else rows.mean(0)
    return out


# ------------------------------------------------------------------ its modules, without a forward
def _class(name: str) -> type:
    return type(name, (nn.Module,), {"__module__": "MinkowskiEngine.Minkowski"})


class Generator:
    """A kernel generator: what layers know of their kernel."""

    def __init__(self, size, stride, dilation, region="RegionType.HYPER_CUBE", new=False) -> None:
        self.kernel_size, self.kernel_stride, self.kernel_dilation = size, stride, dilation
        self.region_type, self.generate_new_coordinates = region, new
        self.kernel_volume = math.prod(size)


def layer(name, c_in=0, c_out=0, size=(1,), stride=(1,), dilation=None, bias=True, **options):
    """A convolution or a pool, with random parameters."""
    module = _class(name)()
    dilation = dilation or (1,) * len(size)
    module.kernel_generator = Generator(list(size), list(stride), list(dilation), **options)
    module.dimension, module.is_transpose = len(size), name.endswith("Transpose")
    if c_in:
        module.in_channels, module.out_channels = c_in, c_out
        matrix = math.prod(size) == 1 and math.prod(stride) == 1
        shape = (c_in, c_out) if matrix else (math.prod(size), c_in, c_out)
        module.kernel = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        row = nn.Parameter(torch.randn(1, c_out, dtype=torch.float64))
        module.register_parameter("bias", row if bias else None)
    return module


def wrapped(name: str, inner: str, module: nn.Module) -> nn.Module:
    """A module of torch as MinkowskiEngine wraps it."""
    outer = _class(name)()
    outer.add_module(inner, module)
    return outer
