"""SqueezeNet 1.0 for small images.

Iandola, Han, Moskewicz, Ashraf, Dally & Keutzer, "SqueezeNet: AlexNet-Level Accuracy with 50x Fewer Parameters and
<0.5MB Model Size", 2016 (arXiv 1602.07360).

    python models/squeezenet_xcnn.py -t dense            # "SqueezeNet" in the paper's Table 2
    python models/squeezenet_xcnn.py -t rank -r 1        # full rank, not in the paper
    python models/squeezenet_xcnn.py -t lowrank -r 10    # "SqueezeNet-LRr"

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only):

                       parameters             FLOPs
    dense                 729,034        68,637,696
    rank 1                513,994       127,343,616
    lowrank 10            465,354        79,391,616

The paper's table prints 0.49 M for lowrank 10, with the same FLOPs. `conv` builds the 3x3 convolutions of all eight
fire modules. Both printed figures result only with two of the modules, and not with a plain stem
(experiments/table2/counts.py). The paper prints no recipe: initial weights, dropout and recipe are this project's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch
import torch.nn as nn
import torch.nn.functional as F

from models import scale
from training import Recipe, main


class Fire(nn.Module):
    """Fire module: 1x1 to few channels, from which 1x1 and 3x3 convolutions compute half of the output each."""

    def __init__(self, conv, in_channels, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = conv(squeezed, expanded, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.squeeze(x))
        return self.relu(torch.cat((self.expand1x1(x), self.expand3x3(x)), 1))  # (N, 2 expanded, H, W)


class SqueezeNet(nn.Module):
    """A stem that keeps the resolution, eight fire modules with three max-pools, and a 1x1 classifier."""

    stages = (  # output channels of squeeze and of each expand convolution; each stage begins with a pool
        ((16, 64), (16, 64), (32, 128)),
        ((32, 128), (48, 192), (48, 192), (64, 256)),
        ((64, 256),),
    )

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        channels = scale(96, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        fires = []
        for stage in self.stages:
            fires.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            for squeezed, expanded in stage:
                squeezed, expanded = scale(squeezed, width), scale(expanded, width)
                fires.append(Fire(conv, channels, squeezed, expanded))
                channels = 2 * expanded
        self.fires = nn.Sequential(*fires)
        self.class_conv = nn.Conv2d(channels, num_classes, 1)
        for layer in self.modules():  # without BatchNorm, torch's default weights let activations vanish
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x):  # (N, in_channels, H, W)
        x = self.relu(self.conv1(x))  # (N, 96, H, W)
        x = self.fires(x)  # (N, 512, H/8, W/8)
        x = F.dropout(x, 0.5, self.training)
        return self.class_conv(x).mean((2, 3))  # (N, num_classes)


# Adam's usual 1e-3 is too high: without BatchNorm the network stays at chance for many epochs of the digits.
RECIPE = Recipe(lr=3e-4, epochs=250, batch_size=50)
DIGITS_RECIPE = Recipe(lr=3e-4, epochs=20, milestones=(14, 18))

if __name__ == "__main__":
    main({"SqueezeNet": SqueezeNet}, RECIPE, DIGITS_RECIPE)
