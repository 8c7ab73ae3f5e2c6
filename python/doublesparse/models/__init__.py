"""Whole networks: spatially sparse CNNs (Graham 2014); dictionaries of double sparsity."""

from ._sparse_ksvd import learn_double_sparsity
from .deepcnet import DeepCNet, DeepCNiN, FeatureDropout

__all__ = ["DeepCNet", "DeepCNiN", "FeatureDropout", "learn_double_sparsity"]
