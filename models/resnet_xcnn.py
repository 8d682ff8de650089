"""ResNet-18 for small images, also 34, 50, 101 and 152.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385).

    python models/resnet_xcnn.py -t dense            # "ResNet-18" in the paper's Table 1
    python models/resnet_xcnn.py -t rank -r 1        # "ResNet-18-Lr", full rank
    python models/resnet_xcnn.py -t lowrank -r 10    # "ResNet-18-LRr"
    python models/resnet_xcnn.py -t rank -r 1 --network ResNet50

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only):

                       parameters             FLOPs
    dense              11,173,962       557,885,430
    rank 1              6,029,546     3,006,553,238
    lowrank 10          5,642,346       775,180,424

The paper's table prints 3.074 B for rank 1: it counts biases that the LinearConv layers do not have.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch.nn as nn
import torch.nn.functional as F

from models import scale
from training import Recipe, main


def make_shortcut(conv, in_channels, out_channels, stride):
    """Return the identity if the shapes agree, else a 1x1 convolution with BatchNorm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Residual block with two 3x3 convolutions."""

    expansion = 1  # output channels / channels

    def __init__(self, conv, in_channels, channels, stride):
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = make_shortcut(conv, in_channels, channels, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """Residual block: 1x1 to fewer channels, 3x3 (grouped in ResNeXt), 1x1 to the output channels."""

    expansion = 4

    def __init__(self, conv, in_channels, channels, stride, groups=1):
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = conv(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(conv, in_channels, out_channels, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def make_stage(block, depth, conv, in_channels, channels, stride, **block_options):
    """Return a sequence of `depth` blocks; only the first block has the stride."""
    out_channels = block.expansion * channels
    blocks = [block(conv, in_channels, channels, stride, **block_options)]
    blocks += [block(conv, out_channels, channels, 1, **block_options) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """A 3x3 stem without stride or pooling, then four stages of `depths` blocks; see the subclasses."""

    block: type[nn.Module]
    depths: tuple[int, int, int, int]

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        block, depths, e = self.block, self.depths, self.block.expansion
        c1, c2, c3, c4 = (scale(channels, width) for channels in (64, 128, 256, 512))
        self.conv1 = conv(in_channels, c1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = make_stage(block, depths[0], conv, c1, c1, stride=1)
        self.layer2 = make_stage(block, depths[1], conv, e * c1, c2, stride=2)
        self.layer3 = make_stage(block, depths[2], conv, e * c2, c3, stride=2)
        self.layer4 = make_stage(block, depths[3], conv, e * c3, c4, stride=2)
        self.linear = nn.Linear(e * c4, num_classes)

    def forward(self, x):  # (N, in_channels, H, W)
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H, W)
        x = self.layer1(x)  # (N, 64 e, H, W), e the block's expansion
        x = self.layer2(x)  # (N, 128 e, H/2, W/2)
        x = self.layer3(x)  # (N, 256 e, H/4, W/4)
        x = self.layer4(x)  # (N, 512 e, H/8, W/8)
        return self.linear(x.mean((2, 3)))  # (N, num_classes)


class ResNet18(ResNet):
    block, depths = BasicBlock, (2, 2, 2, 2)


class ResNet34(ResNet):
    block, depths = BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    block, depths = Bottleneck, (3, 4, 6, 3)


class ResNet101(ResNet):
    block, depths = Bottleneck, (3, 4, 23, 3)


class ResNet152(ResNet):
    block, depths = Bottleneck, (3, 8, 36, 3)


# The learning rate is the published one, which is very high for Adam; --lr 1e-3 is the usual choice.
RECIPE = Recipe(lr=0.1, epochs=250, batch_size=50, milestones=(75, 150, 200))
DIGITS_RECIPE = Recipe(lr=1e-3, epochs=10, milestones=(7, 9))

if __name__ == "__main__":
    networks = (ResNet18, ResNet34, ResNet50, ResNet101, ResNet152)
    main({network.__name__: network for network in networks}, RECIPE, DIGITS_RECIPE)
