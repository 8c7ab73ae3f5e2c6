"""The others, behind one shape: an adapter says why it cannot run here, or hands out actions.

Every layer below has no bias, float32, and the same active sites. A peer's numbers are taken in the
same process and the same rounds as ours, on the same number of threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Action = Callable[[], object]


class Spconv:
    """spconv 2.x on the CPU: gather, dense product, scatter-add, offset by offset; a hash index."""

    name = "spconv"

    def __init__(
        self, coords: torch.Tensor, spatial_shape: tuple[int, ...], batch_size: int
    ) -> None:
        """Binds the adapter to a set of sites; call `unavailable()` before."""
        import_spconv()
        self._spatial_shape = list(spatial_shape)
        self._coords = coords.int().contiguous()
        self._batch_size = batch_size

    @staticmethod
    def unavailable() -> str | None:
        """Why this peer cannot run here, or None."""
        try:
            import_spconv()
        except Exception as error:  # a broken binary wheel may raise anything at import
            return f"spconv: {type(error).__name__}: {error}"
        return None

    def rulebook(self, kernel: int) -> Action:
        """From sorted sites to the pair lists of a submanifold convolution of stride 1."""
        from spconv.pytorch import ConvAlgo, ops

        n_axes = len(self._spatial_shape)
        ones = [1] * n_axes
        return lambda: ops.get_indice_pairs(
            self._coords,
            self._batch_size,
            self._spatial_shape,
            ConvAlgo.Native,
            [kernel] * n_axes,
            ones,
            [kernel // 2] * n_axes,
            ones,
            [0] * n_axes,
            True,
            False,
        )

    def submanifold(
        self, weight: torch.Tensor
    ) -> tuple[Callable[[torch.Tensor], Any], torch.Tensor]:
        """A submanifold layer with our weight, its index cached by the first call.

        Args:
            weight: (c_out, c_in, *kernel).

        Returns:
            features -> features, and the layer's weight (c_out, *kernel, c_in), a leaf.
        """
        import spconv.pytorch as spconv

        c_out, c_in, kernel = weight.shape[:3]
        make = {2: spconv.SubMConv2d, 3: spconv.SubMConv3d}[len(self._spatial_shape)]
        layer = make(c_in, c_out, kernel, padding=kernel // 2, bias=False, indice_key="bench")
        with torch.no_grad():
            layer.weight.copy_(weight.movedim(1, -1))
        sites = spconv.SparseConvTensor(
            torch.zeros(len(self._coords), c_in),
            self._coords,
            self._spatial_shape,
            self._batch_size,
        )
        with torch.no_grad():
            layer(sites)
        return lambda features: layer(sites.replace_feature(features)).features, layer.weight


def import_spconv() -> Any:
    """Imports spconv and makes its backward run without a GPU.

    Its backward asks for the CUDA stream before it looks at the device; on a CPU-only torch that
    raises. Nothing on the CPU path uses the answer.

    Raises:
        ImportError: not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spconv
        from spconv.pytorch import ops
    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0
    return spconv


class DenseConv2d:
    """`F.conv2d` on the scattered grid, in one memory format."""

    def __init__(
        self, dense: torch.Tensor, weight: torch.Tensor, memory_format: torch.memory_format
    ) -> None:
        """Takes the dense input (B, C, H, W) and the weight, and lays both out."""
        self._dense = dense.contiguous(memory_format=memory_format)
        self._weight = weight.detach().contiguous(memory_format=memory_format)
        self._padding = weight.shape[-1] // 2

    def forward(self) -> torch.Tensor:
        """One layer, padding as for the same size."""
        return F.conv2d(self._dense, self._weight, padding=self._padding)


def dense_formats() -> dict[str, torch.memory_format]:
    """The two layouts that torch has kernels for; the faster one counts."""
    return {"torch contiguous": torch.contiguous_format, "torch channels_last": torch.channels_last}
