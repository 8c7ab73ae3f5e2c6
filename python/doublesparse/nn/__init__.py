"""Modules for spatially sparse networks: torch's constructors, parameters and `state_dict`s."""

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
from ._convert import ToDense, ToSparse, convert
from ._fixed import FixedGeometry
from ._from_minkowski import from_minkowski
from ._from_spconv import from_spconv
from ._inverse import SparseInverseConv1d, SparseInverseConv2d, SparseInverseConv3d
from ._masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from ._masked_sparse import MaskedSparseConv2d as _MaskedSparseConv2d  # noqa: F401 (registers)
from ._norm import SparseBatchNorm
from ._packed import PackedConv1d, PackedConv2d, PackedConv3d, PackedLinear
from ._pool import (
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
)
from ._projected import PackedProjectedLinear, ProjectedLinear

__all__ = [
    "FixedGeometry",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedLinear",
    "PackedConv1d",
    "PackedConv2d",
    "PackedConv3d",
    "PackedLinear",
    "PackedProjectedLinear",
    "ProjectedLinear",
    "SparseAvgPool1d",
    "SparseAvgPool2d",
    "SparseAvgPool3d",
    "SparseBatchNorm",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConv4d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseInverseConv1d",
    "SparseInverseConv2d",
    "SparseInverseConv3d",
    "SparseMaxPool1d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
    "SubmanifoldConv1d",
    "SubmanifoldConv2d",
    "SubmanifoldConv3d",
    "SubmanifoldConv4d",
    "ToDense",
    "ToSparse",
    "convert",
    "from_minkowski",
    "from_spconv",
]
