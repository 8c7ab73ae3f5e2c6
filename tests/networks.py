"""Networks written with plain torch modules, as anybody would: nothing of the package."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from mobile_like import MOBILE
from segmentation_like import SEGMENTERS
from torchvision_like import CLASSIFIERS


def lenet(c=3):
    return nn.Sequential(
        nn.Conv2d(c, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 25, 24),
        nn.Tanh(),
        nn.Linear(24, 10),
    )


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(c_out))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self, width=8, c=3):
        super().__init__()
        self.conv1 = nn.Conv2d(c, width, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *[
                nn.Sequential(
                    Block(widths[i], widths[i + 1], 1 if i == 0 else 2),
                    Block(widths[i + 1], widths[i + 1]),
                )
                for i in range(4)
            ]
        )
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8 * width, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def vgg(c=3):
    layers, c_in = [], c
    for width in (8, "M", 16, "M", 16, 24, "M", 24):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            conv = nn.Conv2d(c_in, width, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(True)]
            c_in = width
    head = [nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(24 * 9, 16), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(16, 5))


class UNet(nn.Module):
    def __init__(self, c=3, norm=nn.BatchNorm2d):
        super().__init__()

        def double(c_in, c_out):
            first = nn.Conv2d(c_in, c_out, 3, padding=1)
            second = nn.Conv2d(c_out, c_out, 3, padding=1)
            tail = (second, norm(c_out), nn.LeakyReLU(0.1))
            return nn.Sequential(first, norm(c_out), nn.ReLU(True), *tail)

        self.down1, self.down2, self.down3 = double(c, 8), double(8, 12), double(12, 16)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.merge2 = nn.ConvTranspose2d(16, 12, 2, 2), double(24, 12)
        self.up1, self.merge1 = nn.ConvTranspose2d(12, 8, 2, 2), double(16, 8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.down3(self.pool(b))
        y = self.merge2(torch.cat([self.up2(c), b], 1))
        return self.out(self.merge1(torch.cat([a, self.up1(y)], dim=1)))


class SqueezeExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.a, self.b = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c, 1)

    def forward(self, x):
        return torch.sigmoid(self.b(F.relu(self.a(self.pool(x))))) * x


def mobile(c=3):
    """Depthwise-separable blocks with squeeze-and-excitation and hard swish."""

    def block(c_in, c_out, stride, k):
        depthwise = nn.Conv2d(c_in, c_in, k, stride, k // 2, groups=c_in, bias=False)
        gate = (nn.BatchNorm2d(c_in), nn.Hardswish(), SqueezeExcite(c_in))
        return nn.Sequential(
            depthwise, *gate, nn.Conv2d(c_in, c_out, 1), nn.BatchNorm2d(c_out), nn.SiLU()
        )

    stem = (nn.Conv2d(c, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU())
    blocks = (block(8, 12, 1, 3), block(12, 16, 2, 5), block(16, 16, 1, 3))
    head = (nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*stem, *blocks, *head, nn.Linear(16, 4))


def net3d(c=3):
    return nn.Sequential(
        nn.Conv3d(c, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.PReLU(6),
        nn.MaxPool3d(3, 2, 1),
        nn.Conv3d(6, 8, 2, 2, groups=2, dilation=2, padding=1),
        nn.BatchNorm3d(8),
        nn.Tanh(),
        nn.ConvTranspose3d(8, 6, 3, 2, 1, output_padding=1),
        nn.GroupNorm(2, 6),
        nn.Upsample(scale_factor=2),
        nn.Conv3d(6, 3, 3, padding="same"),
    )


def net1d(c=3):
    return nn.Sequential(
        nn.Conv1d(c, 8, 5, 2, 2),
        nn.BatchNorm1d(8),
        nn.ELU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 4, padding="same", dilation=2),
        nn.Softplus(),
        nn.AvgPool1d(3, 2, 1, count_include_pad=False),
        nn.ConvTranspose1d(8, 4, 4, 3, 1),
        nn.Flatten(),
    )


def dilated(c=3):
    return nn.Sequential(
        nn.Conv2d(c, 8, 3, padding=2, dilation=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=4),
        nn.GELU(),
        nn.Conv2d(8, 6, (3, 1), stride=(2, 1), padding=(3, 0), dilation=(3, 1)),
        nn.AdaptiveAvgPool2d((4, 5)),
        nn.Flatten(),
        nn.Linear(120, 7),
    )


def even_kernels(c=3):
    return nn.Sequential(
        nn.Conv2d(c, 6, 2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 4, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 2, padding="same"),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ConvTranspose2d(8, 6, 4, 2, 1),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(6, 4, (2, 6), padding=(0, 3)),
    )


def not_zero_at_zero(c=3):
    """Every activation here has f(0) != 0: a library that skips inactive sites is wrong at once."""
    return nn.Sequential(
        nn.Conv2d(c, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Softplus(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.LogSigmoid(),
        nn.BatchNorm2d(8),
        nn.Softmax(dim=1),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.Hardsigmoid(),
        nn.AdaptiveAvgPool2d((2, 2)),
        nn.Flatten(),
    )


class PerSample(nn.Module):
    """Per-sample norms, reflect and circular padding, interpolation, in-place arithmetic, crops."""

    def __init__(self, c=3):
        super().__init__()
        self.a = nn.Conv2d(c, 8, 3, padding=1, padding_mode="reflect")
        self.group = nn.GroupNorm(4, 8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.c = nn.Conv2d(16, 6, 3, padding=2, dilation=2)
        self.drop = nn.Dropout2d(0.3)

    def forward(self, x):
        y = F.silu(self.group(self.a(x)))
        z = self.instance(self.b(y))
        z.mul_(2).add_(y)
        z = self.drop(z)
        z = F.interpolate(F.interpolate(z, scale_factor=0.7), size=y.shape[-2:]) - 1
        moved = F.pad(F.pad(y, (1, -2, 2, 1), value=0.5), (-1, 2, -2, -1), value=-0.2)
        out = self.c(torch.cat([z, moved], 1))
        return (1 - out).softmax(1).mean([2, 3])


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, channels moved last for the norm and the linear layers, and back."""

    def __init__(self, c=3, width=8):
        super().__init__()
        self.stem = nn.Conv2d(c, width, 2, 2)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.act, self.down = nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(self.act(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def group_unet():
    return UNet(norm=lambda c: nn.GroupNorm(4, c))


# name -> (constructor, spatial shape, batch size)
NETWORKS = {
    "lenet": (lenet, (28, 28), 3),
    "vgg_bn": (vgg, (24, 26), 3),
    "resnet18": (ResNet18, (48, 40), 3),
    "unet_bn": (UNet, (16, 20), 3),
    "unet_gn": (group_unet, (12, 12), 3),
    "depthwise_se": (mobile, (25, 30), 3),
    "net3d": (net3d, (8, 9, 10), 2),
    "net1d": (net1d, (41,), 3),
    "dilated": (dilated, (17, 19), 3),
    "even_kernels": (even_kernels, (19, 18), 3),
    # even extents: on an odd one, a max pool meets the values of two classes that are equal but for
    # rounding (inputs of 0 next to a border), and the dense network's winner is chance
    "not_zero_at_zero": (not_zero_at_zero, (14, 12), 3),
    "per_sample": (PerSample, (11, 13), 3),
    "convnext": (ConvNeXtBlock, (14, 18), 3),
    **CLASSIFIERS,
    **MOBILE,
    **SEGMENTERS,
}
