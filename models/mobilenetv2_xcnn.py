"""MobileNetV2 for small images.

Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv 1801.04381).

    python models/mobilenetv2_xcnn.py -t dense           # "MobileNetV2" in the paper's Table 1
    python models/mobilenetv2_xcnn.py -t rank -r 1       # "MobileNetV2-Lr", full rank
    python models/mobilenetv2_xcnn.py -t lowrank -r 10   # "MobileNetV2-LRr"

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only):

                       parameters             FLOPs
    dense               2,296,922        98,067,446
    rank 1              3,923,434    16,398,385,606
    lowrank 10          1,347,850       931,840,024

Full rank enlarges the network: a depthwise layer with F filters has 9 F weights, but F^2 / 4 coefficients.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch.nn as nn
import torch.nn.functional as F

from models import scale
from models.resnet_xcnn import make_shortcut
from training import Recipe, main


class Block(nn.Module):
    """Inverted residual: 1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 to the output channels (no ReLU)."""

    def __init__(self, conv, in_channels, out_channels, expansion, stride):
        super().__init__()
        channels = expansion * in_channels
        self.conv1 = conv(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(conv, in_channels, out_channels, stride) if stride == 1 else None

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images: the stem and the second stage keep the resolution."""

    # expansion, output channels, blocks, stride of the first block
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),  # stride 2 for ImageNet
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        channels, head = scale(32, width), scale(1280, width)
        self.conv1 = conv(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for expansion, out_channels, depth, stride in self.stages:
            out_channels = scale(out_channels, width)
            for i in range(depth):
                blocks.append(Block(conv, channels, out_channels, expansion, stride if i == 0 else 1))
                channels = out_channels
        self.layers = nn.Sequential(*blocks)
        self.conv2 = conv(channels, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)

    def forward(self, x):  # (N, in_channels, H, W)
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 32, H, W)
        x = self.layers(x)  # (N, 320, H/8, W/8)
        x = F.relu(self.bn2(self.conv2(x)))  # (N, 1280, H/8, W/8)
        return self.linear(x.mean((2, 3)))  # (N, num_classes)


RECIPE = Recipe(lr=1e-3, epochs=250, batch_size=32, milestones=(75, 150, 200))
DIGITS_RECIPE = Recipe(lr=1e-3, epochs=12, batch_size=32, milestones=(8, 11))

if __name__ == "__main__":
    main({"MobileNetV2": MobileNetV2}, RECIPE, DIGITS_RECIPE)
