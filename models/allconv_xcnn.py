"""AllConv: All-CNN-C, a network of convolutions only.

Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for Simplicity: The All Convolutional Net",
ICLR 2015 workshop (arXiv 1412.6806).

    python models/allconv_xcnn.py -t dense           # "AllConv" in the paper's Table 1
    python models/allconv_xcnn.py -t rank -r 1       # "AllConv-Lr", full rank
    python models/allconv_xcnn.py -t lowrank -r 10   # "AllConv-LRr"

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only):

                       parameters             FLOPs
    dense               1,369,738       314,621,952
    rank 1                739,450       437,041,392
    lowrank 10            698,938       341,189,922

The paper's table prints 0.440 B and 0.344 B for the last two: its 1x1 LinearConv layer conv8 was padded by 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import torch.nn as nn
import torch.nn.functional as F

from models import scale
from training import Recipe, main


class AllConv(nn.Module):
    """All-CNN-C: strided convolutions in place of pooling, a 1x1 convolution in place of a classifier."""

    def __init__(self, conv=nn.Conv2d, in_channels=3, num_classes=10, width=1.0):
        super().__init__()
        narrow, wide = scale(96, width), scale(192, width)
        self.conv1 = conv(in_channels, narrow, 3, padding=1)
        self.conv2 = conv(narrow, narrow, 3, padding=1)
        self.conv3 = conv(narrow, narrow, 3, stride=2, padding=1)
        self.conv4 = conv(narrow, wide, 3, padding=1)
        self.conv5 = conv(wide, wide, 3, padding=1)
        self.conv6 = conv(wide, wide, 3, stride=2, padding=1)
        self.conv7 = conv(wide, wide, 3, padding=1)
        self.conv8 = conv(wide, wide, 1)
        self.class_conv = nn.Conv2d(wide, num_classes, 1)  # the classifier, plain as in the paper

    def forward(self, x):  # (N, in_channels, H, W)
        x = F.dropout(x, 0.2, self.training)
        x = F.relu(self.conv1(x))  # (N, 96, H, W)
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))  # (N, 96, H/2, W/2)
        x = F.dropout(x, 0.5, self.training)
        x = F.relu(self.conv4(x))  # (N, 192, H/2, W/2)
        x = F.relu(self.conv5(x))
        x = F.relu(self.conv6(x))  # (N, 192, H/4, W/4)
        x = F.dropout(x, 0.5, self.training)
        x = F.relu(self.conv7(x))
        x = F.relu(self.conv8(x))
        x = F.relu(self.class_conv(x))  # (N, num_classes, H/4, W/4)
        return x.mean((2, 3))  # (N, num_classes)


RECIPE = Recipe(lr=1e-4, epochs=350, batch_size=50)
# Without BatchNorm and with a ReLU on the logits, the first thousand steps are slow, and slower with the regulariser.
DIGITS_RECIPE = Recipe(lr=5e-5, epochs=22, batch_size=10, milestones=(20,), reg_weight=0)

if __name__ == "__main__":
    main({"AllConv": AllConv}, RECIPE, DIGITS_RECIPE)
