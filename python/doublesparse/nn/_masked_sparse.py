"""The masked forms of the sparse convolutions: sparse in sites and in weights."""

from __future__ import annotations

from typing import Any

from .._patterns import Pattern, Unstructured
from ._conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConv4d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SubmanifoldConv1d,
    SubmanifoldConv2d,
    SubmanifoldConv3d,
    SubmanifoldConv4d,
)
from ._inverse import SparseInverseConv1d, SparseInverseConv2d, SparseInverseConv3d
from ._masked import MASKED_CLASSES, Masked


class _MaskedSparse(Masked):
    """The constructor of the masked forms: that of the layer, and a pattern as `MaskedConv2d`."""

    def __init__(
        self,
        *args: Any,
        pattern: Pattern = Unstructured(),  # noqa: B008 - immutable
        sparsity: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._start_by_magnitude(pattern, sparsity)


class MaskedSparseConv1d(_MaskedSparse, SparseConv1d):
    """What `SparseConv1d.set_mask` makes of a layer."""

    dense_class = SparseConv1d


class MaskedSparseConv2d(_MaskedSparse, SparseConv2d):
    """What `SparseConv2d.set_mask` makes of a layer."""

    dense_class = SparseConv2d


class MaskedSparseConv3d(_MaskedSparse, SparseConv3d):
    """What `SparseConv3d.set_mask` makes of a layer."""

    dense_class = SparseConv3d


class MaskedSparseConv4d(_MaskedSparse, SparseConv4d):
    """What `SparseConv4d.set_mask` makes of a layer."""

    dense_class = SparseConv4d


class MaskedSubmanifoldConv1d(_MaskedSparse, SubmanifoldConv1d):
    """What `SubmanifoldConv1d.set_mask` makes of a layer."""

    dense_class = SubmanifoldConv1d


class MaskedSubmanifoldConv2d(_MaskedSparse, SubmanifoldConv2d):
    """What `SubmanifoldConv2d.set_mask` makes of a layer."""

    dense_class = SubmanifoldConv2d


class MaskedSubmanifoldConv3d(_MaskedSparse, SubmanifoldConv3d):
    """What `SubmanifoldConv3d.set_mask` makes of a layer."""

    dense_class = SubmanifoldConv3d


class MaskedSubmanifoldConv4d(_MaskedSparse, SubmanifoldConv4d):
    """What `SubmanifoldConv4d.set_mask` makes of a layer."""

    dense_class = SubmanifoldConv4d


class MaskedSparseConvTranspose1d(_MaskedSparse, SparseConvTranspose1d):
    """What `SparseConvTranspose1d.set_mask` makes of a layer."""

    dense_class = SparseConvTranspose1d


class MaskedSparseConvTranspose2d(_MaskedSparse, SparseConvTranspose2d):
    """What `SparseConvTranspose2d.set_mask` makes of a layer."""

    dense_class = SparseConvTranspose2d


class MaskedSparseConvTranspose3d(_MaskedSparse, SparseConvTranspose3d):
    """What `SparseConvTranspose3d.set_mask` makes of a layer."""

    dense_class = SparseConvTranspose3d


class MaskedSparseInverseConv1d(_MaskedSparse, SparseInverseConv1d):
    """What `SparseInverseConv1d.set_mask` makes of a layer."""

    dense_class = SparseInverseConv1d


class MaskedSparseInverseConv2d(_MaskedSparse, SparseInverseConv2d):
    """What `SparseInverseConv2d.set_mask` makes of a layer."""

    dense_class = SparseInverseConv2d


class MaskedSparseInverseConv3d(_MaskedSparse, SparseInverseConv3d):
    """What `SparseInverseConv3d.set_mask` makes of a layer."""

    dense_class = SparseInverseConv3d


MASKED_CLASSES.update(
    {
        cls.dense_class: cls
        for cls in (
            MaskedSparseConv1d,
            MaskedSparseConv2d,
            MaskedSparseConv3d,
            MaskedSparseConv4d,
            MaskedSubmanifoldConv1d,
            MaskedSubmanifoldConv2d,
            MaskedSubmanifoldConv3d,
            MaskedSubmanifoldConv4d,
            MaskedSparseConvTranspose1d,
            MaskedSparseConvTranspose2d,
            MaskedSparseConvTranspose3d,
            MaskedSparseInverseConv1d,
            MaskedSparseInverseConv2d,
            MaskedSparseInverseConv3d,
        )
    }
)
