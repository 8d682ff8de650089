"""VGG11 with BatchNorm and one linear layer, for small images.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(arXiv 1409.1556), configuration A.

    python models/vgg_xcnn.py -t dense               # "VGG11" in the paper's Table 1
    python models/vgg_xcnn.py -t rank -r 1           # "VGG11-Lr", full rank
    python models/vgg_xcnn.py -t lowrank -r 10       # "VGG11-LRr"

Expected counts for 3x32x32 images and 10 classes, FLOPs by the paper's convention (--count-only), and test accuracy on
CIFAR-10, measured with these commands and `--epochs 100` (after the last epoch, one seed, torch 2.14 on a CPU;
results/vgg11_paper_cifar10.json):

                       parameters             FLOPs    accuracy
    dense               9,231,114       170,568,694    not yet
    rank 1              4,922,282     2,397,909,142     89.83 %
    lowrank 10          4,649,770       350,112,520    not yet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

from models.base_xcnn import Base
from training import Recipe, main


class VGG11(Base):
    """Base, deeper and wider: eight convolutions in five stages, which reduce 32x32 pixels to one."""

    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))


RECIPE = Recipe(lr=1e-3, epochs=250, batch_size=50)
DIGITS_RECIPE = Recipe(lr=1e-3, epochs=20, milestones=(14, 18))

if __name__ == "__main__":
    main({"VGG11": VGG11}, RECIPE, DIGITS_RECIPE)
