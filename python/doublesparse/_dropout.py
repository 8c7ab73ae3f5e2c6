"""Dropout. What torch draws per (sample, channel) is drawn the same way, and is exact."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arithmetic import BINARY, binary
from ._elementwise import refuse, with_values
from .tensor import SparseTensor

_multiply = binary(torch.mul, "dropout", BINARY["mul"])
_add = binary(torch.add, "dropout", BINARY["add"])

# SELU's limit for large negative inputs, -scale * alpha (Klambauer et al. 2017)
_ALPHA = 1.7580993408473766


def _check_probability(operation: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(
            f"{operation}: dropout probability has to be between 0 and 1, but got {p}; correct p"
        )


def _result(input: SparseTensor, out: SparseTensor, inplace: bool) -> SparseTensor:
    return input._become(out) if inplace else out


def dropout(
    input: SparseTensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> SparseTensor:
    """Independent at active sites; the ground keeps its expectation.

    Dense dropout would make every inactive site different, and there would be no ground state. So
    this is the dense network whose dropout acts on active sites: unbiased, not equal.
    """
    _check_probability("dropout", p)
    if not training or p == 0:
        return input
    rows = None
    if input.ground is not None and not input.ground.is_zero:
        rows = input.ground.rows
    return _result(input, with_values(input, F.dropout(input.features, p, True), rows), inplace)


def _noise(input: SparseTensor, p: float) -> Tensor:
    """The draw of torch (make_feature_noise): the same generator, shape and dtype."""
    shape = (*input.shape[:2], *[1] * (input.ndim - 2))
    return torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1 - p)


def feature_dropout(
    input: SparseTensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> SparseTensor:
    """Whole channels of a sample: exact, the dense layer's draw under the same seed."""
    _check_probability("feature_dropout", p)
    if not training or p == 0 or input.shape.numel() == 0:
        return input
    noise: Any = 0.0 if p == 1 else _noise(input, p).div_(1 - p)
    return _result(input, _multiply(input, noise), inplace)


def feature_alpha_dropout(
    input: SparseTensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> SparseTensor:
    """Whole channels of a sample, self-normalizing: exact, the dense layer's draw."""
    _check_probability("feature_alpha_dropout", p)
    if not training or p == 0 or input.shape.numel() == 0:
        return input
    if p == 1:
        return _result(input, _multiply(input, 0.0), inplace)
    noise = _noise(input, p)
    scale = 1.0 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    shift = noise.add(-1).mul_(_ALPHA * scale).add_(_ALPHA * scale * p)
    return _result(input, _add(_multiply(input, noise.mul_(scale)), shift), inplace)


def alpha_dropout(
    input: SparseTensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> SparseTensor:
    """The identity in evaluation; in training refused, for it moves every inactive site."""
    _check_probability("alpha_dropout", p)
    if training and p > 0:
        refuse(
            "alpha_dropout",
            "in training gives every inactive site another value",
            "use nn.FeatureAlphaDropout",
        )
    return input
