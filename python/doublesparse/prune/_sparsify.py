"""Models with pruned weights: layers swapped by class, their masks, and what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from .._magnitude import magnitude_masks
from .._patterns import Pattern, Unstructured, check_pattern, check_sparsity
from ..nn._masked import MASKED_CLASSES, Masked, mask_layer, unmask_layer

M = TypeVar("M", bound=nn.Module)
Select = Callable[[str, nn.Module], bool]
Unsupported = Callable[[nn.Module], "str | None"]

# Modules that read the weights of modules inside them, in one fused call: {class: names inside}.
_FUSED: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("out_proj",),
    nn.TransformerEncoderLayer: ("linear1", "linear2"),
}


def check_model(operation: str, model: Any) -> None:
    """Raise TypeError where it is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{operation}: model must be an nn.Module, got {type(model).__name__}; wrap it in one"
        )


# ------------------------------------------------------------------ which layers
def masked_layers(model: nn.Module) -> Iterator[tuple[str, Masked]]:
    """Names and masked layers of a model, each layer once."""
    for name, module in model.named_modules():
        if isinstance(module, Masked):
            yield name, module


def _maskable(module: nn.Module) -> bool:
    """Whether a layer has a masked form, or is one. `MASKED_CLASSES` is the list to extend."""
    dense = module.dense_class if isinstance(module, Masked) else type(module)
    return dense in MASKED_CLASSES


def _owners(model: nn.Module) -> Counter[int]:
    """In how many places of how many modules each parameter is; twice: it is tied."""
    return Counter(
        id(parameter)
        for module in model.modules()  # each once, whatever its names
        for parameter in module._parameters.values()
        if parameter is not None
    )


def _fused(model: nn.Module) -> dict[int, str]:
    """Layers whose weight another module reads past their forward: {id: whose}."""
    found: dict[int, str] = {}
    for module in model.modules():
        for kind, names in _FUSED.items():
            if isinstance(module, kind):
                for name in names:
                    found[id(getattr(module, name, None))] = kind.__name__
    return found


def _no_masked_form(module: nn.Module) -> str | None:
    return None if _maskable(module) else f"{type(module).__name__} has no masked form"


def _obstacle(
    module: nn.Module, owners: Counter[int], fused: dict[int, str], unsupported: Unsupported
) -> str | None:
    """Why a layer with a weight is left alone; None where it need not be."""
    if id(module) in fused:
        return f"{fused[id(module)]} reads its weight past its forward"
    if isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention keeps its weights to itself"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized (torch.nn.utils.parametrize)"
    why = unsupported(module)
    if why is not None:
        return why
    if isinstance(module, Masked) and module.frozen:
        return None  # its Parameter is parked; a new mask thaws it
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook (torch.nn.utils); remove it first"
    if owners[id(weight)] > 1:
        return "its weight is tied to another module's"
    return None


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module owns something that one might want to prune."""
    return _maskable(module) or any(
        parameter is not None
        and not isinstance(parameter, nn.parameter.UninitializedParameter)
        and parameter.dim() >= 2
        for parameter in module._parameters.values()
    )


def candidates(
    model: nn.Module, unsupported: Unsupported = _no_masked_form
) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Name, module and obstacle of all that owns a weight of two axes or more.

    Args:
        model: any module.
        unsupported: why a class of layers is left alone; None where it need not be.
    """
    owners, fused = _owners(model), _fused(model)
    for name, module in model.named_modules():
        lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)
        inside = isinstance(module, parametrize.ParametrizationList)
        if lazy and module.has_uninitialized_params():
            yield name, module, "its shape is not known before its first call"
        elif not inside and (_has_matrix(module) or parametrize.is_parametrized(module)):
            yield name, module, _obstacle(module, owners, fused, unsupported)


def skipped(model: nn.Module) -> dict[str, str]:
    """Modules with weights that `sparsify_` leaves alone, and why.

    Args:
        model: any module.

    Returns:
        {name of the module: reason}.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 4))
        >>> ds.prune.skipped(net)
        {'0': 'Embedding has no masked form'}
    """
    check_model("skipped", model)
    return {name: why for name, _, why in candidates(model) if why is not None}


def selected(operation: str, model: nn.Module, select: Select | None) -> dict[str, nn.Module]:
    """The layers that can be masked and that `select` wants: {name: module}."""
    check_model(operation, model)
    if select is not None and not callable(select):
        raise TypeError(
            f"{operation}: select must be a function (name, module) -> bool, got "
            f"{type(select).__name__}; pass e.g. lambda name, module: name != 'head'"
        )
    return {
        name: module
        for name, module, why in candidates(model)
        if why is None and (select is None or select(name, module))
    }


# ------------------------------------------------------------------ sparsify, densify
def sparsify_(
    model: M,
    sparsity: float | Mapping[str, float] | None = None,
    pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
    scope: str = "layer",
    select: Select | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> M:
    """Prune a model's weights by magnitude, in place: `nn.Linear` becomes `ds.nn.MaskedLinear`.

    Each layer changes its class and gets a buffer `mask`, and nothing else: the same objects,
    Parameters, names and hooks, so an optimizer made before goes on. Biases and norms are not
    pruned. Layers that are masked already get new masks by their present weights.

    Exactly `nn.Linear` and `nn.Conv1d/2d/3d` are swapped, and the sparse convolutions of `ds.nn`
    that have a masked form; not their subclasses. Weights that are tied, parametrized or computed
    by a hook, those in `nn.MultiheadAttention`, and the linear layers of
    `nn.TransformerEncoderLayer` (its fast path reads them itself) stay as they are: `skipped` says
    which and why.

    Args:
        model: changed in place.
        sparsity: share of the weights to prune, in [0, 1]; or {name of a layer: share}, and then
            other layers stay as they are; or None, for a pattern that says it itself.
        pattern: of the masks.
        scope: "layer", each layer alone; "global", one threshold for all layers together (blocks
            are compared by their mean).
        select: (name, module) -> bool, which layers to prune; default: all.
        optimizer: whose state is cleared at once where a mask changes; otherwise that happens at
            its next step.

    Returns:
        the model.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a sparsity out of range or in disagreement with the pattern, an unknown scope or
            name, or a name of a layer that cannot be masked.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = ds.prune.sparsify_(net, 0.75, select=lambda name, module: name != "2")
        >>> net[0]
        MaskedLinear(in_features=8, ... pattern=Unstructured(), kept=16 of 64)
    """
    check_pattern("sparsify_", pattern)
    if scope not in ("layer", "global"):
        raise ValueError(
            f'sparsify_: scope must be "layer" or "global", got {scope!r}; pass one of them'
        )
    layers = selected("sparsify_", model, select)
    if isinstance(sparsity, Mapping):
        if scope == "global":
            raise ValueError(
                "sparsify_: sparsity must be one number where scope is 'global', got one per "
                "layer; pass scope='layer'"
            )
        shares: dict[str, Any] = dict(sparsity)
        _check_names(model, shares, layers)
    else:
        shares = dict.fromkeys(layers, sparsity)
        check_sparsity("sparsify_", sparsity, pattern)
    for share in shares.values():
        check_sparsity("sparsify_", share, pattern)
    chosen = {name: layers[name] for name in shares}
    together = [list(chosen)] if scope == "global" else [[name] for name in chosen]
    found: dict[str, Tensor] = {}
    for names in together:  # all masks before the first change: an error changes nothing
        if names:
            weights = [cast("Tensor", chosen[name].weight) for name in names]
            groups = [cast("int", getattr(chosen[name], "groups", 1)) for name in names]
            per_element = scope == "global"
            masks_here = magnitude_masks(
                weights, pattern, shares[names[0]], groups, per_element=per_element
            )
            found.update(zip(names, masks_here, strict=True))
    for name, mask in found.items():
        apply_mask(chosen[name], pattern, mask, optimizer)
    return model


def _check_names(model: nn.Module, shares: dict[str, Any], layers: dict[str, nn.Module]) -> None:
    for name in shares:
        if name not in layers:
            why = skipped(model).get(name, "no selected layer has that name")
            raise ValueError(
                f"sparsify_: sparsity must name layers that can be masked, got {name!r}: {why}; "
                f"the layers are {sorted(layers)}"
            )


def apply_mask(
    module: nn.Module,
    pattern: Pattern,
    mask: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
) -> Masked:
    """Make a layer masked, if it is not, and give it this mask."""
    layer = module if isinstance(module, Masked) else mask_layer(module, pattern)
    layer.pattern = pattern
    layer.set_mask(mask, optimizer)
    return layer


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model.

    Args:
        model: any module.

    Returns:
        {name of the layer: its mask}, bool, of the weights' shapes; the layers' own tensors, to be
        changed by `layer.set_mask` only.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = ds.prune.sparsify_(torch.nn.Sequential(torch.nn.Linear(4, 4)), 0.5)
        >>> {name: int(mask.sum()) for name, mask in ds.prune.masks(net).items()}
        {'0': 8}
    """
    check_model("masks", model)
    return {name: layer.mask for name, layer in masked_layers(model)}


def densify_(model: M, select: Select | None = None) -> M:
    """Make masked layers what they were, in place; pruned weights stay zero, and are free to move.

    The same objects, Parameters, names and hooks, as in `sparsify_`; the masks are dropped.

    Args:
        model: changed in place.
        select: (name, module) -> bool, which layers; default: all masked ones.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = ds.prune.sparsify_(torch.nn.Linear(4, 4), 0.5)
        >>> type(ds.prune.densify_(net)).__name__, int((net.weight == 0).sum())
        ('Linear', 8)
    """
    check_model("densify_", model)
    for name, layer in list(masked_layers(model)):
        if select is None or select(name, cast("nn.Module", layer)):
            unmask_layer(layer)
    return model


# ------------------------------------------------------------------ torch's own pruning
def from_torch_prune_(model: M) -> M:
    """Turn weights pruned by `torch.nn.utils.prune` into masked layers, in place.

    `weight_orig`, the very Parameter, becomes `weight` again, the buffer `weight_mask` becomes
    `mask`, and the hook that multiplied them goes. Pruned weights become zero. A bias that was
    pruned is multiplied out and trains freely from then on. Layers that have no masked form stay
    as they are.

    Args:
        model: changed in place.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> pruned = torch.nn.utils.prune.l1_unstructured(net[0], "weight", amount=0.5)
        >>> ds.prune.from_torch_prune_(net)
        Sequential(
          (0): MaskedLinear(in_features=4, ... kept=8 of 16)
        )
    """
    check_model("from_torch_prune_", model)
    owners = _owners(model)
    for module in model.modules():
        original = module._parameters.get("weight_orig")
        tied = original is not None and owners[id(original)] > 1
        if original is None or tied or type(module) not in MASKED_CLASSES:
            continue
        mask = cast("Tensor", module._buffers["weight_mask"]) != 0
        if "bias_mask" in module._buffers:
            prune.remove(module, "bias")
        _restore_weight(module)
        apply_mask(module, Unstructured(), mask)
    return model


def _restore_weight(module: nn.Module) -> None:
    """What `torch.nn.utils.prune.remove` does, but the values stay as they are."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == "weight":
            del module._forward_pre_hooks[key]
    del module.weight  # a product, in the module's __dict__
    del module._buffers["weight_mask"]
    weight, others = module._parameters.pop("weight_orig"), dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({"weight": weight, **others})  # in torch's order again
