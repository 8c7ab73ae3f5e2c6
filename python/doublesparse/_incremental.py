"""`Incremental`: exact inference on frames that differ from a background in few places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ._freeze import Frozen, check_model, freeze, lock
from ._ground import GroundState, make_ground
from .tensor import SparseTensor


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
        check_model("Incremental", model)
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
        with lock:
            self._start(background.detach().clone())

    def _start(self, background: Tensor) -> GroundState:
        """Compute a background's responses, and only then forget those of the one before."""
        check_model("Incremental", self.model)
        b, shape = background, tuple(background.shape[2:])
        root = make_ground(b, b.shape[1], 1, shape, b.dtype, b.device, "Incremental")
        assert root is not None
        frozen = freeze(self.model, root)
        old, self.background = (self._frozen, self._root), background
        self._frozen, self._root = frozen, root
        self._forget(*old)
        return root

    def _ground(self) -> GroundState:
        """The background's ground state, computed again where it was thawed."""
        with lock:
            if self._root is None or self._root.memo is None:
                return self._start(self.background)
            return self._root

    _root: GroundState | None = None
    _frozen: Frozen | None = None

    def _forget(self, frozen: Frozen | None, root: GroundState | None) -> None:
        if frozen is None or root is None:
            return
        frozen.drop(root)
        if not frozen.roots:
            frozen.remove(self.model)

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
        check_model("Incremental", self.model)
        with torch.no_grad():
            out = self.model(self.changes(frame))
        return pytree.tree_map(_densify, out, is_leaf=lambda o: isinstance(o, SparseTensor))

    def release(self) -> None:
        """Forget the background's responses; the next frame computes them again."""
        old = (self._frozen, self._root)
        self._frozen = self._root = None
        self._forget(*old)

    def __del__(self) -> None:
        if "model" in self.__dict__:  # not where the constructor refused it
            self.release()


def _densify(value: Any) -> Any:
    return value.to_dense() if isinstance(value, SparseTensor) else value
