"""Networks as anybody would write them, in plain torch: nothing of the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """He et al. 2016, table 1, 18 layers.

    Args:
        width: channels of the first stage, 64 in the paper.
        n_classes: outputs.
    """

    def __init__(self, width: int = 64, n_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, c_in = [], width
        for i in range(4):
            c_out = width * 2**i
            first = _Block(c_in, c_out, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, _Block(c_out, c_out, 1)))
            c_in = c_out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(c_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _double(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015, padded, three levels deep.

    Args:
        width: channels at full resolution.
        n_classes: outputs per pixel.
    """

    def __init__(self, width: int = 32, n_classes: int = 4) -> None:
        super().__init__()
        a, b, c, d = (width * 2**i for i in range(4))
        self.down1, self.down2, self.down3 = _double(3, a), _double(a, b), _double(b, c)
        self.bottom = _double(c, d)
        self.up3, self.merge3 = nn.ConvTranspose2d(d, c, 2, 2), _double(2 * c, c)
        self.up2, self.merge2 = nn.ConvTranspose2d(c, b, 2, 2), _double(2 * b, b)
        self.up1, self.merge1 = nn.ConvTranspose2d(b, a, 2, 2), _double(2 * a, a)
        self.head = nn.Conv2d(a, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.down3(F.max_pool2d(b, 2))
        y = self.bottom(F.max_pool2d(c, 2))
        y = self.merge3(torch.cat([c, self.up3(y)], 1))
        y = self.merge2(torch.cat([b, self.up2(y)], 1))
        return self.head(self.merge1(torch.cat([a, self.up1(y)], 1)))
