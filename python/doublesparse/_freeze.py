"""Grounds computed once for inference: `freeze_ground`, `thaw`, `Incremental`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._checks import check_shape
from ._ground import GroundState, make_ground
from .sites import Sites
from .tensor import SparseTensor

M = TypeVar("M", bound=nn.Module)

_HOLDER = "_doublesparse_frozen"  # in the __dict__ of a frozen model


class _Frozen:
    """What a model's frozen grounds start from, and the hooks that keep them true.

    Copies of the model are not frozen: the grounds know the parameters by their identity.
    """

    def __init__(self, model: nn.Module) -> None:
        self.roots: list[GroundState] = []
        self.handles = [
            model.register_forward_pre_hook(_Enter(self), with_kwargs=True),
            model.register_load_state_dict_post_hook(_Thaw(self)),
        ]
        for module in model.modules():  # train(True) of any of them
            module.__dict__["train"] = _Train(self, module)
        model.__dict__[_HOLDER] = self

    def __reduce__(self) -> Any:
        return _nothing, ()

    def clear(self) -> None:
        """Forget all grounds; those in flight are no longer remembered either."""
        for root in self.roots:
            for ground in _descendants(root):
                ground.memo = None
        self.roots = []

    def remove(self, model: nn.Module) -> None:
        """Forget, and leave no trace in the model."""
        self.clear()
        for handle in self.handles:
            handle.remove()
        for module in model.modules():
            module.__dict__.pop("train", None)
        model.__dict__.pop(_HOLDER, None)


def _nothing() -> None:
    """What a copy of a model has for its frozen grounds."""


def _descendants(root: GroundState) -> Iterator[GroundState]:
    todo, seen = [root], {id(root)}
    while todo:
        ground = todo.pop()
        memo: dict[Any, tuple[Any, Any]] = ground.memo or {}
        for value, _ in memo.values():
            if isinstance(value, GroundState) and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
        yield ground


class _Hook:
    """Belongs to one model; its copies do nothing."""

    def __init__(self, frozen: _Frozen | None = None) -> None:
        self.frozen = frozen

    def __reduce__(self) -> Any:
        return type(self), ()


class _Enter(_Hook):
    """Before forward: an input on a frozen ground gets that very ground."""

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        roots = self.frozen.roots if self.frozen is not None else []
        if not roots or model.training:
            return None
        enter = partial(_on_root, roots)
        return tuple(map(enter, args)), {name: enter(value) for name, value in kwargs.items()}


def _on_root(roots: list[GroundState], x: Any) -> Any:
    ground = x.ground if isinstance(x, SparseTensor) else None
    if ground is None or ground.memo is not None:
        return x
    for root in roots:
        key = (root.spatial_shape, root.channels, root.dtype)
        if key == (ground.spatial_shape, ground.channels, ground.dtype) and root.same_as(ground):
            return SparseTensor._of(x.features, x.sites, root)
    return x


class _Thaw(_Hook):
    """After load_state_dict: other weights, other grounds."""

    def __call__(self, model: nn.Module, keys: Any) -> None:
        if self.frozen is not None:
            self.frozen.clear()


class _Train:
    """Shadows `module.train`: training changes weights, so train(True) thaws."""

    def __init__(self, frozen: _Frozen | None, module: nn.Module) -> None:
        self.frozen, self.module = frozen, module

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode and self.frozen is not None:
            self.frozen.clear()
        return type(self.module).train(self.module, mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Train:
        return _Train(None, copy.deepcopy(self.module, memo))

    def __reduce__(self) -> Any:
        return _Train, (None, self.module)


def _check_model(operation: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{operation}: model must be an nn.Module, got {type(model).__name__}; wrap it in one"
        )
    if any(m.training for m in model.modules()):
        raise RuntimeError(
            f"{operation}: model must be in evaluation mode, because training changes weights; "
            "call model.eval()"
        )


def _freeze(model: nn.Module, root: GroundState) -> _Frozen:
    frozen: _Frozen = model.__dict__.get(_HOLDER) or _Frozen(model)
    root.memo = {}
    frozen.roots.append(root)
    with torch.no_grad():  # no active site: what is computed is the ground
        sites = Sites(
            torch.empty(0, 1 + len(root.axes), dtype=torch.int32),
            root.spatial_shape,
            1,
            torch.device("cpu"),
        )
        model(SparseTensor._of(root.values.new_empty(0, root.channels), sites, root))
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
    remembered.

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
    _check_model("freeze_ground", model)
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
    like = next(model.parameters(), torch.empty(0))
    state = make_ground(ground, channels, 1, shape, like.dtype, like.device, "freeze_ground")
    if state is None:
        raise ValueError(
            "freeze_ground: ground must be a state, got None, which has nothing to compute; "
            "pass a number or a tensor"
        )
    _freeze(model, state)
    return model


def _is_image(ground: Any) -> bool:
    return isinstance(ground, Tensor) and ground.dim() > 0


def thaw(model: M) -> M:
    """Forget what `freeze_ground` computed; parameters may change again.

    Args:
        model: frozen or not.

    Returns:
        the model.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"thaw: model must be an nn.Module, got {type(model).__name__}; pass one")
    frozen = model.__dict__.get(_HOLDER)
    if frozen is not None:
        frozen.remove(model)
    return model


class Incremental:
    """Exact inference on frames that differ from a background in few places.

    The background is a ground state: what every layer makes of it is computed once, and a frame
    costs as much as the places where it differs. The answer is the dense network's, not an
    approximation.

        >>> import torch, doublesparse as ds
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU()).eval()
        >>> background = torch.rand(1, 1, 32, 32)
        >>> step = ds.Incremental(net, background)
        >>> frame = background.clone()
        >>> frame[0, 0, 5, 6] = 2.0
        >>> torch.allclose(step(frame), net(frame), atol=1e-6)
        True

    Args:
        model: in evaluation mode whenever it is called. It may be trained meanwhile, or load
            weights: the background is then computed again.
        background: (1, C, *spatial), the dtype of the model.

    Raises:
        TypeError: no nn.Module, no floating-point tensor.
        ValueError: a background of another shape, or NaN or infinity in it.
        RuntimeError: the model is in training mode.
    """

    def __init__(self, model: nn.Module, background: Tensor) -> None:
        _check_model("Incremental", model)
        self.model = model
        self.set_background(background)

    def set_background(self, background: Tensor) -> None:
        """Start from another background, e.g. when the light has changed."""
        if not isinstance(background, Tensor) or not background.is_floating_point():
            kind = background.dtype if isinstance(background, Tensor) else type(background).__name__
            raise TypeError(
                f"Incremental: background must be a floating-point Tensor, got {kind}; "
                "use .float()"
            )
        if background.dim() < 3 or background.shape[0] != 1:
            raise ValueError(
                f"Incremental: background must have shape (1, C, *spatial), got "
                f"{tuple(background.shape)}; add a batch dimension with [None]"
            )
        self.release()
        self.background = background.detach().clone()
        self._ground()

    def _ground(self) -> GroundState:
        """The background's ground state, computed again where it was thawed."""
        if self._root is None or self._root.memo is None:
            b = self.background
            shape = tuple(b.shape[2:])
            root = make_ground(b, b.shape[1], 1, shape, b.dtype, b.device, "Incremental")
            assert root is not None
            self._frozen = _freeze(self.model, root)
            self._root = root
        return self._root

    _root: GroundState | None = None
    _frozen: _Frozen | None = None

    def changes(self, frame: Tensor) -> SparseTensor:
        """The frame as a SparseTensor whose active sites differ from the background."""
        b = self.background
        if not isinstance(frame, Tensor) or frame.dtype != b.dtype:
            kind = frame.dtype if isinstance(frame, Tensor) else type(frame).__name__
            raise TypeError(
                f"Incremental: frame must be a Tensor of {b.dtype} like the background, got {kind};"
                " convert it"
            )
        if frame.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"Incremental: frame must have shape (B, *{tuple(b.shape[1:])}) like the "
                f"background, got {tuple(frame.shape)}; resize it or set another background"
            )
        return SparseTensor.from_dense(frame, ground=self._ground())

    def __call__(self, frame: Tensor) -> Any:
        """The model's answer to a frame, dense.

        Args:
            frame: (B, C, *spatial): any number of frames on the same background.

        Returns:
            what the model returns for the dense frame; no gradient.

        Raises:
            TypeError: no tensor of the background's dtype.
            ValueError: another shape.
            RuntimeError: the model is in training mode.
        """
        _check_model("Incremental", self.model)
        with torch.no_grad():
            out = self.model(self.changes(frame))
        return pytree.tree_map(_densify, out, is_leaf=lambda o: isinstance(o, SparseTensor))

    def release(self) -> None:
        """Forget the background's responses."""
        if self._frozen is not None and self._root is not None:
            for ground in _descendants(self._root):
                ground.memo = None
            self._frozen.roots = [r for r in self._frozen.roots if r is not self._root]
        self._root = None


def _densify(value: Any) -> Any:
    return value.to_dense() if isinstance(value, SparseTensor) else value
