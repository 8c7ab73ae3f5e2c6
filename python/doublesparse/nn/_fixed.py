"""A model on sites that never change, for torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._ground import GroundState
from ..sites import Sites
from ..tensor import SparseTensor


class FixedGeometry(nn.Module):
    """A model frozen onto given sites: features in, features or a dense tensor out.

    Every rulebook is built here, once. What is left is a function of tensors with fixed shapes,
    which `torch.export` can record: rulebooks become constants of the program, layers become
    `torch.ops.doublesparse` operators (so the process that loads it must `import doublesparse`).
    Parameters are the model's own, and gradients reach them and the features.

    Args:
        model: any network that takes a SparseTensor; put it in eval mode before exporting.
        x: an example. Its sites and its ground stay; its features matter only by dtype and width.
        dense: whether a sparse result is returned as a dense (B, C, *spatial) tensor instead of
            its features (n_out, C) alone, whose sites are `out_sites`.

    Attributes:
        sites: the sites of the input.
        out_sites: the sites of the result; None where the model returns something else.

    Shapes:
        features (n_sites, C), the result (n_out, C_out), dense, or what the model returns.

    Raises:
        TypeError: `model` or `x` is of another type, features are no tensor.
        ValueError: features do not have one row per site, or not the channels of `x`.

    Example:
        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[0, 0, 2, 3:6] = 1.0
        >>> x = ds.SparseTensor.from_dense(image)
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU())
        >>> fixed = ds.nn.FixedGeometry(net.eval(), x, dense=True)
        >>> program = torch.export.export(fixed, (x.features,), strict=False)
        >>> torch.equal(program.module()(2 * x.features), fixed(2 * x.features))
        True
    """

    sites: Sites
    out_sites: Sites | None
    _ground_values: Tensor | None

    def __init__(self, model: nn.Module, x: SparseTensor, dense: bool = False) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"FixedGeometry: model must be a torch.nn.Module, got {type(model).__name__}; "
                "wrap the function in a module"
            )
        if not isinstance(x, SparseTensor):
            raise TypeError(
                f"FixedGeometry: x must be a SparseTensor, got {type(x).__name__}; "
                "pass ds.SparseTensor.from_dense(image)"
            )
        self.model, self.sites, self.dense = model, x.sites, dense
        self._channels, ground = x.features.shape[1], x.ground
        self._has_ground = ground is not None
        self._axes = None if ground is None or ground.is_zero else ground.axes
        values = None if ground is None or ground.is_zero else ground.values.detach().clone()
        self.register_buffer("_ground_values", values)
        y = self._build(x.features.detach())
        self.out_sites = y.sites if isinstance(y, SparseTensor) else None

    def _build(self, features: Tensor) -> Any:
        """Run once, as in inference, so that every rulebook is there."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad():
                return self.model(self._sparse(features))
        finally:
            for module, training in modes:
                module.training = training

    def _sparse(self, features: Tensor) -> SparseTensor:
        ground = None
        if self._axes is not None and self._ground_values is not None:
            ground = GroundState._of(self._ground_values, self._axes)
        elif self._has_ground:
            shape = self.sites.spatial_shape
            ground = GroundState.zero(self._channels, shape, features.dtype, features.device)
        return SparseTensor._of(features.contiguous(), self.sites, ground)

    def forward(self, features: Tensor) -> Any:
        """The model at the fixed sites, with features (n_sites, C)."""
        if not isinstance(features, Tensor):
            raise TypeError(
                f"FixedGeometry: features must be a torch.Tensor, got {type(features).__name__}; "
                "pass x.features"
            )
        wanted = (self.sites.n_sites, self._channels)
        if tuple(features.shape) != wanted:
            raise ValueError(
                f"FixedGeometry: features must have shape {wanted}, got {tuple(features.shape)}; "
                "make a new FixedGeometry for other sites"
            )
        y = self.model(self._sparse(features))
        if not isinstance(y, SparseTensor):
            return y
        return y.to_dense() if self.dense else y.features

    def extra_repr(self) -> str:
        """The sites, and what comes out."""
        return f"{self.sites}, dense={self.dense}"
