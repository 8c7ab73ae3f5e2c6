"""DeepCNet and DeepCNiN (Graham 2014, arXiv:1409.6070; architectures of Ciresan et al. 2012).

    DeepCNet(l, k):   input 3 * 2^l square, kC3-MP2 - 2kC2-MP2 - ... - lkC2-MP2 - (l+1)kC2 -
    softmax DeepCNiN(l, k):   the same with a 1x1 convolution after each pooling and after the
    last convolution

No layer pads. A pen stroke occupies 1 % of the input and stays sparse for most of the depth: the
filters are as small as they can be (C2), so that activity spreads slowly, while the pooling
halves the grid.

The modules inside are torch's own: given a dense tensor the network is an ordinary one, given a
SparseTensor it computes active sites only, with the same answer.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..tensor import SparseTensor

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_POOL = 2
# "Very leaky" slope of the reference code.
_LEAKY_SLOPE = 0.333
# The reference code counts each class 10^4 times in the fan of the softmax layer: all outputs
# start near 0.
_CLASS_FAN = 10_000


class FeatureDropout(nn.Module):
    """Dropout of whole features, one draw per minibatch, between a layer and its activation.

    In training exactly floor(n (1 - p)) of the n features, drawn anew for each minibatch, are
    kept; the others are zero at every site of every sample, ground state included: the minibatch
    sees the sub-matrix of the weights. Kept features are not rescaled. In evaluation the input is
    multiplied by 1 - p, so that layer and activation give act((1 - p) (W x + b)) (Graham 2014,
    reference code).

    All sites share the draw, so it is exact on sparse tensors: the same seed gives the same
    network as dense.

    Args:
        p: share of the features dropped, 0 <= p < 1.

    Raises:
        TypeError: p is not a number.
        ValueError: p is out of range.

    Example:
        >>> dropout = FeatureDropout(0.5)
        >>> int((dropout(torch.ones(2, 7, 4, 4))[0, :, 0, 0] != 0).sum())
        3
        >>> float(dropout.eval()(torch.ones(1, 7, 1, 1)).max())
        0.5
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _check_probability("FeatureDropout", "p", p)

    def n_kept(self, n_features: int) -> int:
        """floor(n (1 - p)), for p as written in decimals."""
        # In binary 10 * (1 - 0.9) is 0.9999999999999998.
        return math.floor(n_features * (1 - self.p) + 1e-9)

    def forward(self, x: Tensor | SparseTensor) -> Tensor | SparseTensor:
        """Drops features of (B, n, *spatial)."""
        values: Any = x  # the operators of SparseTensor are attached where torch's are handled
        if not self.training:
            return values * (1 - self.p)
        n_features = x.shape[1]
        kept = torch.zeros(n_features, dtype=x.dtype, device="cpu")
        kept[torch.randperm(n_features, device="cpu")[: self.n_kept(n_features)]] = 1.0
        return values * kept.to(x.device).reshape(1, -1, *[1] * (len(x.shape) - 2))

    def extra_repr(self) -> str:
        """Its rate."""
        return f"p={self.p:g}"


class DeepCNet(nn.Module):
    """Alternating small convolutions and 2x2 max pools, from 3 * 2^levels down to a single cell.

    Level i has (i + 1) * width filters, 3x3 at level 0 and 2x2 after, ReLU, dropout of p * i /
    levels, and a max pool except at the last level; then a linear layer.

    Args:
        levels: l, number of pools.
        width: k, filters of the first level.
        n_classes: outputs.
        in_channels: features per input site.
        dropout: p, the rate of `FeatureDropout` at the last level; it rises linearly from 0 at
            level 0.
        n_axes: spatial axes of the input, 1 to 3.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        input_size: extent of the input along every axis, 3 * 2^levels.
        features: the levels, an `nn.Sequential` of torch modules.
        classifier: the last `nn.Linear`.

    Shapes:
        (B, in_channels, input_size, input_size), dense or SparseTensor, to a dense (B, n_classes)
        of logits.

    Raises:
        TypeError: a size is not an integer.
        ValueError: an argument is out of range, or the input has another extent than `input_size`.

    Example:
        >>> net = DeepCNet(levels=2, width=4, n_classes=10)
        >>> net.input_size
        12
        >>> net(torch.zeros(5, 1, 12, 12)).shape
        torch.Size([5, 10])
    """

    _network_in_network = False

    def __init__(
        self,
        levels: int,
        width: int,
        n_classes: int,
        in_channels: int = 1,
        dropout: float = 0.0,
        *,
        n_axes: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.levels = self._natural("levels", levels)
        self.width = self._natural("width", width)
        self.n_classes = self._natural("n_classes", n_classes)
        self.in_channels = self._natural("in_channels", in_channels)
        self.dropout = _check_probability(type(self).__name__, "dropout", dropout)
        self.n_axes = self._natural("n_axes", n_axes)
        if self.n_axes not in _CONVOLUTIONS:
            raise ValueError(
                f"{type(self).__name__}: n_axes must be 1, 2 or 3, got {n_axes}; "
                "use 2 for pictures and pen strokes"
            )
        self.input_size = 3 * _POOL**self.levels
        self.features = nn.Sequential(self._build({"device": device, "dtype": dtype}))
        n_features = (self.levels + 1) * self.width
        self.classifier = nn.Linear(n_features, self.n_classes, device=device, dtype=dtype)
        self.reset_parameters()

    def _natural(self, name: str, value: int) -> int:
        operation = type(self).__name__
        try:
            number = operator.index(value)
        except TypeError as error:
            raise TypeError(
                f"{operation}: {name} must be an integer, got {type(value).__name__}; round it"
            ) from error
        if number < 1:
            raise ValueError(f"{operation}: {name} must be >= 1, got {number}; raise it")
        return number

    def _activation(self) -> nn.Module:
        return nn.ReLU()

    def _build(self, factory: dict) -> OrderedDict[str, nn.Module]:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        c_in = self.in_channels
        convolution = _CONVOLUTIONS[self.n_axes]

        def add(name: str, layer: nn.Module, rate: float) -> None:
            modules[name] = layer
            if rate > 0:
                modules[f"{name}_dropout"] = FeatureDropout(rate)
            modules[f"{name}_act"] = self._activation()

        for i in range(self.levels + 1):
            c_out, rate = (i + 1) * self.width, self.dropout * i / self.levels
            add(f"conv{i}", convolution(c_in, c_out, 3 if i == 0 else 2, **factory), rate)
            if i < self.levels:
                modules[f"pool{i}"] = _MAX_POOLS[self.n_axes](_POOL)
            if self._network_in_network:
                add(f"nin{i}", convolution(c_out, c_out, 1, **factory), rate)
            c_in = c_out
        return modules

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights U(-a, a), a = sqrt(6 / (fan in + fan out)) with pooling counted; biases 0.

        For a filter of f cells per axis followed by a pool of p, an input feeds f / p outputs per
        axis on average: a^2 = 6 / (f^d n_in + (f / p)^d n_out). The classifier starts close to 0.
        """
        for name, layer in self.features.named_children():
            if not hasattr(layer, "weight"):
                continue
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            n_out, n_in, *kernel = weight.shape
            pooled = name.startswith("conv") and name != f"conv{self.levels}"
            fan_out = n_out * math.prod(f / (_POOL if pooled else 1) for f in kernel)
            _uniform(weight, bias, n_in * math.prod(kernel) + fan_out)
        n_out, n_in = self.classifier.weight.shape
        _uniform(self.classifier.weight, self.classifier.bias, n_in + n_out * _CLASS_FAN)

    def forward(self, x: Tensor | SparseTensor) -> Tensor:
        """Logits (B, n_classes) of (B, in_channels, input_size, ...), dense or sparse."""
        expected = (self.in_channels, *[self.input_size] * self.n_axes)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"{type(self).__name__}: input must have shape (batch, "
                f"{', '.join(map(str, expected))}), got {tuple(x.shape)}; "
                f"place the picture in a field of {self.input_size} = 3 * 2**levels cells"
            )
        return self.classifier(self.features(x).flatten(1))

    def extra_repr(self) -> str:
        """Constructor arguments."""
        return (
            f"levels={self.levels}, width={self.width}, n_classes={self.n_classes}, "
            f"in_channels={self.in_channels}, dropout={self.dropout:g}, "
            f"input_size={self.input_size}"
        )


class DeepCNiN(DeepCNet):
    """DeepCNet with a 1x1 convolution after each pool and after the last convolution.

    All activations are leaky ReLUs of slope 0.333, and each 1x1 layer has the dropout rate of its
    level. Arguments, shapes and errors are those of `DeepCNet`.

    Example:
        >>> DeepCNiN(levels=1, width=4, n_classes=3)(torch.zeros(2, 1, 6, 6)).shape
        torch.Size([2, 3])
    """

    _network_in_network = True

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(_LEAKY_SLOPE)


def _uniform(weight: Tensor, bias: Tensor, fans: float) -> None:
    bound = math.sqrt(6 / fans)
    weight.uniform_(-bound, bound)
    bias.zero_()


def _check_probability(operation: str, name: str, p: float) -> float:
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(
            f"{operation}: {name} must be a number, got {type(p).__name__}; use e.g. 0.5"
        )
    if not 0 <= p < 1:
        raise ValueError(f"{operation}: {name} must be in [0, 1), got {p}; use e.g. 0.5")
    return float(p)
