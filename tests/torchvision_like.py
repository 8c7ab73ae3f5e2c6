"""Miniatures of torchvision's networks, written after their papers: plain torch, a few channels.

Each calls what the original calls: views and transposes, slices, concatenations, gates, stochastic
depth, bilinear interpolation.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


def norm(c):
    """Batch norm with the eps of Inception, MobileNet v3 and EfficientNet.

    Where its input is constant, a norm multiplies rounding by 1 / sqrt(eps): ten of them with
    torch's 1e-5 leave nothing of float64 to compare.
    """
    return nn.BatchNorm2d(c, eps=1e-3)


def conv_bn(c_in, c_out, k=3, stride=1, groups=1, act=nn.ReLU, dilation=1):
    """Convolution, batch norm, activation (None: without)."""
    padding = (k - 1) // 2 * dilation
    conv = nn.Conv2d(c_in, c_out, k, stride, padding, dilation, groups, bias=False)
    layers = [conv, norm(c_out)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class SqueezeExcitation(nn.Module):
    def __init__(self, c, squeezed, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x):
        return self.gate(self.fc2(self.act(self.fc1(self.avgpool(x))))) * x


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
    """With local response normalization, after the pool as in CaffeNet.

    In front of it (as in the paper) equal values may leave a vectorized pow with different
    roundings, and which of them a max pool takes, here and in the dense network, is chance.
    """
    features = [
        nn.Conv2d(c, 6, 5, stride=2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.LocalResponseNorm(3, alpha=0.1, k=2.0),
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
    nn.init.constant_(head[1].bias, 0.5)  # or all answers may be 0, which proves nothing
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
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, 4, 1, bias=False)
        self.norm2, self.conv2 = norm(4), nn.Conv2d(4, growth, 3, padding=1, bias=False)

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
    transition = (norm(10), nn.ReLU(inplace=True), nn.Conv2d(10, 5, 1, bias=False))
    rest = (nn.AvgPool2d(2, 2), DenseBlock(2, 5, 2), norm(9), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, *transition, *rest, Head(9))


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
        self.b, self.norm = nn.Conv2d(3, 4, (7, 1), padding=(3, 0)), norm(4)
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
    "googlenet": (GoogLeNet, (28, 24), 3),
}
