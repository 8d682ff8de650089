"""Base: the paper's small network, four 3x3 convolutions with a 2x2 max-pool after each.

Kahatapitiya & Rodrigo, "Exploiting the Redundancy in Convolutional Filters for Parameter Reduction",
WACV 2021 (arXiv 1907.11432).

    python models/base_xcnn.py -t dense              # "Base" in the paper's Table 1
    python models/base_xcnn.py -t rank -r 1          # "Base-Lr", full rank
    python models/base_xcnn.py -t lowrank -r 10      # "Base-LRr"

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only), and test accuracy on
CIFAR-10, measured with these commands, `--epochs 250` being the default (after the last epoch, one seed, torch 2.14 on
a CPU; results/base_paper_cifar10.json):

                       parameters             FLOPs    accuracy
    dense                 399,626        17,070,070     87.18 %
    rank 1                227,418        59,947,078     86.35 %
    lowrank 10            210,458        24,614,392     86.25 %
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch.nn as nn
import torch.nn.functional as F

from models import scale
from training import Recipe, main


class PoolTo(nn.Module):
    """Average feature maps to `side` x `side`, unless they have this size. A module, so that fx can trace Base."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):  # (N, C, H, W)
        return x if x.shape[-2:] == (self.side, self.side) else F.adaptive_avg_pool2d(x, self.side)


class Base(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU; a 2x2 max-pool closes each stage."""

    stages = ((32,), (64,), (128,), (256,))  # output channels of each stage's convolutions

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        feat = []
        for stage in self.stages:
            layers = []
            for channels in stage:
                out_channels = scale(channels, width)
                layers += [conv(in_channels, out_channels, 3, padding=1)]
                layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
                in_channels = out_channels
            feat.append(nn.Sequential(*layers, nn.MaxPool2d(2, 2)))
        self.feat = nn.Sequential(*feat)
        grid = 32 >> len(self.stages)  # side of the last feature maps for a 32x32 image
        self.pool = PoolTo(grid)
        self.fc = nn.Linear(in_channels * grid**2, num_classes)

    def forward(self, x):  # (N, in_channels, H, W)
        x = self.feat(x)  # (N, C, H / 2^stages, W / 2^stages)
        x = self.pool(x)  # (N, C, grid, grid)
        return self.fc(x.flatten(1))  # (N, num_classes)


RECIPE = Recipe(lr=1e-3, epochs=250, batch_size=50)
DIGITS_RECIPE = Recipe(lr=1e-3, epochs=30, milestones=(20, 27))

if __name__ == "__main__":
    main({"Base": Base}, RECIPE, DIGITS_RECIPE)
