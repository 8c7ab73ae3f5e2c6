"""Miniatures of torchvision's networks, written after their papers: plain torch, a few channels.

Each calls what the original calls: views and transposes, slices, concatenations, gates, stochastic
depth, bilinear interpolation.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_bn(c_in, c_out, k=3, stride=1, groups=1, act=nn.ReLU, dilation=1):
    """Convolution, batch norm, activation (None: without)."""
    padding = (k - 1) // 2 * dilation
    layers = [
        nn.Conv2d(c_in, c_out, k, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(c_out),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class SqueezeExcitation(nn.Module):
    def __init__(self, c, squeezed, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x):
        return self.gate(self.fc2(self.act(self.fc1(self.avgpool(x))))) * x


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


class Head(nn.Module):
    """Global average, dropout, a linear layer."""

    def __init__(self, c, n_classes=4, p=0.2):
        super().__init__()
        self.avgpool, self.dropout = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(p)
        self.fc = nn.Linear(c, n_classes)

    def forward(self, x):
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


# ------------------------------------------------------------------ AlexNet, VGG, SqueezeNet
def alexnet(c=3):
    """With the local response normalization of the paper."""
    features = [
        nn.Conv2d(c, 6, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(3, alpha=0.1, k=2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
    head = [nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Dropout(), nn.Linear(72, 8), nn.ReLU()]
    return nn.Sequential(*features, *head, nn.Linear(8, 4))


def vgg_plain(c=3):
    layers = []
    for width in (6, "M", 8, 8, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU(inplace=True)]
            c = width
    head = (nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(8 * 49, 6), nn.ReLU(True))
    return nn.Sequential(*layers, *head, nn.Dropout(), nn.Linear(6, 4))


class Fire(nn.Module):
    def __init__(self, c_in, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


def squeezenet(c=3):
    """Its dropout, in front of the last convolution, is 0 here: see nn.Dropout in DESIGN."""
    stem = (nn.Conv2d(c, 6, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True))
    fires = (Fire(6, 3, 4), Fire(8, 4, 5), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(10, 4, 5))
    head = (nn.Dropout(0.0), nn.Conv2d(10, 4, 1), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, *fires, *head, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1))


# ------------------------------------------------------------------ residual networks
class Bottleneck(nn.Module):
    def __init__(self, c_in, width, stride=1, groups=1, dilation=1, se=False, c_out=None):
        super().__init__()
        c_out = c_out or 2 * width
        self.conv1 = conv_bn(c_in, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride, groups, dilation=dilation)
        self.se = SqueezeExcitation(width, 2) if se else nn.Identity()
        self.conv3 = conv_bn(width, c_out, 1, act=None)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and c_in == c_out
        self.downsample = None if same else conv_bn(c_in, c_out, 1, stride, act=None)

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.conv3(self.se(self.conv2(self.conv1(x))))
        out += identity
        return self.relu(out)


def resnet_stem(c, width):
    return nn.Sequential(conv_bn(c, width, 7, 2), nn.MaxPool2d(3, 2, 1))


def resnet50(c=3):
    blocks = (Bottleneck(4, 4), Bottleneck(8, 4), Bottleneck(8, 6, 2), Bottleneck(12, 6))
    return nn.Sequential(resnet_stem(c, 4), *blocks, Head(12))


def regnet(c=3):
    """RegNetY: grouped convolutions, squeeze-and-excitation between them."""
    blocks = [
        Bottleneck(4, 6, 2, groups=3, se=True, c_out=6),
        Bottleneck(6, 8, 2, groups=2, se=True, c_out=8),
        Bottleneck(8, 8, 1, groups=2, se=True, c_out=8),
    ]
    return nn.Sequential(conv_bn(c, 4, 3, 2), *blocks, Head(8))


# ------------------------------------------------------------------ DenseNet
class DenseLayer(nn.Module):
    def __init__(self, c_in, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 4, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, growth, 3, padding=1, bias=False)

    def forward(self, inputs):
        x = self.conv1(F.relu(self.norm1(torch.cat(inputs, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseBlock(nn.Module):
    def __init__(self, n_layers, c_in, growth):
        super().__init__()
        layers = [DenseLayer(c_in + i * growth, growth) for i in range(n_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet(c=3):
    stem = (conv_bn(c, 4, 7, 2), nn.MaxPool2d(3, 2, 1), DenseBlock(3, 4, 2))
    transition = (nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.Conv2d(10, 5, 1, bias=False))
    rest = (nn.AvgPool2d(2, 2), DenseBlock(2, 5, 2), nn.BatchNorm2d(9), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, *transition, *rest, Head(9))


# ------------------------------------------------------------------ mobile networks
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


# ------------------------------------------------------------------ GoogLeNet
class Inception(nn.Module):
    def __init__(self, c_in):
        super().__init__()
        self.branch1 = conv_bn(c_in, 3, 1)
        self.branch2 = nn.Sequential(conv_bn(c_in, 2, 1), conv_bn(2, 4, 3))
        self.branch3 = nn.Sequential(conv_bn(c_in, 2, 1), conv_bn(2, 3, 3), conv_bn(3, 3, 3))
        self.branch4, self.pooled = nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(c_in, 2, 1)

    def forward(self, x):
        branches = [self.branch1(x), self.branch2(x), self.branch3(x), self.pooled(self.branch4(x))]
        return torch.cat(branches, 1)


class FactorizedInception(nn.Module):
    """Inception v3: 1x7 and 7x1, an average pool that counts its padding, a strided reduction."""

    def __init__(self, c_in):
        super().__init__()
        self.a = nn.Conv2d(c_in, 3, (1, 7), padding=(0, 3), bias=False)
        self.b, self.norm = nn.Conv2d(3, 4, (7, 1), padding=(3, 0)), nn.BatchNorm2d(4, eps=0.001)
        self.pool, self.down = nn.Conv2d(c_in, 3, 1), nn.Conv2d(c_in, 4, 3, 2)

    def forward(self, x):
        a = F.relu(self.norm(self.b(self.a(x))), inplace=True)
        pooled = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        whole = F.max_pool2d(torch.cat([a, pooled], 1), kernel_size=3, stride=2)
        return torch.cat([self.down(x), whole], 1)


class GoogLeNet(nn.Module):
    def __init__(self, c=3):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(c, 4, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.a, self.b = Inception(4), Inception(12)
        self.c = FactorizedInception(12)
        self.aux_conv, self.aux = nn.Conv2d(12, 2, 1), nn.Linear(2 * 16, 4)
        self.head = Head(11)

    def forward(self, x):
        x = self.a(self.stem(x))
        aux = F.adaptive_avg_pool2d(x, (4, 4))
        aux = self.aux(torch.flatten(F.relu(self.aux_conv(aux), inplace=True), 1))
        return self.head(self.c(self.b(x))) + (0.3 * aux if self.training else 0.0)


# name -> (constructor, spatial shape, batch size)
CLASSIFIERS = {
    "alexnet": (alexnet, (21, 19), 3),
    "vgg_plain": (vgg_plain, (12, 14), 3),
    "squeezenet": (squeezenet, (23, 21), 3),
    "resnet50": (resnet50, (24, 20), 3),
    "regnet": (regnet, (20, 18), 3),
    "densenet": (densenet, (24, 20), 3),
    "mobilenet_v1": (mobilenet_v1, (14, 16), 3),
    "mobilenet_v2": (mobilenet_v2, (14, 16), 3),
    "mobilenet_v3": (mobilenet_v3, (14, 16), 3),
    "mnasnet": (mnasnet, (14, 16), 3),
    "efficientnet": (efficientnet, (14, 16), 3),
    "shufflenet": (shufflenet, (20, 24), 3),
    "convnext_tiny": (convnext_tiny, (16, 24), 3),
    "googlenet": (GoogLeNet, (28, 24), 3),
}
