"""Networks and checkpoints of spconv."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import _conv, _inverse, _pool
from ._convert import ToDense
from ._imported import (
    FeatureSequential,
    Recall,
    Remember,
    batch_norm_like,
    check_source,
    drop_ground,
    fill,
    rebuild,
    sync_batch_norm_like,
)
from ._spconv_layout import convert_state, dense_weight

_ACTIVATION_NONE = "None_"
_LAYERS = (_conv, _inverse, _pool)


def from_spconv(
    source: nn.Module | Mapping[str, Tensor],
    *,
    layout: str | Mapping[str, str] | None = None,
    transposed: Sequence[str] = (),
    strided: Sequence[str] = (),
    like: nn.Module | None = None,
) -> Any:
    """A network, or a state dict, of spconv (1.x to 2.3) as one of this package.

    **A module** becomes a new tree with the same names; what is not spconv's is copied.

    | spconv | here |
    |---|---|
    | `SubMConv1d..4d` | `SubmanifoldConv1d..4d` |
    | `SparseConv1d..4d`, `SparseConvTranspose1d..3d` | the same names |
    | `SparseInverseConv1d..3d` | the same names; `like` is found by `indice_key` |
    | `SparseMaxPool1d..3d`, `SparseAvgPool1d..3d`, global pools | the same names |
    | `SparseSequential` | a `nn.Sequential` that hands plain modules the features |
    | `SparseBatchNorm`; `nn.BatchNorm1d` in a `SparseSequential` | `SparseBatchNorm` |
    | `SparseSyncBatchNorm`, `SparseReLU`, `SparseIdentity`, `ToDense` | torch's, `ToDense` |

    Inactive sites do not exist: give the network tensors with `ground=None` (a zero ground is
    taken as that). Rows come in the order of `coords`, not in spconv's. `state_dict` has the keys
    of spconv's: `weight` and `bias` of each layer; only the weights' layout differs. A module of
    your own keeps its forward; where that uses spconv's functions (`x.replace_feature(f)`), write
    ours (`x.replace(features=f)`).

    Two things that spconv computes are kept or not, on purpose. Kept: it reads the weight of a
    kernel of 1 as (c_in, c_out) though it is stored (c_out, 1, .., c_in), and so was it trained.
    Not kept: pools that start from 0 (a negative maximum is one here) and a global average that is
    one number per sample.

    **A state dict** becomes one whose weights are (c_out, c_in, *kernel), of transposed and inverse
    convolutions (c_in, c_out, *kernel); names stay, other tensors too, so `load_state_dict` is
    strict. Layouts are KRSC (spconv >= 2.2), RSKC (2.0, 2.1) and RSCK (1.x), told from the shapes;
    `dense` is torch's, for layers after `ToDense`.

    Args:
        source: module or state dict.
        layout: of the state dict's weights: "KRSC", "RSKC", "RSCK" or "dense" for all, or by
            patterns of layer names (`{"backbone.*": "KRSC"}`). None: from the shapes.
        transposed: names (patterns) of transposed and inverse convolutions in the state dict.
        strided: names of convolutions with a kernel of 1 and a stride: those spconv reads as they
            are stored.
        like: the network that will load the state dict: says all of this by itself.

    Raises:
        TypeError: `source` is something else.
        ValueError: a layout that is wrong, or that the shapes do not tell.
        NotImplementedError: a layer without a counterpart here (named): a fused activation,
            a transposed convolution with dilation (spconv's output size ignores it), tables.

    Example:
        >>> import torch, doublesparse as ds
        >>> theirs = {"0.weight": torch.randn(8, 3, 3, 3, 4), "0.bias": torch.zeros(8)}
        >>> net = torch.nn.Sequential(ds.nn.SubmanifoldConv3d(4, 8, 3))
        >>> net.load_state_dict(ds.nn.from_spconv(theirs))
        <All keys matched successfully>
    """
    check_source("from_spconv", source)
    if not isinstance(source, nn.Module):
        return convert_state(source, layout, transposed, strided, like)
    if layout is not None or transposed or strided or like is not None:
        raise ValueError(
            "from_spconv: layout, transposed, strided and like must be left out with a module, "
            "which says them itself; or pass its state_dict()"
        )
    partners = _partners(source)

    def make(name: str, module: nn.Module, memo: dict[int, Any]) -> nn.Module | None:
        kind = _kind(module)
        if kind is None:
            return None
        if kind in ("SparseSequential", "SparseBatchNorm", "SparseSyncBatchNorm"):
            return _CONTAINERS[kind](module, memo)
        if kind in _PLAIN:
            return _PLAIN[kind](module)
        if hasattr(module, "in_channels"):
            return _convolution(name, kind, module, partners)
        if kind.startswith(("SparseMaxPool", "SparseAvgPool")):
            return _pooling(name, kind, module)
        raise _refusal(name, kind, "has no counterpart here")

    return rebuild(source, make)


def _refusal(name: str, kind: str, why: str) -> NotImplementedError:
    return NotImplementedError(
        f"from_spconv: layer {name or '(root)'!r} must be one that can be built here, got {kind}, "
        f"which {why}; replace it first"
    )


def _is_spconv(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "spconv"


def _kind(module: nn.Module) -> str | None:
    """The name of a class of spconv; None for any other, subclasses of spconv's included."""
    kind = type(module)
    return kind.__name__ if _is_spconv(kind) else None


def _takes_tensors(module: nn.Module) -> bool:
    """Whether spconv's SparseSequential hands it the whole tensor."""
    names = ("SparseModule", "SparseBatchNorm", "SparseReLU")
    return any(_is_spconv(k) and k.__name__ in names for k in type(module).__mro__)


def _partners(model: nn.Module) -> dict[str, Any]:
    """The layers that inverse convolutions undo, by `indice_key`."""
    found: dict[str, Any] = {}
    for module in model.modules():
        key = getattr(module, "indice_key", None)
        if _kind(module) is None or key is None:
            continue
        if not (getattr(module, "subm", False) or getattr(module, "inverse", False)):
            found[key] = module
    return found


# ------------------------------------------------------------------ layers
def _class(name: str, kind: str, ours: str) -> Any:
    for place in _LAYERS:
        if hasattr(place, ours):
            return getattr(place, ours)
    raise _refusal(name, kind, f"would be a {ours}, which there is not")


def _convolution(name: str, kind: str, m: Any, partners: dict[str, Any]) -> nn.Module:
    n, kernel = m.ndim, tuple(m.kernel_size)
    if getattr(m.act_type, "name", str(m.act_type)).split(".")[-1] != _ACTIVATION_NONE:
        raise _refusal(name, kind, "has a fused activation")
    options: dict[str, Any] = dict(bias=m.bias is not None, dtype=m.weight.dtype)
    options["device"] = m.weight.device
    geometry = {a: tuple(getattr(m, a)) for a in ("stride", "padding", "dilation")}
    channels = (m.in_channels, m.out_channels, kernel)
    if m.subm:
        ours = _class(name, kind, f"SubmanifoldConv{n}d")
        layer = ours(*channels, dilation=geometry["dilation"], **options)
    elif m.inverse:
        partner = partners.get(m.indice_key)
        if partner is None or getattr(partner, "transposed", False) or m.conv1x1:
            raise _refusal(
                name, kind, f"undoes no strided convolution or pool with the key {m.indice_key!r}"
            )
        geometry = {a: tuple(getattr(partner, a)) for a in geometry}
        layer = _class(name, kind, f"SparseInverseConv{n}d")(*channels, **geometry, **options)
        layer.register_forward_pre_hook(Recall(m.indice_key), with_kwargs=True)
    elif m.transposed:
        spread = [d for k, d in zip(kernel, geometry["dilation"], strict=True) if k > 1]
        if any(d != 1 for d in spread):
            raise _refusal(name, kind, "has a dilation, which spconv's output size ignores")
        geometry["output_padding"] = tuple(m.output_padding)
        layer = _class(name, kind, f"SparseConvTranspose{n}d")(*channels, **geometry, **options)
        layer.register_forward_hook(Remember(m.indice_key))
    else:
        layer = _class(name, kind, f"SparseConv{n}d")(*channels, **geometry, **options)
        layer.register_forward_hook(Remember(m.indice_key))
    layer.register_forward_pre_hook(drop_ground)
    weight = dense_weight(m.weight, "KRSC", m.transposed or m.inverse, pointwise=m.conv1x1)
    return fill(layer, weight, m.bias, m.weight)


def _pooling(name: str, kind: str, m: Any) -> nn.Module:
    if m.subm:
        raise _refusal(name, kind, "is a submanifold pool")
    kernel, stride, padding, dilation = (
        tuple(v) for v in (m.kernel_size, m.stride, m.padding, m.dilation)
    )
    ours = _class(name, kind, kind)
    if kind.startswith("SparseMaxPool"):
        layer = ours(kernel, stride, padding, dilation)
    elif any(d != 1 for d in dilation):
        raise _refusal(name, kind, "is an average pool with a dilation")
    else:
        layer = ours(kernel, stride, padding)
    layer.register_forward_hook(Remember(m.indice_key))
    layer.register_forward_pre_hook(drop_ground)
    return layer


def _sequential(m: nn.Module, memo: dict[int, Any]) -> nn.Module:
    children: OrderedDict[str, nn.Module] = OrderedDict()
    of_features = set()
    for name, child in m.named_children():
        if type(child) is nn.BatchNorm1d:
            children[name] = batch_norm_like(child)
            memo[id(child)] = children[name]
            continue
        children[name] = copy.deepcopy(child, memo)
        # an in-place module gets the tensor, which gets new contents: no leaf is written to
        in_place = getattr(child, "inplace", False) or isinstance(child, nn.SyncBatchNorm)
        if not _takes_tensors(child) and not in_place:
            of_features.add(name)
    return FeatureSequential(children, of_features=frozenset(of_features))


_CONTAINERS: dict[str, Any] = {
    "SparseSequential": _sequential,
    "SparseBatchNorm": lambda m, memo: batch_norm_like(m),
    "SparseSyncBatchNorm": lambda m, memo: sync_batch_norm_like(m),
}
_PLAIN: dict[str, Any] = {
    "SparseReLU": lambda m: nn.ReLU(m.inplace),
    "SparseIdentity": lambda m: nn.Identity(),
    "Identity": lambda m: nn.Identity(),
    "RemoveGrid": lambda m: nn.Identity(),
    "ToDense": lambda m: ToDense(),
    "SparseGlobalMaxPool": lambda m: _pool.SparseGlobalMaxPool(),
    "SparseGlobalAvgPool": lambda m: _pool.SparseGlobalAvgPool(),
}
