"""Whole networks: sparse CNNs (Graham 2014), double sparsity encoders (Wang and Huang 2016)."""

from ._ddse import DoubleSparsityEncoder
from ._sparse_ksvd import learn_double_sparsity
from .deepcnet import DeepCNet, DeepCNiN, FeatureDropout

__all__ = [
    "DeepCNet",
    "DeepCNiN",
    "DoubleSparsityEncoder",
    "FeatureDropout",
    "learn_double_sparsity",
]
