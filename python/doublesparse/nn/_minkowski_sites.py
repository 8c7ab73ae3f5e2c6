"""Where MinkowskiEngine's layers put their outputs, as hooks on ours.

Its grids have no end, and a layer of stride s has the sites floor(c / s) of its input's sites c,
once each, whatever its kernel: fewer than those that an odd kernel reaches, or others. An odd one
is centred, an even one starts at its site.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _cache
from ..sites import Sites
from ..tensor import SparseTensor
from ._imported import origin, remember

Axes = tuple[int, ...]

_WHOLE = "before its grid was made longer"
_strides: WeakKeyDictionary[Sites, Axes] = WeakKeyDictionary()
"""The product of the strides that led to these sites; ones where there were none."""


def _stride_of(sites: Sites) -> Axes:
    return _strides.get(sites, (1,) * sites.n_axes)


def strided_sites(sites: Sites, stride: Axes) -> Sites:
    """The sites floor(c / stride), remembered by `sites`: several layers give the same object."""
    key = ("strided", stride)
    found = _cache.get(sites, key)
    if found is not None:
        return found
    shape = tuple(-(-n // s) for n, s in zip(sites.spatial_shape, stride, strict=True))
    steps = torch.tensor((1, *stride), dtype=torch.int32, device="cpu")
    coords = torch.div(sites.coords, steps, rounding_mode="floor")
    made = Sites(torch.unique(coords, dim=0).contiguous(), shape, sites.batch_size, sites.device)
    return _cache.put(sites, key, made, 4 * made.n_sites * (1 + made.n_axes))


def at_sites(x: SparseTensor, sites: Sites, fill: Tensor | None) -> SparseTensor:
    """The rows of x at given sites of its grid; `fill` (C,), or 0, where x has none."""
    if x.sites.same_as(sites):
        return SparseTensor._of(x.features, sites, None)
    empty = x.features.new_zeros(x.features.shape[1])
    missing = empty if fill is None else fill.to(empty.dtype)
    if x.sites.n_sites == 0:
        return SparseTensor._of(missing.expand(sites.n_sites, -1).contiguous(), sites, None)
    at = torch.searchsorted(x.sites.keys, sites.keys).clamp_(max=x.sites.n_sites - 1)
    found = x.sites.keys[at] == sites.keys
    rows = torch.where(found[:, None], x.features[at], missing)
    return SparseTensor._of(rows, sites, None)


class _OnStrides:
    """What hooks of a layer know: its geometry.

    Args:
        kernel: extents, dilation included.
        stride: per axis.
        padding: at the start of each axis, and at its end.
    """

    def __init__(self, kernel: Axes, stride: Axes, padding: Axes) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def longer(self, sites: Sites) -> Sites:
        """The same sites on a grid long enough for an output at floor((n - 1) / s)."""
        shape = []
        for n, k, s, p in zip(
            sites.spatial_shape, self.kernel, self.stride, self.padding, strict=True
        ):
            shape.append(max(n, (n - 1) // s * s + k - 2 * p))
        if tuple(shape) == sites.spatial_shape:
            return sites
        made = Sites(sites.coords, tuple(shape), sites.batch_size, sites.device)
        remember(made, sites, _WHOLE)
        return made


class Strided(_OnStrides):
    """Hooks of a strided convolution or pool."""

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Make the grid long enough at its end."""
        x = args[0]
        return (SparseTensor._of(x.features, self.longer(x.sites), None), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: SparseTensor) -> SparseTensor:
        """Give the output MinkowskiEngine's sites, and note where they came from."""
        read = args[0].sites
        source = origin(read, _WHOLE)
        source = read if source is None else source
        made, before = strided_sites(source, self.stride), _stride_of(source)
        _strides[made] = tuple(math.prod(p) for p in zip(before, self.stride, strict=True))
        remember(made, source, ("stride", before))
        return at_sites(output, made, getattr(module, "bias", None))


class Unstrided(_OnStrides):
    """Hooks of a transposed convolution: back onto the sites of a smaller stride."""

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Find `like`, unless it is given, on a grid that is long enough."""
        args, like = args[:1], args[1] if len(args) > 1 else kwargs.get("like")
        if like is None:
            like = self._find(type(module).__name__, args[0].sites)
        sites = like.sites if isinstance(like, SparseTensor) else like
        return args, {"like": self.longer(sites)}

    def _find(self, layer: str, sites: Sites) -> Sites:
        now = _stride_of(sites)
        wanted = tuple(t // s for t, s in zip(now, self.stride, strict=True))
        found = origin(sites, ("stride", wanted))
        if found is None:
            raise ValueError(
                f"{layer}: input must come from a layer that read sites of the stride {wanted}, "
                f"got sites of the stride {now} that did not; run the encoder, or pass like="
            )
        _strides[found] = wanted
        return found

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: SparseTensor
    ) -> SparseTensor:
        """On the grid as it was."""
        whole = origin(output.sites, _WHOLE)
        return output if whole is None else SparseTensor._of(output.features, whole, None)


def on_strides(layer: nn.Module, kernel: Axes, stride: Axes, padding: Axes) -> nn.Module:
    """Put the hooks of a strided layer on it."""
    hooks = Strided(kernel, stride, padding)
    layer.register_forward_pre_hook(hooks.before)
    layer.register_forward_hook(hooks.after)
    return layer


def back_on_strides(layer: nn.Module, kernel: Axes, stride: Axes, padding: Axes) -> nn.Module:
    """Put the hooks of a transposed layer on it."""
    hooks = Unstrided(kernel, stride, padding)
    layer.register_forward_pre_hook(hooks.before, with_kwargs=True)
    layer.register_forward_hook(hooks.after, with_kwargs=True)
    return layer
