"""Linear and convolution layers with pruned weights: torch's own classes, plus a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._freeze import forget_around
from .._magnitude import magnitude_mask
from .._packed_weight import PackedWeight
from .._patterns import Pattern, Unstructured, check_pattern, check_sparsity
from ._packed_state import load_packed, unpack_into
from ._projection import keep_where, states_like, unwatch, watch, zero_where


class Masked:
    """What masked layers share: the mask, and that masked weights are zero. Mixed into a module.

    A subclass names the class that it masks as `dense_class`; an instance of that class becomes a
    masked one by `mask_layer`, and one again by `unmask_layer`, as the same object.
    """

    frozen = False
    dense_class: type[nn.Module]
    pattern: Pattern
    weight: Tensor
    mask: Tensor
    _changed: Tensor | None  # entries whose optimizer state is to be cleared at the next step

    def _start(self, pattern: Pattern, mask: Tensor) -> None:
        """Become masked; `mask` is given away."""
        module = cast("nn.Module", self)
        forget_around(module)
        self.pattern = pattern
        self._changed = None
        module.register_buffer("mask", mask)
        self.project_()
        watch(self)

    def _start_by_magnitude(self, pattern: Pattern, sparsity: float | None) -> None:
        """Become masked as the constructor says."""
        name = type(self).__name__
        check_pattern(name, pattern)
        check_sparsity(name, sparsity, pattern)
        if sparsity == 0.0 and pattern.fixed:
            sparsity = None
        if self.weight.is_meta:
            mask = torch.ones_like(self.weight, dtype=torch.bool)
        else:
            mask = magnitude_mask(self.weight, pattern, sparsity, getattr(self, "groups", 1))
        self._start(pattern, mask)

    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Change which weights are kept; the mask may shrink and grow.

        At every entry that changes, the weight and its gradient become zero, and so does all that
        the optimizer remembers in the weight's shape (momentum, squared gradients): at once in the
        optimizer given, otherwise at the next step of the one that updates the weight. A regrown
        weight starts at zero. Adam without a past divides a first gradient g by sqrt((1 - beta2)
        g^2) and multiplies it by 1 - beta1 only: its first step at a regrown weight is about
        (1 - beta1) / sqrt(1 - beta2) = 3 times the usual one.

        Args:
            mask: bool, of the weight's shape; True is kept. It is copied. It need not have the
                layer's pattern.
            optimizer: one that updates the weight.

        Raises:
            TypeError: `mask` is no bool tensor, or `optimizer` no `torch.optim.Optimizer`.
            ValueError: it has another shape than the weight.

        Example:
            >>> import torch, doublesparse as ds
            >>> layer = ds.nn.MaskedLinear(2, 1)
            >>> layer.set_mask(torch.tensor([[True, False]]))
            >>> layer.weight[0, 1].item()
            0.0
        """
        mask = self._checked(mask)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{type(self).__name__}.set_mask: optimizer must be a torch.optim.Optimizer, got "
                f"{type(optimizer).__name__}; leave it out and its state is cleared at its next "
                "step"
            )
        forget_around(cast("nn.Module", self))
        changed = mask != self.mask
        self.mask.copy_(mask)
        for tensor in (self.weight, self.weight.grad):
            if tensor is not None:
                zero_where(changed, tensor)
                keep_where(self.mask, tensor)
        if optimizer is not None:
            for state in states_like(optimizer, self.weight):
                zero_where(changed, state)
        elif self._changed is not None:
            self._changed = changed | self._changed.to(changed.device)
        else:
            self._changed = changed

    def _checked(self, mask: Any) -> Tensor:
        """A mask given by the user, on the weight's device."""
        name = f"{type(self).__name__}.set_mask"
        if not isinstance(mask, Tensor):
            raise TypeError(
                f"{name}: mask must be a Tensor, got {type(mask).__name__}; pass a bool tensor"
            )
        if mask.dtype is not torch.bool:
            raise TypeError(f"{name}: mask must be bool, got {mask.dtype}; use mask != 0")
        if mask.shape != self.weight.shape:
            raise ValueError(
                f"{name}: mask must have the weight's shape {tuple(self.weight.shape)}, got "
                f"{tuple(mask.shape)}; True is kept"
            )
        return mask.to(self.weight.device)

    def project_(self) -> None:
        """Set masked weights to zero: after writing to `weight` without an optimizer."""
        if not self.weight.is_meta:
            keep_where(self.mask, self.weight)

    def reset_parameters(self) -> None:
        """As torch's; the mask stays."""
        super().reset_parameters()  # type: ignore[misc]
        if "mask" in self.__dict__.get("_buffers", ()):
            self.project_()

    def extra_repr(self) -> str:
        """As torch's, and the share that is kept."""
        text = f"{super().extra_repr()}, pattern={self.pattern}"  # type: ignore[misc]
        if self.mask.is_meta:
            return text
        return f"{text}, kept={int(self.mask.sum())} of {self.mask.numel()}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """`.type(dtype)` converts every buffer; the mask stays bool."""
        super()._apply(fn, recurse)  # type: ignore[misc]
        self._keep_bool()
        return self

    def _keep_bool(self) -> None:
        if self.mask.dtype is not torch.bool:
            self.mask = self.mask != 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Weights of a dense model are pruned as they are loaded; packed ones are unpacked."""
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]
        if f"{prefix}mask" in state_dict:
            self._changed = None  # the optimizer's state, loaded too, belongs to that mask
        load_packed(self, state_dict, prefix, *args)
        self._keep_bool()
        self.project_()

    def _take(self, packed: PackedWeight, assign: bool) -> None:
        """Use the weight of a frozen model."""
        unpack_into(self, packed, assign)

    def thaw_(self) -> None:
        """Undo `ds.prune.freeze`: nothing to do here."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or what was pickled, is as masked as the original."""
        super().__setstate__(state)  # type: ignore[misc]
        watch(self)


class MaskedLinear(Masked, nn.Linear):
    """`nn.Linear` with a pruned weight: the kept weights alone are computed with and trained.

    It is a `nn.Linear`: the same constructor, `weight` (out_features, in_features) and `bias`. The
    buffer `mask` (bool, of the weight's shape) is part of the `state_dict`; to load a dense
    `state_dict`, which has none, pass `strict=False`: the mask stays, masked weights become zero.

    A masked weight has zero value, gradient and update with any `torch.optim.Optimizer`, whatever
    it remembers or decays: a hook sets it, and what the optimizer remembers of it, to zero after
    each step. After writing to `weight` by hand, call `project_()`.

    Args:
        in_features: size of the input's last axis.
        out_features: of the output's.
        bias: add a bias, which is not pruned.
        device: of parameters and mask.
        dtype: of the parameters.
        pattern: of the mask made here, by the magnitude of the initial weights.
        sparsity: share of the weights to prune here; 0.0 prunes none, or, where the pattern says
            itself how many it keeps (`ds.NM` and the top-k ones), leaves it to the pattern.

    Shapes:
        input (*, in_features), output (*, out_features), as for `nn.Linear`.

    Raises:
        TypeError: `pattern` is no pattern, `sparsity` no number.
        ValueError: `sparsity` outside [0, 1], or in disagreement with the pattern.

    Example:
        >>> import torch, doublesparse as ds
        >>> layer = ds.nn.MaskedLinear(8, 4, sparsity=0.75)
        >>> int(layer.mask.sum()), int((layer.weight != 0).sum())
        (8, 8)
        >>> torch.allclose(layer(torch.ones(2, 8)), layer.weight.sum(1) + layer.bias)
        True
    """

    dense_class: type[nn.Module] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
        sparsity: float = 0.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._start_by_magnitude(pattern, sparsity)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the kept weights, add the bias."""
        return functional.masked_linear(input, self.weight, self.mask, self.bias)


class _MaskedConv(Masked):
    """The constructor and the forward of MaskedConv1d .. MaskedConv3d."""

    _convolve: Callable[..., Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
        sparsity: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels,  # type: ignore[call-arg]  # torch's constructor
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._start_by_magnitude(pattern, sparsity)

    def forward(self: Any, input: Any) -> Any:
        """Convolve with the kept weights; the type of the output is that of the input."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._run(input, padding)

    def _run(self: Any, input: Any, padding: Any) -> Any:
        return self._convolve(
            input,
            self.weight,
            self.mask,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """`nn.Conv1d` with a pruned weight: see `MaskedConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> ds.nn.MaskedConv1d(2, 4, 3, stride=2, sparsity=0.5)(torch.ones(1, 2, 9)).shape
        torch.Size([1, 4, 4])
    """

    dense_class = nn.Conv1d
    _convolve = staticmethod(functional.masked_conv1d)


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """`nn.Conv2d` with a pruned weight: the kept weights alone are computed with and trained.

    It is a `nn.Conv2d`: the same constructor (stride, padding in all modes, dilation, groups),
    `weight` (c_out, c_in / groups, kh, kw) and `bias`. `mask`, its place in the `state_dict`, and
    what optimizers do, are as of `MaskedLinear`; `pattern` lies on the matrix (c_out, offset *
    channel), so blocks cross neither an offset nor a group.

    Args:
        in_channels: c_in.
        out_channels: c_out.
        kernel_size: as of `nn.Conv2d`, like the following.
        stride: an int or one per axis.
        padding: an int, one per axis, "same" or "valid".
        dilation: an int or one per axis.
        groups: divides both channel counts.
        bias: add a bias, which is not pruned.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: of parameters and mask.
        dtype: of the parameters.
        pattern: of the mask made here, by the magnitude of the initial weights.
        sparsity: share of the weights to prune here, as of `MaskedLinear`.

    Raises:
        TypeError: `pattern` is no pattern, `sparsity` no number.
        ValueError: `sparsity` outside [0, 1], or in disagreement with the pattern.

    Example:
        >>> import torch, doublesparse as ds
        >>> conv = ds.nn.MaskedConv2d(16, 32, 3, padding=1, pattern=ds.Block(8, 8), sparsity=0.5)
        >>> conv(torch.ones(1, 16, 5, 5)).shape, int(conv.mask.sum()) / conv.mask.numel()
        (torch.Size([1, 32, 5, 5]), 0.5)
    """

    dense_class = nn.Conv2d
    _convolve = staticmethod(functional.masked_conv2d)


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """`nn.Conv3d` with a pruned weight: see `MaskedConv2d`.

    Example:
        >>> import torch, doublesparse as ds
        >>> ds.nn.MaskedConv3d(2, 4, 3, sparsity=0.9)(torch.ones(1, 2, 4, 4, 4)).shape
        torch.Size([1, 4, 2, 2, 2])
    """

    dense_class = nn.Conv3d
    _convolve = staticmethod(functional.masked_conv3d)


# ------------------------------------------------------------------ changing the class
# Which class masks which: exact types only, because a subclass may have another forward.
MASKED_CLASSES: dict[type[nn.Module], type[Masked]] = {
    cls.dense_class: cls for cls in (MaskedLinear, MaskedConv1d, MaskedConv2d, MaskedConv3d)
}


def mask_layer(module: nn.Module, pattern: Pattern, mask: Tensor | None = None) -> Masked:
    """Make a layer a masked one: the same object, Parameters, hooks and names.

    Args:
        module: of exactly one of the types of `MASKED_CLASSES`.
        pattern: what is said of it.
        mask: bool, of the weight's shape; by default everything is kept.
    """
    module.__class__ = MASKED_CLASSES[type(module)]  # type: ignore[assignment]
    layer = cast("Masked", module)
    if mask is None:
        mask = torch.ones_like(layer.weight, dtype=torch.bool)
    layer._start(pattern, mask.clone(memory_format=torch.contiguous_format))
    return layer


def unmask_layer(layer: Masked) -> nn.Module:
    """Make a masked layer what it was before `mask_layer`; pruned weights are zero."""
    module = cast("nn.Module", layer)
    layer.thaw_()
    if not issubclass(type(module), Masked):
        return module  # a frozen layer that has no mask otherwise
    unwatch(layer)
    layer.project_()
    del layer.mask, layer.pattern, layer._changed
    module.__class__ = layer.dense_class
    return module
