"""Grounds computed once for inference: `freeze_ground`."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ._checks import check_shape
from ._ground import GroundState, make_ground
from ._memo import Memo, frozen_models, memo_of
from .sites import Sites
from .tensor import SparseTensor

M = TypeVar("M", bound=nn.Module)

_HOLDER = "_doublesparse_frozen"  # in the __dict__ of a frozen model


lock = threading.RLock()  # one thread at a time computes grounds


class Frozen:
    """What a model's frozen grounds start from, and the hooks that keep them true.

    Copies of the model are not frozen: the grounds know the parameters by their identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self.roots: list[GroundState] = []
        self.handles = [
            model.register_forward_pre_hook(_Enter(self), with_kwargs=True),
            model.register_forward_hook(_Leave(self), always_call=True),
        ]
        self.trains = [_Train(self, module) for module in model.modules()]
        self.handles += [
            module.register_load_state_dict_post_hook(_Thaw(self)) for module in model.modules()
        ]
        model.__dict__[_HOLDER] = self

    def __reduce__(self) -> Any:
        return _nothing, ()

    def add(self, root: GroundState) -> None:
        """Remember what becomes of this ground."""
        root.memo = Memo(self)
        self.roots = [*self.roots, root]

    def drop(self, root: GroundState) -> None:
        """Forget it; grounds in flight are no longer remembered either."""
        for ground in _descendants(root):
            ground.memo = None
        self.roots = [r for r in self.roots if r is not root]

    def clear(self) -> None:
        """Forget all grounds."""
        for root in self.roots:
            self.drop(root)

    def remove(self, model: nn.Module) -> None:
        """Forget, and leave no trace in the model."""
        self.clear()
        for handle in self.handles:
            handle.remove()
        for train in self.trains:
            train.remove()
        if model.__dict__.get(_HOLDER) is self:
            del model.__dict__[_HOLDER]


def _nothing() -> None:
    """What a copy of a model has for its frozen grounds."""


def _descendants(root: GroundState) -> Iterator[GroundState]:
    todo, seen = [root], {id(root)}
    while todo:
        ground = todo.pop()
        for value, _ in list((ground.memo or {}).values()):  # other threads may add to it
            if isinstance(value, GroundState) and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
        yield ground


class _Hook:
    """Belongs to one model; its copies do nothing."""

    def __init__(self, frozen: Frozen | None = None) -> None:
        self.frozen = frozen

    def __reduce__(self) -> Any:
        return type(self), ()


class _Enter(_Hook):
    """Before forward: an input on a frozen ground gets that very ground."""

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        roots = self.frozen.roots if self.frozen is not None else []
        if not roots or model.training:
            return None
        frozen_models.enter(self.frozen)
        enter = partial(_on_root, roots)
        return tuple(map(enter, args)), {name: enter(value) for name, value in kwargs.items()}


class _Leave(_Hook):
    """After forward: its layers have ended."""

    def __call__(self, model: nn.Module, args: Any, out: Any) -> None:
        if self.frozen is not None:
            frozen_models.leave(self.frozen)


def _on_root(roots: list[GroundState], x: Any) -> Any:
    ground = x.ground if isinstance(x, SparseTensor) else None
    if ground is None or memo_of(ground) is not None:
        return x
    root = next((r for r in roots if _fits(r, ground)), None)
    return x if root is None else SparseTensor._of(x.features, x.sites, root)


def _fits(root: GroundState, ground: GroundState) -> bool:
    """Whether what is remembered of one ground holds for the other."""
    key = (root.spatial_shape, root.channels, root.dtype)
    return key == (ground.spatial_shape, ground.channels, ground.dtype) and root.same_as(ground)


class _Thaw(_Hook):
    """After load_state_dict, of any part: other weights, other grounds."""

    def __call__(self, module: nn.Module, keys: Any) -> None:
        if self.frozen is not None:
            self.frozen.clear()


class _Train:
    """Shadows `module.train`: training changes weights, so train(True) of any part thaws."""

    def __init__(self, frozen: Frozen | None, module: nn.Module, before: Any = None) -> None:
        self.frozen, self.module = frozen, module
        self.before = before  # what shadowed it already
        if frozen is not None:
            self.before = module.__dict__.get("train")
            module.__dict__["train"] = self

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode and self.frozen is not None:
            self.frozen.clear()
        if self.before is not None:
            return cast("nn.Module", self.before(mode))
        return type(self.module).train(self.module, mode)

    def remove(self) -> None:
        """Take the shadow away; one that was laid over it stays."""
        self.frozen = None
        if self.module.__dict__.get("train") is self:
            del self.module.__dict__["train"]
            before = self.before
            while isinstance(before, _Train) and before.frozen is None:  # its model was thawed
                before = before.before
            if before is not None:
                self.module.__dict__["train"] = before

    def __deepcopy__(self, memo: dict[int, Any]) -> _Train:
        return _Train(None, copy.deepcopy(self.module, memo), copy.deepcopy(self.before, memo))

    def __reduce__(self) -> Any:
        return _Train, (None, self.module, self.before)


def forget_around(module: nn.Module) -> None:
    """Other weights, other grounds: what models frozen around this module remember is forgotten."""
    shadow = module.__dict__.get("train")
    while isinstance(shadow, _Train):
        if shadow.frozen is not None:
            shadow.frozen.clear()
        shadow = shadow.before


def check_model(operation: str, model: nn.Module) -> None:
    """Raise TypeError where it is no module, RuntimeError where it or a part is in training."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{operation}: model must be an nn.Module, got {type(model).__name__}; wrap it in one"
        )
    if any(m.training for m in model.modules()):
        raise RuntimeError(
            f"{operation}: model must be in evaluation mode, because training changes weights; "
            "call model.eval()"
        )


def freeze(model: nn.Module, root: GroundState) -> Frozen:
    """Remember what becomes of a ground, and compute it. `lock` is held."""
    frozen: Frozen = model.__dict__.get(_HOLDER) or Frozen(model)
    frozen.add(root)
    try:
        with torch.no_grad():  # no active site: what is computed is the ground
            device = root.values.device
            coords = torch.empty(0, 1 + len(root.axes), dtype=torch.int32, device=device)
            sites = Sites(coords, root.spatial_shape, 1, device)
            model(SparseTensor._of(root.values.new_empty(0, root.channels), sites, root))
    except BaseException:
        frozen.drop(root)
        if not frozen.roots:
            frozen.remove(model)
        raise
    return frozen


def freeze_ground(model: M, spatial_shape: Sequence[int], ground: Any = 0.0) -> M:
    """Compute a network's ground states once, for inference.

    What every layer makes of the ground depends on its parameters and on the grid alone, but at
    batch size 1 costs up to half of the dense network. Until `thaw` it is remembered: whenever the
    model gets a SparseTensor of this grid and ground, without gradients recorded, only its active
    sites are computed. The answer stays the same.

    Parameters must not change meanwhile. `model.train()` and `load_state_dict` thaw; nothing can
    see a parameter that is written to directly. Copies and pickles of the model are not frozen.
    Layers whose ground depends on the sample (group norm, squeeze-and-excitation) end what is
    remembered; so does autocast, which casts anew on every call.

    Args:
        model: in evaluation mode.
        spatial_shape: extents of the input; call once for each grid in use.
        ground: of the input: a number, (C,) or an image (1, C, *spatial).

    Returns:
        the model.

    Raises:
        TypeError: `model` is no nn.Module.
        RuntimeError: it is in training mode.
        ValueError: its number of input channels cannot be told from its first convolution and the
            ground gives none; or extents or a ground that do not fit.

    Example:
        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU()).eval()
        >>> image = torch.zeros(1, 1, 32, 32)
        >>> image[0, 0, 5, 6] = 1.0
        >>> net = ds.freeze_ground(net, (32, 32))
        >>> with torch.no_grad():
        ...     y = net(ds.SparseTensor.from_dense(image))
        >>> torch.allclose(y.to_dense(), net(image), atol=1e-6)
        True
        >>> net = ds.thaw(net)
    """
    check_model("freeze_ground", model)
    shape = check_shape(spatial_shape, "freeze_ground")
    channels = ground.shape[-1 if ground.dim() == 1 else 1] if _is_image(ground) else None
    first = next((m for m in model.modules() if hasattr(m, "in_channels")), None)
    if channels is None and first is None:
        raise ValueError(
            "freeze_ground: model must have a convolution that tells its input channels, got none; "
            "pass ground=torch.zeros(channels)"
        )
    if channels is None:
        channels = int(first.in_channels)  # type: ignore[union-attr, arg-type]
    like = next(model.parameters(), torch.empty(0, device="cpu"))
    state = make_ground(ground, channels, 1, shape, like.dtype, like.device, "freeze_ground")
    if state is None:
        raise ValueError(
            "freeze_ground: ground must be a state, got None, which has nothing to compute; "
            "pass a number or a tensor"
        )
    with lock:
        roots = getattr(model.__dict__.get(_HOLDER), "roots", ())
        if not any(_fits(root, state) for root in roots):
            try:
                freeze(model, state)
            except ValueError as error:
                raise ValueError(
                    f"freeze_ground: model must take {channels} channels on {shape}, got: {error}; "
                    "pass ground=torch.zeros(channels) where its first convolution does not tell"
                ) from error
    return model


def _is_image(ground: Any) -> bool:
    return isinstance(ground, Tensor) and ground.dim() > 0


def thaw_ground(model: nn.Module) -> None:
    """Forget what `freeze_ground` computed."""
    frozen = model.__dict__.get(_HOLDER)
    if frozen is not None:
        frozen.remove(model)
