"""Any network of torchvision or timm as LinearConv: converted from its weights and fine-tuned, or trained from scratch.

    python models/zoo_xcnn.py --network torchvision:resnet18 --weights resnet18.pth -t rank --budget 0.5
    python models/zoo_xcnn.py --network timm:resnet26d --weights resnet26d.pth -t rank --budget 0.5 --of macs --distill
    python models/zoo_xcnn.py --network timm:resnet26d --weights resnet26d.pth -t lowrank -r 64
    python models/zoo_xcnn.py --network torchvision:vgg11_bn -t rank --init scratch --recipe paper
    python models/zoo_xcnn.py --network torchvision:resnet18 -t dense --recipe paper

The default recipe is `tune`, for trained weights. `paper` is torchvision's recipe for ImageNet, with 256 images per
step. See docs/zoo.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

from training import Recipe, main
from training.library import Library

RECIPE = Recipe(lr=0.1, epochs=90, batch_size=256, milestones=(30, 60), optimizer="sgd", weight_decay=1e-4)

if __name__ == "__main__":
    main(Library(), RECIPE)
