"""ResNeXt-29 (2x64d) for small images, also 4x64d, 8x64d and 32x4d.

Xie, Girshick, Dollar, Tu & He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017
(arXiv 1611.05431).

    python models/resnext_xcnn.py -t dense           # "ResNeXt-29" in the paper's Table 1
    python models/resnext_xcnn.py -t rank -r 1       # "ResNeXt-29-Lr", full rank
    python models/resnext_xcnn.py -t lowrank -r 10   # "ResNeXt-29-LRr"
    python models/resnext_xcnn.py -t rank -r 1 --network ResNeXt29_32x4d

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only):

                       parameters             FLOPs
    dense               9,128,778     1,423,790,070
    rank 1              6,474,570     5,088,509,942
    lowrank 10          4,707,658     1,691,359,478

The paper's table prints 6.48 M for rank 1, the count with a LinearConv stem; the stem here is plain.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch.nn as nn
import torch.nn.functional as F

from models import scale
from models.resnet_xcnn import Bottleneck, make_stage
from training import Recipe, main


class Block(Bottleneck):
    """ResNet's bottleneck with a grouped 3x3 convolution and half the output channels."""

    expansion = 2


class ResNeXt29(nn.Module):
    """A 1x1 stem and three stages of three blocks; each stage doubles the width of the groups."""

    cardinality: int  # groups of each 3x3 convolution
    group_width: int  # channels of a group in the first stage

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        # `width` scales the groups and keeps their number, so that the channels stay divisible by it.
        c1, c2, c3 = (self.cardinality * scale(self.group_width * factor, width) for factor in (1, 2, 4))
        e, groups, stem = Block.expansion, self.cardinality, scale(64, width)
        self.conv1 = nn.Conv2d(in_channels, stem, 1, bias=False)  # plain, as in the paper
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = make_stage(Block, 3, conv, stem, c1, stride=1, groups=groups)
        self.layer2 = make_stage(Block, 3, conv, e * c1, c2, stride=2, groups=groups)
        self.layer3 = make_stage(Block, 3, conv, e * c2, c3, stride=2, groups=groups)
        self.linear = nn.Linear(e * c3, num_classes)

    def forward(self, x):  # (N, in_channels, H, W)
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H, W)
        x = self.layer1(x)  # (N, 2 c, H, W), c = cardinality * group_width
        x = self.layer2(x)  # (N, 4 c, H/2, W/2)
        x = self.layer3(x)  # (N, 8 c, H/4, W/4)
        return self.linear(x.mean((2, 3)))  # (N, num_classes)


class ResNeXt29_2x64d(ResNeXt29):
    cardinality, group_width = 2, 64


class ResNeXt29_4x64d(ResNeXt29):
    cardinality, group_width = 4, 64


class ResNeXt29_8x64d(ResNeXt29):
    cardinality, group_width = 8, 64


class ResNeXt29_32x4d(ResNeXt29):
    cardinality, group_width = 32, 4


RECIPE = Recipe(lr=1e-3, epochs=250, batch_size=32, milestones=(75, 150, 200))
DIGITS_RECIPE = Recipe(lr=1e-3, epochs=2, batch_size=32, milestones=(1,))

if __name__ == "__main__":
    networks = (ResNeXt29_2x64d, ResNeXt29_4x64d, ResNeXt29_8x64d, ResNeXt29_32x4d)
    main({network.__name__: network for network in networks}, RECIPE, DIGITS_RECIPE)
