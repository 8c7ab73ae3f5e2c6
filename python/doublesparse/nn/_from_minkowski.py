"""Networks and checkpoints of MinkowskiEngine."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._torch_compat import ConvBase
from ..tensor import SparseTensor
from . import _conv, _inverse, _pool
from ._convert import ToDense
from ._imported import (
    batch_norm_like,
    check_source,
    drop_ground,
    fill,
    matches,
    per_axis,
    rebuild,
    sync_batch_norm_like,
)
from ._minkowski_sites import back_on_strides, on_strides

_INNER = ("bn", "linear", "module")  # attributes by which MinkowskiEngine wraps modules of torch


def from_minkowski(
    source: nn.Module | Mapping[str, Tensor],
    *,
    dimension: int = 3,
    kernel_size: Any = None,
    transposed: Sequence[str] = (),
    like: nn.Module | None = None,
) -> Any:
    """A network, or a state dict, of MinkowskiEngine 0.5 as one of this package.

    **A module** becomes a new tree; what is not MinkowskiEngine's is copied.

    | MinkowskiEngine | here |
    |---|---|
    | `MinkowskiConvolution`, stride 1 (odd kernel) | `SubmanifoldConv1d..4d` |
    | `MinkowskiConvolution` with a stride | `SparseConv1d..4d`, kept to the sites floor(c / s) |
    | `MinkowskiConvolutionTranspose` | `SparseInverseConv1d..3d`, back onto the encoder's sites |
    | `MinkowskiMaxPooling`, `MinkowskiAvgPooling` | `SparseMaxPool1d..3d`, `SparseAvgPool1d..3d` |
    | `MinkowskiGlobalMaxPooling`, `MinkowskiGlobalAvgPooling` | global pools, dense (B, C) |
    | `MinkowskiBatchNorm`, `MinkowskiSyncBatchNorm` | `SparseBatchNorm`, `nn.SyncBatchNorm` |
    | `MinkowskiLinear`; `MinkowskiReLU` and the like | a `nn.Linear` of features; torch's |

    Inactive sites do not exist (`ground=None`; a zero ground is taken as that), and coordinates
    are those of a grid: shift them to start at 0, by a multiple of the network's total stride.
    After a layer of stride s they are c / s, where MinkowskiEngine keeps c. A module of your own
    keeps its forward: write `torch.cat([a, b], 1)` for `ME.cat(a, b)` and `x.features` for `x.F`.

    **A state dict** becomes one for such a network: `<layer>.kernel` (kernel volume, c_in, c_out),
    whose volume runs along the first axis of space fastest, is `<layer>.weight` (c_out, c_in,
    *kernel), of transposed ones (c_in, c_out, *kernel); `<layer>.bias` is (c_out,); `<norm>.bn.x`,
    `<linear>.linear.x` and `<activation>.module.x` are `<norm>.x` and so on. The rest stays, so
    `load_state_dict` is strict.

    Args:
        source: module or state dict.
        dimension: axes of space of the state dict's kernels.
        kernel_size: of kernels that are no cubes: for all, or by patterns of layer names
            (`{"stem.*": (5, 5, 1)}`).
        transposed: names (patterns) of the transposed convolutions in the state dict.
        like: the network that will load the state dict: says all of this by itself.

    Raises:
        TypeError: `source` is something else.
        ValueError: a kernel volume that is no cube, with no size given.
        NotImplementedError: a layer without a counterpart here (named): an even kernel with stride
            1, kernels that are no boxes, transposed convolutions that make new sites.

    Example:
        >>> import torch, doublesparse as ds
        >>> theirs = {"0.kernel": torch.randn(27, 4, 8), "0.bias": torch.zeros(1, 8)}
        >>> theirs |= {"1.bn." + k: v for k, v in torch.nn.BatchNorm1d(8).state_dict().items()}
        >>> net = torch.nn.Sequential(ds.nn.SubmanifoldConv3d(4, 8, 3), ds.nn.SparseBatchNorm(8))
        >>> net.load_state_dict(ds.nn.from_minkowski(theirs))
        <All keys matched successfully>
    """
    check_source("from_minkowski", source)
    if isinstance(source, nn.Module):
        if kernel_size is not None or transposed or like is not None:
            raise ValueError(
                "from_minkowski: kernel_size, transposed and like must be left out with a module, "
                "which says them itself; or pass its state_dict()"
            )
        return rebuild(source, _make)
    return _convert_state(source, dimension, kernel_size, transposed, like)


def kernel_weight(kernel: Tensor, size: Sequence[int], transposed: bool) -> Tensor:
    """A kernel (volume, c_in, c_out), or (c_in, c_out) for a volume of 1, in torch's layout."""
    n = len(size)
    # the first axis of space runs fastest, so it is the last of the volume's
    box = kernel.reshape(*reversed(size), *kernel.shape[-2:])
    ends = (n, n + 1) if transposed else (n + 1, n)
    return box.permute(*ends, *reversed(range(n))).contiguous()


# ------------------------------------------------------------------ modules
class FeatureLinear(nn.Linear):
    """`nn.Linear` on the features of active sites, or on a dense (B, C)."""

    def forward(self, input: Any) -> Any:
        """Multiply."""
        if isinstance(input, SparseTensor):
            return input.replace(features=super().forward(input.features), ground=None)
        return super().forward(input)


def _refusal(name: str, kind: str, why: str) -> NotImplementedError:
    return NotImplementedError(
        f"from_minkowski: layer {name or '(root)'!r} must be one that can be built here, got "
        f"{kind}, which {why}; replace it first"
    )


def _make(name: str, module: nn.Module, memo: dict[int, Any]) -> nn.Module | None:
    kind = type(module).__name__
    if not (kind.startswith("Minkowski") and type(module).__module__.startswith("Minkowski")):
        return None
    m: Any = module
    if kind in ("MinkowskiConvolution", "MinkowskiConvolutionTranspose"):
        return _convolution(name, kind, m)
    if kind in ("MinkowskiMaxPooling", "MinkowskiAvgPooling"):
        return _pooling(name, kind, m)
    if kind == "MinkowskiLinear":
        linear = FeatureLinear(m.linear.in_features, m.linear.out_features)
        linear._parameters = copy.deepcopy(m.linear._parameters, memo)
        return linear
    if kind in _SIMPLE:
        return _SIMPLE[kind](m)
    if isinstance(getattr(m, "module", None), nn.Module):
        return copy.deepcopy(m.module, memo)
    raise _refusal(name, kind, "has no counterpart here")


_SIMPLE: dict[str, Any] = {
    "MinkowskiBatchNorm": lambda m: batch_norm_like(m.bn),
    "MinkowskiSyncBatchNorm": lambda m: sync_batch_norm_like(m.bn),
    "MinkowskiGlobalMaxPooling": lambda m: _pool.SparseGlobalMaxPool(),
    "MinkowskiGlobalAvgPooling": lambda m: _pool.SparseGlobalAvgPool(),
    "MinkowskiToDenseTensor": lambda m: ToDense(),
}


class _Geometry:
    """Of a kernel generator of MinkowskiEngine."""

    def __init__(self, name: str, kind: str, m: Any) -> None:
        generator, self.n = m.kernel_generator, int(m.dimension)
        region = getattr(generator.region_type, "name", str(generator.region_type))
        if region.split(".")[-1] != "HYPER_CUBE":
            raise _refusal(name, kind, f"has a kernel that is no box but a {region}")
        self.kernel, self.stride, self.dilation = (
            per_axis(getattr(generator, f"kernel_{a}"), self.n)
            for a in ("size", "stride", "dilation")
        )
        self.extent = tuple(
            d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)
        )
        self.centred = tuple(
            d * (k // 2) * (k % 2) for k, d in zip(self.kernel, self.dilation, strict=True)
        )
        flags = ("generate_new_coordinates", "expand_coordinates")
        if any(getattr(generator, flag, False) for flag in flags):
            raise _refusal(name, kind, "makes new sites")


def _class(name: str, kind: str, place: Any, ours: str) -> Any:
    if not hasattr(place, ours):
        raise _refusal(name, kind, f"would be a {ours}, which there is not")
    return getattr(place, ours)


def _convolution(name: str, kind: str, m: Any) -> nn.Module:
    g = _Geometry(name, kind, m)
    options: dict[str, Any] = dict(bias=m.bias is not None, dtype=m.kernel.dtype)
    options |= dict(device=m.kernel.device, dilation=g.dilation)
    channels = (m.in_channels, m.out_channels, g.kernel)
    if m.is_transpose:
        ours = _class(name, kind, _inverse, f"SparseInverseConv{g.n}d")
        layer = ours(*channels, stride=g.stride, padding=g.centred, **options)
    elif all(s == 1 for s in g.stride):
        if any(k % 2 == 0 for k in g.kernel):
            raise _refusal(name, kind, "has stride 1 and an even kernel")
        layer = _class(name, kind, _conv, f"SubmanifoldConv{g.n}d")(*channels, **options)
    else:
        ours = _class(name, kind, _conv, f"SparseConv{g.n}d")
        layer = ours(*channels, stride=g.stride, padding=g.centred, **options)
    fill(layer, kernel_weight(m.kernel, g.kernel, m.is_transpose), m.bias, m.kernel)
    layer.register_forward_pre_hook(drop_ground)
    if m.is_transpose:
        return back_on_strides(layer, g.extent, g.stride, g.centred)
    if all(s == 1 for s in g.stride):
        return layer
    return on_strides(layer, g.extent, g.stride, g.centred)


def _pooling(name: str, kind: str, m: Any) -> nn.Module:
    g = _Geometry(name, kind, m)
    if getattr(m, "is_transpose", False):
        raise _refusal(name, kind, "is transposed")
    if any(k < s for k, s in zip(g.kernel, g.stride, strict=True)):
        raise _refusal(name, kind, "has a kernel below its stride: windows without a site")
    # a pool whose kernel is its stride takes the sites that floor(c / s) joins, centred or not
    padding = (0,) * g.n if g.kernel == g.stride else g.centred
    if kind == "MinkowskiMaxPooling":
        ours = _class(name, kind, _pool, f"SparseMaxPool{g.n}d")
        layer = ours(g.kernel, g.stride, padding, g.dilation)
    elif any(d != 1 for d in g.dilation):
        raise _refusal(name, kind, "is an average pool with a dilation")
    else:
        layer = _class(name, kind, _pool, f"SparseAvgPool{g.n}d")(g.kernel, g.stride, padding)
    layer.register_forward_pre_hook(drop_ground)
    return on_strides(layer, g.extent, g.stride, padding)


# ------------------------------------------------------------------ state dicts
def _new_name(key: str, state: Mapping[str, Tensor], known: Mapping[str, Tensor] | None) -> str:
    """A name without the attribute that wraps a module of torch, where there is one."""
    parts = key.split(".")
    if len(parts) < 2 or parts[-2] not in _INNER:
        return key
    short = ".".join([*parts[:-2], parts[-1]])
    if known is not None:
        return key if key in known else short
    outer = ".".join(parts[:-2])
    inside = [k for k in state if k.startswith(f"{outer}.")] if outer else list(state)
    wrapped = f"{outer}.{parts[-2]}." if outer else f"{parts[-2]}."
    return short if all(k.startswith(wrapped) for k in inside) else key


def _box(name: str, volume: int, dimension: int, given: Any, target: Any) -> tuple[int, ...]:
    """The extents of a kernel."""
    size: Any = None
    if target is not None:
        size = target.kernel_size
    elif isinstance(given, Mapping):
        size = next((v for p, v in given.items() if matches(name, [p])), None)
    elif volume != 1:
        size = given
    if size is None:
        edge = round(volume ** (1 / dimension))
        size = edge if edge**dimension == volume else None
    box = () if size is None else per_axis(size, dimension if target is None else len(size))
    if math.prod(box) != volume or not box:
        raise ValueError(
            f"from_minkowski: kernel_size must give {name}.kernel a volume of {volume} on "
            f"{dimension} axes, got {size}; pass it by layer as {{{name!r}: (k, ...)}}, or "
            "dimension=, or like= the network that will load it (boxes only, no hyper-crosses)"
        )
    return box


def _convert_state(
    state: Mapping[str, Tensor],
    dimension: int,
    kernel_size: Any,
    transposed: Sequence[str],
    like: nn.Module | None,
) -> dict[str, Tensor]:
    if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= 4:
        raise ValueError(
            f"from_minkowski: dimension must be 1, 2, 3 or 4, got {dimension!r}; pass the axes of "
            "space"
        )
    targets = {} if like is None else dict(like.named_modules())
    known = None if like is None else like.state_dict()
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        prefix = f"{name}." if name else ""
        if leaf == "kernel" and value.dim() in (2, 3):
            target = targets.get(name)
            target = target if isinstance(target, ConvBase) else None
            volume = value.shape[0] if value.dim() == 3 else 1
            box = _box(name, volume, dimension, kernel_size, target)
            swapped = matches(name, transposed) if target is None else target.transposed
            out[f"{prefix}weight"] = kernel_weight(value, box, swapped)
        elif leaf == "bias" and f"{prefix}kernel" in state:
            out[key] = value.reshape(-1)
        else:
            out[_new_name(key, state, known)] = value
    return out
