"""Packed weights in a `state_dict`: keys `weight.meta`, `weight.values`, ... per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .._packed_weight import PackedWeight

if TYPE_CHECKING:
    from ._masked import Masked
    from ._packed import Packed

_NAMES = ("meta", "values", "bitmask", "gaps", "scales")


def fitting(packed: PackedWeight, dtype: torch.dtype) -> PackedWeight:
    """The packed weight, in this dtype if it is wider: what a layer of this dtype can run with."""
    if packed.dtype == torch.int8 or torch.promote_types(packed.dtype, dtype) == dtype:
        return packed
    return repacked(packed, dtype)


def repacked(packed: PackedWeight, dtype: torch.dtype) -> PackedWeight:
    """The same kept weights in another dtype."""
    return PackedWeight.pack(packed.unpack(), packed.mask(), packed.pattern, dtype)


def save_packed(packed: PackedWeight, destination: Any, prefix: str) -> None:
    """Write it into a `state_dict`."""
    for name, tensor in packed.tensors().items():
        destination[f"{prefix}weight.{name}"] = tensor


def load_packed(
    layer: Masked,
    state_dict: Any,
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """What torch's own loading leaves to do where a `state_dict` has, or lacks, a packed weight.

    Args:
        layer: gets the packed weight by its `_take`.
        state_dict: of a frozen layer or of one that is not, like the following arguments as torch
            passes them to `Module._load_from_state_dict`, which has run.
        prefix: of the layer's names.
        local_metadata: holds what `load_state_dict(assign=True)` says.
        strict: whether missing keys are wrong.
        missing_keys: gets, or loses, the layer's.
        unexpected_keys: loses the layer's.
        error_msgs: gets what is wrong with the tensors.
    """
    names = {name: f"{prefix}weight.{name}" for name in _NAMES}
    if prefix + "weight" in state_dict:
        return
    found = {name: state_dict[key] for name, key in names.items() if key in state_dict}
    if not found:
        if layer.frozen and strict:
            missing_keys += [names["meta"], names["values"]]
        return
    unexpected_keys[:] = [key for key in unexpected_keys if key not in names.values()]
    for key in (prefix + "weight", prefix + "mask"):
        if key in missing_keys:
            missing_keys.remove(key)
    try:
        packed = PackedWeight.from_tensors(found)
    except (TypeError, ValueError, NotImplementedError) as error:
        error_msgs.append(f"{prefix}weight: {error}")
        return
    shape = cast("Packed", layer).packed.shape if layer.frozen else layer.weight.shape
    if packed.shape != shape:
        error_msgs.append(
            f"size mismatch for {prefix}weight: copying a packed weight with shape {packed.shape} "
            f"from checkpoint, the shape in current model is {shape}."
        )
        return
    layer._take(packed, bool(local_metadata.get("assign_to_params_buffers", False)))


def unpack_into(layer: Masked, packed: PackedWeight, assign: bool) -> None:
    """Load a packed weight into a layer that is not frozen, as a dense weight and its mask."""
    weight, mask = packed.unpack(), packed.mask()
    if assign or layer.weight.is_meta:
        layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
        layer.mask = mask
    else:
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.mask.copy_(mask)
    layer.pattern = packed.pattern
    layer._changed = None  # as with a mask that is loaded
