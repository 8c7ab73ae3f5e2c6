"""Miniatures of small networks: MobileNets, MNASNet, EfficientNet, ShuffleNet, ConvNeXt."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from torchvision_like import Head, SqueezeExcitation, conv_bn


class StochasticDepth(nn.Module):
    """Drops the residual of whole samples ("row") or of the batch."""

    def __init__(self, p, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        samples = x.shape[0] if self.mode == "row" else 1
        noise = torch.empty([samples] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * noise.bernoulli_(1 - self.p).div_(1 - self.p)


def mobilenet_v1(c=3):
    def separable(c_in, c_out, stride):
        return nn.Sequential(conv_bn(c_in, c_in, 3, stride, c_in), conv_bn(c_in, c_out, 1))

    blocks = (separable(4, 6, 1), separable(6, 8, 2), separable(8, 8, 1))
    return nn.Sequential(conv_bn(c, 4, 3, 2), *blocks, Head(8))


class InvertedResidual(nn.Module):
    """MobileNet v2 and v3, MNASNet and EfficientNet differ in activation, gate and depth."""

    def __init__(self, c_in, c_out, stride, expand, k=3, act=nn.ReLU6, gate=None, depth=0.0):
        super().__init__()
        wide = c_in * expand
        layers = [conv_bn(c_in, wide, 1, act=act)] if expand > 1 else []
        layers.append(conv_bn(wide, wide, k, stride, wide, act))
        if gate is not None:
            layers.append(gate(wide))
        layers.append(conv_bn(wide, c_out, 1, act=None))
        self.block, self.residual = nn.Sequential(*layers), stride == 1 and c_in == c_out
        self.depth = StochasticDepth(depth)

    def forward(self, x):
        out = self.block(x)
        return self.depth(out) + x if self.residual else out


class MeanHead(nn.Module):
    """The head of MobileNet v2 and ShuffleNet: a mean over space, by the method."""

    def __init__(self, c):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(c, 4))

    def forward(self, x):
        return self.classifier(x.mean([2, 3]))


def mobilenet_v2(c=3):
    blocks = (InvertedResidual(4, 4, 1, 1), InvertedResidual(4, 6, 2, 2))
    last = (InvertedResidual(6, 6, 1, 2), conv_bn(6, 10, 1, act=nn.ReLU6))
    return nn.Sequential(conv_bn(c, 4, 3, 2, act=nn.ReLU6), *blocks, *last, MeanHead(10))


def mobilenet_v3(c=3):
    def gate(wide):
        return SqueezeExcitation(wide, 3, gate=nn.Hardsigmoid)

    blocks = [
        InvertedResidual(4, 4, 1, 1, act=nn.ReLU, gate=gate),
        InvertedResidual(4, 6, 2, 2, 5, nn.Hardswish, gate),
        InvertedResidual(6, 6, 1, 2, 5, nn.Hardswish, gate),
    ]
    last = conv_bn(6, 10, 1, act=nn.Hardswish)
    return nn.Sequential(conv_bn(c, 4, 3, 2, act=nn.Hardswish), *blocks, last, Head(10))


def mnasnet(c=3):
    stem = (conv_bn(c, 4, 3, 2), conv_bn(4, 4, 3, 1, 4), conv_bn(4, 4, 1, act=None))
    blocks = (InvertedResidual(4, 6, 2, 3, 3, nn.ReLU), InvertedResidual(6, 6, 1, 3, 5, nn.ReLU))
    return nn.Sequential(*stem, *blocks, conv_bn(6, 10, 1), MeanHead(10))


def efficientnet(c=3):
    def gate(wide):
        return SqueezeExcitation(wide, 2, nn.SiLU)

    blocks = [
        InvertedResidual(4, 4, 1, 1, 3, nn.SiLU, gate, 0.3),
        InvertedResidual(4, 6, 2, 3, 5, nn.SiLU, gate),
        InvertedResidual(6, 6, 1, 3, 3, nn.SiLU, gate, 0.4),
    ]
    last = conv_bn(6, 10, 1, act=nn.SiLU)
    return nn.Sequential(conv_bn(c, 4, 3, 2, act=nn.SiLU), *blocks, last, Head(10))


def channel_shuffle(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        half, self.stride = c_out // 2, stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            depthwise = conv_bn(c_in, c_in, 3, stride, c_in, None)
            self.branch1 = nn.Sequential(depthwise, conv_bn(c_in, half, 1))
        first = conv_bn(c_in if stride > 1 else half, half, 1)
        middle = conv_bn(half, half, 3, stride, half, None)
        self.branch2 = nn.Sequential(first, middle, conv_bn(half, half, 1))

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


def shufflenet(c=3):
    units = (ShuffleUnit(4, 8, 2), ShuffleUnit(8, 8, 1), ShuffleUnit(8, 8, 1))
    stem = (conv_bn(c, 4, 3, 2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *units, conv_bn(8, 10, 1), MeanHead(10))


# ------------------------------------------------------------------ ConvNeXt
class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """The same by hand, as the authors of ConvNeXt wrote it for channels first."""

    def __init__(self, c, eps=1e-6):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(c) + 0.5), nn.Parameter(torch.randn(c))
        self.eps = eps

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permute(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return torch.permute(x, self.dims)


class CNBlock(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 7, padding=3, groups=dim),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            nn.Linear(2 * dim, dim),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.full((dim, 1, 1), 0.3))
        self.stochastic_depth = StochasticDepth(depth, "row")

    def forward(self, x):
        out = self.stochastic_depth(self.layer_scale * self.block(x))
        out += x
        return out


def convnext_tiny(c=3):
    stem = (nn.Conv2d(c, 4, 4, 4), LayerNorm2d(4, eps=1e-6), CNBlock(4, 0.2), CNBlock(4, 0.4))
    down = (ChannelNorm(4), nn.Conv2d(4, 6, 2, 2), CNBlock(6, 0.3))
    head = (nn.AdaptiveAvgPool2d(1), LayerNorm2d(6, eps=1e-6), nn.Flatten(1), nn.Linear(6, 4))
    return nn.Sequential(*stem, *down, *head)


# name -> (constructor, spatial shape, batch size)
MOBILE = {
    "mobilenet_v1": (mobilenet_v1, (14, 16), 3),
    "mobilenet_v2": (mobilenet_v2, (14, 16), 3),
    "mobilenet_v3": (mobilenet_v3, (14, 16), 3),
    "mnasnet": (mnasnet, (14, 16), 3),
    "efficientnet": (efficientnet, (14, 16), 3),
    "shufflenet": (shufflenet, (20, 24), 3),
    "convnext_tiny": (convnext_tiny, (16, 24), 3),
}
