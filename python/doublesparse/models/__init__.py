"""Whole networks: the spatially sparse CNNs of Graham (2014)."""

from .deepcnet import DeepCNet, DeepCNiN, FeatureDropout

__all__ = ["DeepCNet", "DeepCNiN", "FeatureDropout"]
