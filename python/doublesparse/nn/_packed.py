"""Masked layers between `freeze` and `thaw`: a `PackedWeight` in the place of weight and mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import functional
from .._freeze import forget_around
from .._functional_packed import living_weight
from .._packed_codec import decode, encode
from .._packed_weight import PackedWeight
from .._patterns import Unstructured
from ._masked import MASKED_CLASSES, Masked, MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from ._packed_state import fitting, repacked, save_packed
from ._projection import unwatch, watch


class _Parked(NamedTuple):
    """What a frozen layer needs to be thawed.

    Attributes:
        weight: the Parameter, without its data, so that optimizers know it again.
        changed: `Masked._changed`, encoded.
    """

    weight: nn.Parameter
    changed: dict[str, Tensor] | None


class Packed(Masked):
    """What frozen layers share. Mixed into a masked layer's class.

    `weight` and `mask` can be read: they are unpacked by every access, and what is written into the
    result is lost, so assigning to them is refused.
    """

    frozen = True
    packed: PackedWeight
    _parked: _Parked

    def thaw_(self) -> None:
        """Become a masked layer again, with its old Parameter, which gets the packed values."""
        module, packed, parked = cast("nn.Module", self), self.packed, self._parked
        weight, mask = self.weight, packed.mask()
        forget_around(module)
        del self.packed, self._parked
        module.__class__ = THAWED_CLASSES[type(module)]
        parked.weight.data = weight
        module._parameters["weight"] = parked.weight
        module._buffers["mask"] = mask
        if parked.changed is not None:
            changed = torch.zeros(mask.numel(), dtype=torch.bool, device="cpu")
            changed[decode(parked.changed, mask.numel())] = True
            self._changed = changed.view(mask.shape).to(mask.device)
        watch(self)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        if value is None and name == "weight":
            return self.packed.unpack().to(self._parked.weight.dtype)
        if value is None and name == "mask":
            return self.packed.mask()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "mask"):
            raise RuntimeError(
                f"{type(self).__name__}: {name} must not be assigned while frozen, got "
                f"{type(value).__name__}; call ds.thaw(model) first"
            )
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Any:
        """As torch's; `train(True)` thaws, because training changes weights."""
        if mode:
            self.thaw_()
            return cast("nn.Module", self).train(mode)
        return super().train(mode)  # type: ignore[misc]

    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """As of the masked layer; thaws."""
        self._checked(mask)
        self.thaw_()
        self.set_mask(mask, optimizer)

    def project_(self) -> None:
        """Nothing: what is packed is masked."""

    def reset_parameters(self) -> None:
        """As torch's; thaws."""
        self.thaw_()
        self.reset_parameters()

    def extra_repr(self) -> str:
        """As torch's, and what is packed."""
        dense = self.dense_class.extra_repr(cast("nn.Module", self))
        return f"{dense}, packed={self.packed}"

    def _keep_bool(self) -> None:
        """Nothing: there is no buffer."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """A dtype narrower than the packed one packs anew; the device is that of products."""
        parameter = self._parked.weight
        probe = fn(parameter.data)
        packed = self.packed.to(probe.device)
        super()._apply(fn, recurse)
        parameter.data = probe
        self.packed = fitting(packed, probe.dtype)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        save_packed(self.packed, destination, prefix)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """A packed weight takes the place of this one; a dense weight thaws."""
        if prefix + "weight" in state_dict:
            self.thaw_()
            self._load_from_state_dict(state_dict, prefix, *args)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def _take(self, packed: PackedWeight, assign: bool) -> None:
        weight = self._parked.weight
        self.packed = fitting(packed.to(weight.device), weight.dtype)
        self._parked = self._parked._replace(changed=None)  # as with a mask that is loaded
        self.pattern = packed.pattern

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        unwatch(self)  # no optimizer updates it


class PackedLinear(Packed, MaskedLinear):
    """What `ds.prune.freeze` makes of a `MaskedLinear`, until `ds.thaw`.

    Attributes:
        packed: the weight, a `PackedWeight` (out_features, in_features).
        bias: as before.

    Example:
        >>> import torch, doublesparse as ds
        >>> layer = ds.prune.freeze(ds.nn.MaskedLinear(8, 4, sparsity=0.75))
        >>> type(layer).__name__, layer.packed.n_kept, sorted(layer.state_dict())[0]
        ('PackedLinear', 8, 'bias')
        >>> type(ds.thaw(layer)).__name__
        'MaskedLinear'
    """

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the kept weights, add the bias."""
        return functional.spmm(self.packed, input, self.bias)


class _PackedConv(Packed):
    """The forward of PackedConv1d .. PackedConv3d."""

    def _run(self: Any, input: Any, padding: Any) -> Any:
        return functional.packed_conv(
            input, self.packed, self.bias, self.stride, padding, self.dilation, self.groups
        )


class PackedConv1d(_PackedConv, MaskedConv1d):
    """What `ds.prune.freeze` makes of a `MaskedConv1d`: see `PackedLinear`."""


class PackedConv2d(_PackedConv, MaskedConv2d):
    """What `ds.prune.freeze` makes of a `MaskedConv2d`: see `PackedLinear`."""


class PackedConv3d(_PackedConv, MaskedConv3d):
    """What `ds.prune.freeze` makes of a `MaskedConv3d`: see `PackedLinear`."""


class _PackedSites(Packed):
    """A layer that has no operator for packed weights: every call unpacks, and runs as unmasked."""

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            return living_weight(self.packed, self._parked.weight.dtype)
        return super().__getattr__(name)


def _make_packed(masked: type[Masked]) -> type[Packed]:
    """The packed form of a masked class that has none; a name of this module, so it pickles."""
    name = masked.__name__.replace("Masked", "Packed")
    doc = f"What `ds.prune.freeze` makes of a `{masked.__name__}`: see `PackedLinear`."
    made = type(name, (_PackedSites, masked), {"__module__": __name__, "__doc__": doc})
    globals()[name] = made
    return cast("type[Packed]", made)


# ------------------------------------------------------------------ changing the class
PACKED_CLASSES: dict[type[Any], type[Packed]] = {
    MaskedLinear: PackedLinear,
    MaskedConv1d: PackedConv1d,
    MaskedConv2d: PackedConv2d,
    MaskedConv3d: PackedConv3d,
}
PACKED_CLASSES |= {
    masked: _make_packed(masked)
    for masked in MASKED_CLASSES.values()
    if masked not in PACKED_CLASSES
}
THAWED_CLASSES: dict[type[Any], type[Any]] = {
    packed: masked for masked, packed in PACKED_CLASSES.items()
}


def pack_layer(layer: Masked, dtype: torch.dtype | None = None) -> PackedWeight:
    """What `freeze_layer` puts in the place of weight and mask.

    A mask that was set by hand and does not follow the layer's pattern is packed unstructured.
    """
    if isinstance(layer, Packed):
        packed = layer.packed
        return packed if dtype is None or dtype == packed.dtype else repacked(packed, dtype)
    try:
        return PackedWeight.pack(layer.weight, layer.mask, layer.pattern, dtype)
    except ValueError:
        if layer.pattern == Unstructured():
            raise
        return PackedWeight.pack(layer.weight, layer.mask, None, dtype)


def freeze_layer(layer: Masked, packed: PackedWeight) -> None:
    """Become a packed layer: the same object, bias, hooks and names.

    Args:
        layer: of exactly one of the types of `PACKED_CLASSES`, or packed already.
        packed: what `pack_layer` made of it.
    """
    module = cast("nn.Module", layer)
    forget_around(module)  # another dtype rounds
    if isinstance(layer, Packed):
        layer.packed = packed
        return
    unwatch(layer)
    weight = cast("nn.Parameter", module._parameters["weight"])
    changed = None if layer._changed is None else encode(layer._changed.cpu())
    module._parameters["weight"] = module._buffers["mask"] = None
    weight.grad = None
    weight.data = weight.data.new_empty(0)
    layer._changed = None
    module.__class__ = PACKED_CLASSES[type(module)]  # type: ignore[assignment]
    frozen = cast("Packed", layer)
    frozen.packed, frozen._parked = packed, _Parked(weight, changed)
