"""spconv on a GPU, behind actions: implicit GEMM, fp16, which is what it is fastest with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from doublesparse.bench import Action


def import_spconv() -> Any:
    """`spconv.pytorch`, or None where it cannot be imported or there is no GPU."""
    if not torch.cuda.is_available():
        return None
    try:
        import spconv.pytorch as spconv
    except Exception:  # a broken binary wheel may raise anything at import
        return None
    return spconv


class Spconv:
    """One set of sites."""

    def __init__(self, spconv: Any, coords: Tensor, shape: tuple[int, ...]) -> None:
        """Takes int32 sites (n, 1 + D) on the GPU."""
        self._spconv, self._coords, self._shape = spconv, coords.contiguous(), list(shape)
        self._batch = int(coords[:, 0].max()) + 1
        self._algorithm = spconv.ConvAlgo.MaskImplicitGemm

    @classmethod
    def found(cls, coords: Tensor, shape: tuple[int, ...]) -> Spconv | None:
        """The peer, where it is installed."""
        spconv = import_spconv()
        return cls(spconv, coords, shape) if spconv and coords.is_cuda else None

    def rulebook(self, kernel: int) -> Action:
        """The index of a submanifold layer, as training builds it."""
        from spconv.pytorch import ops

        n = len(self._shape)
        one, zero = [1] * n, [0] * n
        return lambda: ops.get_indice_pairs_implicit_gemm(
            self._coords,
            self._batch,
            self._shape,
            self._algorithm,
            [kernel] * n,
            one,
            [kernel // 2] * n,
            one,
            zero,
            subm=True,
        )

    def submanifold(self, weight: Tensor, x: Tensor, dy: Tensor) -> tuple[Action, Action]:
        """Forward, and both gradients, with our weight (c_out, c_in, *kernel) in fp16."""
        c_out, c_in, kernel = weight.shape[:3]
        make: Callable[..., Any] = {2: self._spconv.SubMConv2d, 3: self._spconv.SubMConv3d}[
            len(self._shape)
        ]
        layer = make(c_in, c_out, kernel, bias=False, indice_key="bench", algo=self._algorithm)
        layer = layer.to(x.device).half()
        with torch.no_grad():
            layer.weight.copy_(weight.movedim(1, -1))
        features = x.half().requires_grad_()
        sites = self._spconv.SparseConvTensor(features, self._coords, self._shape, self._batch)
        first = layer(sites)  # its index stays in the tensor
        sites = sites.replace_feature(features)
        sites.indice_dict.update(first.indice_dict)

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(sites).features

        y, gradient = layer(sites).features, dy.half()

        def backward() -> object:
            return torch.autograd.grad(y, (features, layer.weight), gradient, retain_graph=True)

        return forward, backward
