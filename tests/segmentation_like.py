"""Miniatures of segmentation networks, written after their papers: plain torch, a few channels."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from torchvision_like import Bottleneck, conv_bn, resnet_stem


# ------------------------------------------------------------------ U-Net
def double(c_in, c_out, padding=1):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=padding, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=padding),
        nn.ReLU(inplace=True),
    )


class BilinearUNet(nn.Module):
    """Upsampling by nn.Upsample, padded to the size of the other branch."""

    def __init__(self, c=3):
        super().__init__()
        self.down1, self.down2, self.down3 = double(c, 4), double(4, 6), double(6, 6)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.merge2, self.merge1, self.out = double(12, 4), double(8, 4), nn.Conv2d(4, 2, 1)

    def join(self, small, large):
        small = self.up(small)
        dy, dx = large.size()[2] - small.size()[2], large.size()[3] - small.size()[3]
        small = F.pad(small, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return torch.cat([large, small], dim=1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.down3(self.pool(b))
        b = self.merge2(self.join(c, b))
        return self.out(self.merge1(self.join(b, a)))


class OriginalUNet(nn.Module):
    """Ronneberger's: convolutions without padding, the skip branch cropped by slicing."""

    def __init__(self, c=3):
        super().__init__()
        self.down1, self.down2 = double(c, 4, 0), double(4, 6, 0)
        self.up, self.merge = nn.ConvTranspose2d(6, 4, 2, 2), double(8, 4, 0)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        y = self.up(self.down2(F.max_pool2d(a, 2)))
        top, left = (a.shape[2] - y.shape[2]) // 2, (a.shape[3] - y.shape[3]) // 2
        a = a[:, :, top : top + y.shape[2], left : left + y.shape[3]]
        return self.out(self.merge(torch.cat((a, y), 1)))


# ------------------------------------------------------------------ FCN, DeepLab, LR-ASPP
def backbone(c):
    """ResNet whose last stage is dilated instead of strided."""
    blocks = (Bottleneck(4, 4), Bottleneck(8, 4, 2), Bottleneck(8, 4, dilation=2))
    return nn.Sequential(resnet_stem(c, 4), *blocks)


class FCN(nn.Module):
    def __init__(self, c=3):
        super().__init__()
        self.backbone = backbone(c)
        self.classifier = nn.Sequential(conv_bn(8, 4), nn.Dropout(0.0), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        size = x.shape[-2:]
        x = self.classifier(self.backbone(x))
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ASPPPooling(nn.Sequential):
    """The image's mean, convolved, at the size of the features."""

    def __init__(self, c_in, c_out):
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_bn(c_in, c_out, 1))

    def forward(self, x):
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class DeepLabV3(FCN):
    """Atrous spatial pyramid pooling in front of FCN's interpolation."""

    class ASPP(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            branches = [conv_bn(c_in, c_out, 3, dilation=d) for d in (2, 4)]
            branches = [conv_bn(c_in, c_out, 1), *branches, ASPPPooling(c_in, c_out)]
            self.branches, self.project = nn.ModuleList(branches), conv_bn(4 * c_out, c_out, 1)

        def forward(self, x):
            return self.project(torch.cat([branch(x) for branch in self.branches], dim=1))

    def __init__(self, c=3):
        super().__init__(c)
        self.classifier = nn.Sequential(self.ASPP(8, 3), conv_bn(3, 4), nn.Conv2d(4, 3, 1))


class PSPNet(FCN):
    """Pyramid pooling: means of several sizes, interpolated to the size of the features."""

    class Pyramid(nn.Module):
        def __init__(self, c_in):
            super().__init__()
            self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(n) for n in (1, 2, 3))
            self.convs = nn.ModuleList(conv_bn(c_in, 2, 1) for _ in self.pools)

        def forward(self, x):
            parts = [conv(pool(x)) for pool, conv in zip(self.pools, self.convs)]
            kwargs = dict(size=x.shape[2:], mode="bilinear", align_corners=True)
            return torch.cat([x] + [F.interpolate(p, **kwargs) for p in parts], 1)

    def __init__(self, c=3):
        super().__init__(c)
        self.classifier = nn.Sequential(self.Pyramid(8), conv_bn(14, 4), nn.Conv2d(4, 3, 1))


class LRASPP(nn.Module):
    """MobileNet v3's segmentation head: a gate from the mean, and a skip connection."""

    def __init__(self, c=3):
        super().__init__()
        self.low, self.high = conv_bn(c, 4, 3, 2), nn.Sequential(conv_bn(4, 6, 3, 2), conv_bn(6, 6))
        self.cbr = conv_bn(6, 4, 1)
        gate = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1, bias=False), nn.Sigmoid())
        self.scale = nn.Sequential(*gate)
        self.low_classifier, self.high_classifier = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        low = self.low(x)
        high = self.high(low)
        y = self.cbr(high) * self.scale(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_classifier(low) + self.high_classifier(y)
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


# ------------------------------------------------------------------ other ways up
class VNet(nn.Module):
    """Three axes: strided convolution, group norm, trilinear interpolation."""

    def __init__(self, c=3):
        super().__init__()
        self.a, self.b = nn.Conv3d(c, 4, 3, padding=1), nn.Conv3d(4, 6, 2, 2)
        self.norm, self.out = nn.GroupNorm(2, 6), nn.Conv3d(10, 2, 3, padding=1)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.silu(self.norm(self.b(a)))
        b = F.interpolate(b, size=a.shape[2:], mode="trilinear", align_corners=False)
        return self.out(torch.cat([a, b], 1))


class SubPixel(nn.Module):
    """ESPCN's pixel shuffle, its inverse, and a bicubic skip connection."""

    def __init__(self, c=3):
        super().__init__()
        self.first, self.norm = nn.Conv2d(4 * c, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last, self.up = nn.Conv2d(6, 2 * 16, 3, padding=1), nn.PixelShuffle(4)
        self.skip = nn.Conv2d(c, 2, 1)

    def forward(self, x):
        y = torch.tanh(self.norm(self.first(F.pixel_unshuffle(x, 2))))
        y = self.up(self.last(y))
        return y + F.interpolate(self.skip(x), scale_factor=2, mode="bicubic", align_corners=False)


# name -> (constructor, spatial shape, batch size)
SEGMENTERS = {
    "unet_bilinear": (BilinearUNet, (17, 14), 3),
    "unet_original": (OriginalUNet, (24, 20), 3),
    "fcn": (FCN, (25, 28), 3),
    "deeplab_v3": (DeepLabV3, (24, 29), 3),
    "pspnet": (PSPNet, (24, 29), 3),
    "lraspp": (LRASPP, (18, 15), 3),
    "vnet": (VNet, (6, 8, 5), 2),
    "sub_pixel": (SubPixel, (10, 8), 3),
}
